"""One class per concern: its fields are the YAML keys, the flags and the API's keywords."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.face.cli import COMMANDS, application
from bipline.face.keywords import comparison_settings, line_settings
from bipline.settings.compress import CompressSettings
from bipline.settings.line import SECTIONS, LineSettings, sectioned
from bipline.settings.loading import load
from bipline.settings.sweep import GridSettings

# What a command line gives in another way (texts), or only a pipeline has (parts).
NO_FLAG = {"texts", "parts"}
FIELDS = [(s, name) for s, kind in SECTIONS.items() for name in kind.model_fields]
VALUES: dict[str, Any] = {
    "samples": 3, "fewest_samples": 2, "seqlen": 7,
    "criterion": "flap", "criterion_option": {"metric": "ifv"},
    "statistics": "s", "parts": 2, "ratio": 0.3, "ratio_of": "total", "allocation": "threshold",
    "allocation_option": {"tokens": 9}, "layout": "per-layer", "keep_first": 1, "keep_last": 1,
    "divisible_by": 2, "ffn_multiple": 8, "of_experts": "channels", "plan": "p",
    "compensation": "bias",
    "compensation_option": {"ridge": 0.1}, "corrections": "c", "shard_size": 10**6,
    "target_parameters": 10**6, "target_size": 10**6, "target_format": "hf",
    "device": "cpu", "dtype": "bfloat16", "max_memory": 10**9, "micro_batch": 4, "processes": 2,
}  # fmt: skip
# What a field cannot be given without.
WITH: dict[str, dict[str, Any]] = {"target_format": {"target_size": 10**6}}


def flags(command: str) -> set[str]:
    found = typer.main.get_command(application()).commands[command]  # type: ignore[attr-defined]
    return {option.lstrip("-") for each in found.params for option in each.opts}


def test_field_names_are_unique_over_all_sections() -> None:
    names = [name for _, name in FIELDS if name != "texts"]
    assert len(names) == len(set(names))
    assert set(VALUES) == set(names)


@pytest.mark.parametrize("name", sorted({name for _, name in FIELDS} - NO_FLAG))
def test_every_field_is_a_flag_of_prune(name: str) -> None:
    assert name.replace("_", "-") in flags("prune")


@pytest.mark.parametrize(("section", "name"), [pair for pair in FIELDS if pair[1] != "texts"])
def test_key_and_keyword_set_the_same_field(section: str, name: str, tmp_path: Path) -> None:
    value = VALUES[name]
    given_ = {name: value, **WITH.get(name, {})}
    by_keyword = line_settings("model", None, given_)
    assert getattr(getattr(by_keyword, section), name) == value
    path = tmp_path / "compress.yaml"
    path.write_text("model: model\ntexts: {calibration: a.txt, held-out: b.txt}\n")
    sets = tuple(f"{section}.{key}={each!r}".replace("'", '"') for key, each in given_.items())
    by_key = load(CompressSettings, path, sets)
    assert getattr(by_key, section) == getattr(by_keyword, section)


@given(st.dictionaries(st.sampled_from(sorted(VALUES)), st.none()))
def test_what_is_not_given_is_left_to_its_default(given_: dict[str, None]) -> None:
    assert sectioned(given_) == {}
    assert line_settings("model", None, given_) == LineSettings(model="model")


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"ratio": "much"}, ("--ratio", "'much'")),
        ({"device": 3}, ("--device", "3")),
        ({"max_memory": "2 apples"}, ("'2 apples'", "is not a size")),
        ({"compensation": "rotate"}, ("'rotate' is unknown", "least-squares")),
        ({"keep_first": -1}, ("--keep-first", "-1")),
        ({"raito": 0.3}, ("unknown key 'raito'", "ratio")),
    ],
)
def test_what_cannot_be_is_one_line(given_: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        line_settings("model", None, given_)
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("criteria", "flap:metric=ifv, hywia", ["flap:metric=ifv", "hywia"]),
        ("allocations", "uniform", ("uniform",)),
        ("layouts", "uniform,per-layer,", ["uniform", "per-layer"]),
        ("compensations", " none , obs:ridge=0.1", ("none", "obs:ridge=0.1")),
        ("methods", "flap/uniform/bias,auto", ["flap/uniform/bias", "auto"]),
        ("ratios", "0.2,.5", (0.2, 0.5)),
        ("seeds", "3, 1", [3, 1]),
    ],
)
def test_an_axis_is_a_sequence_or_a_text_with_commas(name: str, text: str, parts: Any) -> None:
    found = comparison_settings({name: text})
    assert found == comparison_settings({name: parts})
    assert getattr(found.grid, name) == tuple(parts)


@pytest.mark.parametrize("name", sorted(set(GridSettings.model_fields) - {"methods"}))
def test_every_axis_is_a_flag_of_compare(name: str) -> None:
    assert name in flags("compare")


def test_the_seed_is_one_for_all_that_draws() -> None:
    assert line_settings("model", None, {"seed": 7}).seed == 7
    assert not [name for _, name in FIELDS if "seed" in name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_by_its_own_first_line(name: str) -> None:
    module, line = COMMANDS[name]
    function = getattr(importlib.import_module(f"bipline.face.{module}"), name)
    assert inspect.cleandoc(function.__doc__).splitlines()[0] == line


def test_commands_take_their_settings_by_signature() -> None:
    from bipline.face.models import prune

    parameters = inspect.signature(prune).parameters
    assert parameters["ratio"].default is None and parameters["max_memory"].default is None
