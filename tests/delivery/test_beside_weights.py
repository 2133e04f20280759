"""What lies beside a package's weights: settings for generating, and chat templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from bipline.base.errors import InvalidInput, Refused
from bipline.delivery import beside_weights, verification
from bipline.delivery.beside_weights import compare_templates
from bipline.delivery.export import PackageContents
from bipline.delivery.verification import verify_hf
from bipline.model.loading import check_generation, load_model
from bipline.model.tokenizer import load_tokenizer
from bipline.storage.folder import LocalFolder

# Valid settings, each of which changes what ``generate`` gives, asks for, or looks up.
VALID: list[dict[str, Any]] = [
    {},
    {"return_dict_in_generate": True},
    {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True},
    {"do_sample": True, "num_return_sequences": 2},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
    {"do_sample": True, "typical_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True, "length_penalty": 2.0},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"encoder_repetition_penalty": 1.5},
    {"forced_bos_token_id": 5, "forced_eos_token_id": 1},
    {"stop_strings": ["a", "e"]},
    {"min_length": 500},
    {"min_new_tokens": 40, "max_new_tokens": 60},
    {"max_length": 5},
    {"max_time": 0.000001},
    {"suppress_tokens": [3, 4, 5], "begin_suppress_tokens": [6]},
    {"bad_words_ids": [[7], [8, 9]]},
    {"sequence_bias": [[[7], 5.0]]},
    {"watermarking_config": {"greenlist_ratio": 0.3, "bias": 3.0}},
    {"cache_implementation": "static"},
    {"cache_implementation": "offloaded"},
    {"cache_implementation": "quantized"},
    {"use_cache": False},
    {"prompt_lookup_num_tokens": 4},
    {"assistant_confidence_threshold": 0.5, "num_assistant_tokens": 8},
    {"guidance_scale": 1.5},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"exponential_decay_length_penalty": [2, 1.5]},
    {"eos_token_id": [1, 3, 5, 7], "pad_token_id": 2},
    {"bos_token_id": 0, "eos_token_id": 1, "transformers_version": "9.9.9"},
    {"custom_generate": "someone/their-code"},
    {"trust_remote_code": True, "an_unknown_setting": {"a": [1]}},
    {"disable_compile": True},
    {"token_healing": True},
]
# What is no object, and what transformers will not load a model with.
UNREADABLE: list[Any] = [[], 1, "greedy", None]
REFUSED: list[dict[str, Any]] = [
    {"num_return_sequences": 3},
    {"max_new_tokens": -4},
    {"cache_implementation": "nonsense"},
    {"early_stopping": "perhaps"},
    {"compile_config": {"mode": "default"}},
    {"compile_config": 7},
    {"watermarking_config": 5},
    {"num_beams": 2, "num_return_sequences": 3},
]


def folder_with(directory: Path, settings: object) -> LocalFolder:
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return LocalFolder(directory)


@pytest.fixture
def package_hf(contents: PackageContents, tmp_path: Path) -> Path:
    """A copy of the model's files as a package holds them."""
    return Path(shutil.copytree(contents.model, tmp_path / "hf"))


PROMPT = torch.arange(8)[None]


def decoded(model: Any) -> list[list[int]]:
    return [verification.decoded(model, PROMPT, use_cache) for use_cache in (True, False)]


@pytest.fixture(scope="module")
def loaded(contents: PackageContents) -> tuple[Any, list[list[int]]]:
    """The pruned model, loaded once, and what it decodes with no settings."""
    model = load_model(contents.model, torch.float32)
    return model, decoded(model)


@pytest.mark.parametrize("settings", VALID, ids=lambda settings: ",".join(settings))
def test_valid_settings_steer_no_decoding(
    settings: dict[str, Any], loaded: tuple[Any, list[list[int]]], tmp_path: Path
) -> None:
    check_generation(folder_with(tmp_path, settings))
    model, expected = loaded
    model.generation_config = GenerationConfig.from_dict(settings)
    assert decoded(model) == expected


@pytest.mark.parametrize("settings", [VALID[2], VALID[5], VALID[-4], {"max_new_tokens": -4}])
def test_a_models_settings_are_not_read_where_we_load_it(
    settings: dict[str, Any], package_hf: Path
) -> None:
    folder_with(package_hf, settings)
    model = load_model(package_hf, torch.float32)
    assert model.generation_config.to_diff_dict() == GenerationConfig().to_diff_dict()


@pytest.mark.parametrize("settings", [VALID[2], VALID[-4]])
def test_a_package_with_such_settings_agrees(
    settings: dict[str, Any], package_hf: Path, contents: PackageContents
) -> None:
    folder_with(package_hf, settings)
    verify_hf(package_hf, contents.model, contents.dense)
    assert json.loads((package_hf / "generation_config.json").read_text()) == settings


@pytest.mark.parametrize("settings", REFUSED, ids=lambda settings: ",".join(settings))
def test_what_transformers_refuses_is_said_in_its_words(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json: transformers refuses it: ") as caught:
        check_generation(folder_with(tmp_path, settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", UNREADABLE)
def test_what_is_no_object_is_refused(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"generation_config\.json: not a set"):
        check_generation(folder_with(tmp_path, settings))


def test_a_package_that_nobody_could_load_is_refused(
    package_hf: Path, contents: PackageContents
) -> None:
    folder_with(package_hf, REFUSED[0])
    with pytest.raises(Refused, match=r"hf: .*transformers refuses it"):
        verify_hf(package_hf, contents.model, contents.dense)


def test_no_settings_are_fine(tmp_path: Path) -> None:
    check_generation(LocalFolder(tmp_path))


# -- chat templates -----------------------------------------------------------------------------

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TOOLS = PLAIN + "{% if tools %}{{ tools | tojson }}{% endif %}"


def tokenizer(directory: Path, source: Path, templates: dict[str, str]) -> Any:
    shutil.copytree(source, directory)
    for name, text in templates.items():
        place = directory / "additional_chat_templates" / f"{name}.jinja"
        if name == "default":
            place = directory / "chat_template.jinja"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    return load_tokenizer(directory)


@pytest.mark.parametrize(
    ("templates", "others"),
    [
        ({"default": PLAIN}, {}),
        ({}, {"default": PLAIN}),
        ({"default": PLAIN}, {"default": PLAIN + "!"}),
        ({"default": TOOLS}, {"default": PLAIN}),
        ({"default": PLAIN, "rag": TOOLS}, {"default": PLAIN}),
        ({"default": PLAIN, "rag": TOOLS}, {"default": PLAIN, "rag": PLAIN}),
        ({"default": PLAIN, "rag": PLAIN}, {"default": PLAIN, "tool": PLAIN}),
        ({"default": "{{ raise_exception('no') }}"}, {"default": PLAIN}),
        ({"default": PLAIN}, {"default": "{{ messages[99].content.x }}"}),
        ({"default": PLAIN}, {"default": "{% if %}"}),
    ],
)
def test_a_template_that_gives_another_text_is_refused(
    templates: dict[str, str], others: dict[str, str], contents: PackageContents, tmp_path: Path
) -> None:
    source = tokenizer(tmp_path / "dense", contents.dense, templates)
    packaged = tokenizer(tmp_path / "hf", contents.dense, others)
    with pytest.raises(Refused, match="hf: the chat template "):
        compare_templates(source, packaged)


@pytest.mark.parametrize(
    "templates",
    [
        {},
        {"default": PLAIN},
        {"default": PLAIN, "rag": TOOLS},
        {"default": "{{ raise_exception('only by turns') }}"},
        {"default": "{{ messages[9].content.x }}"},
        {"default": "{{ ''.__class__.__mro__ }}"},
    ],
)
def test_the_same_templates_agree(
    templates: dict[str, str], contents: PackageContents, tmp_path: Path
) -> None:
    both = (tokenizer(tmp_path / n, contents.dense, templates) for n in ("dense", "hf"))
    compare_templates(*both)


def test_a_template_that_never_ends_is_refused(
    contents: PackageContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside_weights, "RENDER_SECONDS", 0.2)
    # Long enough for the test, and over soon after it.
    loop = "{% for a in range(99999) %}{% for b in range(30) %}{% endfor %}{% endfor %}"
    slow = tokenizer(tmp_path / "slow", contents.dense, {"default": loop})
    with pytest.raises(Refused, match="not rendered within"):
        compare_templates(slow, slow)
