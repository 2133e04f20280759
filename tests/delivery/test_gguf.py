"""GGUF files read back by other readers: every tensor, every key, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bipline
from bipline.base import extras
from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.compression.prune import prune
from bipline.delivery.formats.directory import origin_of
from bipline.delivery.formats.engines import ask
from bipline.delivery.formats.gguf.choice import architecture_of
from bipline.delivery.formats.gguf.facts import written_widths
from bipline.delivery.formats.gguf.tensors import converted, interleaved
from bipline.delivery.formats.interface import Subject
from bipline.delivery.formats.registry import FORMATS
from bipline.model import checkpoint as reading
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model
from bipline.settings.gguf import GgufSettings
from bipline.storage.digests import digest_file
from bipline.storage.directory import DirectoryWriter
from tests import command
from tests.gguf_tokenizers import REFUSED, VOCAB_SIZE, byte_level, save
from tests.per_layer import kept, plan_of
from tests.tiny import FAMILY_CASES, tiny_model

HELD = sorted({*FAMILY_CASES, "phi3-mha"} - {"qwen3-mha-biased"})
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
# The largest step between two values of a block of 32, as a share of its largest.
STEPS = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127, "q4_0": 1 / 7}


def written(model: Path, out: Path, type_: str = "f32") -> gguf.GGUFReader:
    """The file of a model, without the engine, as the ``gguf`` package reads it."""
    checkpoint = open_checkpoint(model)
    out.mkdir(exist_ok=True)
    origin = origin_of(resolve_model(str(model), out), checkpoint)
    chosen = GgufSettings(type=type_)  # type: ignore[arg-type]
    FORMATS["gguf"].check(checkpoint, {}, chosen)
    writer = DirectoryWriter(out, "export")
    return gguf.GGUFReader(FORMATS["gguf"].write(Subject(checkpoint, origin), writer, "", chosen))


def key(file: gguf.GGUFReader, name: str) -> Any:
    return file.get_field(name).contents()


def values(file: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """Every tensor as float32, by its name."""
    return {
        tensor.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        ).reshape([int(size) for size in reversed(tensor.shape)])
        for tensor in file.tensors
    }


def halves(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of neighbouring pairs as transformers has them: by index, row by row."""
    order = [
        head + 2 * place + part
        for head in range(0, len(tensor), head_dim)
        for part in (0, 1)
        for place in range(head_dim // 2)
    ]
    return tensor[order]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA whose rows quantise, with a tokenizer of bytes."""
    model = tiny_model(
        tmp_path_factory.mktemp("small") / "small", "llama-gqa", dtype=torch.bfloat16,
        vocab_size=VOCAB_SIZE, intermediate_size=64, num_hidden_layers=3,
    )  # fmt: skip
    return save(byte_level(), model)


@pytest.mark.parametrize("case", HELD)
def test_every_tensor_is_there_under_the_name_and_in_the_order_of_gguf(
    case: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model", case, dtype=torch.float32, vocab_size=104)
    file, checkpoint = written(model, tmp_path / "out"), open_checkpoint(model)
    architecture, _ = architecture_of(checkpoint)
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    # The names of gguf's own table, not of ours.
    names = gguf.get_tensor_name_map(number, checkpoint.shape.num_hidden_layers)
    found = values(file)
    inside = [checkpoint.block_prefix(i) for i in range(checkpoint.shape.num_hidden_layers)]
    expected = {name: checkpoint.tensor(name) for name in set(checkpoint.tensors)
                if not name.startswith(tuple(inside))}  # fmt: skip
    for index, prefix in enumerate(inside):
        held = checkpoint.block_weights(index)
        expected |= {prefix + name: tensor for name, tensor in held.items()}
    for name, stored in expected.items():
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        tensor = found.pop(renamed)
        if architecture.interleaved and (".q_proj." in name or ".k_proj." in name):
            tensor = halves(tensor, checkpoint.shape.head_dim)
        assert torch.equal(tensor, stored), name
    assert set(found) <= {"rope_freqs.weight"}
    assert key(file, f"{architecture.name}.attention.head_count") == (
        checkpoint.shape.num_attention_heads
    )
    assert len(key(file, "tokenizer.ggml.tokens")) == 104
    assert key(file, "bipline.tensor_digest") == checkpoint.tensor_digest


@settings(max_examples=30, deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.sampled_from([(), (1,), (3,)]))
def test_rotary_pairs_become_neighbours_and_nothing_is_lost(
    heads: int, half: int, columns: tuple[int, ...]
) -> None:
    rows = heads * 2 * half
    tensor = torch.arange(rows * math.prod(columns)).reshape(rows, *columns)
    moved = interleaved(tensor, 2 * half)
    assert torch.equal(halves(moved, 2 * half), tensor)
    for head in range(heads):
        first = head * 2 * half
        assert torch.equal(moved[first + 1], tensor[first + half])


@pytest.mark.parametrize("type_", TYPES)
def test_a_type_stores_each_value_as_near_as_it_can(
    type_: str, small: Path, tmp_path: Path
) -> None:
    file, checkpoint = written(small, tmp_path / "out", type_), open_checkpoint(small)
    found = values(file)["blk.1.ffn_gate.weight"].reshape(-1, 32)
    source = checkpoint.tensor("model.layers.1.mlp.gate_proj.weight").float().reshape(-1, 32)
    if type_ in ("f32", "bf16"):  # the model's own is bfloat16
        assert torch.equal(found, source)
    largest = source.abs().max(1, keepdim=True).values
    assert ((found - source).abs() <= largest * STEPS[type_] * 1.01).all()
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in file.tensors}
    assert types["blk.1.ffn_gate.weight"] == type_
    assert types["output_norm.weight"] == "f32"


def test_rows_that_do_not_quantise_are_stored_as_f16(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama-gqa", intermediate_size=40)
    types = {t.name: t.tensor_type.name for t in written(model, tmp_path / "out", "q4_0").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"


@pytest.mark.parametrize("case", ["llama-gqa", "llama-gqa-scaled-rope", "mistral-mqa"])
def test_transformers_own_loader_reads_the_same_model(case: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(tmp_path / "model", case, dtype=torch.float32)
    written(model, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32
    )
    source = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in loaded.state_dict().items())


def test_a_per_layer_model_has_a_list_per_size_and_zeros_where_llama_cpp_needs_them(
    small: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(small)
    blocks = [kept([], [*range(32)]), kept([0, 2], []), kept([1], [*range(7)])]
    plan = plan_of(checkpoint, blocks)
    prune(checkpoint, plan, tmp_path / "pruned")
    file = written(tmp_path / "pruned", tmp_path / "out")
    assert key(file, "general.architecture") == "deci"
    assert key(file, "deci.attention.head_count_kv") == [1, 2, 1]
    assert key(file, "deci.attention.head_count") == [2, 4, 2]
    assert key(file, "deci.feed_forward_length") == [32, 8, 7]
    found = values(file)
    for name in ("blk.0.attn_output", "blk.1.ffn_down"):
        assert not found[f"{name}.weight"].any()
    assert key(file, "bipline.plan_digest") == plan.digest
    assert key(file, "bipline.base_tensor_digest") == checkpoint.tensor_digest
    assert written_widths(open_checkpoint(small)) == [(4, 64)] * 3


def test_same_model_same_bytes_however_it_is_read(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(small, tmp_path / "whole", "q8_0")
    monkeypatch.setattr(reading, "PIECE_BYTES", 100)
    written(small, tmp_path / "pieces", "q8_0")
    first, second = (digest_file(tmp_path / n / "model.gguf") for n in ("whole", "pieces"))
    assert first == second


@pytest.mark.parametrize(
    ("type_", "value"),
    [("f16", 7e4), ("q8_0", 1e6), ("q4_0", -1e5), ("f32", math.inf), ("bf16", math.nan)],
)
def test_a_value_that_a_type_cannot_hold_is_refused(type_: str, value: float) -> None:
    piece = torch.ones(2, 32)
    kind = gguf.GGMLQuantizationType[type_.upper()]
    converted(piece, kind, "name")
    piece[1, 3] = value
    with pytest.raises(Refused, match=r"name holds .* which .* cannot hold"):
        converted(piece, kind, "name")


def edited(model: Path, **changes: Any) -> Path:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return model


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused_by_name(
    kind: str, small: Path, tmp_path: Path
) -> None:
    make, words = REFUSED[kind]
    model = tmp_path / "model"
    model.mkdir()
    for file in small.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    save(make(), model)
    with pytest.raises(InvalidInput, match=f"llama.cpp has no tokenizer of .*{words}"):
        bipline.export(model, tmp_path / "out")


def test_what_is_asked_wrongly_is_one_line_and_writes_nothing(
    small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Too short.")
    Path("full").mkdir()
    Path("full/file").write_text("taken")
    for out, more, words in (
        ("out", ["--format", "ggml"], ["'ggml'", "known: gguf"]),
        ("out", ["--type", "q4_k_m"], ["type", "q4_k_m"]),
        ("out", ["--seqlen", "1"], ["seqlen"]),
        ("out", ["--windows", "0"], ["windows"]),
        ("out", ["--seconds", "0"], ["seconds"]),
        ("out", ["--text", "short.txt"], ["NAME=FILE"]),
        ("out", ["--text", "a=absent.txt"], ["absent.txt"]),
        ("out", ["--text", "a=short.txt"], ["shorter than one window"]),
        ("out", ["--text", "a=short.txt", "--seqlen", "300"], ["context of 256"]),
        ("full", [], ["not empty"]),
    ):
        outcome = command.run(capfd, "export", small, "--out", out, *more)
        outcome.assert_one_line(2, *words)
        assert not Path("out").exists()
    command.run(capfd, "export", "absent", "--out", "out").assert_one_line(2, "absent")


def test_a_missing_extra_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda n: None if n == "xllamacpp" else found(n))
    with pytest.raises(InvalidInput, match=r"xllamacpp, not installed .*bipline\[gguf\]"):
        bipline.export(small, "never")


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        ("import os; os.abort()", Refused, "ended by SIGABRT"),
        ("import sys; sys.exit('x E no such key')", Refused, "run the file: no such key"),
        ('print(\'{"error": "ValueError: odd"}\')', Refused, "ValueError: odd"),
        ("print('[Inferior 1 detached]')", Refused, "ended without an answer"),
        ("pass", Refused, "ended without an answer"),
        ("import time; time.sleep(60)", EnvironmentFailure, "not done after 1 s"),
    ],
)
def test_an_engine_that_ends_badly_is_one_line(
    program: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    script = tmp_path / "engine.py"
    script.write_text(program)
    with pytest.raises(error, match=words):
        ask(script, tmp_path / "file", {}, GgufSettings(seconds=1), "gguf: llama.cpp")
