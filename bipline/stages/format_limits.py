"""What a gate asks of a format's own file, against what a run will have its engine measure."""

from __future__ import annotations

from bipline.base.errors import InvalidInput
from bipline.settings.compress import CompressSettings
from bipline.settings.gate import EVERY, GateSettings
from bipline.values.figures import FORMAT_FIGURES


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
