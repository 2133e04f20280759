"""What Kubeflow would be given, read back: dependencies, resources, place, retries, no secret."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.face.named_places import COMPILED
from bipline.model.opening import open_checkpoint
from bipline.settings.stack_file import load_stack
from bipline.stages.step_needs import step_needs
from pipelines.compiled import STACKS, USUAL
from pipelines.placement import ROOM, places, rates_of
from tests.kfp_process import run_with_kfp
from tests.pipeline.conftest import TEXTS, configuration, write_text

pytestmark = pytest.mark.slow
SECRET = "not-to-be-seen-anywhere"
SECRETS = ("ZENML_STORE_API_KEY", "AWS_SECRET_ACCESS_KEY", "BIPLINE_MLFLOW_PASSWORD")
# The whole command twice, so that the second replaces the first; kfp itself reads the result.
PROGRAM = """
import sys
from pathlib import Path
from bipline.face.cli import main
out = Path(sys.argv[2])
sys.argv = ["bipline", "compress", sys.argv[1], "--compile", str(out)]
main()
first = out.read_bytes()
main()
assert out.read_bytes() == first, "the same configuration, the same bytes"
from kfp import components
print(*components.load_component_from_file(str(out)).pipeline_spec.root.dag.tasks)

from bipline.settings.loading import KINDS, load
from bipline.settings.stack_file import load_stack
from pipelines.compiled import STACKS, compile_pipeline, kubeflow_config
from pipelines.local_stack import isolated
config = kubeflow_config(load_stack(STACKS / "aws-kubeflow.yaml", filled=False))
with isolated(out.parent / "sweep"):
    compile_pipeline("sweep", load(KINDS["sweep"], Path(sys.argv[3])), config, Path(sys.argv[4]))

from infra.kubeflow.config import KubeflowSettings
from infra.kubeflow.tasks import compile_tasks
from types import SimpleNamespace as Box
from zenml.config import ResourceSettings
asked = Box(resource_settings=ResourceSettings(), retry=None)
step = Box(config=asked, spec=Box(upstream_steps=[]))
settings = KubeflowSettings(
    secret_env={"vault": {"url": "ZENML_STORE_URL"}}, shared_memory="8Gi", step_timeout=60,
    disk="9Gi", image_pull_secrets=["registry"],
)
environment = {
    "ZENML_STORE_URL": "in-the-secret", "ZENML_STORE_API_TOKEN": "tok", "PLAIN": "kept",
    "AWS_SECRET_ACCESS_KEY": "aws", "DB_PASSWORD": "word",
}
compile_tasks(
    "one", {"step_1": step}, lambda _: settings, lambda _: "image", lambda _: (["run"], ["it"]),
    {"step_1": environment}, out.with_name("one.yaml"),
)
"""


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline, and the need of its steps."""

    text: str
    one: str
    sweep: str
    said: str
    settings: Any

    @property
    def documents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        specification, platform = yaml.safe_load_all(self.text)
        return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    @property
    def tasks(self) -> dict[str, Any]:
        """By the step's own name."""
        found = self.documents[0]["root"]["dag"]["tasks"]
        return {task["taskInfo"]["name"]: task for task in found.values()}

    def container(self, step: str) -> dict[str, Any]:
        executors = self.documents[0]["deploymentSpec"]["executors"]
        return executors[f"exec-{step.replace('_', '-')}"]["container"]

    def pod(self, step: str) -> dict[str, Any]:
        return self.documents[1][f"exec-{step.replace('_', '-')}"]


@pytest.fixture(scope="module")
def compiled(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("compiled")
    texts = {name: str(folder / f"{name}.txt") for name in (*TEXTS, "prose")}
    for seed, path in enumerate(texts.values(), start=1):
        write_text(Path(path), seed)
    compensated = {"compensation": "least-squares"}
    settings = configuration(
        llama, folder, state=None, texts=texts, compensate=compensated,
        calibrate={"samples": 32, "seqlen": 16},
        score={"criterion": "llm-bip-glu", "parts": 2},
        evaluate={"texts": ("held-out", "prose"), "parts": 2, "protocol": {"seqlen": 16}},
    )  # fmt: skip
    config, out = folder / "compress.yaml", folder / "out.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    swept, compiled_sweep = folder / "sweep.yaml", folder / "swept.yaml"
    swept.write_text(yaml.safe_dump({
        "model": str(llama), "texts": texts,
        "grid": {"criteria": ["magnitude", "wanda-sp"], "ratios": [0.2, 0.4], "seeds": [0]},
        "evaluate": {"texts": ["held-out"], "protocol": {"seqlen": 16}},
    }))  # fmt: skip
    secrets = dict.fromkeys(SECRETS, SECRET)
    said = run_with_kfp(PROGRAM, config, out, swept, compiled_sweep, folder=folder, **secrets)
    one = out.with_name("one.yaml").read_text(encoding="utf-8")
    whole, rows = (path.read_text(encoding="utf-8") for path in (out, compiled_sweep))
    return Compiled(whole, one, rows, said, settings)


def test_it_says_what_it_is_for_and_kfp_reads_it(compiled: Compiled) -> None:
    assert compiled.text.startswith(COMPILED)
    loaded = compiled.said.splitlines()[-1].split()
    assert sorted(loaded) == sorted(name.replace("_", "-") for name in compiled.tasks)


def test_tasks_follow_those_they_need(compiled: Compiled) -> None:
    after = {name: set(task.get("dependentTasks", ())) for name, task in compiled.tasks.items()}
    assert after["resolve"] == set()
    parts = {f"score-part-{number}" for number in (1, 2)}
    assert after["score"] == {"resolve", "calibrate", *parts}
    for number in (1, 2):
        assert after[f"score_part_{number}"] == {"resolve", "calibrate"}
        assert after[f"evaluate_dense_part_{number}"] == {"resolve", "recover"}
        assert f"evaluate-pruned-part-{number}" in after["evaluate_pruned"]
    assert after["prune"] >= {"compensate"}
    assert after["evaluate_recovered_part_1"] >= {"recover"}
    assert after["promote"] >= {"export", "evaluate-dense"}


def test_rows_of_a_sweep_are_side_by_side(compiled: Compiled) -> None:
    """No row needs another: each has its own scores, and all meet in one step."""
    specification, _ = yaml.safe_load_all(compiled.sweep)
    tasks = specification["root"]["dag"]["tasks"]
    rows = {name: set(task["dependentTasks"]) for name, task in tasks.items() if "row-" in name}
    assert len(rows) == 4
    for name, after in rows.items():
        assert not after & set(rows), name
        assert len([each for each in after if each.startswith("score-")]) == 1
    assert set(tasks["collect"]["dependentTasks"]) >= set(rows)


def test_gpus_and_tolerations_where_the_model_is_run_and_nowhere_else(compiled: Compiled) -> None:
    runs = {step for step in compiled.tasks if "_part_" in step} | {"compensate", "recover"}
    assert len(runs) == 2 + 2 * 4
    for step in compiled.tasks:
        resources, pod = compiled.container(step)["resources"], compiled.pod(step)
        assert ("accelerator" in resources) == (step in runs), step
        assert ("tolerations" in pod) == (step in runs), step
        pool = pod["nodeSelector"]["labels"]["bipline.dev/pool"]
        assert pool.startswith("gpu" if step in runs else "cpu")
        if step in runs:
            assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
            assert resources["accelerator"]["resourceCount"] == "1"


def test_memory_and_time_are_those_of_the_estimate(compiled: Compiled) -> None:
    checkpoint = open_checkpoint(compiled.settings.model)
    needs = step_needs(compiled.settings, checkpoint, rates_of(None), gpu=True)
    assert set(needs) == set(compiled.tasks)
    for step, need in needs.items():
        resources = compiled.container(step)["resources"]
        asked = int(resources["resourceMemoryLimit"].removesuffix("Mi"))
        assert asked == pytest.approx(need.memory * ROOM / 2**20, abs=1)
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"]
        assert int(compiled.pod(step)["activeDeadlineSeconds"]) >= 10 * need.seconds


def test_zenml_says_how_often_a_step_is_repeated_and_caches(compiled: Compiled) -> None:
    stack = load_stack(STACKS / f"{USUAL}.yaml", filled=False)
    retries = stack.configuration("orchestrator")["retries"]
    for task in compiled.tasks.values():
        assert task["retryPolicy"]["maxRetryCount"] == retries
        assert not task["cachingOptions"].get("enableCache")


def test_no_secret_stands_in_it(compiled: Compiled) -> None:
    assert SECRET not in compiled.text
    for step in compiled.tasks:
        [secret] = compiled.pod(step)["secretAsEnv"]
        variables = {each["envVar"] for each in secret["keyToEnv"]}
        assert variables == {"ZENML_STORE_URL", "ZENML_STORE_API_KEY"}
        assert not variables & {each["name"] for each in compiled.container(step)["env"]}


def test_variables_that_name_a_secret_are_left_out_and_the_rest_is_kept(compiled: Compiled) -> None:
    specification, platform = yaml.safe_load_all(compiled.one)
    [executor] = specification["deploymentSpec"]["executors"].values()
    given = {each["name"]: each["value"] for each in executor["container"]["env"]}
    assert given.pop("KFP_RUN_ID") == "{{$.pipeline_job_uuid}}"
    assert given == {"PLAIN": "kept", "TMPDIR": "/scratch", "XDG_CACHE_HOME": "/scratch/cache"}
    [pod] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert pod["emptyDirMounts"][0] | {"volumeName": ""} == {
        "medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "8Gi", "volumeName": "",
    }  # fmt: skip
    assert pod["genericEphemeralVolume"][0]["size"] == "9Gi"
    assert pod["activeDeadlineSeconds"] == "60"
    assert pod["imagePullSecret"][0]["secretName"] == "registry"


def test_the_cheapest_pool_with_room(compiled: Compiled) -> None:
    """A step goes to no dearer pool than one that fits."""
    pools = load_stack(STACKS / f"{USUAL}.yaml", filled=False).pools
    checkpoint = open_checkpoint(compiled.settings.model)
    for place in places(compiled.settings, checkpoint, pools).values():
        fitting = [pool.price for pool in pools if pool.fits(place.need)]
        assert place.pool.price == min(fitting)
