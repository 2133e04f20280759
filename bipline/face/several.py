"""Several models of one configuration: a run each, and what fails stops no other."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bipline.base.addresses import without_secrets
from bipline.base.errors import BY_EXIT_CODE, BiplineError, Refused
from bipline.base.extras import check as check_extra
from bipline.base.progress import heading, note
from bipline.delivery.notices import failures_told, telling
from bipline.face.keywords import Place
from bipline.face.output import write_json
from bipline.face.running import checked, compress
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load_each, placed

if TYPE_CHECKING:
    from bipline.values.summary import ModelOutcome, SeveralSummary


def compress_each(
    config: Place | Sequence[CompressSettings],
    overrides: Sequence[str] = (),
    *,
    models: Sequence[str] = (),
    json_file: Place | None = None,
    state: Place | None = None,
    stack: str | None = None,
) -> SeveralSummary:
    """Run the compress pipeline for each model of a configuration, one after the other.

    ``models`` stand in place of those that the file names. What can be seen to fail is known before
    the first run works; how each ended is told and returned, and none stops the others.
    """
    from bipline.values.summary import SeveralSummary

    runs = (
        load_each(Path(config), tuple(overrides), tuple(models))
        if isinstance(config, (str, Path))
        else tuple(config)
    )
    check_extra("pipeline", "compress")
    runs = tuple(placed(each, state, stack) for each in runs)
    refused = [_refused(each, json_file) for each in runs]
    outcomes = []
    for number, (each, outcome) in enumerate(zip(runs, refused, strict=True), start=1):
        if outcome is None:
            heading(f"model {number} of {len(runs)}: {each.model}")
            outcome = _outcome(each)
            note(outcome_line(outcome))
        outcomes.append(outcome)
    summary = SeveralSummary(models=tuple(outcomes))
    write_json(json_file, "compress", summary.model_dump(mode="json"))
    return summary


def outcome_line(outcome: ModelOutcome) -> str:
    """How a model's run ended, in a line."""
    if outcome.summary is None:
        return f"{outcome.model}: failed (exit {outcome.exit_code}): {outcome.reason}"
    registered = outcome.summary.registration
    where = f"{registered.model_name} version {registered.version}, alias {registered.alias}"
    why = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.model}: {outcome.ended}; {where}{why}"


def error_of(summary: SeveralSummary) -> BiplineError | None:
    """What a command that made several ends with: the worst of their exit codes, or None."""
    if not (failed := summary.failed):
        return None
    names = ", ".join(each.model for each in failed)
    kind = BY_EXIT_CODE[summary.exit_code]
    return kind(f"{len(failed)} of {len(summary.models)} models did not end well: {names}")


def _refused(settings: CompressSettings, json_file: Place | None) -> ModelOutcome | None:
    """How a run fails that can be seen to before any works; None for the others."""
    try:
        with telling(settings.notify), failures_told("compress", settings.model):
            checked(settings, json_file=json_file)
    except BiplineError as error:
        outcome = _failed(settings, error)
        note(outcome_line(outcome))
        return outcome
    return None


def _outcome(settings: CompressSettings) -> ModelOutcome:
    from bipline.values.summary import ModelOutcome

    try:
        summary = compress(settings)
    except Exception as error:  # whatever one ends with, the others are made
        if not isinstance(error, BiplineError):
            traceback.print_exc()  # into the log
        return _failed(settings, error)
    refusal = summary.registration.refusal
    code = Refused.exit_code if refusal else 0
    return ModelOutcome(
        model=settings.model, name=settings.promote.name, exit_code=code, reason=refusal or "",
        summary=summary,
    )  # fmt: skip


def _failed(settings: CompressSettings, error: Exception) -> ModelOutcome:
    from bipline.values.summary import ModelOutcome

    known = isinstance(error, BiplineError)
    reason = str(error) if known else f"{type(error).__name__}: {error}; a fault of bipline"
    code = error.exit_code if isinstance(error, BiplineError) else 1
    reason = without_secrets(" ".join(reason.split()))
    return ModelOutcome(
        model=settings.model, name=settings.promote.name, exit_code=code, reason=reason
    )
