"""A pipeline compiled to the file that Kubeflow Pipelines takes: no server, bucket or login.

It is for review and diff: the snapshot of a run that is submitted has an id of its own, which
ZenML's server gives, and its pods find their secrets in the cluster.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ValidationError

from bipline.base.errors import InvalidInput
from bipline.base.extras import check_all
from bipline.face.named_places import COMPILED
from bipline.settings.compress import CompressSettings
from bipline.settings.stack import StackSettings
from bipline.settings.stack_file import StackFile, load_stack
from bipline.stages.settled import settled
from bipline.storage.directory import write_text
from bipline.storage.stage_key import PROJECT_ROOT
from pipelines.local_stack import isolated
from pipelines.placement import run_options

if TYPE_CHECKING:
    from infra.kubeflow.config import KubeflowConfig

STACKS = PROJECT_ROOT / "infra" / "stacks"
USUAL = "aws-kubeflow"
FIRST_LINE = (
    f"{COMPILED}: `bipline compress --stack NAME` compiles what it submits against ZenML's "
    "server.\n"
)
# Stands where the id of a submitted run's snapshot would.
NO_SNAPSHOT = UUID(int=0)


def compile_compress(settings: CompressSettings, stack: str | None, out: Path) -> dict[str, Any]:
    """Write what Kubeflow would be given to ``out``; the names of its steps and its stack.

    ``stack`` is a stack file, or the name of one under infra/stacks. Raises InvalidInput for a
    stack without Kubeflow, or without a pool that fits.
    """
    check_all(("pipeline", "kubeflow"), "--compile")
    file = load_stack(stack_file(stack or USUAL), filled=False)
    config = kubeflow_config(file)
    settings, _ = settled(settings)
    with TemporaryDirectory(prefix="bipline-compile-") as folder, isolated(Path(folder)):
        package = Path(folder) / "compress.yaml"
        steps = compile_pipeline("compress", settings, config, package)
        write_text(out, FIRST_LINE + package.read_text(encoding="utf-8"))
    return {"stack": file.name, "steps": steps}


def stack_file(named: str) -> Path:
    """The file of a stack: a path, or one of those that come with bipline, by its name."""
    if named.endswith((".yaml", ".yml")):
        return Path(named)
    found = STACKS / f"{named}.yaml"
    if not found.is_file():
        known = ", ".join(sorted(path.stem for path in STACKS.glob("*.yaml")))
        raise InvalidInput(f"stack {named!r}: give a stack file, or one of: {known}")
    return found


def kubeflow_config(file: StackFile) -> KubeflowConfig:
    """The orchestrator of a stack file. Raises InvalidInput where it is another than Kubeflow."""
    from infra.kubeflow.config import KubeflowConfig
    from infra.kubeflow.flavor import FLAVOR

    component = file.components.get("orchestrator")
    if component is None or component.flavor != FLAVOR:
        has = f"orchestrates by {component.flavor}" if component else "has no orchestrator"
        raise InvalidInput(f"stack {file.name} {has}; only {FLAVOR} compiles to a file")
    try:
        return KubeflowConfig(**component.configuration)
    except ValidationError as error:
        found = error.errors(include_input=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise InvalidInput(f"stack {file.name}, orchestrator: {place}: {found['msg']}") from None


def compile_pipeline(
    name: str, settings: StackSettings, config: KubeflowConfig, out: Path
) -> list[str]:
    """Write what Kubeflow would be given of a pipeline of this project; the names of its steps."""
    from zenml.config.compiler import Compiler
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
    from zenml.enums import ExecutionMode

    from infra.kubeflow.orchestrator import entrypoint
    from infra.kubeflow.tasks import compile_tasks

    # As KFP does: what needs a failed step is left out, the rest runs on.
    placed = settings if isinstance(settings, CompressSettings) else None
    options = run_options(placed, config)
    options["execution_mode"] = ExecutionMode.CONTINUE_ON_FAILURE
    steps = options.pop("steps")
    pipeline = import_module(f"pipelines.{name}").configured(settings).with_options(**options)
    pipeline.prepare(settings)
    stack = _stack(config)
    run = PipelineRunConfiguration(run_name=name, steps=steps)
    snapshot = Compiler().compile(pipeline=pipeline, stack=stack, run_configuration=run)
    found = snapshot.step_configurations
    compile_tasks(
        name, found, stack.orchestrator.get_settings, lambda step: config.image,
        lambda step: entrypoint(step, str(NO_SNAPSHOT)), {step: {} for step in found}, out,
    )  # fmt: skip
    return list(found)


def _stack(config: KubeflowConfig) -> Any:
    """A stack that is registered nowhere: what ZenML's compiler asks of one."""
    from zenml.artifact_stores import LocalArtifactStore, LocalArtifactStoreConfig
    from zenml.enums import StackComponentType as Kind
    from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker
    from zenml.integrations.mlflow.flavors import mlflow_experiment_tracker_flavor as mlflow
    from zenml.stack import Stack

    from infra.kubeflow.flavor import FLAVOR
    from infra.kubeflow.orchestrator import KubeflowOrchestrator

    def component(number: int, kind: Kind, flavor: str, implementation: Any, config: Any) -> Any:
        now = datetime.now(UTC)
        return implementation(
            name=flavor, id=UUID(int=number), config=config, flavor=flavor, type=kind, user=None,
            created=now, updated=now,
        )  # fmt: skip

    tracking = mlflow.MLFlowExperimentTrackerConfig(tracking_uri="sqlite:///unused.db")
    return Stack(
        id=UUID(int=1),
        name="compiled",
        orchestrator=component(2, Kind.ORCHESTRATOR, FLAVOR, KubeflowOrchestrator, config),
        artifact_store=component(
            3, Kind.ARTIFACT_STORE, "local", LocalArtifactStore, LocalArtifactStoreConfig()
        ),
        experiment_tracker=component(
            4, Kind.EXPERIMENT_TRACKER, "mlflow", MLFlowExperimentTracker, tracking
        ),
    )
