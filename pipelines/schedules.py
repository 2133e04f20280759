"""Compress runs on a schedule of the stack's orchestrator; ZenML is imported late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.progress import note
from bipline.settings.compress import CompressSettings
from bipline.settings.cron import next_time
from bipline.settings.notify import VARIABLE, NotifySettings
from bipline.settings.stack import StackSettings
from bipline.stages.settled import settled
from bipline.values.schedule import RunSchedule, RunSchedules
from pipelines.own_stack import answering, own_stack
from pipelines.remote import placed_options
from pipelines.run import stack_of

if TYPE_CHECKING:
    from zenml.models import ScheduleResponse
    from zenml.stack import Stack

# ZenML fills in when each run begins.
RUN_NAME = "compress-{date}-{time}"
MOST = 500
ELSEWHERE = (
    "by cron, a systemd timer or a Kubernetes CronJob: infra/schedules has an example of each"
)


def check_schedulable(settings: CompressSettings, name: str) -> None:
    """Raise InvalidInput where the stack keeps no schedule, or has one of this name."""
    with own_stack(settings.stack, settings.promote.tracking_uri), answering():
        _check(name)


def schedule_compress(settings: CompressSettings, cron: str, name: str) -> RunSchedule:
    """Let the stack's orchestrator run this configuration at these times.

    Raises InvalidInput where it cannot, EnvironmentFailure where it did not take it: then ZenML
    keeps none.
    """
    settings, reason = settled(settings)
    if reason:
        note(reason)
    if settings.notify.webhook is not None:
        note(f"notify.webhook is handed to no schedule: its runs tell the webhook of {VARIABLE}")
    settings = settings.model_copy(update={"notify": NotifySettings()})
    with stack_of(settings, "compress"):
        from zenml.client import Client
        from zenml.config.schedule import Schedule

        from pipelines.compress import configured

        stack = _check(name)
        plan = Schedule(name=name, cron_expression=cron)
        try:
            pipeline = configured(settings, run_name=RUN_NAME, schedule=plan)
            pipeline = pipeline.with_options(**placed_options(settings))
            pipeline(settings)
        except BaseException as error:
            for each in _named(name):
                Client().zen_store.delete_schedule(each.id, soft=False)
            if isinstance(error, BiplineError) or not isinstance(error, Exception):
                raise
            told = without_secrets(" ".join(str(error).split()))[:300]
            raise EnvironmentFailure(
                f"stack {stack.name!r} did not take the schedule: {told or type(error).__name__}"
            ) from error
        [made] = _named(name)
        return _told(made)


def list_schedules(settings: StackSettings) -> RunSchedules:
    """The schedules of a stack's ZenML that were not removed."""
    with _asking(settings) as client:
        stack = client.active_stack_model.name
        found = client.list_schedules(size=MOST, sort_by="asc:created", hydrate=True).items
        return RunSchedules(stack=stack, schedules=tuple(_told(each) for each in found))


def remove_schedule(settings: StackSettings, name: str) -> None:
    """Remove a schedule, from the orchestrator too where that can be told to.

    Raises InvalidInput where there is none of this name.
    """
    with _asking(settings) as client:
        found = _named(name)
        if not found:
            every = client.list_schedules(size=MOST).items
            known = ", ".join(sorted(each.name for each in every)) or "none"
            raise InvalidInput(f"schedule {name!r}: not known here; known: {known}")
        orchestrator = client.active_stack.orchestrator
        if found[0].orchestrator_id != orchestrator.id or not (
            orchestrator.supports_schedule_deletion
        ):
            note(
                f"ZenML forgets {name}, and may not tell the orchestrator that keeps it "
                f"({_orchestrator(found[0])}): look there whether it still starts runs"
            )
        client.delete_schedule(found[0].id)


@contextmanager
def _asking(settings: StackSettings) -> Iterator[Any]:
    """ZenML's client of a stack of the user's, to be asked."""
    with own_stack(settings.stack, None), answering():
        from zenml.client import Client

        yield Client()


def _check(name: str) -> Stack:
    from zenml.client import Client

    stack = Client().active_stack
    if not stack.orchestrator.config.is_schedulable:
        raise InvalidInput(
            f"--schedule: stack {stack.name!r} is run by an orchestrator that keeps no schedule "
            f"({stack.orchestrator.flavor}); give --stack NAME of one that does, or start "
            f"`bipline compress` {ELSEWHERE}"
        )
    if found := _named(name):
        raise InvalidInput(
            f"schedule {name!r} is there already ({found[0].cron_expression}); remove it first: "
            f"bipline schedule remove {name}, or give --schedule-name"
        )
    return stack


def _named(name: str) -> list[ScheduleResponse]:
    from zenml.client import Client

    return list(Client().list_schedules(name=f"equals:{name}", hydrate=True).items)


def _told(schedule: ScheduleResponse) -> RunSchedule:
    from zenml.client import Client

    cron = schedule.cron_expression or ""
    comes = next_time(cron) if cron and schedule.active else None
    pipeline = schedule.pipeline_id and Client().get_pipeline(schedule.pipeline_id).name
    return RunSchedule(
        name=schedule.name,
        cron=cron,
        pipeline=pipeline or "",
        orchestrator=_orchestrator(schedule),
        active=schedule.active,
        next=comes.isoformat(timespec="minutes") if comes else "",
    )


def _orchestrator(schedule: ScheduleResponse) -> str:
    """The name of the orchestrator that keeps a schedule; empty where it is gone."""
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    if schedule.orchestrator_id is None:
        return ""
    found = Client().list_stack_components(
        type=Kind.ORCHESTRATOR, id=f"equals:{schedule.orchestrator_id}"
    )
    return str(found.items[0].name) if found.items else ""
