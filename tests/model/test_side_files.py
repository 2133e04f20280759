"""A model folder is more than weights: what travels with a model, and what never does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.compression.prune import copy_side_files
from bipline.face import api
from bipline.model.resolve import resolve_model
from bipline.model.side_files import is_licence, is_model_file, is_side_file, is_tokenizer_file
from bipline.model.tokenizer import load_tokenizer
from bipline.stages.resolve import glance
from bipline.storage.folder import LocalFolder
from bipline.storage.manifest import verify_directory

LICENCES = [
    "LICENSE", "LICENSE.txt", "LICENSE.md", "license", "License.rst", "LICENCE", "LICENCE.txt",
    "Licence.md", "COPYING", "COPYING.LESSER", "copying.txt", "NOTICE", "NOTICE.txt", "Notice",
    "NOTICE.md", "USE_POLICY.md", "USE_POLICY", "use_policy.txt", "ACCEPTABLE_USE_POLICY.md",
    "THIRD_PARTY_NOTICES.txt", "THIRD-PARTY", "ThirdPartyNotices.txt", "third_party_licenses.txt",
    "Apache.LICENSE", "llama.license", "MODEL_LICENSE", "LICENSE-2.0", "COPYRIGHT", "UNLICENSE",
]  # fmt: skip
TOKENIZERS = [
    "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates/rag.jinja",
    "additional_chat_templates/tool_use.jinja",
]  # fmt: skip
FOREIGN = [
    "README.md", "notes.txt", "training_args.bin", "pytorch_model.bin", "modeling.py",
    "tokenization_x.py", "license.py", "LICENSE.pt", "tokenizer.pkl", "consolidated.safetensors",
    "docs/LICENSE", "fp16/model.safetensors", "sub/tokenizer.json", "original/tokenizer.model",
    "additional_chat_templates/evil.py", "additional_chat_templates/deep/x.jinja",
    "additional_chat_templates/LICENSE", "custom_generate/generate.py", "optimizer.pt",
]  # fmt: skip


@pytest.mark.parametrize("name", LICENCES)
def test_a_licence_by_any_usual_name(name: str) -> None:
    assert is_licence(name) and is_side_file(name) and is_model_file(name)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_file_of_the_tokenizer(name: str) -> None:
    assert is_tokenizer_file(name) and is_side_file(name) and is_model_file(name)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_part_of_a_model(name: str) -> None:
    assert not (is_model_file(name) or is_side_file(name))


def test_all_of_them_are_hashed_and_travel_byte_for_byte(model: Path, tmp_path: Path) -> None:
    for name in [*LICENCES, *TOKENIZERS, *FOREIGN]:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        if not (model / name).exists():
            (model / name).write_text(f"this is {name}")
    kept = {*LICENCES, *TOKENIZERS}
    assert kept <= set(resolve_model(str(model), tmp_path).files)
    out = tmp_path / "out"
    out.mkdir()
    copy_side_files(LocalFolder(model), out)
    copied = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert kept <= copied and not copied & set(FOREIGN)
    assert all((out / name).read_bytes() == (model / name).read_bytes() for name in kept)


@pytest.mark.parametrize("name", ["additional_chat_templates/rag.jinja", "merges.txt", "NOTICE"])
def test_a_change_in_any_is_another_model(name: str, model: Path, tmp_path: Path) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    digests = set()
    for text in ("#version: 0.2\n", "#version: 0.2\na b\n"):
        (model / name).write_text(text)
        resolved = resolve_model(str(model), tmp_path)
        digests.add((resolved.files[name], resolved.tokenizer_digest if name != "NOTICE" else ""))
    assert len(digests) == 2


def test_templates_of_a_folder_are_those_of_the_pruned_model(model: Path, tmp_path: Path) -> None:
    folder = model / "additional_chat_templates"
    folder.mkdir()
    (folder / "rag.jinja").write_text("documents: {{ messages | length }}")
    (model / "COPYING").write_text("terms")
    out = tmp_path / "out"
    api.prune(model, out, ratio=0.2, criterion="magnitude", state=tmp_path / "state")
    assert {"additional_chat_templates/rag.jinja", "COPYING"} < set(verify_directory(out).files)
    templates = [load_tokenizer(place).chat_template for place in (model, out)]
    assert templates[0] == templates[1] and set(templates[0]) == {"default", "rag"}


def test_vocab_json_with_merges_txt_is_a_tokenizer(model: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").unlink()
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "a", "b", "ab"])}
    assert tokenizer["model"]["vocab"]["<s>"] == 0
    (model / "vocab.json").write_text(json.dumps(vocabulary))
    (model / "merges.txt").write_text("#version: 0.2\na b\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<s>"}))
    out = tmp_path / "out"  # of the same class: another one may read the files otherwise
    api.prune(model, out, ratio=0.5, criterion="magnitude", state=tmp_path / "state")
    ids = [load_tokenizer(place)("abba")["input_ids"] for place in (model, out)]
    assert ids[0] == ids[1] and 4 in ids[0]
    shutil.rmtree(out)


GENERATION = {
    "[]": True, "3": True, '"x"': True, "null": True, "{": True, "": True,
    '{"compile_config": {"mode": "x"}}': True, '{"assistant_model": "x"}': True,
    '{"streamer": 1}': True, "{}": False, '{"temperature": 0.0}': False,
    '{"bos_token_id": 9999}': False, '{"num_beams": 4}': False, '{"custom_generate": "x/y"}': False,
    '{"unknown": [1]}': False,
}  # fmt: skip


@pytest.mark.parametrize(("text", "refused"), GENERATION.items())
def test_settings_that_transformers_refuses_are_refused_when_the_model_is_named(
    text: str, refused: bool, model: Path, tmp_path: Path
) -> None:
    (model / "generation_config.json").write_text(text)
    if not refused:
        AutoModelForCausalLM.from_pretrained(model)
        assert resolve_model(str(model), tmp_path).files and glance(str(model), tmp_path)
        return
    for door in (resolve_model, glance):
        with pytest.raises(InvalidInput, match=r"generation_config\.json: ") as caught:
            door(str(model), tmp_path)
        assert "\n" not in str(caught.value)
