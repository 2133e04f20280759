"""A real package through a gate, in a run and by hand, and back: stages and commands on MLflow."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import bipline
from bipline.base.errors import InvalidInput, Refused
from bipline.delivery.export import PackageContents
from bipline.delivery.registries.journal_mlflow import MlflowRegistry
from bipline.delivery.registries.mlflow_service import prepare_tracking, tracking_uri
from bipline.settings.compress import PromoteSettings
from bipline.stages.export import Account
from bipline.stages.promote import gate_of, parts_of, promote, registry_address
from bipline.stages.stage import Context
from bipline.storage.handle import Handle
from bipline.storage.local_store import LocalStore
from bipline.values.promotion import Promotion
from bipline.values.summary import Registration
from bipline.values.verdict import Verdict
from tests.command import Outcome, run
from tests.delivery.conftest import write
from tests.mlflow_tracked import tracked_at

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
EVALUATED = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
REFUSING = "limits:\n  - {figure: parameters, at_most: 3}\n"
PASSING = "limits:\n  - {figure: parameters_ratio, at_most: 1.0}\n"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promotion")
    prepare_tracking(folder, "compress")
    return folder


@pytest.fixture(scope="module")
def other(halved: PackageContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another package: of half the model."""
    out = tmp_path_factory.mktemp("other") / "package"
    write(halved, out)
    return out


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A gate that refuses."""
    path = tmp_path / "gate.yaml"
    path.write_text(REFUSING, encoding="utf-8")
    return path


class Registered:
    """One registered model of its own, what a run does with a package, and the commands."""

    def __init__(self, state: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
        self.state, self.name, self._capfd = state, name, capfd
        self.registry = MlflowRegistry(name, tracking_uri(state))

    def run(
        self, package: Path, contents: PackageContents, alias: str = "candidate",
        gate: str | Path | None = None, also: tuple[str, ...] = (),
    ) -> Registration:  # fmt: skip
        """The promote stage of a run, with MLflow pointed where the run's tracker is."""
        import mlflow

        settings = PromoteSettings(name=self.name, alias=alias, gate=gate and str(gate), also=also)
        account = Account(contents.plan, contents.records, None, {})
        context = Context(LocalStore(self.state / "store"))
        mlflow.set_experiment("compress")
        return promote(
            context, Handle.to_directory(package), account, settings, gate_of(settings), {}, {},
            EVALUATED,
        )  # fmt: skip

    def command(self, *arguments: str | Path) -> Outcome:
        return run(self._capfd, *arguments, "--state", self.state)

    @property
    def aliases(self) -> dict[str, str]:
        return self.registry.aliases()


@pytest.fixture
def registered(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Iterator[Registered]:
    with tracked_at(tracking_uri(state), "promotion"):
        yield Registered(state, f"tiny-{tmp_path.name}", capfd)


def test_without_a_gate_a_run_ends_at_candidate(
    registered: Registered, package: Path, contents: PackageContents
) -> None:
    told = registered.run(package, contents)
    assert (told.alias, told.verdict, told.refusal) == ("candidate", None, None)
    assert registered.aliases == {"candidate": "1"}
    assert registered.registry.find("1").evaluated_at == EVALUATED


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alias": "production"}, "needs a gate"),
        ({"gate": "strict"}, "decides about no alias"),
        ({"alias": "previous-production", "gate": "strict"}, "kept for the way back"),
        ({"name": "a.promotions"}, "kept for journals"),
        ({"alias": "production", "gate": "strickt"}, "ready gates"),
    ],
)
def test_what_no_run_may_ask(
    registered: Registered, package: Path, contents: PackageContents, settings: Any, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        gate_of(PromoteSettings(**{"name": registered.name, **settings}))


def test_the_stage_itself_asks_for_a_gate(
    registered: Registered, package: Path, contents: PackageContents
) -> None:
    settings = PromoteSettings(name=registered.name, alias="production")
    account = Account(contents.plan, contents.records, None, {})
    context = Context(LocalStore(registered.state / "store"))
    with pytest.raises(InvalidInput, match="needs a gate"):
        promote(context, Handle.to_directory(package), account, settings, None, {}, {})


def test_a_gate_decides_in_the_same_run(
    registered: Registered, package: Path, contents: PackageContents, other: Path,
    halved: PackageContents, gate: Path,
) -> None:  # fmt: skip
    passed = registered.run(package, contents, "production", "lenient")
    assert passed.alias == "production" and passed.refusal is None
    assert passed.verdict and passed.verdict.passed and passed.verdict.champion is None
    refused = registered.run(other, halved, "production", gate)
    assert refused.alias == "candidate"
    assert refused.refusal and "gate gate.yaml passed 2 of 3 checks" in refused.refusal
    assert refused.verdict and refused.verdict.champion
    assert refused.verdict.champion.version == "1"
    assert registered.aliases == {"candidate": "2", "production": "1"}
    again = registered.run(package, contents, "production", gate)
    assert (again.alias, again.refusal, again.reused) == ("production", None, True)
    assert Registration.model_validate_json(refused.model_dump_json()) == refused


def test_by_hand_and_back(
    registered: Registered, package: Path, contents: PackageContents, other: Path,
    halved: PackageContents, tmp_path: Path,
) -> None:  # fmt: skip
    for each, made in ((package, contents), (other, halved)):
        registered.run(each, made)
    passing = tmp_path / "passing.yaml"
    passing.write_text(PASSING, encoding="utf-8")
    name, json_file = registered.name, tmp_path / "promotion.json"
    first = registered.command(
        "promote", f"{name}/1", "--to", "production", "--gate", passing, "--json", json_file
    )
    assert first.code == 0 and f"{name}: version 1 is now production" in first.output
    value = json.loads(json_file.read_text())
    assert value.pop("command") == "promote"
    assert Promotion.model_validate_json(json.dumps(value)).verdict
    second = registered.command("promote", name, "--to", "production", "--gate", passing)
    assert "version 2 is now production; before it version 1" in second.output
    assert registered.aliases == {
        "candidate": "2", "production": "2", "previous-production": "1",
    }  # fmt: skip
    back = registered.command("rollback", f"{name}@production", "--reason", "slow", "--by", "Ada")
    assert back.code == 0 and "version 1 is now production" in back.output
    again = registered.command("rollback", f"{name}@production", "--from", "2")
    assert again.code == 0 and "is already production" in again.output
    registered.command("rollback", f"{name}@production").assert_one_line(1, "no version was")
    told = registered.command("history", name)
    assert "rollback" in told.output and "Ada: slow" in told.output
    assert registered.aliases == {"candidate": "2", "production": "1"}
    client = bipline.history(name, state=registered.state)
    assert [line.entry.action for line in client.lines] == ["promote", "promote", "rollback"]


def test_a_refusal_by_hand_names_every_check(
    registered: Registered, package: Path, contents: PackageContents, gate: Path
) -> None:
    registered.run(package, contents)
    refused = registered.command("promote", registered.name, "--to", "production", "--gate", gate)
    assert refused.code == 1
    assert "fail        parameters: " in refused.output
    assert "is not made production: gate gate.yaml passed 2 of 3 checks; fail: parameters: " in (
        refused.errors
    )
    assert registered.aliases == {"candidate": "1"}


def test_an_override_stays_for_ever(
    registered: Registered, package: Path, contents: PackageContents, gate: Path
) -> None:
    import mlflow

    registered.run(package, contents)
    asked = ["promote", registered.name, "--to", "production", "--gate", gate, "--override"]
    registered.command(*asked, "--reason", "x").assert_one_line(2, "--by NAME")
    registered.command(*asked, "--by", "Ada").assert_one_line(2, "--reason TEXT")
    registered.command(*asked[:-1], "--by", "Ada").assert_one_line(2, "give --override too")
    registered.command(*asked, "--reason", " ", "--by", "Ada").assert_one_line(2, "reason")
    assert registered.aliases == {"candidate": "1"}
    done = registered.command(*asked, "--reason", "shown to guests", "--by", "Ada")
    assert done.code == 0 and "overridden by Ada" in done.output
    entry = registered.registry.entries()[1]
    assert entry.override and (entry.override.reason, entry.by) == ("shown to guests", "Ada")
    assert entry.passed is False
    version = registered.registry.find("1")
    run_ = mlflow.MlflowClient().get_run(version.run_id)
    text = mlflow.artifacts.load_text(
        f"{run_.info.artifact_uri}/verdicts/{str(entry.verdict_digest)[:16]}.json"
    )
    kept = Verdict.model_validate_json(text)
    assert kept.digest == entry.verdict_digest and kept.override == entry.override
    assert (
        "overridden by Ada: shown to guests"
        in registered.command("history", registered.name).output
    )


def test_a_damaged_copy_is_neither_promoted_nor_gone_back_to(
    registered: Registered, package: Path, contents: PackageContents, other: Path,
    halved: PackageContents,
) -> None:  # fmt: skip
    registered.run(package, contents, "production", "lenient")
    registered.run(other, halved)
    name = registered.name
    bipline.promote(f"{name}/2", "production", gate="lenient", state=registered.state,
                    override=True, reason="a test", by="Ada")  # fmt: skip
    stored = Path(registered.registry.find("1").location.removeprefix("file://"))
    weights = stored / "hf" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(Refused, match=r"model\.safetensors"):
            bipline.rollback(f"{name}@production", state=registered.state)
        with pytest.raises(Refused, match=r"model\.safetensors"):
            bipline.promote(f"{name}/1", "staging", gate="lenient", state=registered.state)
    finally:
        weights.write_bytes(whole)
    assert registered.aliases["production"] == "2" and "staging" not in registered.aliases
    assert bipline.rollback(f"{name}@production", state=registered.state).version == "1"


def test_a_champion_that_cannot_be_read_is_one_without_metrics(
    registered: Registered, package: Path, contents: PackageContents, other: Path,
    halved: PackageContents,
) -> None:  # fmt: skip
    import mlflow

    registered.run(package, contents, "production", "lenient")
    mlflow.MlflowClient().delete_model_version_tag(registered.name, "1", "package_digest")
    refused = registered.run(other, halved, "production", "lenient")
    assert refused.verdict and refused.verdict.champion
    assert refused.verdict.champion.package_digest is None
    [check] = [c for c in refused.verdict.checks if c.name.endswith("against champion")]
    assert check.answer == "cannot tell" and "has no record" in check.sentence
    assert registered.aliases["production"] == "1"


def test_intervals_are_those_of_the_packages_own_items(
    registered: Registered, package: Path, contents: PackageContents, tmp_path: Path
) -> None:
    path = tmp_path / "interval.yaml"
    limit = "{figure: perplexity.held-out, against: dense, worse_at_most: 1000.0}"
    path.write_text(f"limits:\n  - {limit}\n", encoding="utf-8")
    told = registered.run(package, contents, "production", path)
    assert told.verdict and told.verdict.passed, told.refusal
    numbers = told.verdict.checks[-1].numbers
    dense, pruned = (contents.records[name].perplexity["held-out"] for name in ("dense", "pruned"))
    low, loss, high = (float(numbers[key] or 0) for key in ("loss_low", "loss", "loss_high"))
    assert low < loss < high
    assert loss == pytest.approx(pruned.value / dense.value - 1, rel=1e-6, abs=1e-9)


def test_a_registry_that_is_not_there(registered: Registered, tmp_path: Path) -> None:
    registered.command("history", "nobody").assert_one_line(2, "knows no model 'nobody'")
    absent = f"sqlite:///{tmp_path}/none.db"
    registered.command("history", "a", "--registry", absent).assert_one_line(2, "no registry at")
    assert not (tmp_path / "none.db").exists()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{held.getsockname()[1]}"
    asked = ["promote", "a", "--to", "production", "--gate", "lenient", "--registry", down]
    registered.command(*asked).assert_one_line(3, down)


def test_names_of_versions() -> None:
    assert parts_of("a", "@candidate") == ("a", "@candidate")
    assert parts_of("models:/a@b", "") == ("a", "@b")
    assert parts_of("a/3", "") == ("a", "3")
    for odd in ("a@", "@a", "a/", "/3"):
        with pytest.raises(InvalidInput, match="write NAME"):
            parts_of(odd, "")


def test_which_registry_is_meant(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    usual = state / "nowhere"
    assert registry_address("http://a", state, usual) == "http://a"
    assert registry_address(None, state, usual) == f"sqlite:///{state}/mlflow/mlflow.db"
    for odd in ("nonsense", "s3://bucket/x"):
        with pytest.raises(InvalidInput, match="give MLflow's address"):
            registry_address(odd, None, usual)
    with pytest.raises(InvalidInput, match="no registry there"):
        registry_address(None, None, usual)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert registry_address(None, None, usual) is None
    assert registry_address(None, state, usual) == f"sqlite:///{state}/mlflow/mlflow.db"
