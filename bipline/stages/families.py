"""The table of families: made from their data, so that it cannot say what the code does not do."""

from __future__ import annotations

from bipline.delivery.formats.gguf.architectures import architectures_for
from bipline.model.families import BIASED, Family, build_of, families, family_of
from bipline.model.kinds import nearest_kind
from bipline.model.per_layer.classes import PER_LAYER_CLASSES
from bipline.model.shapes import PER_LAYER_PREFIX
from bipline.model.wrappers import wrappers
from bipline.values.families import Families, FamilyRow


def known_families(model_type: str | None = None) -> Families:
    """Every family, or the one of a ``model_type``.

    Raises InvalidInput for one that is not known, with the kind it is nearest to and what to do.
    """
    if model_type is None:
        rows = {name: _row(name, family) for name, family in families().items()}
        rows |= {name: _wrapped(name) for name in wrappers()}
        return Families(families=tuple(rows[name] for name in sorted(rows)))
    if model_type in wrappers():
        return Families(families=(_wrapped(model_type),))
    if model_type not in families():
        raise nearest_kind(model_type)
    return Families(families=(_row(model_type, family_of(model_type)),))


def _wrapped(model_type: str) -> FamilyRow:
    """A model around a decoder: what can go is the decoder's, which GGUF holds alone."""
    wrapper = wrappers()[model_type]
    row = _row(wrapper.decoder, family_of(wrapper.decoder))
    return row.model_copy(
        update={
            "model_type": model_type,
            "kind": f"{row.kind}, inside another model",
            "architecture": wrapper.architecture,
            "layouts": ("uniform",),
            "also": (),
            "exports": {
                "hf": (wrapper.architecture,),
                "gguf": architectures_for(wrapper.decoder, False),
            },
        }
    )


def _row(model_type: str, family: Family) -> FamilyRow:
    groups = () if family.heads_fixed else ("attention groups",)
    build = build_of(family)
    ffn = ("experts", "expert channels") if build.has_experts else ("FFN channels",)
    cuts = () if family.ffn_fixed else ffn
    run_as = family.read_as or model_type
    per_layer = f"{PER_LAYER_PREFIX}{run_as}" in PER_LAYER_CLASSES
    held = {
        "hf": (family_of(run_as).architecture,), "gguf": architectures_for(run_as, per_layer),
    }  # fmt: skip
    return FamilyRow(
        model_type=model_type,
        kind=build_of(family).kind,
        architecture=family.architecture,
        cuts=(*groups, *cuts, "blocks"),
        layouts=("uniform", "per-layer") if per_layer else ("uniform",),
        also=tuple(family_of(name).architecture for name in family.alternatives),
        biases_added=family_of(run_as).can_hold(BIASED),
        exports={name: each for name, each in held.items() if each},
    )
