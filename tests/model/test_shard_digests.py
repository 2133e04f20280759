"""One reading gives the digests of files and of tensors."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from bipline.model.opening import SINGLE_FILE, open_checkpoint
from bipline.model.shard_digests import digest_shards
from bipline.storage.digests import digest_file


def test_both_digests_from_one_reading(family_model: Path) -> None:
    checkpoint = open_checkpoint(family_model)
    expected = {name: digest_file(family_model / name) for name in checkpoint.files}
    assert digest_shards(checkpoint) == expected
    assert checkpoint.digests.known.keys() == checkpoint.tensors.keys()
    assert checkpoint.tensor_digest == open_checkpoint(family_model).tensor_digest


def test_bytes_of_no_tensor_of_the_model_count_for_the_file(llama: Path, tmp_path: Path) -> None:
    """A tied model that stores its output matrix a second time."""
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    tensors = load_file(model / SINGLE_FILE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / SINGLE_FILE, {"format": "pt"})
    doubled = open_checkpoint(model)
    assert digest_shards(doubled) == {SINGLE_FILE: digest_file(model / SINGLE_FILE)}
    assert doubled.tensor_digest == open_checkpoint(llama).tensor_digest
