"""The orchestrator: a snapshot becomes a KFP run, or a recurring one, and is waited for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from zenml.entrypoints import StepEntrypointConfiguration
from zenml.enums import StackComponentType
from zenml.orchestrators import ContainerizedOrchestrator, SubmissionResult
from zenml.stack import StackValidator

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, EnvironmentFailure
from bipline.base.extras import require
from bipline.base.progress import note
from infra.kubeflow.config import KubeflowConfig, KubeflowSettings
from infra.kubeflow.tasks import RUN_ID, compile_tasks

if TYPE_CHECKING:
    from zenml.models import (
        PipelineRunResponse,
        PipelineSnapshotResponse,
        ScheduleResponse,
        ScheduleUpdate,
    )
    from zenml.stack import Stack

RECURRING_RUN = "kfp_recurring_run_id"
SUCCEEDED = "SUCCEEDED"


class KubeflowOrchestrator(ContainerizedOrchestrator):
    """Runs static pipelines on Kubeflow Pipelines 2."""

    @property
    def config(self) -> KubeflowConfig:
        """What the stack says of the deployment."""
        return cast(KubeflowConfig, self._config)

    @property
    def settings_class(self) -> type[KubeflowSettings]:
        """What a run and a step may say for themselves."""
        return KubeflowSettings

    @property
    def validator(self) -> StackValidator:
        """Pods need an image from a registry; the image is made elsewhere, but ZenML asks."""
        return StackValidator(
            required_components={
                StackComponentType.CONTAINER_REGISTRY, StackComponentType.IMAGE_BUILDER,
            },
            custom_validation_function=self._reachable_from_pods,
        )  # fmt: skip

    def _reachable_from_pods(self, stack: Stack) -> tuple[bool, str]:
        local = [each.name for each in stack.all_components if each.local_path]
        said = f"{', '.join(local)}: pods of a cluster cannot reach a folder of this machine"
        return not local, said if local else ""

    def get_orchestrator_run_id(self) -> str:
        """The KFP run that this pod belongs to. Raises RuntimeError outside of one."""
        try:
            return os.environ[RUN_ID]
        except KeyError:
            raise RuntimeError(f"{RUN_ID} is not set: this is no pod of a KFP run") from None

    def submit_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Hand the compiled snapshot to KFP; a schedule becomes a recurring run.

        Raises EnvironmentFailure where KFP does not take it.
        """
        name = snapshot.pipeline_configuration.name
        settings = cast(KubeflowSettings, self.get_settings(snapshot))
        with TemporaryDirectory() as folder, answering(self.config), self._client() as client:
            package = Path(folder) / f"{name}.yaml"
            self.write(snapshot, step_environments, package)
            if snapshot.schedule:
                made = _recur(client, snapshot.schedule, name, settings.user_namespace, package)
                return SubmissionResult(metadata={RECURRING_RUN: made})
            run = client.create_run_from_pipeline_package(
                str(package), arguments={}, run_name=snapshot.run_name_template,
                experiment_name=name, enable_caching=False, namespace=settings.user_namespace,
            )  # fmt: skip
        note(f"KFP run {run.run_id} of experiment {name}")
        wait = self._waiting(run.run_id, settings) if settings.synchronous else None
        return SubmissionResult(wait_for_completion=wait)

    def write(
        self,
        snapshot: PipelineSnapshotResponse,
        environments: Mapping[str, Mapping[str, str]],
        out: Path,
    ) -> None:
        """Compile a snapshot into the file ``out``."""
        compile_tasks(
            snapshot.pipeline_configuration.name,
            snapshot.step_configurations,
            lambda step: cast(KubeflowSettings, self.get_settings(step)),
            lambda step: self.get_image(snapshot=snapshot, step_name=step),
            lambda step: entrypoint(step, str(snapshot.id)),
            environments,
            out,
        )

    def update_schedule(self, schedule: ScheduleResponse, update: ScheduleUpdate) -> None:
        """Give a recurring run another cron expression, or let it rest.

        KFP changes no recurring run: the old one is replaced, under the same pipeline.
        """
        from zenml.orchestrators.publish_utils import publish_schedule_metadata

        with answering(self.config), self._client() as client:
            old = client.get_recurring_run(_recurring_run(schedule))
            if update.cron_expression:
                made = _replaced(client, old, update.cron_expression)
                metadata = {self.id: {RECURRING_RUN: made}}
                publish_schedule_metadata(schedule.id, metadata)
            elif update.active is not None:
                change = client.enable_recurring_run if update.active else (
                    client.disable_recurring_run
                )  # fmt: skip
                change(old.recurring_run_id)

    def delete_schedule(self, schedule: ScheduleResponse) -> None:
        """Remove the recurring run of a schedule."""
        with answering(self.config), self._client() as client:
            client.delete_recurring_run(_recurring_run(schedule))

    def probe(self) -> None:
        """Ask KFP whether it is there. Raises EnvironmentFailure where it does not answer."""
        with answering(self.config), self._client() as client:
            client.get_kfp_healthz()

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """KFP's own client of the deployment."""
        config = self.config
        where = (
            {"host": config.kubeflow_hostname, "existing_token": config.token}
            if config.kubeflow_hostname
            else {"kube_context": config.kubernetes_context}
        )
        yield require("kfp", "kubeflow").Client(namespace=config.kubeflow_namespace, **where)

    def _waiting(self, run_id: str, settings: KubeflowSettings) -> Callable[[], None]:
        def wait() -> None:
            with answering(self.config), self._client() as client:
                ended = client.wait_for_run_completion(run_id, timeout=settings.timeout)
            if ended.state != SUCCEEDED:
                note(f"KFP run {run_id} ended as {ended.state}")

        return wait


def entrypoint(step: str, snapshot: str) -> tuple[list[str], list[str]]:
    """Command and arguments of a step's pod."""
    command = StepEntrypointConfiguration.get_entrypoint_command()
    given = StepEntrypointConfiguration.get_entrypoint_arguments(
        step_name=step, snapshot_id=snapshot
    )
    return command, given


@contextmanager
def answering(config: KubeflowConfig) -> Iterator[None]:
    """Raise EnvironmentFailure where Kubeflow Pipelines is what failed."""
    try:
        yield
    except BiplineError:
        raise
    except Exception as error:
        where = config.kubeflow_hostname or f"context {config.kubernetes_context}"
        reason = getattr(error, "reason", None) or " ".join(str(error).split())[:200]
        raise EnvironmentFailure(
            f"Kubeflow Pipelines at {without_secrets(where)} does not answer: "
            f"{without_secrets(str(reason))}; `bipline doctor` tells what is wrong"
        ) from error


def _recur(
    client: Any, schedule: ScheduleResponse, name: str, namespace: str | None, package: Path
) -> str:
    experiment = client.create_experiment(name, namespace=namespace)  # the one that is there
    every = schedule.interval_second
    made = client.create_recurring_run(
        experiment_id=experiment.experiment_id, job_name=schedule.name,
        pipeline_package_path=str(package), enable_caching=False,
        cron_expression=schedule.cron_expression,
        interval_second=int(every.total_seconds()) if every else None,
        start_time=schedule.utc_start_time, end_time=schedule.utc_end_time,
        no_catchup=not schedule.catchup,
    )  # fmt: skip
    return str(made.recurring_run_id)


def _replaced(client: Any, old: Any, cron: str) -> str:
    """The recurring run that takes an old one's place; the old one goes when the new one is there.

    Its pipeline is the one that the old run was made from.
    """
    import yaml

    with TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        specification = old.pipeline_spec
        documents = [
            specification[part]
            for part in ("pipeline_spec", "platform_spec")
            if part in specification
        ]
        package.write_text(yaml.safe_dump_all(documents or [specification]), encoding="utf-8")
        made = client.create_recurring_run(
            experiment_id=old.experiment_id, job_name=old.display_name,
            pipeline_package_path=str(package), enable_caching=False, cron_expression=cron,
            no_catchup=bool(old.no_catchup),
        )  # fmt: skip
    client.delete_recurring_run(old.recurring_run_id)
    return str(made.recurring_run_id)


def _recurring_run(schedule: ScheduleResponse) -> str:
    found = schedule.run_metadata.get(RECURRING_RUN)
    if not found:
        raise EnvironmentFailure(f"schedule {schedule.name}: ZenML knows no recurring run of it")
    return str(found)
