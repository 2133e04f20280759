"""A run whose steps are pods: where they go, what is asked before them, how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bipline.base import errors
from bipline.base.errors import BiplineError, EnvironmentFailure
from bipline.base.progress import note
from bipline.settings.compress import CompressSettings
from bipline.storage.places import is_elsewhere
from pipelines.doctor import first_failure
from pipelines.placement import run_options

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, StepRunResponse

    from infra.pods import PodStack

IN_PODS = {"orchestrator", "artifact_store", "experiment_tracker", "container_registry"}
ENDED_BADLY = {"failed", "stopped"}


def pod_stack() -> PodStack | None:
    """What the active stack says of its pods; None where steps run elsewhere."""
    from zenml.client import Client

    from infra.pods import PodStack

    config = Client().active_stack.orchestrator.config
    return config if isinstance(config, PodStack) else None


def placed_options(settings: Any) -> dict[str, Any]:
    """What ZenML is told of a run on the active stack: how it fails, and where its pods go.

    Nothing where the orchestrator stops at the first failed step and has no pods of ours. Raises,
    before any work, what of the stack does not answer, and InvalidInput for a step that no pool has
    room for.
    """
    config, mode = pod_stack(), _as_it_fails()
    if config is None:
        return mode
    if failed := first_failure(IN_PODS):
        raise EnvironmentFailure(f"{failed.name}: {failed.said}; {failed.mend}")
    if isinstance(settings, CompressSettings):
        _tell_local(settings)
        return {**run_options(settings, config), **mode}
    return {**run_options(None, config), **mode}


def _as_it_fails() -> dict[str, Any]:
    """The mode of an orchestrator that cannot stop: what needs a failed step never runs there."""
    from zenml.client import Client
    from zenml.enums import ExecutionMode

    if ExecutionMode.FAIL_FAST in Client().active_stack.orchestrator.supported_execution_modes:
        return {}
    return {"execution_mode": ExecutionMode.CONTINUE_ON_FAILURE}


def _tell_local(settings: CompressSettings) -> None:
    """Paths of this machine must lie in the image: a pod has no other files."""
    sources = {"model": settings.model, **settings.texts, **settings.tasks}
    local = [name for name, each in sources.items() if not is_elsewhere(each)]
    if local:
        note(f"{', '.join(local)}: paths; pods find them only where the image holds them")


def raise_failure(run: PipelineRunResponse) -> None:
    """Raise what the first failed step of a run raised; nothing where the run ended well.

    Raises EnvironmentFailure where no step could say why: its pod was lost.
    """
    from steps.stage import step_runs

    status = run.status.value
    steps = step_runs(run.id)
    failed = next((step for step in steps.values() if step.status.value == "failed"), None)
    if failed is not None:
        raise _raised(failed)
    if status in ENDED_BADLY or not run.status.is_finished:
        lost = [name for name, step in steps.items() if not step.status.is_finished]
        where = f"in {', '.join(lost)} " if lost else ""
        raise EnvironmentFailure(
            f"the run ended {where}without an error of a step: its pods were lost; the same "
            "command again goes on from the artifact store"
        )


def _raised(step: StepRunResponse) -> BiplineError | RuntimeError:
    """The error of a step that ran in a pod, as this process would have raised it."""
    info = step.exception_info
    if info is None:
        return EnvironmentFailure(f"step {step.name} failed and could not say why; see its log")
    message = info.message or (info.traceback.strip().splitlines() or ["no message"])[-1]
    kind = getattr(errors, (info.source or "").rpartition(".")[2], None)
    if isinstance(kind, type) and issubclass(kind, BiplineError):
        return kind(f"step {step.name}: {message}")
    return RuntimeError(f"step {step.name}: {message}")
