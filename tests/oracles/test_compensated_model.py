"""A compensated model against the dense one with the same groups silent and weights replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bipline.base.errors import InvalidInput, Refused
from bipline.compression.compensation import progress, realise
from bipline.compression.corrections import Corrections, open_corrections
from bipline.compression.prune import prune
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.values.compensation import LADDER
from bipline.values.plan import PruningPlan, read_plan
from tests.command import contents
from tests.compensated import REPEATED, put_in_place, realised
from tests.oracles.test_slicing import random_plan
from tests.per_layer import LAYERS, masked_model, mixed_blocks, plan_of
from tests.tiny import tiny_model, token_windows

TOKEN_IDS = token_windows(windows=2, seqlen=12)
CAN_HOLD_BIASES = ("llama-gqa", "llama-mqa", "llama-mha-mlp-bias", "seed-oss-gqa")


def largest_difference(
    model: Path, checkpoint: Checkpoint, plan: PruningPlan, held: Corrections, out: Path
) -> float:
    """Of logits in float64: plain transformers on what was written, and on the dense model."""
    masked = masked_model(model, checkpoint, list(plan.blocks))
    put_in_place(masked, checkpoint, plan, held)
    written = load_model(out, torch.float64)
    with torch.no_grad():
        return float((masked(TOKEN_IDS).logits - written(TOKEN_IDS).logits).abs().max())


@pytest.mark.parametrize("compensation", ["least-squares", "obs"])
def test_masked_logits_equal_sliced_logits(
    family_model: Path, compensation: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(family_model)
    plan, held = realised(checkpoint, random_plan(checkpoint, 0.4), tmp_path, compensation)
    prune(checkpoint, plan, tmp_path / "out", corrections=held)
    assert held.blocks, "nothing was corrected"
    assert largest_difference(family_model, checkpoint, plan, held, tmp_path / "out") < 1e-10


@pytest.mark.parametrize("case", CAN_HOLD_BIASES)
@pytest.mark.parametrize("compensation", LADDER[1:])
def test_biases_that_the_class_can_hold(case: str, compensation: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", case)
    checkpoint = open_checkpoint(model)
    plan, held = realised(
        checkpoint, random_plan(checkpoint, 0.4), tmp_path, compensation, bias="on"
    )
    prune(checkpoint, plan, tmp_path / "out", corrections=held)
    assert largest_difference(model, checkpoint, plan, held, tmp_path / "out") < 1e-10
    loop = BlockLoop(open_checkpoint(tmp_path / "out"), torch.float64)
    with torch.no_grad():
        expected = load_model(tmp_path / "out", torch.float64)(TOKEN_IDS).logits
    assert float((loop.logits(TOKEN_IDS) - expected).abs().max()) < 1e-10
    biases = {
        name: tensor
        for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()
        if name.endswith("down_proj.bias")
    }
    assert len(biases) == checkpoint.shape.num_hidden_layers


@pytest.mark.parametrize("bias", ["auto", "on"])
def test_blocks_that_differ_and_sublayers_that_go(bias: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama-gqa", num_hidden_layers=LAYERS)
    checkpoint = open_checkpoint(model)
    asked = plan_of(checkpoint, mixed_blocks(checkpoint.shape))
    plan, held = realised(checkpoint, asked, tmp_path, "obs", bias=bias)
    prune(checkpoint, plan, tmp_path / "out", corrections=held)
    assert [block.widths for block in plan.blocks] == [block.widths for block in asked.blocks]
    assert largest_difference(model, checkpoint, plan, held, tmp_path / "out") < 1e-10


# Where several matrices are stored as one, and where the class has them apart.
CASES = [
    "llama-gqa",
    *(pytest.param(case, marks=pytest.mark.slow) for case in ("phi3", "baichuan", "starcoder2")),
]


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model", request.param)


def test_replayed_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(model)
    plan, held = realised(checkpoint, random_plan(checkpoint, 0.4), tmp_path, "obs", REPEATED)
    inside = {name for index in held.blocks for name in held.shapes(index)}
    assert inside & {"self_attn.v_proj.weight", "mlp.up_proj.weight"}, "no rows were fitted"
    prune(checkpoint, plan, tmp_path / "first", corrections=held)
    again = read_plan(tmp_path / "first" / "pruning_plan.json")
    assert again == plan and again.digest == plan.digest
    fresh = open_checkpoint(model)
    prune(fresh, again, tmp_path / "second", corrections=held)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_killed_after_a_block_and_run_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(model)
    asked = random_plan(checkpoint, 0.4)
    whole, _ = realised(checkpoint, asked, tmp_path / "whole", "obs")
    saved = progress.FolderProgress.save

    def dying(self: progress.FolderProgress, correction: object) -> None:
        saved(self, correction)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    (tmp_path / "killed").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(progress.FolderProgress, "save", dying)
        realised(checkpoint, asked, tmp_path / "killed", "obs")
    fitted: list[int] = []

    def counting(self: progress.FolderProgress, correction: object) -> None:
        fitted.append(1)
        saved(self, correction)  # type: ignore[arg-type]

    monkeypatch.setattr(progress.FolderProgress, "save", counting)
    again, _ = realised(checkpoint, asked, tmp_path / "killed", "obs")
    assert again == whole
    assert len(fitted) == checkpoint.shape.num_hidden_layers - 1
    both = [contents(tmp_path / name / "corrections") for name in ("whole", "killed")]
    assert both[0] == both[1]


def test_streams_that_memory_has_no_room_for_give_the_same_bytes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(llama)
    asked = random_plan(checkpoint, 0.4)
    said: list[str] = []
    monkeypatch.setattr(realise, "note", said.append)
    for name, free in (("roomy", 10**12), ("narrow", 0)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(realise, "memory_limit", lambda _, free=free: free)
        realised(checkpoint, asked, tmp_path / name, "obs")
    assert [line.rpartition(" hidden states ")[2] for line in (said[0], said[2])] == [
        "in memory",
        "on disk",
    ]
    assert list((tmp_path / "narrow" / "work" / "states").iterdir())
    both = [contents(tmp_path / name / "corrections") for name in ("roomy", "narrow")]
    assert both[0] == both[1]


def test_unfinished_blocks_of_another_plan_are_refused(llama: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(llama)
    realised(checkpoint, random_plan(checkpoint, 0.4), tmp_path, "obs")
    (tmp_path / "corrections").rename(tmp_path / "first")
    with pytest.raises(InvalidInput, match="holds unfinished work with other inputs"):
        realised(checkpoint, random_plan(checkpoint, 0.4, seed=1), tmp_path, "obs")


def test_a_realised_plan_needs_its_own_corrections(llama: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(llama)
    asked = random_plan(checkpoint, 0.4)
    plan, held = realised(checkpoint, asked, tmp_path / "a", "obs")
    _, others = realised(checkpoint, asked, tmp_path / "b", "least-squares", ridge=0.5)
    for given, message in (
        (None, "give the corrections it was written with"),
        (others, "the plan's corrections are"),
    ):
        with pytest.raises(InvalidInput, match=message):
            prune(checkpoint, plan, tmp_path / "out", corrections=given)
    with pytest.raises(InvalidInput, match="was not compensated"):
        prune(checkpoint, asked, tmp_path / "out", corrections=held)
    with pytest.raises(InvalidInput, match="compensated already"):
        realised(checkpoint, plan, tmp_path / "c", "obs")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_in_corrections_is_found(llama: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(llama)
    _, held = realised(checkpoint, random_plan(checkpoint, 0.4), tmp_path, "obs")
    path = next(held.folder.glob("block-*.safetensors"))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Refused, match="does not match its sha256"):
        open_corrections(held.folder)
