"""Each switch of each family's config, set to another value, is followed or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from bipline.base.errors import InvalidInput
from bipline.model.agreement import check_agreement
from bipline.model.block_loop import BlockLoop
from bipline.model.built import build
from bipline.model.config_keys import allowed_keys, checked_config
from bipline.model.family import family_names, family_of
from tests.tiny import CASES, config_of, token_windows

WHERE = "model/config.json"
SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rope_parameters",
}  # fmt: skip
CASE_OF = {model_type: case for case, (model_type, _) in reversed(CASES.items())}


def another(value: Any) -> list[Any]:
    """Values that a key might have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, float | int):
        return [value + 1, value + 0.5]
    if isinstance(value, str):
        return ["relu"]
    return [3, 0.25, True] if value is None else []


def own_keys(model_type: str) -> dict[str, Any]:
    """What the class itself declares, with what it takes where a config says nothing."""
    family = family_of(model_type)
    made = AutoConfig.for_model(family.read_as or model_type)
    sizes = SIZES | {family.spelled.get(key, key) for key in SIZES}
    fields = type(made).__dataclass_fields__
    declared = vars(type(made))["__annotations__"]
    own = {key: fields[key].default for key in declared if key in fields and key not in sizes}
    aliases = dict(getattr(type(made), "attribute_map", None) or {})
    return {**own, **{alias: own[name] for alias, name in aliases.items() if name in own}}


def logits_of(config: dict[str, Any]) -> torch.Tensor:
    """Of transformers' model with this config, its weights drawn in the order of their names."""
    model = build(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * drawn)
        return model(token_windows(2, 12)).logits


def followed(config: dict[str, Any], key: str, value: Any) -> bool:
    """Whether the value is kept and run as by transformers; False where it is refused."""
    try:
        checked = checked_config({**config, key: value}, WHERE)
        check_agreement(checked, lambda small, ids: BlockLoop(small).logits(ids), WHERE)
    except InvalidInput:
        return False
    family = family_of(str(config["model_type"]))
    if key not in family.written_out:
        assert checked[family.words.get(key, key)] == value
    return True


# A few in the quick tests, the rest in the slow ones.
QUICK = {"granite", "olmo", "hunyuan_v1_dense"}
ASKED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in family_names()
]


@pytest.mark.parametrize("model_type", ASKED)
def test_a_switch_is_followed_or_refused(model_type: str) -> None:
    """Or, where no such key is known and it is left out, it changes nothing."""
    config = config_of(CASE_OF[model_type])
    family, allowed = family_of(model_type), allowed_keys(model_type)
    kept = 0
    for key, default in own_keys(model_type).items():
        for value in another(config.get(key, default)):
            if family.words.get(key, key) in allowed:
                kept += followed(config, key, value)
                continue
            checked = checked_config(config, WHERE)
            if family.read_as:  # its own class takes no such key
                assert checked_config({**config, key: value}, WHERE) == checked
                continue
            try:
                changed = logits_of({**checked, key: value})
            except InvalidInput:
                continue  # transformers itself has no such value
            assert changed.equal(logits_of(checked)), key
    assert kept > 5
