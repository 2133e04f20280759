"""ONNX without its exporter: what is refused before any work, and what is found in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx.external_data_helper import set_external_data

import bipline
from bipline.base import extras
from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.compression.prune import prune
from bipline.delivery.formats.directory import RECORD_NAME, origin_of
from bipline.delivery.formats.gguf.format import Gguf
from bipline.delivery.formats.interface import Format, Subject
from bipline.delivery.formats.onnx.format import write_beside
from bipline.delivery.formats.onnx.graph import read_origin
from bipline.delivery.formats.onnx.verification import (
    TOLERANCE,
    Expected,
    _compared,
    _compared_ids,
)
from bipline.delivery.formats.registry import FORMATS
from bipline.delivery.vouching import verify
from bipline.model import memory
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model
from bipline.model.tokenizer import tokenizer_of
from bipline.settings.compress import CompressSettings
from bipline.settings.gguf import GgufSettings
from bipline.settings.onnx import OnnxSettings
from bipline.stages import export
from bipline.storage.digests import digest_file
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import MANIFEST_NAME, FileEntry, read_manifest
from bipline.values.export import EngineCheck, ExportRecord, Origin
from tests import command
from tests.gguf_tokenizers import VOCAB_SIZE, byte_level, save
from tests.per_layer import kept, plan_of
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "small"
    return save(
        byte_level(),
        tiny_model(folder, "llama-gqa", dtype=torch.float32, vocab_size=VOCAB_SIZE),
    )


def check(model: Path, **settings: Any) -> str:
    return FORMATS["onnx"].check(open_checkpoint(model), {}, OnnxSettings(**settings)).architecture


def test_what_memory_does_not_hold_is_refused_before_any_work(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(small) == "LlamaForCausalLM"
    with pytest.raises(InvalidInput, match=r"0\.73 GB .* max_memory is 0\.10 GB; .*gguf"):
        check(small, max_memory=10**8)
    monkeypatch.setattr(memory, "free_memory", lambda: 10**8)
    monkeypatch.setattr(memory, "anonymous_memory", lambda: 0)
    with pytest.raises(EnvironmentFailure, match=r"0\.73 GB .* 0\.09 GB are free here"):
        check(small)
    # What is asked for counts where it is less than what is free.
    with pytest.raises(InvalidInput, match=r"max_memory is 0\.05 GB"):
        check(small, max_memory=5 * 10**7)


@pytest.mark.parametrize("case", ["mixtral", "qwen3-moe", "glm4-moe", "gpt-oss"])
def test_mixtures_of_experts_are_taken(case: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", case, dtype=torch.float32)
    assert check(model) == open_checkpoint(model).config["architectures"][0]
    with pytest.raises(InvalidInput, match=r"0\.73 GB .* max_memory is 0\.10 GB; .*gguf"):
        check(model, max_memory=10**8)


def test_memory_is_counted_for_a_model_that_is_not_there_yet(small: Path) -> None:
    checkpoint = open_checkpoint(small)
    config = {**checkpoint.config, "vocab_size": 10**10}
    shape = checkpoint.shape.model_copy(update={"vocab_size": 10**10})
    outline = dataclasses.replace(checkpoint, config=config, shape=shape, tensors={})
    with pytest.raises(EnvironmentFailure, match="holds the model whole"):
        FORMATS["onnx"].check(outline, {}, OnnxSettings())


def test_a_run_is_told_before_its_first_stage_what_each_format_will_hold(small: Path) -> None:
    values: dict[str, Any] = {
        "model": str(small),
        "texts": {"calibration": "a", "held-out": "b"},
        "allocate": {"layout": "per-layer", "ratio": 0.3},
        "export": {"formats": ("hf", "gguf", "onnx")},
    }
    checkpoint = open_checkpoint(small)
    told = export.check(CompressSettings.model_validate(values), checkpoint, thorough=False)
    assert told == [
        ("export", "hf, gguf, onnx"),
        ("export", "gguf: f32, architecture deci"),
        ("export", "onnx: f32, architecture PerLayerLlamaForCausalLM"),
    ]
    values["export"]["onnx"] = {"max_memory": "100MB"}
    with pytest.raises(InvalidInput, match=r"max_memory is 0\.10 GB"):
        export.check(CompressSettings.model_validate(values), checkpoint, thorough=False)


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
@pytest.mark.parametrize("case", ["llama-gqa", "mistral-gqa", "qwen2-gqa", "qwen3-gqa"])
def test_the_tokenizer_beside_the_graph_is_the_models(
    case: str, layout: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model", case, dtype=torch.float32)
    if layout == "per-layer":
        checkpoint = open_checkpoint(model)
        model = tmp_path / "pruned"
        prune(checkpoint, plan_of(checkpoint, [kept([0], [1]), kept([], [2])]), model)
    checkpoint = open_checkpoint(model)
    (tmp_path / "out").mkdir()
    write_beside(Subject(checkpoint, None), tmp_path / "out")  # type: ignore[arg-type]
    ids, special = _compared_ids(tmp_path / "out", tokenizer_of(checkpoint.folder))
    assert len(ids) > 300
    assert special


def test_a_missing_library_is_told(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing_modules", lambda _: ["onnxruntime"])
    with pytest.raises(InvalidInput, match=r"format onnx needs onnxruntime.*bipline\[onnx\]"):
        check(small)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format", "onnx", "--type", "q8_0"], "--type 'q8_0': input should be 'f32'"),
        (["--format", "onnx", "--max-memory", "lots"], "'lots' is not a size"),
        (["--format", "onnx", "--max-memory", "1MB"], "max_memory is 1.00 MB"),
        (["--format", "gguf", "--max-memory", "1GB"], "unknown key 'max_memory'"),
        (["--format", "onx"], "known: gguf, onnx"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], words: str, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = command.run(capfd, "export", small, *flags, "--out", out, "--state", tmp_path)
    done.assert_one_line(2, words)
    assert not out.exists()


def graph(file: Path, metadata: dict[str, str], data: str = "model.onnx.data") -> None:
    """A model of one sum, whose weight lies in a file beside it."""
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "sum", [shape], [made], [weight]))
    weight = model.graph.initializer[0]
    weight.raw_data = b"\0\0\x80?"
    set_external_data(weight, data)
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    onnx.helper.set_model_props(model, metadata)
    file.write_bytes(model.SerializeToString())
    (file.parent / "model.onnx.data").write_bytes(b"\0\0\x80?")


def check_of() -> EngineCheck:
    return EngineCheck(
        engine="none", page_tokens=1, special_tokens_same=True, contexts=1, compared=1,
        largest_difference=0.0, divergence=0.0, divergence_as_stored=0.0, continuation=(),
    )  # fmt: skip


def exported(small: Path, out: Path, format_: Format) -> Origin:
    """A directory as ``bipline export`` writes one, but for the engine's part."""
    checkpoint = open_checkpoint(small)
    origin = origin_of(resolve_model(str(small), out.parent), checkpoint)
    with atomic_directory(out, "export") as writer:
        if format_.name == "gguf":
            format_.write(Subject(checkpoint, origin), writer, "", GgufSettings())
        else:
            graph(writer.path / format_.file, origin.metadata())
        record = ExportRecord(
            format=format_.name, type="f32", architecture="", origin=origin, parameters=1,
            file_bytes=1, notes=(), check=check_of(), perplexity={},
        )  # fmt: skip
        (writer.path / RECORD_NAME).write_text(record.model_dump_json())
        writer.info = {"tensor_digest": origin.tensor_digest}
    return origin


def rewritten(out: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """A file that was changed, and a manifest that was made to follow."""
    path, manifest = out / name, read_manifest(out)
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    entry = FileEntry(size=path.stat().st_size, sha256=digest_file(path))
    files = {**manifest.files, name: entry}
    (out / MANIFEST_NAME).write_text(manifest.model_copy(update={"files": files}).to_json())


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_verify_holds_the_origin_inside_a_file(name: str, small: Path, tmp_path: Path) -> None:
    format_, out = FORMATS[name], tmp_path / name
    origin = exported(small, out, format_)
    assert format_.origin(out / format_.file) == origin.metadata()
    (told,) = verify(out).told
    assert told == f"{format_.file}: tells of the same tensors, {origin.tensor_digest[:12]}"
    digest = origin.tensor_digest
    other = digest.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    swap = lambda content: content.replace(digest.encode(), other.encode())  # noqa: E731
    rewritten(out, format_.file, swap)
    with pytest.raises(Refused, match=r"tells another bipline\.tensor_digest than export\.json"):
        verify(out)
    rewritten(out, RECORD_NAME, swap)
    with pytest.raises(Refused, match=r"export\.json names other tensors than the manifest"):
        verify(out)
    (out / RECORD_NAME).unlink()
    with pytest.raises(Refused):
        verify(out)


@pytest.mark.parametrize("format_", [FORMATS["onnx"], Gguf()], ids=lambda each: each.name)
def test_a_file_that_is_none_of_the_format_is_refused(format_: Format, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"GGUF", b"\x08\x0a\xff\xff\xff", b"x" * 200)):
        file = tmp_path / f"{number}"
        file.write_bytes(content)
        with pytest.raises(Refused, match=f"{file}: not a"):
            format_.origin(file)


def test_weights_in_another_place_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    graph(file, {"bipline.version": "1", "other": "2"})
    assert read_origin(file) == {"bipline.version": "1"}
    graph(file, {}, "../outside")
    with pytest.raises(Refused, match=r"takes weights from '\.\./outside'"):
        read_origin(file)


def test_without_the_extra_verify_says_what_was_not_read(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(small, tmp_path / "out", FORMATS["onnx"])
    monkeypatch.setattr(extras, "missing_modules", lambda _: ["onnx"])
    (told,) = verify(tmp_path / "out").told
    assert "its origin was not read; that needs pip install 'bipline[onnx]'" in told


def test_what_differs_from_transformers_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 11, generator=generator)
    steps = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]]).double().log()
    expected = Expected(list(range(8)), [0], logits.double().log_softmax(-1), [0, 2], steps)
    given = torch.cat([logits, logits[:4], logits])
    said: dict[str, Any] = {"engine": "x", "cached": [0, 2], "plain": [0, 2]}
    found = _compared(said, given, expected, 8, True)
    assert (found.contexts, found.compared, found.continuation) == (20, 220, (0, 2))
    assert found.largest_difference < 1e-6
    # A sum that is the same for the whole vocabulary is no difference; a NaN is one.
    assert _compared(said, given + 3, expected, 8, True).largest_difference < TOLERANCE
    for place, size in ((0, 1e-2), (10, 1e-2), (19, float("nan"))):
        changed = given.clone()
        changed[place, 0] += size
        with pytest.raises(Refused, match="log-probabilities differ"):
            _compared(said, changed, expected, 8, True)
    with pytest.raises(Refused, match="gives logits"):
        _compared(said, given[1:], expected, 8, True)
    # The first two are equally likely at the first step, and no others are.
    assert _compared({**said, "cached": [1, 0]}, given, expected, 8, True).continuation == (1, 0)
    for kind, tokens in (("cached", [0, 1]), ("plain", [2, 2]), ("plain", [0])):
        with pytest.raises(Refused, match="greedy decoding with"):
            _compared({**said, kind: tokens}, given, expected, 8, True)


def test_the_library_has_it_too() -> None:
    assert "onnx" in (bipline.export.__doc__ or "")
