"""Settings with every part named: what ``auto`` stands for may depend on the model."""

from __future__ import annotations

from bipline.base.errors import BiplineError
from bipline.compression.auto import AUTO, Line, applies, settled_settings
from bipline.stages.resolve import known_checkpoint


def settled(settings: Line) -> tuple[Line, str]:
    """The settings with every part named, and why (see :func:`.auto.settled_settings`).

    The model is looked at where ``auto`` is to choose. One that cannot be opened yet, as a version
    that lies in a registry, is taken for none of experts; if it is, that is refused once it is
    there, with what to name.
    """
    if settings.score.criterion != AUTO or applies(settings):
        return settled_settings(settings)
    return settled_settings(settings, has_experts(settings.model))


def has_experts(source: str) -> bool:
    """Whether a model's FFNs are known to be made of experts."""
    try:
        checkpoint = known_checkpoint(source)
    except BiplineError:  # it is raised where the model is resolved
        return False
    return checkpoint is not None and bool(checkpoint.shape.num_experts)
