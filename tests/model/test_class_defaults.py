"""What a config leaves to its class means the same under another class."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.model.built import build
from bipline.model.config_keys import allowed_keys, checked_config, class_defaults
from bipline.model.families import exported_config, family_of, with_output_biases
from bipline.model.opening import open_checkpoint
from tests.family_table import case_of
from tests.tiny import FAMILY_CASES, WITH_A_CLASS, config_of, tiny_model

WHERE = "model/config.json"


@pytest.mark.parametrize("family", WITH_A_CLASS)
def test_defaults_are_those_of_transformers_classes(family: str) -> None:
    """Key by key, for every key that is known and that the class has a value for."""
    made = AutoConfig.for_model(family)
    fields = type(made).__dataclass_fields__
    ours = class_defaults(family)
    theta = ours.pop("rope_theta", 10000.0)
    turned = ours.pop("partial_rotary_factor", 1.0)
    called = family_of(family).spelled
    ours = {called.get(key, key): value for key, value in ours.items()}
    assert {key: fields[key].default for key in ours} == ours
    no_default_of_a_class = {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
        "num_attention_heads", "architectures", "dtype", "transformers_version", "model_type",
        "rope_parameters", *family_of(family).block_lists,
    }  # fmt: skip
    allowed = {called.get(key, key) for key in allowed_keys(family)}
    sizes = {called.get(key, key) for key in no_default_of_a_class}
    assert allowed & fields.keys() - ours.keys() <= sizes
    if family_of(family).rope_by_layer_type:
        # Said for each kind of block, and never by another class's name.
        assert not family_of(family).alternatives
        return
    if "rope_parameters" in family_of(family).written_out:
        # How positions turn by its class is written out; no other class's name is taken.
        assert not family_of(family).alternatives
        written = checked_config(config_of("gpt-oss"), WHERE)["rope_parameters"]
        assert written == made.rope_parameters
        return
    if not family_of(family).turns_heads:
        assert not getattr(made, "rope_parameters", None)
        return
    rope = {"rope_theta": theta, "rope_type": "default", "partial_rotary_factor": turned}
    assert {"partial_rotary_factor": 1.0, **made.rope_parameters} == rope


@pytest.mark.parametrize("family", WITH_A_CLASS)
def test_a_null_that_a_config_may_say_is_one_that_the_class_takes(family: str) -> None:
    config = config_of(case_of(family))
    for key, allowed in allowed_keys(family).items():
        if not allowed.null:
            continue
        with suppress(InvalidInput):  # of keys that depend on others
            checked = checked_config({**config, key: None}, WHERE)
            assert _built(checked), key


def _built(config: dict[str, Any]) -> bool:
    """Whether transformers' class takes a config."""
    try:
        with torch.device("meta"):
            return build(config) is not None
    except (InvalidInput, TypeError):
        return False


LEFT_OUT = (
    "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "rms_norm_eps",
    "initializer_range", "attention_dropout", "hidden_act", "use_cache", "pretraining_tp",
    "tie_word_embeddings", "rope_parameters",
)  # fmt: skip


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("left_out", [(), LEFT_OUT, *((each,) for each in LEFT_OUT)], ids=str)
def test_another_class_means_what_the_source_meant(left_out: tuple[str, ...], biased: bool) -> None:
    """LLaMA under Mistral's name or SeedOss's: every field that both have has one value."""
    given = config_of(hidden_act="gelu", attention_dropout=0.25, max_position_embeddings=77)
    given = {key: value for key, value in given.items() if key not in left_out}
    source = AutoConfig.for_model(**transformers_ready(given))
    config = checked_config(given, WHERE)
    config = with_output_biases(config) if biased else config
    written = exported_config(config, 24, 3)
    assert written["model_type"] == ("seed_oss" if biased else "mistral")
    target = AutoConfig.for_model(**transformers_ready(written))
    changed = {
        "model_type", "architectures", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "head_dim", "transformers_version", "attention_bias", "mlp_bias",
    }  # fmt: skip
    fields = type(source).__dataclass_fields__.keys() & type(target).__dataclass_fields__.keys()
    for name in fields - changed:
        assert getattr(target, name) == getattr(source, name), name


def transformers_ready(config: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", ["mistral-mha", "qwen2-mha", "qwen3-mha-biased", "seed-oss-gqa"])
def test_a_config_that_leaves_all_it_can_to_its_class_is_read_as_by_transformers(
    tmp_path: Path, case: str
) -> None:
    """Widths, biases and head_dim too: the tensors that the class makes are those expected."""
    names = ("num_key_value_heads", "head_dim", "attention_bias", "tie_word_embeddings")
    defaults = class_defaults(FAMILY_CASES[case][0])
    sizes = {name: defaults[name] for name in names if name in defaults}
    sizes = {"num_attention_heads": 32, "hidden_size": 64, "head_dim": 2, **sizes}
    model = tiny_model(tmp_path / "model", case, **sizes)
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: v for key, v in config.items() if key not in names}))
    plain = AutoModelForCausalLM.from_pretrained(model)
    opened = open_checkpoint(model)
    for name, parameter in plain.named_parameters():
        assert opened.tensors[name].shape == tuple(parameter.shape)
