"""The functions of ``import bipline`` that act on a registry: promote, roll back, history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bipline.base.errors import InvalidInput
from bipline.delivery.notices import tell, telling
from bipline.face import named_places
from bipline.face.keywords import Place
from bipline.face.output import write_json
from bipline.settings.loading import validated
from bipline.settings.notify import Event, NotifySettings
from bipline.settings.stack import USUAL_STATE
from bipline.values.notice import Notice

if TYPE_CHECKING:
    from bipline.values.promotion import History, Promotion
    from bipline.values.verdict import Override

STATE = USUAL_STATE


def promote(
    model: str,
    to: str,
    *,
    gate: Place | None = None,
    override: bool = False,
    reason: str | None = None,
    by: str | None = None,
    registry: str | None = None,
    also: Sequence[str] = (),
    json_file: Place | None = None,
    state: Place | None = None,
) -> Promotion:
    """Give a registered version, ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION``, the alias ``to``.

    ``gate`` decides by the records in its package: strict, lenient or a file. What it refuses is
    promoted with ``override`` alone, which needs ``reason`` and ``by``; both stay in verdict and
    journal. ``also`` are registries that the package is put into and promoted in too; what came of
    them is told in the result. Raises Refused where the gate does, or another promotion came first.
    """
    from bipline.stages.promote import promote_registered

    answer = _override(override, reason, by)
    named_places.check_registered(gate, json_file=json_file, command="promote", state=state)
    address = _address(registry, state)
    chosen = None if gate is None else str(gate)
    with telling(NotifySettings()), _refusals_told():
        result = promote_registered(model, to, chosen, answer, address, tuple(also))
        _moved(result, "promotion")
    write_json(json_file, "promote", result.model_dump(mode="json"))
    return result


def rollback(
    model: str,
    *,
    expected: str | None = None,
    reason: str | None = None,
    by: str | None = None,
    registry: str | None = None,
    json_file: Place | None = None,
    state: Place | None = None,
) -> Promotion:
    """Give ``NAME@ALIAS`` back to the version before, which is hashed again first.

    With ``expected`` only that version is rolled back: the same call twice does it once. Raises
    Refused where there is no version before, or another one moved the alias first.
    """
    from bipline.stages.promote import roll_back

    named_places.check_registered(None, json_file=json_file, command="rollback", state=state)
    address = _address(registry, state)
    with telling(NotifySettings()):
        result = roll_back(model, expected, reason, by, address)
        _moved(result, "rollback", reason)
    write_json(json_file, "rollback", result.model_dump(mode="json"))
    return result


def history(
    name: str,
    *,
    registry: str | None = None,
    json_file: Place | None = None,
    state: Place | None = None,
) -> History:
    """Who moved which alias of a registered model when, and why; where aliases point beside it."""
    from bipline.stages.promote import history as read_history

    named_places.check_registered(None, json_file=json_file, command="history", state=state)
    address = _address(registry, state)
    result = read_history(name, address)
    write_json(json_file, "history", result.model_dump(mode="json"))
    return result


def _address(registry: str | None, state: Place | None) -> str | None:
    """The registry that is meant: the one named, else the state folder's."""
    from bipline.stages.promote import registry_address

    return registry_address(registry, Path(state) if state else None, Path(STATE), True)


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Tell of a gate that refuses in the block."""
    from bipline.delivery.registries.promotion import GateRefused

    try:
        yield
    except GateRefused as refused:
        told = {name: getattr(refused.verdict, name) for name in ("model", "version", "alias")}
        tell(Notice(event="refusal", pipeline="promote", reason=str(refused), **told))
        raise


def _moved(done: Promotion, event: Event, reason: str | None = None) -> None:
    """Tell of an alias that points elsewhere now."""
    told = {name: getattr(done, name) for name in ("model", "version", "alias")}
    if done.changed:
        pipeline = "promote" if event == "promotion" else event
        tell(Notice(event=event, pipeline=pipeline, reason=reason, **told))


def _override(asked: bool, reason: str | None, by: str | None) -> Override | None:
    """Who answers for what a gate refuses. Raises InvalidInput without a reason and a name."""
    from bipline.values.verdict import Override

    if not asked:
        if reason is not None or by is not None:
            raise InvalidInput("--reason and --by say who overrides a gate: give --override too")
        return None
    if reason is None or by is None:
        raise InvalidInput("--override needs --reason TEXT and --by NAME; both stay in the journal")
    return validated(Override, {"reason": reason, "by": by})
