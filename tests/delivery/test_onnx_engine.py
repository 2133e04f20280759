"""ONNX Runtime runs what was written: unequal blocks, a sliding window, experts, a package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import bipline
from bipline.base.errors import Refused
from bipline.compression.prune import prune
from bipline.delivery.export import PackageContents
from bipline.delivery.formats.interface import Subject
from bipline.delivery.formats.onnx.graph import NEW, PAST, ROWS
from bipline.delivery.formats.onnx.verification import verify
from bipline.delivery.vouching import verify as verify_package
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.settings.onnx import OnnxSettings
from bipline.storage.manifest import verify_directory
from bipline.values.export import ExportRecord
from tests.delivery.conftest import altered, write
from tests.gguf_tokenizers import KINDS, VOCAB_SIZE, save
from tests.per_layer import LAYERS, mixed_blocks, plan_of
from tests.routed import kept_of_experts
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow


def session_of(file: Path) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def run(session: Any, ids: torch.Tensor, past: list[Any] | None = None) -> tuple[Any, list[Any]]:
    """Logits of ids ``[rows, tokens]``, and the cache after them."""
    caches = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
    rows, tokens = ids.shape
    past = past or [np.zeros((rows, c.shape[1], 0, c.shape[3]), np.float32) for c in caches]
    seen = past[0].shape[2]
    feed = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((rows, seen + tokens), np.int64),
        "position_ids": np.tile(np.arange(seen, seen + tokens), (rows, 1)),
    }
    feed |= {each.name: held for each, held in zip(caches, past, strict=True)}
    logits, *present = session.run(None, feed)
    return torch.from_numpy(logits), present


def same_as_transformers(model: Path, file: Path) -> None:
    """Any batch, any length, in any pieces: transformers' logits, of experts by its own loop."""
    session, whole = session_of(file), load_model(model, torch.float32)
    if open_checkpoint(model).shape.num_experts:
        whole.set_experts_implementation("eager")
    draw = torch.Generator().manual_seed(0)
    for rows, tokens, first in ((1, 1, 1), (3, 40, 7), (2, 90, 89)):
        ids = torch.randint(0, VOCAB_SIZE, (rows, tokens), generator=draw)
        with torch.no_grad():
            expected = whole(ids).logits
        logits, past = run(session, ids[:, :first])
        if first < tokens:
            more, _ = run(session, ids[:, first:], past)
            logits = torch.cat([logits, more], 1)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of blocks without attention, without FFN, without both and narrow; its export."""
    base = tmp_path_factory.mktemp("uneven")
    dense = tiny_model(
        base / "dense", "llama-gqa", dtype=torch.float32, vocab_size=VOCAB_SIZE,
        num_hidden_layers=LAYERS,
    )  # fmt: skip
    checkpoint = open_checkpoint(save(KINDS["gpt-2"](), dense))
    prune(checkpoint, plan_of(checkpoint, mixed_blocks(checkpoint.shape)), base / "pruned")
    bipline.export(base / "pruned", base / "out", format="onnx", state=base / "state")
    return base / "pruned", base / "out"


def test_blocks_that_differ_are_one_graph(uneven: tuple[Path, Path]) -> None:
    model, out = uneven
    same_as_transformers(model, out / "model.onnx")
    record = ExportRecord.model_validate_json((out / "export.json").read_text())
    assert (record.format, record.type) == ("onnx", "f32")
    assert len(record.check.continuation) == 32
    assert record.check.contexts == 128 + 64 + 128
    assert 0 < record.check.largest_difference < 1e-4
    manifest = verify_directory(out)
    assert manifest.info["tensor_digest"] == record.origin.tensor_digest
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} < {*manifest.files}
    names = [each.name for each in session_of(out / "model.onnx").get_inputs()]
    # As many layers of a cache as there are attentions.
    assert names[3:] == [
        f"past_key_values.{i}.{kind}" for i in range(3) for kind in ("key", "value")
    ]
    assert b"site-packages" not in (out / "model.onnx").read_bytes()


def test_what_the_readme_says_runs(
    uneven: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = uneven
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(out)
    exec(compile(code, "README.md", "exec"), {})
    assert "upon a time" in capsys.readouterr().out


def test_what_is_wrong_in_a_file_is_found(uneven: tuple[Path, Path]) -> None:
    model, out = uneven
    data = out / "model.onnx.data"
    content, subject = data.read_bytes(), Subject(open_checkpoint(model), None)  # type: ignore[arg-type]
    weights = np.frombuffer(content, np.float32).copy()
    weights[len(weights) // 2 :] *= 1.01
    for wrong, words in ((weights.tobytes(), "log-probabilities"), (content[:100], "run the file")):
        data.write_bytes(wrong)
        with pytest.raises(Refused, match=words):
            verify(out / "model.onnx", subject, OnnxSettings())
    data.write_bytes(content)


def test_a_window_slides_beyond_its_length(tmp_path: Path) -> None:
    model = tiny_model(
        tmp_path / "model", "mistral-gqa", dtype=torch.float32, vocab_size=VOCAB_SIZE,
        sliding_window=16, num_hidden_layers=1,
    )  # fmt: skip
    bipline.export(
        save(KINDS["gpt-2"](), model), tmp_path / "out", format="onnx", state=tmp_path / "state"
    )
    same_as_transformers(model, tmp_path / "out" / "model.onnx")


def experts_hit(model: Path, ids: torch.Tensor) -> set[tuple[str, int]]:
    """Which experts of which blocks the tokens pass through."""
    hit, whole = set[tuple[str, int]](), load_model(model, torch.float32)
    for name, module in whole.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(
                lambda _, given, name=name: hit.update(
                    (name, each) for each in given[1].unique().tolist()
                )
            )
    with torch.no_grad():
        whole(ids)
    return hit


@pytest.mark.parametrize(
    ("case", "ways"),
    [
        ("mixtral", "dense"),
        ("qwen3-moe", "whole"),
        ("glm4-moe", "channels"),
        ("gpt-oss", "channels"),
    ],
)
def test_tokens_take_experts_that_the_traced_ones_did_not(
    case: str, ways: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "dense", case, dtype=torch.float32, vocab_size=VOCAB_SIZE)
    checkpoint = open_checkpoint(save(KINDS["gpt-2"](), model))
    if ways != "dense":
        model = tmp_path / "pruned"
        prune(checkpoint, kept_of_experts(checkpoint, ways), model)
    record = bipline.export(model, tmp_path / "out", format="onnx", state=tmp_path / "state")
    assert 0 < record.check.largest_difference < 1e-4
    assert record.architecture == checkpoint.config["architectures"][0]
    same_as_transformers(model, tmp_path / "out" / "model.onnx")
    ids = torch.randint(0, VOCAB_SIZE, (2, 90), generator=torch.Generator().manual_seed(0))
    traced = torch.ones(ROWS, PAST + NEW, dtype=torch.long)
    others = {block for block, _ in experts_hit(model, ids) - experts_hit(model, traced)}
    assert len(others) == checkpoint.shape.num_hidden_layers - checkpoint.shape.dense_blocks


def test_a_package_holds_it_and_verify_reads_it(contents: PackageContents, tmp_path: Path) -> None:
    chosen = OnnxSettings(seqlen=32, windows=3)
    both = altered(contents, formats=("hf", "onnx"), format_settings={"onnx": chosen})
    manifest = write(both, tmp_path / "package")
    place = tmp_path / "package"
    assert manifest.info["formats"] == ["hf", "onnx"]
    record = json.loads((place / "evaluation.json").read_text())["formats"]["onnx"]
    assert record["origin"]["plan_digest"] == contents.plan.digest
    measured = record["perplexity"]["held-out"]
    assert measured["engine"]["tokens"] == 3 * 31
    assert measured["engine"]["value"] == pytest.approx(measured["model"]["value"], rel=1e-5)
    assert 'InferenceSession("onnx/model.onnx")' in (place / "README.md").read_text()
    told = verify_package(place).told
    assert any(each.startswith("model.onnx: tells of the same tensors") for each in told)
