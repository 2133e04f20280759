"""Notices from inside a run, wherever its steps are: to the webhook, and to the stack's alerter."""

from __future__ import annotations

from zenml import get_step_context
from zenml.client import Client

from bipline.base.progress import note
from bipline.delivery.notices import completed, failure, is_telling, tell
from bipline.values.notice import Notice
from bipline.values.summary import Registration


def on_failure(error: BaseException) -> None:
    """ZenML's hook for a step that failed.

    Whoever waits for the run tells the webhook; where nobody does, this is who knows.
    """
    context = get_step_context()
    run, stage = context.pipeline_run.name, context.step_run.name
    notice = failure(error, context.pipeline.name, run=run, stage=stage)
    if not is_telling():
        tell(notice)
    alert(notice)


def tell_registered(registration: Registration, asked: str) -> None:
    """Tell of an alias that moved as it was asked, or of a gate that did not let it."""
    verdict, refusal = registration.verdict, registration.refusal
    if verdict is None and refusal is None:
        return  # no gate was asked, or the alias points there already
    notice = Notice(
        event="refusal" if refusal else "promotion",
        pipeline="compress",
        run=get_step_context().pipeline_run.name,
        model=registration.model_name,
        version=registration.version,
        alias=asked,
        reason=refusal,
    )
    tell(notice)
    alert(notice)


def alert(notice: Notice) -> None:
    """Post a notice by the active stack's alerter, if it has one. Never raises."""
    try:
        alerter = Client().active_stack.alerter
        if alerter is not None and not alerter.post(completed(notice).text):
            note(f"the alerter {alerter.name} did not take the notice of a {notice.event}")
    except Exception as error:  # whatever a service's library raises, the run is what counts
        note(f"the stack's alerter failed ({type(error).__name__}); the notice is not there")
