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

import boto3
import pytest
import yaml

from tests.kfp_process import kfp_environment
from tests.kfp_stand_in import IMAGE, KubeflowStandIn
from tests.layers import ROOT
from tests.pipeline.conftest import TEXTS, configuration, write_text
from tests.servers import BUCKET, mlflow_server, postgres
from tests.storage.server import Server, free_port, running_server
from tests.tiny import tiny_model
from tests.zenml_server import PASSWORD, zenml_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SECRET = "bipline-zenml"
POOL = {"name": "cpu", "cpus": 2, "memory": "16GiB", "price": 0.1, "operations": 1e10}


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


@dataclass(frozen=True)
class Cloud:
    """All servers, and a user's folder with a stack and a configuration."""

    mlflow: str
    kubeflow: KubeflowStandIn
    client: dict[str, str]
    folder: Path
    s3: Server

    def configure(self, model: Path, **sections: Any) -> None:
        """Write a configuration of the user's."""
        for seed, name in enumerate(TEXTS, start=1):
            write_text(self.folder / f"{name}.txt", seed)
        settings = configuration(
            model, self.folder, state=None,
            **{"recover": {}, "score": {"criterion": "magnitude"}, "promote": {"name": "remote"},
               **sections},
        )  # fmt: skip
        values = settings.model_dump(mode="json")
        (self.folder / "compress.yaml").write_text(yaml.safe_dump(values))

    def compress(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A run on the stack; what ran before is forgotten by the stand-in."""
        self.kubeflow.attempts.clear()
        return self.bipline("compress", "compress.yaml", "--stack", "cloud", *arguments)

    def bipline(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """What a user types, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "bipline", *map(str, arguments)], cwd=self.folder,
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """What a user's process has of the servers."""
        return kfp_environment(
            **self.client, ZENML_CONFIG_PATH=str(self.folder / "zenml"),
            ZENML_ANALYTICS_OPT_IN="false", BIPLINE_MLFLOW_PASSWORD=PASSWORD,
            KFP_STAND_IN=self.kubeflow.address,
        )  # fmt: skip

    def write_stack(self, **orchestrator: object) -> Path:
        where = self.kubeflow.address.removeprefix("http://").partition("/")[0]
        components = {
            "orchestrator": {
                "flavor": "bipline_kubeflow",
                "configuration": {
                    "kubeflow_hostname": self.kubeflow.address, "image": f"{where}/{IMAGE}:1",
                    "secret_env": {SECRET: {name: name for name in self.kubeflow.secrets[SECRET]}},
                    "pools": [POOL], **orchestrator,
                },
            },
            "artifact_store": {
                "flavor": "s3",
                "configuration": {
                    "path": f"s3://{BUCKET}/zenml", "key": "test", "secret": "test",
                    "client_kwargs": {"endpoint_url": kfp_environment()["AWS_ENDPOINT_URL"]},
                },
            },
            "container_registry": {"flavor": "default", "configuration": {"uri": where}},
            "image_builder": {"flavor": "local"},
            "experiment_tracker": {
                "flavor": "mlflow",
                "configuration": {
                    "tracking_uri": self.mlflow, "tracking_username": "team",
                    "tracking_password": "${env:BIPLINE_MLFLOW_PASSWORD}",
                },
            },
        }  # fmt: skip
        path = self.folder / "cloud.yaml"
        path.write_text(yaml.safe_dump({"name": "cloud", "components": components}))
        return path


@pytest.fixture(scope="module")
def cloud(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with (
        running_server() as s3,
        postgres(folder / "postgres.log") as database,
        mlflow_server(folder, database, f"s3://{BUCKET}") as mlflow,
        zenml_server(folder / "server") as client,
    ):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
                 "AWS_DEFAULT_REGION", "NO_PROXY")  # fmt: skip
        seen = kfp_environment()
        secrets = {SECRET: {**client, **{name: seen[name] for name in names}}}
        with KubeflowStandIn(folder / "pods", secrets).serving() as kubeflow:
            (folder / "user").mkdir()
            found = Cloud(mlflow, kubeflow, client, folder / "user", s3)
            found.configure(llama)
            applied = found.bipline("stack", "apply", found.write_stack())
            assert applied.returncode == 0, applied
            yield found


def test_the_pipeline_goes_through_to_a_candidate(cloud: Cloud) -> None:
    from mlflow import MlflowClient

    ended = cloud.bipline("compress", "compress.yaml", "--stack", "cloud", "--json", "summary.json")
    logs = [
        (each.step, each.code, each.log.read_text()[-1500:]) for each in cloud.kubeflow.attempts
    ]
    assert ended.returncode == 0, (ended, logs)
    summary = json.loads((cloud.folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    ran = [each.step for each in cloud.kubeflow.attempts]
    assert ran == [each["name"] for each in summary["stages"]]
    client = MlflowClient(cloud.mlflow)
    version = client.get_model_version_by_alias("remote", "candidate")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    for each in cloud.kubeflow.attempts:
        assert each.memory <= each.limit
        assert PASSWORD not in each.log.read_text()
    assert PASSWORD not in ended.stdout + ended.stderr
    [run] = cloud.kubeflow.runs.values()
    compiled = json.dumps(run["pipeline_spec"])
    assert not any(secret in compiled for secret in (PASSWORD, cloud.client["ZENML_STORE_API_KEY"]))
    assert "API_TOKEN" not in compiled


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


def test_a_killed_pod_is_run_again_and_goes_on_from_s3(cloud: Cloud) -> None:
    deep = tiny_model(cloud.folder / "deep", "llama-gqa", num_hidden_layers=8)
    sections = {"score": {"criterion": "llm-bip-glu"}, "promote": {"name": "deep"}}
    cloud.configure(deep, **sections)
    states, sent, recorded, killed = (threading.Event() for _ in range(4))
    blocks: list[str] = []

    def before(method: str, path: str) -> None:
        """The first record that comes after the states it names is the last that S3 is given."""
        name = path.rpartition("/")[2]
        if method == "PUT" and "/work/score/" in path and name.startswith("block-"):
            blocks.append(name)
        if sent.is_set():
            recorded.set()
            killed.wait(60)  # whatever the pod still asks of S3 finds it killed
        elif method == "PUT" and "/work/score/" in path:
            if name.startswith("states"):
                states.set()
            elif states.is_set() and name.startswith("block-") and name.endswith(".json"):
                sent.set()

    def kill() -> bool:
        if recorded.is_set():
            killed.set()
        return recorded.is_set()

    cloud.s3.before, cloud.kubeflow.kills["score"] = before, kill
    try:
        ended = cloud.compress()
    finally:
        cloud.s3.before = None
    assert ended.returncode == 0, (ended, cloud.kubeflow.told)
    first, second = (each for each in cloud.kubeflow.attempts if each.step == "score")
    assert (first.code, second.code) == (-9, 0)
    # Pods tell no progress; a run that began anew would send its first blocks once more.
    assert len(blocks) == len(set(blocks)) > 1, blocks


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
