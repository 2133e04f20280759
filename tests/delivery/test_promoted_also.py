"""A package in several registries at once, by the stage and by the commands: each for itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest

import bipline
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.delivery.export import PackageContents
from bipline.delivery.registries.addresses import open_place
from bipline.delivery.registries.mlflow_service import prepare_tracking, tracking_uri
from bipline.model.opening import open_checkpoint
from bipline.settings.compress import CompressSettings, PromoteSettings
from bipline.settings.loading import validated
from bipline.stages.other_registries import check_others
from bipline.stages.resolve import resolve_model
from bipline.values.summary import Registration
from tests.delivery.test_promotion import PASSING, REFUSING, Registered
from tests.hub_writing import READER, WritingHub, writing_hub
from tests.mlflow_tracked import tracked_at
from tests.storage.server import Server, free_port, running_server

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
BUCKET, HUB = "served", "hf:acme"
PLACE = f"s3://{BUCKET}/models"
SECRET = "a-very-secret-key"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("also")
    prepare_tracking(folder, "compress")
    return folder


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, WritingHub]]:
    with running_server() as server, writing_hub(tmp_path_factory.mktemp("hub")) as hub:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield server, hub


@pytest.fixture
def registered(
    serving: tuple[Server, WritingHub],
    state: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Registered]:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    serving[0].behave()
    serving[1].behave()
    with tracked_at(tracking_uri(state), "also"):
        yield Registered(state, f"tiny-{tmp_path.name}", capfd)


def test_in_one_run_each_for_itself(
    registered: Registered,
    serving: tuple[Server, WritingHub],
    package: Path,
    contents: PackageContents,
) -> None:
    """The hub has no such repository: that is told, and hides neither MLflow nor S3."""
    told = registered.run(package, contents, "production", "lenient", also=(HUB, PLACE))
    assert told.alias == "production" and told.refusal is None
    hub, place = told.also
    assert (hub.address, hub.exit_code, hub.promotion) == (HUB, 2, None)
    assert hub.error and "no such repository" in hub.error
    assert place.promotion and place.promotion.version == "1" and place.error is None
    assert Registration.model_validate_json(told.model_dump_json()) == told
    assert open_place(registered.name, PLACE).aliases() == {"candidate": "1", "production": "1"}


def test_what_was_promoted_is_a_model_again_by_its_address(
    registered: Registered, package: Path, contents: PackageContents, tmp_path: Path
) -> None:
    [told] = registered.run(package, contents, "production", "lenient", also=(PLACE,)).also
    address = f"{PLACE}/{registered.name}/{told.location}/hf"
    resolved = resolve_model(address, tmp_path)
    assert resolved.tensor_digest == open_checkpoint(package / "hf").tensor_digest


@pytest.mark.slow
def test_of_the_hub_too(
    registered: Registered,
    serving: tuple[Server, WritingHub],
    package: Path,
    contents: PackageContents,
    tmp_path: Path,
) -> None:
    serving[1].make(f"acme/{registered.name}")
    [told] = registered.run(package, contents, "production", "lenient", also=(HUB,)).also
    assert told.promotion and told.error is None
    resolved = resolve_model(f"hf:acme/{registered.name}@production", tmp_path)
    assert resolved.tensor_digest == open_checkpoint(package / "hf").tensor_digest


def test_by_hand(
    registered: Registered, package: Path, contents: PackageContents, tmp_path: Path
) -> None:
    registered.run(package, contents)
    gate, json_file = tmp_path / "gate.yaml", tmp_path / "done.json"
    gate.write_text(PASSING, encoding="utf-8")
    asked = ["promote", registered.name, "--to", "production", "--gate", gate, "--also", PLACE]
    done = registered.command(*asked, "--json", json_file)
    assert done.code == 0, done.errors
    assert f"{PLACE}: {registered.name}: version 1 is now production" in done.output
    [also] = json.loads(json_file.read_text())["also"]
    assert also["address"] == PLACE and also["promotion"]["alias"] == "production"
    there = ["--registry", PLACE]
    told = registered.command("history", registered.name, *there)
    assert told.code == 0 and "promote" in told.output
    refusing = tmp_path / "refusing.yaml"
    refusing.write_text(REFUSING, encoding="utf-8")
    asked = ["promote", registered.name, "--to", "staging", "--gate", refusing, *there]
    refused = registered.command(*asked)
    assert refused.code == 1 and "is not made staging" in refused.errors
    back = registered.command("rollback", f"{registered.name}@production", *there)
    back.assert_one_line(1, "no version was production before")
    nobody = registered.command("history", "nobody", *there)
    nobody.assert_one_line(2, f"the registry at {PLACE} knows no model 'nobody'")
    assert bipline.history(registered.name, registry=PLACE).champions == {"production": "1"}


def test_one_that_fails_is_told_by_the_exit_code(
    registered: Registered,
    serving: tuple[Server, WritingHub],
    package: Path,
    contents: PackageContents,
    tmp_path: Path,
) -> None:
    """S3 goes down when the package is on its way: MLflow's alias is moved, and 3 is the end."""
    registered.run(package, contents)
    gate = tmp_path / "gate.yaml"
    gate.write_text(PASSING, encoding="utf-8")

    def break_down(method: str, path: str) -> None:
        if method == "PUT" and "packages" in path:
            serving[0].down = True

    serving[0].before = break_down
    asked = ["promote", registered.name, "--to", "production", "--gate", gate, "--also", PLACE]
    done = registered.command(*asked)
    assert done.code == 3 and done.errors.strip().startswith(f"error: {PLACE}: ")
    assert registered.aliases["production"] == "1"
    serving[0].behave()
    assert registered.command(*asked).code == 0
    assert open_place(registered.name, PLACE).aliases()["production"] == "1"


BAD = {
    "ftp://bucket/x": "no place for packages",
    "s3://": "names no place",
    "s3://missing/models": "no such bucket",
    f"s3://me:{SECRET}@{BUCKET}/models": "no user",
    f"sagemaker://{BUCKET}/models": "no such model package group",
    "hf:": "owner",
    "hf:a/b": "owner",
    "hf:nobody": "no such repository",
}


@pytest.mark.parametrize("address", BAD)
def test_bad_places_are_refused_before_any_work(
    registered: Registered, address: str, tmp_path: Path
) -> None:
    asked = ["promote", "tiny", "--to", "production", "--gate", "lenient", "--also", address]
    refused = registered.command(*asked)
    refused.assert_one_line(2, BAD[address])
    assert SECRET not in refused.errors + refused.output


def test_what_a_place_needs_is_asked_before_any_work(
    serving: tuple[Server, WritingHub], registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, hub = serving
    hub.make("acme/tiny")
    check_others((PLACE, HUB), "tiny", "production")
    with pytest.raises(InvalidInput, match="one stands twice"):
        check_others((PLACE, PLACE), "tiny", "production")
    with pytest.raises(InvalidInput, match="branch of all versions"):
        check_others((HUB,), "tiny", "main")
    for code, status, words in ANSWERS:
        server.proxy = partial(refusing, code, status)
        with pytest.raises(InvalidInput, match=words) as caught:
            check_others((PLACE,), "tiny", "production")
        assert "\n" not in str(caught.value)
        server.behave()
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(InvalidInput, match=r"HTTP 403.*HF_TOKEN"):
        check_others((HUB,), "tiny", "production")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(EnvironmentFailure, match="does not answer"):
        check_others((PLACE,), "tiny", "production")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InvalidInput, match="no credentials"):
        check_others((PLACE,), "tiny", "production")


def refusing(code: str, status: str, environ: Any, start: Any, application: Any) -> list[bytes]:
    """S3's answer to everything."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


ANSWERS = [
    ("AccessDenied", "403 Forbidden", "access denied"),
    ("NoSuchBucket", "404 Not Found", "no such bucket"),
    ("AuthorizationHeaderMalformed", "400 Bad Request", "another region"),
]


def test_a_bucket_without_conditional_writes_is_refused(
    serving: tuple[Server, WritingHub], registered: Registered
) -> None:
    """Some stores take every write: two promotions would both win there."""

    def proxy(environ: Any, start: Any, application: Any) -> Any:
        environ.pop("HTTP_IF_MATCH", None)
        return application(environ, start)

    serving[0].proxy = proxy
    with pytest.raises(InvalidInput, match="conditional writes"):
        check_others((PLACE,), "tiny", "production")
    serving[0].behave()
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="models/tiny/")
    assert found["KeyCount"] == 0


@pytest.mark.slow
def test_no_secret_is_kept_anywhere(
    registered: Registered,
    serving: tuple[Server, WritingHub],
    package: Path,
    contents: PackageContents,
) -> None:
    """Of what the environment gives: neither in a registry, nor in a log, nor on the screen."""
    serving[1].make(f"acme/{registered.name}")
    told = registered.run(package, contents, "production", "lenient", also=(HUB, PLACE))
    shown = registered.command("history", registered.name, "--registry", PLACE)
    kept = [shown.output, shown.errors, told.model_dump_json()]
    client = boto3.client("s3")
    for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
        answer = client.get_object(Bucket=BUCKET, Key=each["Key"])
        kept += [answer["Body"].read().decode("latin-1"), str(answer["Metadata"])]
    for root in (serving[1].root, registered.state):
        kept += [p.read_bytes().decode("latin-1") for p in root.rglob("*") if p.is_file()]
    for secret in (SECRET, os.environ["HF_TOKEN"]):
        assert not any(secret in text for text in kept)


def test_a_configuration_holds_no_password() -> None:
    for odd in (f"s3://me:{SECRET}@bucket/x", "hf:me:pw@acme"):
        with pytest.raises(BiplineError, match=r"no user or password may stand in it") as caught:
            validated(PromoteSettings, {"also": (odd,)})
        assert SECRET not in str(caught.value)
    assert CompressSettings.model_fields["promote"].default.also == ()


def test_a_name_that_cannot_lie_there() -> None:
    for name, address in (("a/b", PLACE), ("a_b", f"sagemaker://{BUCKET}"), ("a b", HUB)):
        with pytest.raises(InvalidInput):
            open_place(name, address)
