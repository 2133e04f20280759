"""The line reads a model once, finds what it made, and knows texts by what they hold."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import bipline
from bipline.base.errors import InvalidInput
from bipline.compression.auto import settled_settings
from bipline.compression.forward_pass import ForwardPass
from bipline.compression.workers import Workers
from bipline.face.keywords import line_settings
from bipline.model import opening
from bipline.model.opening import open_checkpoint
from bipline.settings.line import LineSettings
from bipline.stages import compensate, line, prune
from bipline.stages.resolve import glance, resolve_model, resolve_texts
from bipline.stages.stage import Context
from bipline.storage.folder import LocalFile
from bipline.storage.manifest import MANIFEST_NAME, read_manifest
from bipline.storage.store import open_store
from bipline.storage.work import MARKER_NAME, work_directory
from bipline.values.summary import PruneSummary
from tests.command import contents
from tests.pipeline.conftest import write_text
from tests.tiny import tiny_model

GIVEN: dict[str, Any] = {
    "criterion": "llm-bip-glu", "ratio": 0.3, "samples": 8, "seqlen": 16, "shard_size": 30_000,
}  # fmt: skip
STAGES = ("calibrate", "score", "allocate", "prune")


Range = tuple[int, int]


@contextmanager
def counting(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[Range]]:
    """Offsets and lengths of all ranges that are read of the weights in ``folder``."""
    read, ranges = LocalFile.read_into, list[Range]()

    def reading(file: LocalFile, buffer: memoryview, offset: int) -> None:
        read(file, buffer, offset)
        if file._path.parent == folder and file.name.endswith(".safetensors"):
            ranges.append((offset, len(buffer)))

    with patch.context() as inner:
        inner.setattr(LocalFile, "read_into", reading)
        yield ranges


def kept_bytes(source: Path, out: Path) -> int:
    """The bytes of the rows of ``source`` that ``out`` holds, whole rows each."""
    before, after = open_checkpoint(source).tensors, open_checkpoint(out).tensors
    return sum(
        stored.num_bytes // stored.shape[0] * after[name].shape[0]
        for name, stored in before.items()
    )


@pytest.mark.parametrize("source", [resolve_model, glance], ids=["resolved", "glanced"])
def test_one_checkpoint_serves_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    """Scoring reads a block once; pruning hashes nothing again and reads what stays alone."""
    folder = tiny_model(tmp_path / "model", "llama-gqa", dtype=torch.float32)
    given = line_settings(folder, write_text(tmp_path / "a.txt", 1), GIVEN)
    settings, _ = settled_settings(given)
    context = Context(open_store(tmp_path / "store"), settings.compute)
    model = source(str(folder), tmp_path)
    texts = resolve_texts(settings.texts, tmp_path)
    write, pruning = prune.prune, list[Range]()

    def watched(*arguments: Any) -> Any:
        known = dict(context.opened(model).digests.known)
        assert set(known) == set(context.opened(model).tensors)
        with counting(monkeypatch, folder) as ranges:
            handle = write(*arguments)
        pruning.extend(ranges)
        assert context.opened(model).digests.known == known
        return handle

    monkeypatch.setattr(prune, "prune", watched)
    with counting(monkeypatch, folder) as ranges:
        made = line.smaller(context, model, texts, settings)
    assert made is not None and len(context.checkpoints) == 1
    checkpoint = context.opened(model)
    kept = kept_bytes(folder, Path(made.model.location))
    assert sum(length for _, length in pruning) == kept
    assert kept < sum(stored.num_bytes for stored in checkpoint.tensors.values())
    reads, again = Counter(ranges), Counter(pruning)
    for index in range(checkpoint.shape.num_hidden_layers):
        for name in checkpoint.block_names(index).values():
            whole = checkpoint.tensors[name].offset, checkpoint.tensors[name].num_bytes
            assert reads[whole] - again[whole] == 1, name


def test_prune_opens_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at before any work is what is worked with."""
    folder, opened = tiny_model(tmp_path / "model", "llama-gqa"), list[str]()
    read = opening.read_config

    def reading(place: Any) -> Any:
        opened.append(str(getattr(place, "location", place)))
        return read(place)

    monkeypatch.setattr(opening, "read_config", reading)
    text = write_text(tmp_path / "a.txt", 1)
    bipline.prune(folder, tmp_path / "out", calibration=text, state=tmp_path / "state", **GIVEN)
    assert opened.count(str(folder)) == 1


@pytest.mark.parametrize("given", ["plan", "statistics"])
def test_a_process_that_only_helps_makes_nothing(tmp_path: Path, given: str) -> None:
    """Under torchrun every process but the first leaves the rest of the line to it."""
    folder = tiny_model(tmp_path / "model", "llama-gqa")
    text, lies = write_text(tmp_path / "a.txt", 1), tmp_path / given
    names = {"plan": {"plan_out": lies}, "statistics": {"statistics": str(lies)}}[given]
    out, state = tmp_path / "out", tmp_path / "state"
    assert bipline.prune(folder, out, calibration=text, state=state, **GIVEN, **names)
    again = {**GIVEN, given: str(lies)}
    if given == "plan":
        del again["ratio"]
    settings, _ = settled_settings(line_settings(folder, text, again))
    store, model = open_store(tmp_path / "store"), glance(str(folder), tmp_path)
    helper = Context(store, settings.compute, workers=Workers(rank=1, count=2))
    assert line.smaller(helper, model, resolve_texts(settings.texts, tmp_path), settings) is None
    assert not (tmp_path / "store").exists()


class Runs:
    """``bipline.prune`` with a Store, and the forward passes that it took."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.store, self.passes = folder, folder / "store", 0
        self.text = write_text(folder / "a.txt", 1)
        run = ForwardPass.run

        def passing(*arguments: Any) -> Any:
            self.passes += 1
            return run(*arguments)

        patch.setattr(ForwardPass, "run", passing)

    def prune(self, model: Path, out: str, **changed: Any) -> PruneSummary:
        summary = bipline.prune(
            model, self.folder / out,
            **{
                "calibration": self.text, "store": str(self.store), "state": self.folder / "state",
                **GIVEN, **changed,
            },
        )  # fmt: skip
        assert summary is not None
        assert not (self.folder / f"{out}.work").exists()
        return summary


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, monkeypatch)


def test_another_ratio_runs_no_pass(llama: Path, runs: Runs) -> None:
    first = runs.prune(llama, "first")
    assert runs.passes == 1
    second = runs.prune(llama, "second", ratio=0.5)
    assert runs.passes == 1
    assert second.parameters.after < first.parameters.after < first.parameters.before
    alone = runs.prune(llama, "alone", ratio=0.5, store=None)
    assert runs.passes == 2
    assert alone.digest == second.digest, "found sums give what a pass of its own gives"


def test_a_copy_of_the_model_elsewhere_finds_every_stage(
    llama: Path, runs: Runs, tmp_path: Path
) -> None:
    first, before = runs.prune(llama, "first"), contents(runs.store)
    copied = shutil.copytree(llama, tmp_path / "elsewhere" / "copy")
    again = runs.prune(copied, "again")
    assert runs.passes == 1
    assert (again.digest, set(again.seconds.stage)) == (first.digest, set(STAGES))
    assert set(again.seconds.stage.values()) == {0.0}, "found, all of them"
    assert contents(runs.store) == before


def test_what_is_written_into_out_stays_out_of_the_store(llama: Path, runs: Runs) -> None:
    runs.prune(llama, "first")
    before, out = contents(runs.store), runs.folder / "first"
    for path in out.iterdir():
        assert os.access(path, os.W_OK) and path.stat().st_mode & 0o200
        with path.open("r+b") as file:
            file.write(b"mine")
    assert contents(runs.store) == before
    for path in (path for path in runs.store.rglob("*/*") if path.is_file()):
        if not path.name.endswith(".cost.json"):
            assert not path.stat().st_mode & 0o222, path
    runs.prune(llama, "second")
    bipline.verify(runs.folder / "second")


def test_a_run_killed_after_its_copy_finishes(llama: Path, runs: Runs) -> None:
    """OUT from a Store is a copy; the work directory tells a killed run from a finished one."""

    def killed() -> None:
        (runs.folder / "out.work").mkdir()
        (runs.folder / "out.work" / MARKER_NAME).touch()

    first = runs.prune(llama, "out")
    before = contents(runs.folder / "out")
    with pytest.raises(InvalidInput, match="not empty"):
        runs.prune(llama, "out")
    killed()
    assert runs.prune(llama, "out").digest == first.digest
    assert contents(runs.folder / "out") == before
    with work_directory(runs.folder / "out.work"), pytest.raises(InvalidInput, match="another"):
        runs.prune(llama, "out")
    killed()
    with pytest.raises(InvalidInput, match="not empty"):
        runs.prune(llama, "out", ratio=0.5)
    assert contents(runs.folder / "out") == before


def test_a_mix_is_known_by_what_its_texts_hold(llama: Path, runs: Runs, tmp_path: Path) -> None:
    """Neither order nor names change the model; weights do."""
    other = write_text(tmp_path / "b.txt", 2)
    again = shutil.copy(other, tmp_path / "renamed.txt")

    def digest(out: str, *texts: str) -> str:
        # With the sums' digest, because few bits of a model may hang on a window.
        place = tmp_path / f"{out}-sums"
        summary = runs.prune(llama, out, calibration=list(texts), statistics=str(place), store=None)
        return summary.digest + bipline.verify(place).digest

    mixed = digest("mixed", f"{runs.text},0.7", f"{other},0.3")
    assert digest("turned", f"{other},0.3", f"{runs.text},0.7") == mixed
    assert digest("renamed", f"{runs.text},0.7", f"{again},0.3") == mixed
    assert digest("scaled", f"{runs.text},7", f"{other},3") == mixed
    weighted = digest("weighted", f"{runs.text},0.3", f"{other},0.7")
    assert weighted != mixed
    assert runs.passes == 5


def test_shares_on_another_scale_are_one_key(llama: Path, runs: Runs, tmp_path: Path) -> None:
    other = write_text(tmp_path / "b.txt", 2)
    for out, share in (("ones", 1), ("twos", 2), ("tenths", 0.1)):
        runs.prune(llama, out, calibration=[f"{runs.text},{share}", f"{other},{share}"])
    assert runs.passes == 1


def test_resolving_reads_a_weight_once(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with counting(monkeypatch, llama) as ranges:
        resolved = resolve_model(str(llama), llama)
    size = sum(path.stat().st_size for path in llama.glob("*.safetensors"))
    headers = sum(length for offset, length in ranges if offset < 8 or length < 8)
    assert resolved.tensor_digest
    assert sum(length for _, length in ranges) < 2 * size - headers


def test_statistics_of_an_older_version_are_read(llama: Path, tmp_path: Path) -> None:
    """They did not declare the digest of their scores."""
    calibration = write_text(tmp_path / "calibration.txt", 1)
    place = tmp_path / "statistics"
    made = bipline.prune(
        llama, tmp_path / "out", calibration=calibration, statistics=str(place),
        state=tmp_path / "state", **GIVEN,
    )  # fmt: skip
    manifest = read_manifest(place)
    old = {name: value for name, value in manifest.info.items() if name != "scores"}
    path = place / MANIFEST_NAME
    path.chmod(0o644)
    path.write_text(manifest.model_copy(update={"info": old}).to_json())
    again = bipline.prune(
        llama, tmp_path / "again", statistics=str(place), state=tmp_path / "state", **GIVEN
    )
    assert made and again and again.digest == made.digest


@pytest.mark.parametrize(
    ("compensation", "sequential", "told"),
    [
        ("obs", True, "obs, in order, on the pruned stream"),
        ("obs", False, "obs, on dense inputs, so no input maps and no kept rows"),
        ("bias", False, "bias, on dense inputs"),
    ],
)
def test_what_is_not_done_on_dense_inputs_is_told(
    compensation: str, sequential: bool, told: str
) -> None:
    """Whatever its options ask for."""
    asked = {"compensation": compensation, "compensation_option": {"sequential": sequential}}
    settings = LineSettings.model_validate({"model": "m", "compensate": asked})
    assert compensate.check(settings, None, thorough=False) == [("compensate", told)]
