"""The second choice, without Kubeflow: the pods that ZenML's Kubernetes orchestrator would start.

No cluster is asked: the settings of every step go through ZenML's own builder of pods.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.model.opening import open_checkpoint
from bipline.settings.compress import CompressSettings
from bipline.settings.stack_file import load_stack
from bipline.stages.step_needs import step_needs
from pipelines.compiled import STACKS
from pipelines.placement import ROOM, rates_of
from tests.kfp_process import run_with_kfp
from tests.pipeline.conftest import TEXTS, configuration, write_text

pytestmark = pytest.mark.slow
FILE = STACKS / "kubernetes.yaml"
PROGRAM = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace as Box
from bipline.settings.loading import KINDS, load
from bipline.settings.stack_file import load_stack
from pipelines.doctor import Ill, _orchestrator
from pipelines.placement import run_options
from pipelines.stacks import apply_stack
from infra.kubernetes.config import KubernetesConfig
from kubernetes.client import ApiClient
from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import (
    KubernetesOrchestratorSettings,
)
from zenml.integrations.kubernetes.manifest_utils import build_pod_manifest

settings = load(KINDS["compress"], Path(sys.argv[1]))
file = load_stack(Path(sys.argv[2]), Path(sys.argv[3]))
config = KubernetesConfig(**file.configuration("orchestrator"))
options, pods, deadlines = run_options(settings, config), {}, {}
for name, step in options["steps"].items():
    told = KubernetesOrchestratorSettings(**step["settings"]["orchestrator"])
    pod = build_pod_manifest(None, config.image, ["run"], [], False, told.pod_settings)
    pods[name] = ApiClient().sanitize_for_serialization(pod)
    deadlines[name] = told.active_deadline_seconds
applied = [apply_stack(file), apply_stack(file)]

def client():
    raise RuntimeError("no such context")

try:
    _orchestrator(Box(config=config, flavor="bipline_kubernetes", get_kube_client=client))
except Ill as ill:
    said = [str(ill), ill.mend]
print(json.dumps({"pods": pods, "deadlines": deadlines, "retries": options["retry"].max_retries,
                  "applied": applied, "ill": said}))
"""


@pytest.fixture(scope="module")
def settings(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressSettings:
    folder = tmp_path_factory.mktemp("kubernetes")
    for seed, name in enumerate(TEXTS, start=1):
        write_text(folder / f"{name}.txt", seed)
    return configuration(llama, folder, state=None, score={"criterion": "llm-bip-glu"})


@pytest.fixture(scope="module")
def told(settings: CompressSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("built")
    (folder / "compress.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    values = {
        "kubernetes_context": "team", "image": "registry.example/bipline:1",
        "artifact_bucket": "team", "ecr_registry": "registry.example",
        "mlflow_uri": "http://mlflow.example",
    }  # fmt: skip
    (folder / "values.json").write_text(json.dumps(values))
    said = run_with_kfp(
        PROGRAM, folder / "compress.yaml", FILE, folder / "values.json", folder=folder,
        ZENML_CONFIG_PATH=str(folder / "zenml"), ZENML_ANALYTICS_OPT_IN="false",
        BIPLINE_MLFLOW_USERNAME="team", BIPLINE_MLFLOW_PASSWORD="word",
    )  # fmt: skip
    return dict(json.loads(said.splitlines()[-1]))


def test_every_step_has_the_place_that_kubeflow_would_give_it(
    settings: CompressSettings, told: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(settings.model)
    needs = step_needs(settings, checkpoint, rates_of(None), gpu=True)
    assert set(told["pods"]) == set(needs)
    for step, need in needs.items():
        spec = told["pods"][step]["spec"]
        [container] = spec["containers"]
        asked, most = (container["resources"][kind] for kind in ("requests", "limits"))
        memory = int(asked["memory"].removesuffix("Mi"))
        assert memory == pytest.approx(need.memory * ROOM / 2**20, abs=1)
        assert {name: most[name] for name in asked} == asked
        assert most.get("nvidia.com/gpu") == ("1" if need.gpu else None), step
        assert ("tolerations" in spec) == need.gpu
        pool = spec["nodeSelector"]["bipline.dev/pool"]
        assert pool.startswith("gpu" if need.gpu else "cpu")
        assert told["deadlines"][step] >= 10 * need.seconds


def test_scratch_and_secrets(told: dict[str, Any]) -> None:
    for pod in told["pods"].values():
        [container] = pod["spec"]["containers"]
        [volume] = pod["spec"]["volumes"]
        claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
        assert claim["resources"]["requests"]["storage"].endswith("Gi")
        assert container["volumeMounts"] == [{"name": "scratch", "mountPath": "/scratch"}]
        given = {each["name"]: each for each in container["env"]}
        key = given["ZENML_STORE_API_KEY"]["valueFrom"]["secretKeyRef"]
        assert key == {"name": "bipline-zenml", "key": "api-key"}
        assert given["TMPDIR"]["value"] == "/scratch"


def test_a_lost_pod_s_hold_has_run_out_before_the_last_attempt(told: dict[str, Any]) -> None:
    from bipline.storage.s3_lease import LEASE_SECONDS

    waits = [10 * 2**number for number in range(told["retries"])]
    assert sum(waits[:-1]) > LEASE_SECONDS


def test_the_stack_is_applied_and_the_doctor_asks_its_cluster(told: dict[str, Any]) -> None:
    first, second = told["applied"]
    assert set(first.values()) == {"created"} and set(second.values()) == {"unchanged"}
    said, mend = told["ill"]
    assert said == "context team: no such context" and "correct kubernetes_context" in mend


def test_its_pools_are_those_of_the_other_file() -> None:
    own, other = (load_stack(STACKS / f"{name}.yaml", filled=False).pools
                  for name in ("kubernetes", "aws-kubeflow"))  # fmt: skip
    assert all(pool in other for pool in own)
