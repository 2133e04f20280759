"""A model behind ``s3://``: the same model as on the disk, and no byte asked for in vain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import PIECE_BYTES
from bipline.model.opening import INDEX_FILE, open_checkpoint
from bipline.storage import s3
from bipline.storage.digests import CHUNK_BYTES
from bipline.storage.folder import LocalFolder, open_folder
from tests.command import contents
from tests.compression.test_calibrate import prose
from tests.storage.conftest import BUCKET, MODEL, Command, read
from tests.storage.server import Server
from tests.tiny import token_windows

pytestmark = pytest.mark.usefixtures("uploaded")


# -- the same model -----------------------------------------------------------------------------


def test_the_folder_is_the_one_on_the_disk(server: Server, local: Path) -> None:
    remote, on_disk = open_folder(MODEL), LocalFolder(local)
    assert remote.exists()
    assert remote.names() == on_disk.names()
    for name in on_disk.names():
        assert remote.read(name) == on_disk.read(name)
        assert remote.open(name).size == on_disk.open(name).size
    assert open_folder(f"{MODEL}/").names() == on_disk.names()


def test_the_model_is_the_one_on_the_disk(server: Server, local: Path) -> None:
    remote, on_disk = open_checkpoint(MODEL), open_checkpoint(local)
    assert remote.location == MODEL
    assert remote.tensor_digest == on_disk.tensor_digest
    assert remote.layout_digest == on_disk.layout_digest
    assert remote.weight_bytes == on_disk.weight_bytes
    windows = token_windows()
    found = BlockLoop(open_checkpoint(MODEL), torch.float64).logits(windows)
    assert found.equal(BlockLoop(on_disk, torch.float64).logits(windows))


def test_prune_writes_the_same_bytes(
    server: Server, local: Path, command: Command, tmp_path: Path
) -> None:
    """No file of the output names the place its model came from, so all of them are compared."""
    (tmp_path / "text.txt").write_text(prose(1))
    results = []
    for name, model in {"local": str(local), "remote": MODEL}.items():
        outcome = command(
            "prune", model, "--ratio", "0.3", "--calibration", tmp_path / "text.txt",
            "--samples", "4", "--seqlen", "16", "--shard-size", "30000",
            "--criterion", "llm-bip-glu",
            "--out", tmp_path / name / "out", "--statistics", tmp_path / name / "statistics",
            "--json", tmp_path / f"{name}.json",
        )  # fmt: skip
        assert outcome.code == 0, outcome
        results.append(json.loads((tmp_path / f"{name}.json").read_text()))
    written = contents(tmp_path / "remote")
    assert any(name.endswith(INDEX_FILE) for name in written)
    assert written == contents(tmp_path / "local")
    assert not any(BUCKET.encode() in content for content in written.values())
    same = ("digest", "plan_digest", "parameters", "ratio")
    assert [results[0][key] for key in same] == [results[1][key] for key in same]
    assert results[1]["model"] == MODEL


def test_evaluate_gives_the_same_perplexity(
    server: Server, local: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(prose(2))
    outcome = command(
        "evaluate", MODEL, "--baseline", local, "--text", f"prose={tmp_path / 'text.txt'}",
        "--seqlen", "16", "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    result = json.loads((tmp_path / "result.json").read_text())
    for key in ("perplexity", "tensor_digest", "parameters", "file_bytes"):
        assert result[key] == result["baseline"][key]
    assert result["perplexity"]["prose"]


def test_speed_and_tasks_need_a_local_model(server: Server, command: Command) -> None:
    words = (MODEL, "needs the model in a local directory")
    command("evaluate", MODEL, "--speed").assert_one_line(2, *words)


# -- what is asked for --------------------------------------------------------------------------


def test_a_tensor_costs_its_own_bytes(server: Server) -> None:
    """One tensor is read from a checkpoint of many: its range is asked for, and nothing else."""
    checkpoint = open_checkpoint(MODEL)
    server.asked.clear()
    for name, stored in checkpoint.tensors.items():
        checkpoint.tensor(name)
        assert server.ranges == [(stored.offset, stored.offset + stored.num_bytes - 1)]
        server.asked.clear()


def test_opening_asks_for_headers_alone(server: Server) -> None:
    checkpoint = open_checkpoint(MODEL)
    asked: dict[str, list[str]] = {name: [] for name in checkpoint.files}
    for _, path, ranged in server.asked:
        if ranged and path.endswith(".safetensors"):
            asked[Path(path).name].append(ranged)
    for name, ranges in asked.items():
        weights = [t.offset for t in checkpoint.tensors.values() if t.file.name == name]
        assert ranges == ["bytes=0-7", f"bytes=8-{min(weights) - 1}"]


def test_a_large_reading_is_several_ranges(
    put: Callable[[str, bytes], s3.S3File], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cover what is read, each byte once, and every part lands in its place."""
    content = Random(0).randbytes(10_000)
    file = put("large", content)
    monkeypatch.setattr(s3, "PART_BYTES", 999)
    for offset, length in [(0, 10_000), (1, 9_999), (17, 999), (17, 1000), (9_999, 1), (5, 0)]:
        server.asked.clear()
        assert read(file, offset, length) == content[offset : offset + length]
        assert len(server.ranges) == -(-length // 999)
        covered = [byte for first, last in server.ranges for byte in range(first, last + 1)]
        assert covered == list(range(offset, offset + length))


def test_what_a_checkpoint_reads_at_once_is_read_by_several_connections(
    put: Callable[[str, bytes], s3.S3File], server: Server
) -> None:
    """A stream's piece keeps all connections busy, and a chunk of a tensor several of them."""
    content = Random(0).randbytes(PIECE_BYTES)
    file = put("piece", content)
    assert read(file, 0, PIECE_BYTES) == content
    assert len(server.ranges) >= s3.CONNECTIONS
    server.asked.clear()
    assert read(file, 0, CHUNK_BYTES) == content[:CHUNK_BYTES]
    assert len(server.ranges) > 1
