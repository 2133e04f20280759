"""What a run reads back is looked at: sums, scores, plans, and the weights themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import BiplineError, InvalidInput
from bipline.compression.prune import check_budget
from bipline.compression.statistics import SCORES_NAME, load_statistics
from bipline.face import api
from bipline.model.checkpoint import TORCH_DTYPES
from bipline.model.finite import refuse_not_finite
from bipline.model.opening import open_checkpoint
from bipline.storage.directory import atomic_directory
from bipline.values.plan import read_plan
from tests.tiny import tiny_model

TEXT = "It rained. Nobody minded, for it had been a dry year.\n" * 40
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its statistics and its plan."""
    folder = tmp_path_factory.mktemp("damaged")
    tiny_model(folder / "model", "llama-gqa", dtype=torch.float32)
    (folder / "text.txt").write_text(TEXT)
    api.prune(
        folder / "model", folder / "out", calibration=folder / "text.txt", ratio=0.3,
        criterion="wanda-sp", compensation="none", samples=4, seqlen=16,
        statistics=str(folder / "statistics"), plan_out=folder / "plan.json",
        state=folder / "state",
    )  # fmt: skip
    return folder


# -- statistics ---------------------------------------------------------------------------------


def spoiled(source: Path, target: Path, file: str, name: str, value: float) -> Path:
    """Statistics with one other value, and a manifest that lists it."""
    with atomic_directory(target, "statistics") as writer:
        for path in source.iterdir():
            if path.name != "manifest.json":
                shutil.copy(path, writer.path)
                (writer.path / path.name).chmod(0o644)
        tensors = load_file(writer.path / file)
        tensors[name].view(-1)[0] = value
        save_file(tensors, writer.path / file)
    return target


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, -1.0])
@pytest.mark.parametrize(
    ("file", "name"),
    [
        (SCORES_NAME, "0.attention_groups"),
        (SCORES_NAME, "1.ffn_channels"),
        (SCORES_NAME, "1.attention_channels"),
        ("sums.safetensors", "0.ffn_activation_squares"),
        ("sums.safetensors", "1.attention_output_squares"),
    ],
)
def test_sums_and_scores_are_numbers(
    file: str, name: str, value: float, made: Path, tmp_path: Path
) -> None:
    place = spoiled(made / "statistics", tmp_path / "statistics", file, name, value)
    with pytest.raises(InvalidInput, match=f"{name} holds .*; delete .*score again"):
        load_statistics(place)
    with pytest.raises(BiplineError, match=f"{name} holds"):
        api.prune(
            made / "model", tmp_path / "out", calibration=made / "text.txt", ratio=0.3,
            criterion="wanda-sp", compensation="none", samples=4, seqlen=16,
            statistics=str(place), state=tmp_path / "state",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


# -- plans --------------------------------------------------------------------------------------


def drop_a_channel(plan: dict[str, Any]) -> None:
    plan["blocks"][0]["ffn_channels"].pop()
    plan["layout"] = "per-layer"


def budget(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["budget"].update(values)


PLANS: dict[str, Callable[[dict[str, Any]], None]] = {
    "more than it reaches": budget(reached_blocks=0.5),
    "less": budget(reached_blocks=0.01),
    "nothing": budget(reached_total=0.0),
    "more than all": budget(reached_total=1.5),
    "below nothing": budget(reached_blocks=-0.3),
    "another model's": budget(reached_total=0.123456789),
    "a channel fewer": drop_a_channel,
    "text": budget(reached_blocks="much"),
    "null": budget(reached_total=None),
    "a list": budget(reached_blocks=[0.3]),
}


@pytest.mark.parametrize("change", PLANS.values(), ids=PLANS)
def test_a_plans_ratio_is_counted(
    change: Callable[[dict[str, Any]], None], made: Path, tmp_path: Path
) -> None:
    value = json.loads((made / "plan.json").read_text())
    change(value)
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(InvalidInput) as caught:
        api.prune(
            made / "model", tmp_path / "out", plan=str(tmp_path / "plan.json"),
            state=tmp_path / "state",
        )  # fmt: skip
    assert "reached" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_plan_of_ours_says_what_it_reaches(made: Path) -> None:
    check_budget(open_checkpoint(made / "model"), read_plan(made / "plan.json"))


# -- weights ------------------------------------------------------------------------------------

SPOILED = [
    "model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
]  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_weights_are_numbers(name: str, value: float, made: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    texts = {"t": made / "text.txt"}
    doors: tuple[Callable[[], object], ...] = (
        lambda: api.evaluate(model, texts=texts, seqlen=16, state=tmp_path / "state"),
        lambda: api.prune(
            model, tmp_path / "out", ratio=0.3, criterion="magnitude", compensation="none",
            state=tmp_path / "state",
        ),
    )  # fmt: skip
    for door in doors:
        with pytest.raises(InvalidInput, match=name):
            door()
    assert not (tmp_path / "out").exists()


def test_an_output_matrix_is_made_of_numbers(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama-mha", dtype=torch.float32)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"][5] = NAN
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(InvalidInput, match=r"lm_head\.weight holds NaN"):
        api.evaluate(model, texts={"t": tmp_path / "text.txt"}, seqlen=16, state=tmp_path / "s")


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (4096, 3)])
def test_one_value_is_found_wherever_it_lies(
    dtype: torch.dtype, value: float, shape: tuple[int, ...]
) -> None:
    tensor = torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape).to(dtype)
    tensor.view(-1)[0] = torch.finfo(dtype).max
    refuse_not_finite(tensor, "x", "place")
    tensor.view(-1)[tensor.numel() // 2] = value
    with pytest.raises(InvalidInput, match="place: tensor x holds NaN or infinity"):
        refuse_not_finite(tensor, "x", "place")


def test_an_empty_tensor_is_fine() -> None:
    refuse_not_finite(torch.empty(0, 4), "x", "place")
