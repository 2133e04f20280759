"""The functions of ``import bipline`` that run a pipeline: compress and sweep, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.errors import InvalidInput
from bipline.base.extras import check as check_extra
from bipline.delivery.notices import Channel, failures_told, telling
from bipline.face import named_places
from bipline.face.keywords import Place
from bipline.face.output import write_json
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import KINDS, load, load_each, placed
from bipline.settings.sweep import SweepSettings

if TYPE_CHECKING:
    from bipline.values.comparison import SweepSummary
    from bipline.values.summary import RunSummary


def compress(
    config: Place | CompressSettings,
    overrides: Sequence[str] = (),
    *,
    json_file: Place | None = None,
    state: Place | None = None,
    stack: str | None = None,
) -> RunSummary:
    """Run the compress pipeline from a configuration: a file or settings, with overrides.

    On a stack in the folder ``state``, else on the ZenML stack named, else on the active one.
    """
    summary: RunSummary = _run("compress", config, overrides, json_file, state, stack)
    return summary


def sweep(
    config: Place | SweepSettings,
    overrides: Sequence[str] = (),
    *,
    json_file: Place | None = None,
    state: Place | None = None,
    stack: str | None = None,
) -> SweepSummary:
    """Run the sweep pipeline: score once per criterion, measure every row, pick the best.

    Where it runs is said as for :func:`compress`.
    """
    summary: SweepSummary = _run("sweep", config, overrides, json_file, state, stack)
    return summary


def checked(
    settings: Any, thorough: bool = False, json_file: Place | None = None
) -> list[tuple[str, str]]:
    """What a pipeline would do, a line per stage. Raises what can be seen to fail before work."""
    is_sweep = isinstance(settings, SweepSettings)
    named_places.check_pipeline(settings, "sweep" if is_sweep else "compress", json_file)
    channel = Channel.of(settings.notify)
    heard = [("notify", f"{channel}, of {', '.join(settings.notify.on)}")] if channel else []
    if is_sweep:
        from bipline.comparison.plan import check_sweep

        return check_sweep(settings) + heard
    from bipline.stages.line import check

    return check(settings, thorough) + heard


def _run(
    pipeline: str,
    config: Any,
    overrides: Sequence[str],
    json_file: Place | None,
    state: Place | None,
    stack: str | None,
) -> Any:
    """What the runner of a pipeline, which lies beside this package, answers."""
    settings: Any = _settings(pipeline, config, overrides)
    check_extra("pipeline", pipeline)
    settings = placed(settings, state, stack)
    with telling(settings.notify), failures_told(pipeline, settings.model):
        checked(settings, json_file=json_file)  # before ZenML is imported, and anything started
        summary = getattr(import_module("pipelines.run"), f"run_{pipeline}")(settings)
    write_json(json_file, pipeline, summary.model_dump(mode="json"))
    return summary


def _settings(pipeline: str, config: Any, overrides: Sequence[str]) -> Any:
    """Settings as they are given, or of a file with overrides. Raises InvalidInput for several."""
    kind = KINDS[pipeline]
    sets = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    if isinstance(config, kind):
        return config
    if kind is not CompressSettings:
        return load(kind, Path(config), sets)
    runs = load_each(Path(config), sets)
    if len(runs) > 1:
        raise InvalidInput(f"{config}: asks for {len(runs)} models; compress_each makes them all")
    return runs[0]
