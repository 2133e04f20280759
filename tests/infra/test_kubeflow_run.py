"""The remote path: ZenML's server, S3, MLflow on PostgreSQL, and steps that run as pods would."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kfp_stand_in import Attempt
from tests.kubeflow_cloud import Cloud, running_cloud
from tests.layers import ROOT
from tests.quality.asking import written
from tests.storage.server import free_port
from tests.tiny import tiny_model
from tests.zenml_server import PASSWORD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SCHEDULED = """
import json, os, urllib.request
from datetime import datetime, UTC
from pathlib import Path
from zenml.client import Client
from zenml.config.schedule import Schedule
from bipline.settings.loading import KINDS, load
from pipelines.own_stack import own_stack
from pipelines.compress import configured
from pipelines.remote import placed_options

def told():
    address = os.environ["KFP_STAND_IN"] + "/apis/v2beta1/recurringruns"
    with urllib.request.urlopen(address) as answer:
        print(json.dumps(json.load(answer)["recurringruns"]))

settings = load(KINDS["compress"], Path("compress.yaml"))
with own_stack("cloud", None):
    schedule = Schedule(name="nightly", cron_expression="0 3 * * *")
    options = placed_options(settings)
    configured(settings).with_options(schedule=schedule, **options)(settings)
    told()
    Client().update_schedule("nightly", cron_expression="0 4 * * *")
    told()
    Client().delete_schedule("nightly")
    told()
"""


# Each file is applied and examined in turn; the last of them is well.
EXAMINED = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from bipline.settings.stack import StackSettings
from bipline.settings.stack_file import load_stack
from pipelines.doctor import examine
from pipelines.stacks import apply_stack

for name in sys.argv[1:]:
    apply_stack(load_stack(Path(name)))
    found = examine(StackSettings(stack="cloud"))
    print(json.dumps([asdict(each) for each in found if not each.ok]))
"""


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
    for name in ("score", "evaluate_dense", "evaluate_pruned"):
        one, other = (whole.of(f"{name}_part_{number}")[0] for number in (1, 2))
        [met] = whole.of(name)
        assert one.ran_beside(other), name
        assert met.began >= max(each.ended for n in (1, 2) for each in whole.of(f"{name}_part_{n}"))


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
        [sys.executable, "-c", SCHEDULED], cwd=cloud.folder, env=cloud.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    crons = [[each["trigger"]["cron_schedule"]["cron"] for each in step] for step in told]
    assert crons == [["0 3 * * *"], ["0 4 * * *"], []]


def test_the_doctor_names_what_is_broken_and_what_mends_it(cloud: Cloud) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    broken = {
        "orchestrator": ("kubeflow_hostname", away, "does not answer", "start Kubeflow Pipelines"),
        "container_registry": ("image", None, "bipline:2 is not there", "build and push it"),
        "artifact_store": ("path", "s3://absent/zenml", "", "create the bucket absent"),
        "experiment_tracker": ("tracking_uri", away, "does not answer", "start the MLflow server"),
    }  # fmt: skip
    files = []
    for kind, (key, value, _, _) in broken.items():
        whole = yaml.safe_load(cloud.write_stack().read_text())
        holder = whole["components"]["orchestrator" if key == "image" else kind]["configuration"]
        holder[key] = value or f"{holder[key].removesuffix('1')}2"
        files.append(cloud.folder / f"{kind}.yaml")
        files[-1].write_text(yaml.safe_dump(whole))
    ended = subprocess.run(
        [sys.executable, "-c", EXAMINED, *files, cloud.write_stack()], cwd=cloud.folder,
        env=cloud.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert told.pop() == []
    for (kind, (_, _, said, mend)), found in zip(broken.items(), told, strict=True):
        assert [each["name"] for each in found] == [kind]
        assert said in found[0]["said"] and mend in found[0]["mend"], found


def test_a_server_that_is_away_is_one_line(cloud: Cloud) -> None:
    away = {**cloud.environment, "ZENML_STORE_URL": f"http://127.0.0.1:{free_port()}"}
    ended = subprocess.run(
        [sys.executable, "-m", "bipline", "doctor", "--stack", "cloud"], cwd=cloud.folder, env=away,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 3, ended
    assert ended.stderr.strip() == "error: zenml: see above"
    assert "FAILS  zenml: " in ended.stdout and "start the server" in ended.stdout


def test_root_is_unchanged() -> None:
    """Nothing of a run lies in the project's folder."""
    assert not (ROOT / ".zen").exists()
