"""What a recovery does not train is byte-equal: experts and routers, and what lies beside."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from bipline.base.errors import InvalidInput
from bipline.base.progress import listening
from bipline.compression.prune import prune
from bipline.face import api
from bipline.model.loading import load_model
from bipline.model.nested import load_whole
from bipline.model.opening import open_checkpoint
from bipline.recovery.place import Place
from bipline.recovery.recover import Request, recover
from bipline.settings.recipes import RECIPES, FullRecipe, LoraRecipe, Schedule
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import verify_directory
from bipline.values.recovery import RecoveryRecord
from tests.adapted import merged_logits
from tests.compression.test_calibrate import prose
from tests.per_layer import kept, plan_of
from tests.recovery.test_training import _Stop
from tests.tiny import tiny_model, token_windows
from tests.wrapped import DECODERS, tiny_wrapped

WINDOWS = token_windows(2, 20)
MIXTURES = ("qwen3-moe", "mixtral", "glm4-moe", "gpt-oss")
SHORT: dict[str, Any] = {"steps": 12, "batch_size": 4, "seqlen": 32, "learning_rate": 5e-3}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {}, "distill": {"top_k": 20}, "ba-lora": {"rank": 2, "alpha": 2, "consistency": 0.5},
}  # fmt: skip
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("distill", "ba-lora")]
TRAINED = (
    "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight",
    "shared_experts.gate_proj.weight", "shared_experts.up_proj.weight",
    "shared_experts.down_proj.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text and a judge."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "train.txt").write_text(prose(1, 900))
    (folder / "judge.txt").write_text(prose(2, 300))
    return folder / "train.txt", folder / "judge.txt"


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of which some experts and groups went, in the dtype that is published."""
    folder = tmp_path_factory.mktemp("mixture")
    model = tiny_model(folder / "dense", request.param, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(model)
    shape = checkpoint.shape
    groups = list(range(shape.num_key_value_heads))
    some = kept(groups, []).model_copy(update={"experts": (0, 2, 3, 5)})
    dense = kept(groups, list(range(shape.dense_channels)))
    layers, first = shape.num_hidden_layers, shape.dense_blocks
    blocks = [dense if index < first else some for index in range(layers)]
    prune(checkpoint, plan_of(checkpoint, blocks, "uniform"), folder / "pruned")
    return folder / "pruned"


@pytest.fixture(scope="module", params=DECODERS)
def wrapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrapped")
    checkpoint = open_checkpoint(tiny_wrapped(folder / "dense", request.param, torch.bfloat16))
    some = [kept([0, 1], list(range(3, 27)))] * checkpoint.shape.num_hidden_layers
    prune(checkpoint, plan_of(checkpoint, some, "uniform"), folder / "pruned")
    return folder / "pruned"


def recovered(
    pruned: Path, texts: tuple[Path, Path], recipe: Schedule, out: Path
) -> RecoveryRecord:
    dense = open_checkpoint(pruned.with_name("dense"))
    with atomic_directory(out, "model") as writer:
        place = Place(out.with_name(f"{out.name}.training"))
        return recover(Request(pruned, *texts, recipe, dense), place, writer)


def changed_tensors(before: Path, after: Path) -> set[str]:
    """Which of equally many tensors are not the same, bit by bit."""
    one, other = (load_file(each / "model.safetensors") for each in (before, after))
    assert one.keys() == other.keys()
    return {
        name
        for name, held in one.items()
        if held.dtype != other[name].dtype or not torch.equal(held, other[name])
    }


@pytest.mark.parametrize("kind", ["lora", *SLOW])
def test_experts_and_routers_of_a_mixture_stay(
    mixture: Path, texts: tuple[Path, Path], kind: str, tmp_path: Path
) -> None:
    recipe = RECIPES[kind].model_validate({**SHORT, **KINDS[kind]})
    record = recovered(mixture, texts, recipe, tmp_path / "out")
    assert record.held_out_perplexity_after is not None, record
    assert record.held_out_perplexity_after < record.held_out_perplexity_before
    assert record.merge_difference is not None and record.merge_difference < 1e-5
    names = load_file(mixture / "model.safetensors")
    expected = {name for name in names if name.endswith(TRAINED) and ".experts." not in name}
    assert changed_tensors(mixture, tmp_path / "out") == expected
    verify_directory(tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").shape == open_checkpoint(mixture).shape


def test_a_merged_mixture_gives_what_adapter_and_base_give(mixture: Path) -> None:
    base, expected, found = merged_logits(mixture)
    assert (expected - base).abs().max() > 1e-3, "the adapter does something"
    # A router may compute in float32.
    least = 1e-6 if "glm4" in str(open_checkpoint(mixture).config["model_type"]) else 1e-10
    assert (found - expected).abs().max() < least * expected.abs().max()


@pytest.mark.slow
def test_a_broken_training_of_a_mixture_goes_on_to_the_same_bytes(
    mixture: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = LoraRecipe(**SHORT, dropout=0.1, checkpoint_every=5)
    whole = recovered(mixture, texts, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), listening(_Stop("step 8")):
        recovered(mixture, texts, recipe, tmp_path / "broken")
    assert recovered(mixture, texts, recipe, tmp_path / "broken") == whole
    assert verify_directory(tmp_path / "broken") == verify_directory(tmp_path / "whole")


@pytest.mark.slow
@torch.no_grad()
def test_an_adapter_that_is_kept_is_loaded_by_peft(
    mixture: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, keep = LoraRecipe(**SHORT, dropout=0.1), tmp_path / "adapter"
    request = Request(mixture, *texts, recipe, adapter_out=keep)
    with torch.enable_grad(), atomic_directory(tmp_path / "out", "model") as writer:
        if open_checkpoint(mixture).shape.shared_channels:
            with pytest.raises(InvalidInput, match="use the merged model"):
                recover(request, Place(tmp_path / "training"), writer)
            return
        recover(request, Place(tmp_path / "training"), writer)
    base = load_model(mixture, torch.float32)
    adapted = PeftModel.from_pretrained(base, keep).eval()
    held = adapted.merge_and_unload().state_dict()
    merged = load_model(tmp_path / "out", torch.bfloat16).state_dict()
    for name, expected in merged.items():
        torch.testing.assert_close(held[name].bfloat16(), expected, msg=name)


def test_not_all_weights_of_a_mixture_are_trained(mixture: Path, texts: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidInput, match="take lora, distill or ba-lora"):
        recovered(mixture, texts, FullRecipe(steps=1), mixture.with_name("out"))


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_what_lies_beside_a_decoder_stays(
    wrapped: Path, texts: tuple[Path, Path], kind: str, tmp_path: Path
) -> None:
    recipe = RECIPES[kind].model_validate(SHORT)
    record = recovered(wrapped, texts, recipe, tmp_path / "out")
    assert record.held_out_perplexity_after is not None, record
    assert record.held_out_perplexity_after < record.held_out_perplexity_before
    changed, source = changed_tensors(wrapped, tmp_path / "out"), open_checkpoint(wrapped)
    inside = {source.stored_name(name) for name in source.tensors if name not in source.beside}
    if kind == "lora":
        assert changed == {name for name in inside if name.endswith(TRAINED)}
    assert changed and changed <= inside
    verify_directory(tmp_path / "out")
    recovery = open_checkpoint(tmp_path / "out")
    assert recovery.whole_config(recovery.config) == source.whole_config(source.config)
    with torch.no_grad():
        both = (load(recovery, torch.float32)(WINDOWS).logits for load in (load_whole, load_model))
        torch.testing.assert_close(*both)


@pytest.mark.slow
def test_the_command_says_what_stays(
    wrapped: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(wrapped, tmp_path / "model"))
    told: list[str] = []
    listener = _Stop("\0")
    listener.note = told.append  # type: ignore[method-assign]
    with listening(listener):
        api.recover(
            model, text=texts[0], judge=texts[1], out=tmp_path / "out", steps=2, batch_size=4,
            seqlen=32, learning_rate=5e-3, state=tmp_path / "state",
        )  # fmt: skip
    model_type = open_checkpoint(model).nesting.config["model_type"]
    assert any(f"the decoder of a {model_type} is trained" in line for line in told)
    assert not any(".partial" in line for line in told)  # a folder that is the run's own
