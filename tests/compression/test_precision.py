"""What dtype ``auto`` takes: the quicker one that keeps the same groups, for all drivers alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bipline
from bipline.base.errors import InvalidInput
from bipline.compression import precision
from bipline.compression.computing import Computing
from bipline.compression.criteria.interface import BlockScores
from bipline.compression.windows import Windows
from bipline.face.keywords import comparison_settings
from bipline.model.opening import open_checkpoint
from bipline.stages import line
from bipline.storage.manifest import read_manifest
from bipline.storage.store import open_store
from bipline.values.plan import read_plan
from bipline.values.precision import DtypeChoice
from tests.command import contents
from tests.pipeline.conftest import write_text
from tests.stages.drivers import Request, watching
from tests.tiny import tiny_model, token_windows


def rates(patch: pytest.MonkeyPatch, quicker: float) -> None:
    """Have bfloat16 measured so many times as quick as float32."""
    found = {torch.float32: 1e9, torch.bfloat16: quicker * 1e9}
    patch.setattr(precision, "product_rate", lambda shape, dtype, device: found[dtype])


def windows() -> Windows:
    return Windows(token_windows(windows=8, seqlen=16), "digest", Computing())


def scores(groups: list[float], channels: list[float]) -> BlockScores:
    return BlockScores(*(torch.tensor(each, dtype=torch.float64) for each in (groups, channels)))


DISTINCT = st.lists(st.floats(0, 1), min_size=1, max_size=12, unique=True)


@given(st.data(), DISTINCT, DISTINCT)
def test_shares_are_of_what_the_highest_scores_keep(
    data: st.DataObject, groups: list[float], channels: list[float]
) -> None:
    others = [data.draw(st.permutations(each)) for each in (groups, channels)]
    found = precision.same_shares([scores(groups, channels)], [scores(*others)])
    names = ("attention groups", "FFN channels")
    for name, ours, theirs in zip(names, (groups, channels), others, strict=True):
        least = 1.0
        for ratio in precision.RATIOS:
            count = max(1, round((1 - ratio) * len(ours)))
            kept = [
                {each.index(score) for score in sorted(each)[-count:]} for each in (ours, theirs)
            ]
            least = min(least, len(kept[0] & kept[1]) / count)
        assert found[name] == pytest.approx(least)


def test_what_is_not_quicker_is_not_tried(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, precision.QUICKER - 0.01)
    monkeypatch.setattr(precision, "kept_shares", lambda *_: pytest.fail("tried"))
    choice = precision.choose_dtype(open_checkpoint(llama), windows())
    assert (choice.dtype, choice.kept) == ("float32", {})


@pytest.mark.parametrize(("same", "expected"), [(0.99, "bfloat16"), (0.98, "float32")])
def test_what_is_quicker_must_keep_the_same(
    llama: Path, monkeypatch: pytest.MonkeyPatch, same: float, expected: str
) -> None:
    rates(monkeypatch, 4.0)
    shares = {"attention groups": 1.0, "FFN channels": same}
    monkeypatch.setattr(precision, "kept_shares", lambda *_: shares)
    choice = precision.choose_dtype(open_checkpoint(llama), windows())
    assert (choice.dtype, choice.kept, choice.quicker) == (expected, shares, 4.0)
    assert (expected in choice.reason and "98.00 %" in choice.reason) or same == 0.99


def test_a_dtype_keeps_what_it_keeps(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored twice in one dtype nothing differs; with scores turned round much does."""
    checkpoint = open_checkpoint(llama)
    monkeypatch.setattr(precision, "torch_dtype", lambda name: torch.float32)
    assert set(precision.kept_shares(checkpoint, windows()).values()) == {1.0}
    score, calls = precision.score_model, [1.0, -1.0]

    def turned(*given: Any) -> Any:
        statistics, found = score(*given)
        sign = calls.pop(0)
        blocks = [
            replace(b, ffn_channels=sign * b.ffn_channels, attention_channels=None)
            for b in found.blocks
        ]
        return statistics, replace(found, blocks=tuple(blocks))

    monkeypatch.setattr(precision, "score_model", turned)
    assert precision.kept_shares(checkpoint, windows())["FFN channels"] < 0.5


def test_the_trial_keeps_to_the_limit_of_memory(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, 4.0)
    monkeypatch.setattr(precision, "score_model", lambda *_: pytest.fail("scored"))
    limited = replace(windows(), computing=Computing(max_memory=1))
    with pytest.raises(InvalidInput, match="--max-memory"):
        precision.choose_dtype(open_checkpoint(llama), limited)


GIVEN: dict[str, Any] = {
    "criterion": "llm-bip-glu", "compensation": "obs", "ratio": 0.3, "samples": 40, "seqlen": 16,
}  # fmt: skip


def pruned(folder: Path, out: str, dtype: str, store: str | None = None) -> Any:
    return bipline.prune(
        folder / "model", folder / out, calibration=folder / "a.txt", state=folder / "state",
        dtype=dtype, store=store, **GIVEN,
    )  # fmt: skip


def test_auto_is_the_dtype_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors, a plan that says so, and a choice that later measurements do not change."""
    tiny_model(tmp_path / "model", "llama-gqa")
    write_text(tmp_path / "a.txt", 1)
    monkeypatch.setattr(precision, "SAME", 0.0)
    rates(monkeypatch, 4.0)
    named, store = pruned(tmp_path, "named", "bfloat16"), str(tmp_path / "store")
    auto = pruned(tmp_path, "auto", "auto", store)
    assert named.dtype_choice is None
    assert auto.dtype_choice is not None and auto.dtype_choice.dtype == "bfloat16"
    plan = read_plan(tmp_path / "auto" / "pruning_plan.json")
    assert plan.notes == auto.notes == (auto.dtype_choice.told,)
    assert plan.blocks == read_plan(tmp_path / "named" / "pruning_plan.json").blocks
    manifests = (read_manifest(tmp_path / name) for name in ("named", "auto"))
    assert len({manifest.info["tensor_digest"] for manifest in manifests}) == 1
    rates(monkeypatch, 1.0)
    with watching() as asked:
        again = pruned(tmp_path, "again", "auto", store)
    assert (asked.made, asked.passes) == ([], 0)
    assert again.dtype_choice == auto.dtype_choice
    assert contents(tmp_path / "again") == contents(tmp_path / "auto")


def test_an_interrupted_run_keeps_its_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In OUT.work, beside what was computed by it; another measurement later changes no byte."""
    tiny_model(tmp_path / "model", "llama-gqa")
    write_text(tmp_path / "a.txt", 1)
    monkeypatch.setattr(precision, "SAME", 0.0)
    rates(monkeypatch, 4.0)
    pruned(tmp_path, "whole", "auto")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(line.allocate, "allocate", interrupt)
        pruned(tmp_path, "out", "auto")
    rates(monkeypatch, 1.0)
    assert pruned(tmp_path, "out", "auto").dtype_choice.dtype == "bfloat16"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_where_no_window_is_run_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(tmp_path / "model", "llama-gqa")
    monkeypatch.setattr(precision, "product_rate", lambda *_: pytest.fail("measured"))
    found = bipline.prune(
        tmp_path / "model", tmp_path / "out", criterion="magnitude", ratio=0.3, dtype="auto",
        state=tmp_path / "state",
    )  # fmt: skip
    assert found and found.dtype_choice is None and found.notes == ()


def narrow_request(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A request whose dtype is chosen to be bfloat16, with the texts that it names."""
    monkeypatch.setattr(precision, "SAME", 0.0)
    rates(monkeypatch, 4.0)
    for seed, name in enumerate(("calibration", "held-out"), start=1):
        write_text(tmp_path / f"{name}.txt", seed)
    return Request(str(llama), tmp_path, "uniform", "least-squares", dtype="auto")


def test_a_row_of_compare_is_what_prune_makes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = narrow_request(llama, tmp_path, monkeypatch)
    made, row = request.pruned("out", tmp_path / "store"), request.compared("compared")
    assert row.line == made.line
    assert row.digests["prune"] == made.digests["prune"]
    kept = open_store(tmp_path / "store").find("precision", made.keys["precision"])
    assert kept is not None and row.keys["precision"] == made.keys["precision"]


@pytest.mark.slow
def test_a_pipeline_finds_what_prune_chose(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = narrow_request(llama, tmp_path, monkeypatch)
    made = request.pruned("out", request.store)
    rates(monkeypatch, 1.0)
    found = request.compressed()
    assert found.line == made.line and "precision" not in found.made
    assert found.digests["prune"] == made.digests["prune"]


def test_models_are_measured_in_a_dtype_by_name() -> None:
    """What auto is settled by is of pruning alone."""
    grid = {"criteria": ("random",), "ratios": (0.2,)}
    found = comparison_settings({**grid, "dtype": "auto"})
    assert (found.compute.dtype, found.evaluate.protocol.dtype) == ("auto", "float32")
    assert comparison_settings({**grid, "dtype": "bfloat16"}).evaluate.protocol.dtype == "bfloat16"


def test_a_choice_tells_why() -> None:
    rates_of = {"float32": 1e11, "bfloat16": 4.5e11}
    slow = DtypeChoice(dtype="float32", rates={**rates_of, "bfloat16": 1e11})
    assert slow.reason == "dtype auto: float32; bfloat16 takes products 1.0 times as fast"
    quick = DtypeChoice(dtype="bfloat16", rates=rates_of, kept={"FFN channels": 0.9984})
    assert quick.reason.endswith("4.5 times as fast; of what float32 keeps it keeps 99.84 % of FFN "
                                 "channels")  # fmt: skip


def test_a_training_alone_has_nothing_to_choose_by(llama: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 1)
    with pytest.raises(InvalidInput, match="--dtype 'auto'"):
        bipline.recover(llama, tmp_path / "out", text=text, judge=text, dtype="auto")
    assert not (tmp_path / "out").exists()
