"""What a gate asks for, against what a run will measure."""

from __future__ import annotations

from bipline.base.errors import InvalidInput
from bipline.settings.compress import CompressSettings
from bipline.settings.gate import EVERY, GateSettings
from bipline.values.figures import FORMAT_FIGURES

MEASURED_TEXTS = ("perplexity", "nll", "perplexity_increase", "nll_increase")
MEASURED_TASKS = ("acc", "acc_norm")


def check_measured(gate: GateSettings, settings: CompressSettings) -> None:
    """Raise InvalidInput for a limit on what the run will not measure, or a format not written."""
    evaluated = settings.evaluate
    for limit in gate.limits:
        kind, _, subject = limit.figure.partition(".")
        known: tuple[str, ...] | None = None
        if kind in MEASURED_TEXTS:
            known, key = evaluated.texts, "evaluate.texts"
        elif kind in MEASURED_TASKS:
            known, key = evaluated.tasks, "evaluate.tasks"
        elif kind.endswith("tokens_per_second") and not evaluated.protocol.speed:
            known, key = (), "evaluate.protocol.speed"
        if known is not None and not (subject in known or (subject == EVERY and known)):
            raise InvalidInput(
                f"gate {settings.promote.gate} limits {limit.figure}, which {key} does not measure"
            )
    for format_ in gate.requirements.formats:
        if format_ not in settings.export.formats:
            raise InvalidInput(
                f"gate {settings.promote.gate} requires the format {format_}, which "
                "export.formats does not name"
            )


def check_format_limits(gate: GateSettings, settings: CompressSettings) -> None:
    """Raise InvalidInput for a limit on a format that is not written, or a text not measured."""
    for limit in gate.limits:
        kind, _, subject = limit.figure.partition(".")
        if kind not in FORMAT_FIGURES:
            continue
        name, _, text = subject.partition(".")
        told = f"gate {settings.promote.gate} limits {limit.figure}"
        # hf is measured as the model itself, and has no engine of its own.
        written = [each for each in settings.export.formats if each != "hf"]
        if name not in written:
            raise InvalidInput(f"{told}; export.formats has {', '.join(written) or 'hf alone'}")
        texts = settings.evaluate.texts
        if text and text not in texts and not (text == EVERY and texts):
            raise InvalidInput(f"{told}, which evaluate.texts does not measure")
