"""What config.json may say: a list of keys and ranges; the rest is refused or left out."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.compression.prune import prune
from bipline.model import config_keys
from bipline.model.built import transformers_config
from bipline.model.config_keys import (
    allowed_keys,
    checked_config,
)
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint, read_config
from bipline.storage.strict_json import parse_json
from tests.per_layer import kept, plan_of
from tests.tiny import config_of

WHERE = "model/config.json"
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}


# key, value, and what the refusal says besides the two.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "10^9 blocks": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a whole"),
    "no block": ({"num_hidden_layers": 0}, "from 1 to 1024"),
    "a list of blocks": ({"num_hidden_layers": [2]}, r"num_hidden_layers is \[2\]"),
    "text for a number": ({"hidden_size": "32"}, "hidden_size is '32', not a whole number"),
    "fraction for a whole": ({"vocab_size": 96.0}, r"vocab_size is 96\.0"),
    "bool for a number": ({"num_attention_heads": True}, "num_attention_heads is True"),
    "bool for a rate": ({"attention_dropout": False}, "attention_dropout is False, not a number"),
    "negative size": ({"intermediate_size": -40}, "intermediate_size is -40"),
    "no channel": ({"intermediate_size": 0}, "intermediate_size is 0, not a whole number"),
    "null size": ({"hidden_size": None}, "hidden_size is None"),
    "heads not a multiple": ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
    "more KV heads": ({"num_key_value_heads": 16}, "not a multiple"),
    "heads that do not divide": (
        {"num_attention_heads": 12, "num_key_value_heads": 4},
        "hidden_size 32 is not a multiple of num_attention_heads 12",
    ),
    "odd head_dim": ({"head_dim": 5}, "head_dim is 5, not even"),
    "head_dim of zero": ({"head_dim": 0}, "head_dim is 0"),
    "number for a flag": ({"attention_bias": 1}, "attention_bias is 1, not true or false"),
    "text for a flag": ({"mlp_bias": "false"}, "mlp_bias is 'false'"),
    "null for a flag": ({"tie_word_embeddings": None}, "tie_word_embeddings is None"),
    "unknown activation": ({"hidden_act": "swiglu"}, "hidden_act is 'swiglu', not one of silu"),
    "activation with weights": ({"hidden_act": "xielu"}, "hidden_act is 'xielu'"),
    "activation that is a list": ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\]"),
    "negative eps": ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
    "eps that is whole": ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a number with a point"),
    "range that is whole": ({"initializer_range": 1}, "initializer_range is 1, not a number with"),
    "attention both ways": ({"is_causal": False}, "is_causal is False, not true, or null"),
    "a model inside": ({"text_config": {"hidden_size": 8}}, "text_config .* give that model alone"),
    "a decoder inside": ({"decoder": {}}, "decoder {} is of a model inside another"),
    "rope of single blocks": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        "full_attention .* is for some blocks alone",
    ),
    "eps as text": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    "dtype": ({"dtype": "int8"}, "dtype is 'int8', not one of float16"),
    "dtype that is a module": ({"torch_dtype": "nn"}, "torch_dtype is 'nn'"),
    "theta of zero": ({"rope_theta": 0}, "rope_theta is 0"),
    "theta as text": ({"rope_theta": "10000"}, "rope_theta is '10000'"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "unknown rope": ({"rope_scaling": {"type": "mrope"}}, "rope_type is 'mrope', not one of"),
    "rope of a number": ({"rope_scaling": 8.0}, "rope_scaling is 8.0, not an object"),
    "rope of a list": ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
    "rope without its factor": ({"rope_scaling": {"type": "linear"}}, "linear needs factor"),
    "rope that shrinks": ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5"),
    "rope by text": ({"rope_scaling": {"type": "dynamic", "factor": "2"}}, "factor is '2'"),
    "rope by layer": ({"rope_parameters": {"rope_type": {"x": 1}}}, "rope_type is {'x': 1}"),
    "rope of another head": ({"rope_scaling": {**LONG, "long_factor": [1.0]}}, "long_factor has"),
    "positions": ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    "padding": ({"pad_token_id": 96}, "pad_token_id is 96, above the vocabulary of 96"),
    "token as text": ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', not a whole number"),
    "tokens as a dict": ({"bos_token_id": {}}, "bos_token_id is {}"),
    "a tokenizer that is none": ({"tokenizer_class": "AutoModel"}, "the name of a tokenizer class"),
    "a tokenizer elsewhere": ({"tokenizer_class": "x--y.Tokenizer"}, "tokenizer_class is"),
    "architecture as text": ({"architectures": "LlamaForCausalLM"}, "architectures is 'Llama"),
    "no model_type": ({"model_type": None}, "model_type is None, not a text"),
    "model_type of two": ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
    "another model_type": ({"model_type": "mpt"}, "'mpt' is not supported"),
    "a path for a model_type": ({"model_type": "per_layer_../x"}, "is not supported"),
    "weights elsewhere": ({"transformers_weights": "x.safetensors"}, "transformers_weights"),
}
OF_FAMILIES = {
    "window of zero": ("mistral-gqa", {"sliding_window": 0}, "sliding_window is 0"),
    "attention of two reaches": (
        "mistral-gqa",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
        "layer_types is",
    ),
    "window as text": ("mistral-gqa", {"sliding_window": "4096"}, "sliding_window is '4096'"),
    "unknown attention": ("qwen3-gqa", {"layer_types": ["linear"] * 2}, "layer_types is"),
    "attention of fewer": ("qwen2-gqa", {"layer_types": ["full_attention"]}, "one entry for each"),
    "null head_dim": ("qwen3-gqa", {"head_dim": None}, "head_dim is None"),
    "windows from": ("qwen2-gqa", {"max_window_layers": -1}, "max_window_layers is -1"),
    "dropout": ("seed-oss-gqa", {"residual_dropout": 2}, "residual_dropout is 2"),
    "KV heads by default": ("mistral-mha", {"num_key_value_heads": ...}, "num_key_value_heads 8"),
}


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        checked_config(config, WHERE)
    message = str(caught.value)
    assert "\n" not in message
    assert "config.json" in message or "not supported" in message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_a_known_key_outside_its_range_is_refused(name: str) -> None:
    changes, words = REFUSED[name]
    assert re.search(words, refusal(config_of(**changes)))


@pytest.mark.parametrize("name", OF_FAMILIES)
def test_a_familys_own_keys_are_held_to_their_ranges(name: str) -> None:
    case, changes, words = OF_FAMILIES[name]
    config = config_of(case, **changes)
    assert words in refusal({key: value for key, value in config.items() if value is not ...})


ALLOWED: dict[str, dict[str, Any]] = {
    "several ends": {"eos_token_id": [0, 1]},
    "padding from the end": {"pad_token_id": -1},
    "whole for a rate": {"attention_dropout": 0},
    "swish": {"hidden_act": "swish"},
    "longrope": {"rope_scaling": LONG},
    "nulls": {"rope_scaling": None, "rope_parameters": None, "num_key_value_heads": None},
    "old names": {"rope_scaling": {"type": "linear", "factor": 2}, "torch_dtype": "bfloat16"},
    "a tokenizer": {"tokenizer_class": "LlamaTokenizerFast"},
    "no scaling": {"rope_scaling": {}},
    "attention to the left": {"is_causal": True},
    "the most blocks": {"num_hidden_layers": 1024},
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_in_use_is_allowed_and_kept(name: str) -> None:
    checked = checked_config(config_of(**ALLOWED[name]), WHERE)
    assert ALLOWED[name].items() <= checked.items()
    transformers_config(checked)


def test_10_to_the_9_blocks_are_refused_at_once(llama: Path, tmp_path: Path) -> None:
    model = with_config(llama, tmp_path, num_hidden_layers=10**9)
    began = time.monotonic()
    with pytest.raises(InvalidInput, match="num_hidden_layers is 1000000000"):
        open_checkpoint(model)
    assert time.monotonic() - began < 1


# -- JSON that is no JSON -------------------------------------------------------------------------

NO_JSON = {
    "NaN": (b'{"rms_norm_eps": NaN}', "NaN is no number"),
    "infinity": (b'{"rope_theta": -Infinity}', "-Infinity is no number"),
    "a number beyond floats": (b'{"rope_theta": 1e999}', "1e999 is no number"),
    "half a pair": (b'{"hidden_act": "\\ud800"}', "half of a surrogate pair"),
    "half a pair in a key": (b'{"\\udfff": 1}', "half of a surrogate pair"),
    "half a pair deep inside": (b'{"x": [{"y": ["\\udc00"]}]}', "half of a surrogate pair"),
    "a key twice": (b'{"model_type": "llama", "model_type": "qwen2"}', "'model_type' stands twice"),
    "a key twice inside": (b'{"x": {"y": 1, "y": 1}}', "'y' stands twice"),
    "5,000 digits": (b'{"vocab_size": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    "no UTF-8": (b'{"x": "\xff"}', "no UTF-8"),
    "a comment": (b"{} // x", "Extra data"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "nested without end": (b"[" * 100_000, "recursion"),
    "nothing": (b"", "Expecting value"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_refused_in_one_line(name: str) -> None:
    content, words = NO_JSON[name]
    with pytest.raises(InvalidInput, match=words) as caught:
        parse_json(content, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: not JSON: ")
    assert "\n" not in str(caught.value)


# -- unknown keys ---------------------------------------------------------------------------------

UNKNOWN: dict[str, Any] = {
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "someone/kernel",
    "experts_implementation": "someone/kernel",
    "output_hidden_states": True,
    "return_dict": False,
    "is_decoder": False,
    "pruned_heads": {"0": [1]},
    "temperature": 0.1,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention"],
    "use_kernels": True,
    "\x1b[31mred": "\n",
}


def with_config(source: Path, tmp_path: Path, **changes: Any) -> Path:
    model = Path(shutil.copytree(source, tmp_path / "model"))
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return model


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    lines: list[str] = []
    monkeypatch.setattr(config_keys, "note", lines.append)
    yield lines


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_unknown_keys_go_nowhere_and_are_listed_once(
    llama: Path, tmp_path: Path, told: list[str], layout: str
) -> None:
    model = with_config(llama, tmp_path, **UNKNOWN)
    for _ in range(3):
        checkpoint = open_checkpoint(model)
    (line,) = told
    assert all(repr(key)[1:-1] in line for key in UNKNOWN)
    assert line.isprintable()
    groups = [[0, 2], [0, 2]] if layout == "uniform" else [[0, 2], [1]]
    blocks = [kept(each, [1, 5, 9]) for each in groups]
    prune(checkpoint, plan_of(checkpoint, blocks, layout), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not written.keys() & UNKNOWN.keys()
    handed_on = transformers_config(checkpoint.config)
    assert not any(hasattr(handed_on, key) for key in ("pruned_heads", "sliding_window"))
    loaded = load_model(checkpoint, checkpoint.tensor("model.norm.weight").dtype)
    assert loaded.config._attn_implementation == "sdpa"


def test_hundreds_of_unknown_keys_are_one_short_line(
    llama: Path, tmp_path: Path, told: list[str]
) -> None:
    read_config(with_config(llama, tmp_path, **{f"k{number}": 1 for number in range(400)}))
    (line,) = told
    assert line.endswith("and 388 more")
    assert len(line) < 400


def test_unknown_keys_of_rope_are_left_out_too(told: list[str]) -> None:
    rope = {"type": "linear", "factor": 2.0, "finetuned": True}
    checked = checked_config(config_of(rope_scaling=rope), "another/config.json")
    assert checked["rope_scaling"] == {"type": "linear", "factor": 2.0}
    (line,) = told
    assert "rope_scaling: left out" in line and "finetuned" in line


# -- anything at all ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 200)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["silu", "llama", "linear", "yarn", "full_attention", "float32"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
CASES = st.sampled_from(["llama-gqa", "mistral-mqa", "qwen2-gqa", "qwen3-gqa", "seed-oss-gqa"])


@settings(deadline=None, max_examples=100)
@given(data=st.data(), case=CASES)
def test_any_value_of_any_key_is_refused_in_one_line_or_taken_by_transformers(
    data: st.DataObject, case: str
) -> None:
    config = config_of(case)
    keys = [*sorted(allowed_keys(config["model_type"])), "attn_implementation", "auto_map"]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        config[key] = data.draw(JSON)
    try:
        checked = checked_config(parse_json(json.dumps(config).encode(), WHERE), WHERE)
    except InvalidInput as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        return
    transformers_config(checked)
