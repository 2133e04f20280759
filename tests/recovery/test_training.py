"""Training after pruning: recipes, resumption to the same bytes, the guard, seals, answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional

from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import listening
from bipline.compression.prune import prune
from bipline.face.api import recover as recover_to
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.recovery import training
from bipline.recovery.examples import NOT_LEARNED, examples_of
from bipline.recovery.objectives import Predictions, divergence
from bipline.recovery.place import Place
from bipline.recovery.recover import Request, recover
from bipline.settings.recipes import RECIPES, LoraRecipe, Recipe
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import verify_directory
from bipline.values.recovery import RecoveryRecord
from tests.compression.test_calibrate import prose
from tests.oracles.test_slicing import random_plan

SHORT: dict[str, Any] = {"steps": 12, "batch_size": 4, "seqlen": 32, "learning_rate": 5e-3}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "distill": {"top_k": 20, "temperature": 1.5},
    "ba-lora": {"rank": 2, "alpha": 2, "consistency": 0.5},
    "full": {"accumulation": 2, "checkpointing": True},
}


@pytest.fixture(scope="module")
def place(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model, its texts, and room for what is made of them."""
    folder = tmp_path_factory.mktemp("recovery")
    checkpoint = open_checkpoint(llama)
    prune(checkpoint, random_plan(checkpoint, 0.4), folder / "pruned")
    (folder / "train.txt").write_text(prose(1, 900))
    (folder / "judge.txt").write_text(prose(2, 300))
    return folder


def recovered(
    place: Path, llama: Path, recipe: Any, out: Path, training_place: Path | None = None
) -> RecoveryRecord:
    texts = place / "train.txt", place / "judge.txt"
    request = Request(place / "pruned", *texts, recipe, open_checkpoint(llama))
    with atomic_directory(out, "model") as writer:
        return recover(request, Place(training_place or out.with_suffix(".training")), writer)


@pytest.mark.parametrize("kind", KINDS)
def test_every_recipe_gains_on_text_it_never_saw(
    place: Path, llama: Path, kind: str, tmp_path: Path
) -> None:
    recipe = RECIPES[kind].model_validate({**SHORT, **KINDS[kind]})
    record = recovered(place, llama, recipe, tmp_path / "out")
    assert record.accepted, record
    assert record.difference is not None and record.difference.high is not None
    assert record.difference.high < 0
    assert record.merge_difference is not None and record.merge_difference < 1e-4
    assert [point.step for point in record.curve] == list(range(1, 13))
    assert record.curve[-1].loss < record.curve[0].loss
    assert record.tokens == 12 * 4 * 32
    assert RecoveryRecord.model_validate(record.model_dump(mode="json")) == record
    names = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert not names & {".pt", ".pth", ".bin"}


class _Stop:
    """Stops a run after some notes, as a kill would."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.begin = self.advance = self.end = self.heading = lambda *told: None

    def note(self, text: str) -> None:
        if self.word in text:
            raise KeyboardInterrupt


def test_a_broken_training_goes_on_to_the_same_bytes(
    place: Path, llama: Path, tmp_path: Path
) -> None:
    recipe = LoraRecipe(**SHORT, dropout=0.1, checkpoint_every=5)
    whole = recovered(place, llama, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), listening(_Stop("step 8")):
        recovered(place, llama, recipe, tmp_path / "broken")
    kept = sorted(path.name for path in (tmp_path / "broken.training").iterdir())
    assert kept == ["checkpoint-5"]
    again = recovered(place, llama, recipe, tmp_path / "broken")
    assert again == whole
    assert verify_directory(tmp_path / "broken") == verify_directory(tmp_path / "whole")


def test_a_changed_checkpoint_is_not_read(place: Path, llama: Path, tmp_path: Path) -> None:
    recipe = LoraRecipe(**SHORT, checkpoint_every=5)
    with pytest.raises(KeyboardInterrupt), listening(_Stop("step 8")):
        recovered(place, llama, recipe, tmp_path / "out")
    state = tmp_path / "out.training" / "checkpoint-5" / "optimizer.pt"
    state.write_bytes(state.read_bytes() + b"\0")
    with pytest.raises(Refused, match=r"optimizer\.pt: changed since it was written"):
        recovered(place, llama, recipe, tmp_path / "out")


def test_nan_keeps_the_last_good_state_and_its_reason(
    place: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = training.objective, []

    def poisoned(*given: Any) -> torch.Tensor:
        seen.append(1)
        return real(*given) * (float("nan") if len(seen) == 8 else 1.0)

    monkeypatch.setattr(training, "objective", poisoned)
    files = {"text": place / "train.txt", "judge": place / "judge.txt"}
    with pytest.raises(Refused, match="loss became NaN or infinite at step 8; the last good"):
        recover_to(
            place / "pruned", tmp_path / "out", **files, **SHORT, checkpoint_every=3,
            json_file=tmp_path / "told.json", state=tmp_path / "state", device="cpu",
        )  # fmt: skip
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["last_good_step"] == 6 and not told["accepted"]
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()
    kept = sorted(path.name for path in (tmp_path / "out.last-good").iterdir())
    assert kept == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_best_state_is_kept(place: Path, llama: Path, tmp_path: Path) -> None:
    """A rate that ruins the model later: what is merged is the checkpoint before."""
    values = {**SHORT, "learning_rate": 0.05, "warmup": 0.0}
    recipe = LoraRecipe(**values, patience=2, checkpoint_every=1, validation=0.2)
    record = recovered(place, llama, recipe, tmp_path / "out")
    losses = {p.step: p.validation for p in record.curve if p.validation is not None}
    assert record.best_step == min(losses, key=lambda step: losses[step] or 0.0)
    assert record.tokens <= 12 * 4 * 32


def test_divergence_is_the_full_one_where_all_tokens_are_known() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, other = (torch.randn(2, 5, 11, generator=generator) for _ in range(2))
    expected = functional.kl_div(
        other.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    logs, ids = dense.log_softmax(-1).topk(10)
    torch.testing.assert_close(divergence(Predictions(dense.log_softmax(-1)), other, 1.0), expected)
    torch.testing.assert_close(divergence(Predictions(logs, ids), other, 1.0), expected)
    few = divergence(Predictions(*dense.log_softmax(-1).topk(3)), other, 1.0)
    assert (few <= expected + 1e-6).all() and (few >= 0).all()


def test_answers_alone_are_learned(place: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}]}
        for _ in range(40)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = load_tokenizer(place / "pruned")
    found = examples_of(tokenizer, f"chat:{file}", LoraRecipe(batch_size=2, seqlen=16))
    learned = found.windows[found.labels != NOT_LEARNED]
    text = tokenizer.decode(learned)
    assert set(text.replace("</s>", "")) == set("yes?")  # line ends are unknown to this tokenizer
    assert (found.labels[found.labels != NOT_LEARNED] == learned).all()


def test_recipes_are_told_by_their_kind() -> None:
    read = TypeAdapter(Recipe).validate_python
    assert read({"rank": 4}) == LoraRecipe(rank=4)
    for name, kind in RECIPES.items():
        assert type(read({"kind": name})) is kind
        assert read(read({"kind": name}).model_dump(mode="json")) == read({"kind": name})
    assert read({"tokens": 10_000}).total_steps == 9
    for wrong in ({"kind": "odd"}, {"steps": 3, "tokens": 9999}, {"accumulation": 3}):
        with pytest.raises(ValidationError):
            read(wrong)


def test_a_teacher_is_asked_for(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="give --teacher DENSE"):
        recover_to(
            place / "pruned", tmp_path / "out", text=place / "train.txt",
            judge=place / "judge.txt", recipe="distill", state=tmp_path / "state", **SHORT,
        )  # fmt: skip


def _command(place: Path, out: Path, *more: str) -> list[str]:
    flags = {"text": "train.txt", "judge": "judge.txt"}
    given = [part for n, v in flags.items() for part in (f"--{n}", str(place / v))]
    numbers = ["--steps", "40", "--seqlen", "32", "--batch-size", "4", "--learning-rate", "0.005"]
    return [
        "-m", "bipline", "recover", str(place / "pruned"), "--out", str(out), *given, *numbers,
        "--checkpoint-every", "5", "--device", "cpu", "--state", str(out.parent / "state"), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_and_run_again(place: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, *_command(place, tmp_path / "killed")])
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed.work").rglob("checkpoint-10/digests.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        subprocess.run([sys.executable, *_command(place, tmp_path / name)], check=True)
    assert verify_directory(tmp_path / "killed") == verify_directory(tmp_path / "whole")
    assert not (tmp_path / "killed.work").exists()


@pytest.mark.slow
def test_two_processes_train_as_one(place: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    told = {}
    for name, before in (("one", []), ("two", launcher)):
        file = tmp_path / f"{name}.json"
        command = _command(place, tmp_path / name, "--dropout", "0", "--json", str(file))
        subprocess.run([sys.executable, *before, *command], check=True, timeout=280)
        told[name] = RecoveryRecord.model_validate(
            {n: v for n, v in json.loads(file.read_text()).items() if n != "command"}
        )
    one, two = ([point.loss for point in told[name].curve] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    assert two[-1] < two[0]
