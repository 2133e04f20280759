"""What a configuration leaves to ``auto``, made explicit: stages are told what they do by name."""

from __future__ import annotations

from bipline.compression.auto import Method, settled
from bipline.settings.compress import CompressConfig


def settle(config: CompressConfig) -> tuple[CompressConfig, str]:
    """The configuration with criterion, rule and compensation named, and why where it was auto."""
    score, allocate, compensate = config.score, config.allocate, config.compensate
    named = Method(
        criterion=score.criterion,
        criterion_options=score.options,
        rule=allocate.rule,
        rule_options=allocate.options,
        compensation=compensate.form,
        compensation_options=compensate.options,
    )
    method, reason = settled(named, allocate.layout)
    values = {
        "score": score.model_copy(
            update={"criterion": method.criterion, "options": dict(method.criterion_options)}
        ),
        "allocate": allocate.model_copy(
            update={"rule": method.rule, "options": dict(method.rule_options)}
        ),
        "compensate": compensate.model_copy(
            update={"form": method.compensation, "options": dict(method.compensation_options)}
        ),
    }
    return config.model_copy(update=values), reason
