"""A pruned model knows which text it was fitted on, and is not measured on it unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.face.api import evaluate, export, prune
from bipline.values.fitted_text import FITTED_NAME, FittedText, read_fitted
from tests.compression.test_calibrate import prose

CHOSEN: dict[str, Any] = {"criterion": "wanda-sp", "samples": 8, "seqlen": 16}
WIDE: dict[str, Any] = {"seqlen": 32}


@pytest.fixture(scope="module")
def folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "fitted.txt").write_text(prose(1))
    (folder / "part.txt").write_text(prose(2) + " " + " ".join(prose(1).split()[:60]))
    (folder / "other.txt").write_text(prose(3))
    prune(
        llama, folder / "out", calibration=folder / "fitted.txt", ratio=0.2, state=folder / "state",
        plan_out=folder / "plan.json", **CHOSEN,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("name", ["fitted", "part"])
def test_text_that_was_fitted_on_is_refused_or_told(folder: Path, name: str) -> None:
    texts, state = {"t": folder / f"{name}.txt"}, folder / "state"
    with pytest.raises(InvalidInput, match=f"text t .*{name}.txt.*: .*% of its 13-grams"):
        evaluate(folder / "out", texts=texts, state=state, **WIDE)
    told = evaluate(folder / "out", texts=texts, allow_fitted=True, state=state, **WIDE)
    assert told["model"].environment["fitted_text"]["t"] > 0.01


def test_an_export_is_not_measured_on_it(folder: Path, tmp_path: Path) -> None:
    texts = {"t": folder / "fitted.txt"}
    with pytest.raises(InvalidInput, match="fitted on; measure on other text"):
        export(folder / "out", tmp_path / "gguf", texts=texts, state=folder / "state")
    assert not (tmp_path / "gguf").exists()


def test_other_text_is_measured_and_nothing_is_told(folder: Path) -> None:
    texts = {"t": folder / "other.txt"}
    record = evaluate(folder / "out", texts=texts, state=folder / "state", **WIDE)["model"]
    assert "fitted_text" not in record.environment


def test_it_goes_on_with_a_plan_and_with_what_is_pruned_again(
    llama: Path, folder: Path, tmp_path: Path
) -> None:
    state, known = folder / "state", FittedText.of([prose(1)])
    assert read_fitted([folder / "out"]) == known
    prune(llama, tmp_path / "by-plan", plan=str(folder / "plan.json"), state=state)
    assert read_fitted([tmp_path / "by-plan"]) == known
    # By weights alone, which read no text of their own.
    prune(folder / "out", tmp_path / "again", ratio=0.2, criterion="magnitude", state=state)
    assert read_fitted([tmp_path / "again"]) == known
    prune(llama, tmp_path / "none", ratio=0.2, criterion="magnitude", state=state)
    assert read_fitted([tmp_path / "none"]) == FittedText()


def test_a_plan_that_comes_without_is_not_known(
    llama: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    prune(llama, tmp_path / "out", plan=str(tmp_path / "plan.json"), state=folder / "state")
    assert not (tmp_path / "out" / FITTED_NAME).exists()
    notes: list[str] = []
    monkeypatch.setattr("bipline.quality.evaluate.note", notes.append)
    texts = {"t": folder / "fitted.txt"}
    evaluate(tmp_path / "out", texts=texts, state=folder / "state", **WIDE)
    assert "does not tell which text it was fitted on" in notes[0]
