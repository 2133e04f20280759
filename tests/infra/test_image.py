"""The image, really built and run: not root, nothing to write to, no network, and whole."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import (
    CONFINED,
    IMAGE,
    LIMITS,
    build,
    container_storage,
    inspected,
    mounts,
    told,
)
from tests.kfp_containers import Containers
from tests.kubeflow_cloud import Cloud, running_cloud
from tests.layers import ROOT
from tests.zenml_server import PASSWORD

pytestmark = [pytest.mark.alone, pytest.mark.timeout(1800)]
BYTES = 2.3e9
USER = "10001"
# What makes the demo short; the whole of it was run by hand, see infra/docker/README.md.
SHORT = (
    "calibrate.samples=16", "recover.recipe.steps=2", "evaluate.texts=[held-out]",
    "evaluate.protocol.speed=false",
)  # fmt: skip
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def storage() -> Iterator[Path]:
    """Where podman and buildah keep things, with the image in it; nothing of it is left."""
    with container_storage() as folder:
        build(folder)
        yield folder
        assert told("podman", "ps", "--all", "--quiet") == ""
    assert not folder.exists() and not mounts(folder)


def run(*command: str, network: str = "none") -> subprocess.CompletedProcess[str]:
    """A command in a container of the image, confined as a pod is, with ``/tmp`` and ``/work``."""
    written = ("--tmpfs", "/tmp:mode=1777", "--tmpfs", "/work:mode=1777")
    return subprocess.run(
        ["podman", "run", "--rm", "--network", network, *CONFINED, *LIMITS, *written, IMAGE,
         *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_is_small_and_says_what_it_is() -> None:
    found = inspected()
    print(f"the image has {found['Size'] / 1e6:.0f} MB")
    assert found["Size"] < BYTES
    assert found["Config"]["User"] == f"{USER}:{USER}"
    assert found["Labels"]["org.opencontainers.image.title"] == "bipline"


def test_its_user_may_write_nowhere_but_where_volumes_are_mounted() -> None:
    everywhere = "find / -xdev -writable -not -type l 2>&- || true"
    found = told(
        "podman", "run", "--rm", "--network", "none", *LIMITS, IMAGE, "sh", "-c", everywhere
    )
    assert {"/app", "/work"} <= set(found.split()) <= {
        "/app", "/work", "/tmp", "/var/tmp", "/run/lock",
    }  # fmt: skip
    ended = run("sh", "-c", "id -u; touch /tmp/a /work/a && ! touch /app/a && ! touch /opt/a")
    assert ended.returncode == 0 and ended.stdout.split()[0] == USER, ended


def test_nothing_of_the_build_is_in_it() -> None:
    """Of what was mounted for it the places are left, and they are empty."""
    places = "/source /wheels /pip /mnt /etc/pip.conf /opt/wheels"
    ended = run("sh", "-c", f"find {places} -type f -size +0 2>/dev/null; echo ended")
    assert ended.stdout.split() == ["ended"], ended
    history = told("podman", "image", "history", "--no-trunc", IMAGE)
    assert not re.search(r"password|token|secret|https?://\S+@", history, re.IGNORECASE)


def test_the_demo_runs_in_it_without_a_network() -> None:
    """The screen ends with the table, as outside."""
    ended = run("bipline", "demo", *[part for each in SHORT for part in ("--set", each)])
    assert ended.returncode == 0, ended
    for word in ("dense", "pruned", "recovered", "perplexity, held-out", "accuracy, cloze"):
        assert word in ended.stdout
    assert "bipline-demo version 1 (new), alias candidate" in ended.stdout


def test_bad_input_is_one_line_there_too() -> None:
    ended = run("bipline", "demo", "--set", "allocate.ratio=2")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: ")]


def test_its_sbom_is_what_pip_and_dpkg_list(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.docker.sbom", IMAGE, str(tmp_path / "sbom.json")]
    told(*command, cwd=ROOT)
    found: dict[str, dict[str, str]] = {"pypi": {}, "deb": {}}
    for each in json.loads((tmp_path / "sbom.json").read_text())["components"]:
        if "purl" in each:
            found[each["purl"].partition("/")[0].removeprefix("pkg:")][each["name"]] = each[
                "version"
            ]
    listed = json.loads(run("pip", "list", "--format", "json").stdout)
    names = {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in listed}
    assert found["pypi"] == names
    packages = run("dpkg-query", "--show", "--showformat", r"${Package} ${Version}\n").stdout
    assert found["deb"] == dict(line.split() for line in packages.splitlines())
    pins = dict(PIN.findall((ROOT / "constraints.txt").read_text()))
    for name in ("transformers", "zenml", "mlflow", "safetensors"):
        assert found["pypi"][name] == pins[name]


def test_an_image_that_is_not_there_is_one_line() -> None:
    command = [sys.executable, "-m", "infra.docker.sbom", "localhost/absent:1", "/tmp/sbom.json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: localhost/absent:1: podman image inspect: ")


@pytest.fixture(scope="module")
def cloud(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """All servers; pods are containers of the image, and see the model and the user's texts."""
    folder = tmp_path_factory.mktemp("cloud")
    shown = (llama, folder / "user")
    with running_cloud(folder, Containers(shown)) as found:
        yield found


def test_the_pipeline_goes_through_containers_to_a_candidate(cloud: Cloud, llama: Path) -> None:
    from mlflow import MlflowClient

    cloud.configure(llama)
    # What safetensors and pytest write is its owner's alone; a pod is another user.
    for each in (llama, cloud.folder, *llama.iterdir()):
        each.chmod(0o755)
    ended = cloud.compress("--json", "summary.json")
    assert ended.returncode == 0, (ended, cloud.kubeflow.told)
    summary = json.loads((cloud.folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    for each in cloud.kubeflow.attempts:
        print(f"{each.step}: {each.ended - each.began:.1f} s, {each.memory / 1e6:.0f} MB")
        log = each.log.read_text()
        assert log.startswith("this pod is a container of 127.0.0.1:") and PASSWORD not in log
        assert each.code == 0 and each.memory <= each.limit
    client = MlflowClient(cloud.mlflow)
    version = client.get_model_version_by_alias("remote", "candidate")
    assert client.get_run(version.run_id).info.status == "FINISHED"
