"""The remote path: ZenML's server, S3, MLflow on PostgreSQL, and steps that run as pods would."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kfp_stand_in import Attempt
from tests.kubeflow_cloud import Cloud, running_cloud
from tests.layers import ROOT
from tests.quality.asking import written
from tests.storage.server import refusing
from tests.tiny import tiny_model
from tests.zenml_server import PASSWORD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with running_cloud(tmp_path_factory.mktemp("cloud")) as found:
        yield found


@dataclass(frozen=True)
class Whole:
    """A run with parallel parts, the first of which was killed: what it told, and what S3 got."""

    ended: subprocess.CompletedProcess[str]
    pods: list[Attempt]
    blocks: list[str]
    summary: dict[str, Any]

    def of(self, step: str) -> list[Attempt]:
        return [each for each in self.pods if each.step == step]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("deep") / "model", "llama-gqa", num_hidden_layers=5)


def sections_of(cloud: Cloud, parts: int) -> dict[str, Any]:
    """What both forms of the run say: two ways to divide one and the same work."""
    protocol = {"seqlen": 16, "batch_size": 4}
    return {
        "tasks": {"rows": str(cloud.folder / "rows.jsonl")},
        "calibrate": {"samples": 32, "seqlen": 16},
        "score": {"criterion": "llm-bip-glu", "parts": parts},
        "evaluate": {"tasks": ("rows",), "protocol": protocol, "parts": parts},
    }


@pytest.fixture(scope="module")
def whole(cloud: Cloud, deep: Path) -> Whole:
    rows = [{"query": f"{n}:" + "a" * n, "choices": ["b", "cc"], "gold": n % 2} for n in range(9)]
    written(cloud.folder / "rows.jsonl", rows)
    cloud.configure(deep, **sections_of(cloud, parts=2))
    killing = Killing()
    cloud.s3.before = killing.before
    cloud.kubeflow.kills = dict.fromkeys(("score_part_1", "score_part_2"), killing.kill)
    try:
        ended = cloud.compress("--json", "summary.json")
    finally:
        cloud.s3.before, cloud.kubeflow.kills = None, {}
    assert ended.returncode == 0, (ended, cloud.kubeflow.told)
    summary = json.loads((cloud.folder / "summary.json").read_text())
    return Whole(ended, list(cloud.kubeflow.attempts), killing.blocks, summary)


class Killing:
    """Kills the first pod of a scoring part whose block and states lie in S3."""

    def __init__(self) -> None:
        self.work = ""
        self.blocks: list[str] = []
        self.states, self.sent, self.recorded, self.killed = (threading.Event() for _ in range(4))

    def before(self, method: str, path: str) -> None:
        """The first record that comes after the states it names is the last that S3 is given."""
        _, _, rest = path.partition("/work/score_part/")
        work, _, name = rest.partition("/")
        if not name or self.work not in ("", work):
            return
        self.work = work
        if method == "PUT" and name.startswith("block-"):
            self.blocks.append(name)
        if self.sent.is_set():
            self.recorded.set()
            self.killed.wait(60)  # whatever the pod still asks of S3 finds it killed
        elif method == "PUT" and name.startswith("states"):
            self.states.set()
        elif self.states.is_set() and name.startswith("block-") and name.endswith(".json"):
            self.sent.set()

    def kill(self, folder: Path) -> bool:
        """Whether this pod is the one, which has its work in its own folder."""
        chosen = self.recorded.is_set() and not self.killed.is_set()
        if chosen and any(folder.rglob(f"{self.work}.work")):
            self.killed.set()
            return True
        return False


def test_the_pipeline_goes_through_to_a_candidate(cloud: Cloud, whole: Whole) -> None:
    from mlflow import MlflowClient

    assert whole.summary["status"] == "completed"
    assert {each.step for each in whole.pods} == {each["name"] for each in whole.summary["stages"]}
    client = MlflowClient(cloud.mlflow)
    version = client.get_model_version_by_alias("remote", "candidate")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    for each in whole.pods:
        assert each.memory <= each.limit
        assert PASSWORD not in each.log.read_text()
    assert PASSWORD not in whole.ended.stdout + whole.ended.stderr
    [run] = cloud.kubeflow.runs.values()
    compiled = json.dumps(run["pipeline_spec"])
    assert not any(secret in compiled for secret in (PASSWORD, cloud.client["ZENML_STORE_API_KEY"]))
    assert "API_TOKEN" not in compiled


def test_a_killed_pod_is_run_again_and_goes_on_from_s3(whole: Whole) -> None:
    parts = [whole.of(f"score_part_{number}") for number in (1, 2)]
    [killed] = [each for each in parts if len(each) > 1]
    assert [each.code for each in killed] == [-9, 0]
    # Pods tell no progress; a run that began anew would send its first blocks once more.
    assert len(whole.blocks) == len(set(whole.blocks)) > 1, whole.blocks


def test_parts_run_side_by_side_and_meet(whole: Whole) -> None:
    parts = [each for each in whole.pods if "_part_" in each.step]
    for stage in ("score", "evaluate"):
        pods = [each for each in parts if each.step.startswith(stage)]
        assert any(one.ran_beside(other) for one, other in combinations(pods, 2)), stage
    for name in ("score", "evaluate_dense", "evaluate_pruned"):
        [met] = whole.of(name)
        assert met.began >= max(each.ended for each in parts if each.step.startswith(f"{name}_"))


def test_a_local_run_without_parts_has_the_same_bytes(
    cloud: Cloud, whole: Whole, deep: Path
) -> None:
    """No line of the pipeline differs: plan, pruned model and records are those of this machine."""
    cloud.configure(deep, **sections_of(cloud, parts=1))
    ended = cloud.bipline("compress", "compress.yaml", "--local", "--json", "local.json")
    assert ended.returncode == 0, ended
    local = json.loads((cloud.folder / "local.json").read_text())
    assert not [each for each in local["stages"] if "part" in each["name"]]
    assert whole.summary["plan"] == local["plan"]
    for name in ("dense", "pruned"):
        assert whole.summary["records"][name] == local["records"][name], name
        assert local["records"][name]["tasks"]["rows"]["n"] == 9


def test_a_stack_is_applied_once(cloud: Cloud) -> None:
    again = cloud.bipline("stack", "apply", cloud.write_stack())
    assert again.returncode == 0, again
    assert {line.split()[0] for line in again.stdout.splitlines() if line.strip()} == {"unchanged"}


def test_a_failing_step_is_a_failed_run_with_its_own_error(cloud: Cloud, llama: Path) -> None:
    """The calibration text is the one that is reported: its step refuses that, in every attempt."""
    applied = cloud.bipline("stack", "apply", cloud.write_stack(retries=1))
    assert "updated   orchestrator" in applied.stdout, applied
    sections = {"score": {"criterion": "llm-bip-glu"}, "calibrate": {"samples": 8, "seqlen": 16}}
    cloud.configure(llama, **sections)
    same = cloud.folder / "held-out.txt"
    (cloud.folder / "calibration.txt").write_text(same.read_text())
    ended = cloud.compress()
    assert ended.returncode == 2, (ended, cloud.kubeflow.told)
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("error: step calibrate: ") and "13-grams" in line
    ran = [(each.step, each.code == 0) for each in cloud.kubeflow.attempts]
    assert ran == [("resolve", True), ("calibrate", False), ("calibrate", False)]
    listed = cloud.bipline("runs", "--stack", "cloud")
    assert listed.stdout.splitlines()[-4:] and "failed" in listed.stdout


def test_a_schedule_is_a_recurring_run_that_can_be_changed_and_removed(cloud: Cloud) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.kubeflow_programs", "scheduled"], cwd=cloud.folder,
        env=cloud.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    crons = [[each["trigger"]["cron_schedule"]["cron"] for each in step] for step in told]
    assert crons == [["0 3 * * *"], ["0 4 * * *"], []]


@dataclass(frozen=True)
class Broken:
    """What is wrong with a stack: of a component's key, what is said of it, and what mends it."""

    component: str
    holder: str
    key: str
    value: str
    said: str
    mend: str


AWAY = "http://127.0.0.1:9"
BROKEN = {
    "server down": Broken(
        "orchestrator", "orchestrator", "kubeflow_hostname", AWAY, "does not answer",
        "start Kubeflow Pipelines",
    ),
    "image missing": Broken(
        "container_registry", "orchestrator", "image", "HOST/bipline:2", "bipline:2 is not there",
        "build and push it",
    ),
    "bucket missing": Broken(
        "artifact_store", "artifact_store", "path", "s3://absent/zenml", "bucket",
        "create the bucket absent",
    ),
    "wrong credentials": Broken(
        "artifact_store", "artifact_store", "key", "wrong", "",
        "the credentials may not write to s3://",
    ),
    "tracker down": Broken(
        "experiment_tracker", "experiment_tracker", "tracking_uri", AWAY, "does not answer",
        "start the MLflow server",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(cloud: Cloud, llama: Path) -> dict[str, Any]:
    """What the doctor and a run say of each, in one process; the stack is well again after it."""
    cloud.configure(llama)
    whole = yaml.safe_load(cloud.write_stack().read_text())
    host = cloud.kubeflow.address.removeprefix("http://").partition("/")[0]
    files = {}
    for name, each in BROKEN.items():
        changed = deepcopy(whole)
        held = changed["components"][each.holder]["configuration"]
        held[each.key] = each.value.replace("HOST", host)
        files[name] = str(cloud.folder / f"{name}.yaml")
        Path(files[name]).write_text(yaml.safe_dump(changed))
    plain = {"name": "plain", "components": {**whole["components"]}}
    plain["components"]["orchestrator"] = {"flavor": "local"}
    (cloud.folder / "plain.yaml").write_text(yaml.safe_dump(plain))
    runs = len(cloud.kubeflow.runs)
    cloud.s3.proxy = refusing("wrong")
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.kubeflow_programs", "broken", json.dumps(files)],
            cwd=cloud.folder, env=cloud.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        cloud.s3.proxy = None
    assert ended.returncode == 0, ended
    assert len(cloud.kubeflow.runs) == runs, "nothing was submitted"
    return dict(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", BROKEN)
def test_the_doctor_names_what_is_broken_and_a_run_says_it_before_any_work(
    told: dict[str, Any], name: str
) -> None:
    broken = BROKEN[name]
    [found] = told[name]["examined"]
    assert found["name"] == broken.component
    assert broken.said in found["said"] and broken.mend in found["mend"], found
    assert told[name]["kind"] == "EnvironmentFailure"
    assert broken.mend in told[name]["error"] or broken.said in told[name]["error"]
    assert "\n" not in told[name]["error"]


def test_what_no_stack_can_do_is_said_before_any_work(told: dict[str, Any]) -> None:
    assert told["well"] == []
    for name, said in {
        "GPU pool absent": "needs a GPU and the stack has no pool with one; set compute.device",
        "schedule": "is run by an orchestrator that keeps no schedule (local); give --stack NAME",
        "stack absent": "not registered; known: ",
    }.items():
        assert told[name]["kind"] == "InvalidInput", told[name]
        assert said in told[name]["error"] and "\n" not in told[name]["error"], told[name]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ZENML_STORE_URL", AWAY, "start the server"),
        ("ZENML_STORE_API_KEY", "ZENKEY_wrong", "log in"),
    ],
)
def test_a_server_that_is_away_or_refuses_is_one_line(
    cloud: Cloud, variable: str, value: str, said: str
) -> None:
    environment = {**cloud.environment, variable: value}
    if variable == "ZENML_STORE_API_KEY":  # without the token that is kept from before
        environment["ZENML_CONFIG_PATH"] = str(cloud.folder / "stranger")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.kubeflow_programs", "away"], cwd=cloud.folder,
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended
    doctor, run = json.loads(ended.stdout.splitlines()[-1])
    assert [each["name"] for each in doctor] == ["zenml"] and said in doctor[0]["mend"]
    assert run["kind"] == "EnvironmentFailure" and "\n" not in run["error"], run


def test_root_is_unchanged() -> None:
    """Nothing of a run lies in the project's folder."""
    assert not (ROOT / ".zen").exists()
