"""Recovery: the merge is exact, what helps is kept, what harms is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bipline.base.errors import InvalidInput
from bipline.compression.prune import prune
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.recovery.adapter import MERGE_TOLERANCE, with_adapter
from bipline.recovery.place import Place
from bipline.recovery.recover import Request, recover
from bipline.settings.recipes import LoraRecipe
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import verify_directory
from bipline.values.recovery import RecoveryRecord
from tests.adapted import merged_logits
from tests.compression.test_calibrate import prose
from tests.conftest import ASSETS
from tests.masking import layers_of
from tests.oracles.test_slicing import random_plan
from tests.tiny import tiny_model

RECIPE = LoraRecipe(steps=30, batch_size=4, seqlen=32, learning_rate=5e-3, dropout=0.0)


@pytest.fixture
def pruned(llama: Path, tmp_path: Path) -> Path:
    checkpoint = open_checkpoint(llama)
    prune(checkpoint, random_plan(checkpoint, 0.4), tmp_path / "pruned")
    return tmp_path / "pruned"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text(prose(1, 900))
    return tmp_path / "train.txt"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    (tmp_path / "held-out.txt").write_text(prose(2, 200))
    return tmp_path / "held-out.txt"


def recovered(
    pruned: Path, text: Path, held_out: Path, recipe: LoraRecipe, out: Path
) -> RecoveryRecord:
    with atomic_directory(out, "model") as writer:
        place = Place(out.with_name(f"{out.name}.training"))
        return recover(Request(pruned, text, held_out, recipe), place, writer)


def test_recovery_lowers_held_out_perplexity_and_keeps_the_shape(
    pruned: Path, text: Path, held_out: Path, tmp_path: Path
) -> None:
    record = recovered(pruned, text, held_out, RECIPE, tmp_path / "out")
    assert record.accepted, record
    assert record.held_out_perplexity_after is not None
    assert record.held_out_perplexity_after < record.held_out_perplexity_before
    assert record.merge_difference is not None
    assert record.merge_difference < 1e-5
    verify_directory(tmp_path / "out")
    before, after = open_checkpoint(pruned), open_checkpoint(tmp_path / "out")
    assert before.shape == after.shape
    assert before.tensor_digest != after.tensor_digest
    assert not list((tmp_path / "out").glob("adapter*"))


def test_same_recipe_gives_same_bytes(
    pruned: Path, text: Path, held_out: Path, tmp_path: Path
) -> None:
    short = RECIPE.model_copy(update={"steps": 5})
    for name in ("a", "b"):
        recovered(pruned, text, held_out, short, tmp_path / name)
    assert verify_directory(tmp_path / "a") == verify_directory(tmp_path / "b")


def test_recovery_that_harms_is_refused(reference: Path, text: Path, tmp_path: Path) -> None:
    wild = RECIPE.model_copy(update={"learning_rate": 0.3, "warmup": 0.0, "steps": 3})
    record = recovered(reference, text, ASSETS / "texts" / "prose.txt", wild, tmp_path / "out")
    assert not record.accepted
    assert "did not fall" in record.reason
    assert record.held_out_perplexity_after is not None
    assert record.held_out_perplexity_after > record.held_out_perplexity_before


def test_a_merge_that_is_not_exact_is_refused(
    pruned: Path, text: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that loses one adapter: nothing is written, and how far off it was is recorded."""
    from peft.tuners.lora import Linear

    merge, lost = Linear.merge, []

    def forgetful(self: Linear, *rest: object, **named: object) -> None:
        merge(self, *rest, **named) if lost else lost.append(self)

    monkeypatch.setattr(Linear, "merge", forgetful)
    record = recovered(pruned, text, held_out, RECIPE, tmp_path / "out")
    assert not record.accepted
    assert "merging moved the logits" in record.reason
    assert record.merge_difference is not None and record.merge_difference > MERGE_TOLERANCE
    assert record.held_out_perplexity_after is None
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_loss_that_is_not_finite_is_refused(
    pruned: Path, text: Path, held_out: Path, tmp_path: Path
) -> None:
    wild = RECIPE.model_copy(update={"learning_rate": 1e30, "warmup": 0.0, "steps": 3})
    record = recovered(pruned, text, held_out, wild, tmp_path / "out")
    assert not record.accepted
    assert "NaN or infinite" in record.reason


def test_merged_adapter_equals_adapter_plus_base(pruned: Path) -> None:
    """In float64, with an adapter that is not zero: peft's merge changes nothing it says."""
    base, expected, merged = merged_logits(pruned)
    assert (expected - base).abs().max() > 1e-3, "the adapter does something"
    assert (merged - expected).abs().max() < 1e-10


@pytest.mark.parametrize("case", ["starcoder2", "phi", "phi3", "opt", "gpt-neox", "gpt2", "falcon"])
def test_every_matrix_of_a_block_has_an_adapter(case: str, tmp_path: Path) -> None:
    """Whatever its class calls them."""
    model = load_model(tiny_model(tmp_path / "model", case), torch.float32)
    matrices = [each for each in layers_of(model).modules() if isinstance(each, nn.Linear | Conv1D)]
    adapted = with_adapter(model, LoraRecipe())
    assert len([name for name, _ in adapted.named_modules() if name.endswith("lora_A")]) == len(
        matrices
    )


def test_too_little_text_is_refused(pruned: Path, held_out: Path, tmp_path: Path) -> None:
    (tmp_path / "little.txt").write_text(prose(1, 10))
    with pytest.raises(InvalidInput, match="fewer than one batch"):
        recovered(pruned, tmp_path / "little.txt", held_out, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
