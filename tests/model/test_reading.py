"""Reading a checkpoint: every way to its tensors gives the same bytes and the same digests."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bipline.base.errors import InvalidInput
from bipline.model import checkpoint as checkpoint_module
from bipline.model.checkpoint import Checkpoint, tensor_bytes
from bipline.model.opening import INDEX_FILE, SINGLE_FILE, open_checkpoint
from bipline.storage import folder
from bipline.storage.digests import digest_json, digest_listing
from bipline.storage.folder import LocalFile
from tests.tiny import tiny_model

# Tensors of a few kilobytes in many pieces, as tensors of many megabytes are read.
PIECE_BYTES = 1000
CHUNK_BYTES = 700
SMALL_BYTES = 100
EMBEDDING = "model.embed_tokens.weight"

Kept = dict[str, torch.Tensor | None]


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    with (
        mock.patch.object(checkpoint_module, "PIECE_BYTES", PIECE_BYTES),
        mock.patch.object(checkpoint_module, "CHUNK_BYTES", CHUNK_BYTES),
        mock.patch.object(folder, "SMALL_BYTES", SMALL_BYTES),
    ):
        yield


@pytest.fixture(scope="module", params=[torch.float64, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices, norms and biases, in types of eight bytes and of two."""
    directory = tmp_path_factory.mktemp("reading") / "model"
    return tiny_model(directory, "llama-gqa-biased", dtype=request.param)


@pytest.fixture(scope="module")
def stored(model: Path) -> dict[str, torch.Tensor]:
    """What the safetensors library reads from the model."""
    return load_file(model / SINGLE_FILE)


def opened(model: Path, around_the_cache: bool = False) -> Checkpoint:
    checkpoint = open_checkpoint(model)
    if around_the_cache:
        for file in checkpoint.files.values():
            file.avoid_cache()
    return checkpoint


def digest_of(tensor: torch.Tensor, dtype: str) -> str:
    """A tensor's digest from its definition: dtype, shape and the sha256 of its bytes."""
    content = hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
    return digest_json([dtype, list(tensor.shape), content])


def digests_of(checkpoint: Checkpoint, stored: dict[str, torch.Tensor]) -> dict[str, str]:
    names = checkpoint.tensors
    return {name: digest_of(stored[name], checkpoint.tensor_header(name)[0]) for name in names}


def drawn_rows(stored: dict[str, torch.Tensor], random: Random) -> Kept:
    """For every tensor all rows, or some of them in order: none, one, a few, all."""
    kept: Kept = {}
    for name, tensor in stored.items():
        rows = range(tensor.shape[0])
        count = random.choice([0, 1, len(rows), random.randint(0, len(rows))])
        some = torch.tensor(sorted(random.sample(rows, count)), dtype=torch.int64)
        kept[name] = random.choice([None, some])
    return kept


def streamed(checkpoint: Checkpoint, kept: Kept) -> dict[str, torch.Tensor]:
    """Tensors put together from the pieces of a stream, which come in the order asked for."""
    pieces: dict[str, list[torch.Tensor]] = {}
    for name, piece in checkpoint.stream(kept.items()):
        assert name == next(reversed(pieces), name) or name not in pieces
        pieces.setdefault(name, []).append(piece)
    assert list(pieces) == [name for name in kept if name in pieces]
    return {name: torch.cat(parts) for name, parts in pieces.items()}


@contextmanager
def counting_reads() -> Iterator[list[tuple[int, int]]]:
    """The ranges, as offset and length, that are asked of local files."""
    seen: list[tuple[int, int]] = []
    really = LocalFile.read_into

    def watched(file: LocalFile, buffer: memoryview, offset: int) -> None:
        seen.append((offset, len(buffer)))
        really(file, buffer, offset)

    with mock.patch.object(LocalFile, "read_into", watched):
        yield seen


@pytest.mark.parametrize("around_the_cache", [False, True])
def test_a_tensor_is_the_one_the_library_reads(
    model: Path, stored: dict[str, torch.Tensor], around_the_cache: bool
) -> None:
    checkpoint = opened(model, around_the_cache)
    assert checkpoint.tensors.keys() == stored.keys()
    for name, expected in stored.items():
        found = checkpoint.tensor(name)
        assert found.dtype == expected.dtype
        assert found.equal(expected), name
        target = torch.full_like(expected, torch.nan)
        checkpoint.read_into(name, target)
        assert target.equal(expected), name


@settings(deadline=None, max_examples=25)
@given(random=st.randoms(use_true_random=False), around_the_cache=st.booleans())
def test_a_stream_is_the_kept_rows_of_every_tensor(
    model: Path, stored: dict[str, torch.Tensor], random: Random, around_the_cache: bool
) -> None:
    """Whether rows that go are read for a digest or left out must not show in what comes."""
    checkpoint = opened(model, around_the_cache)
    for name in random.sample(sorted(stored), random.randint(0, len(stored))):
        checkpoint.digest_tensor(name)
    kept = drawn_rows(stored, random)
    found = streamed(checkpoint, kept)
    for name, rows in kept.items():
        expected = stored[name] if rows is None else stored[name][rows]
        if name in found:
            assert found[name].equal(expected), name
        else:
            assert not len(expected), f"{name} did not come"
    assert checkpoint.digests.known == digests_of(checkpoint, stored)


@settings(deadline=None, max_examples=25)
@given(random=st.randoms(use_true_random=False), around_the_cache=st.booleans())
def test_rows_are_those_of_indexing(
    model: Path, stored: dict[str, torch.Tensor], random: Random, around_the_cache: bool
) -> None:
    checkpoint = opened(model, around_the_cache)
    for name, rows in drawn_rows(stored, random).items():
        chosen = torch.arange(stored[name].shape[0]) if rows is None else rows
        assert checkpoint.rows(name, chosen).equal(stored[name][chosen]), name


def test_rows_read_nothing_but_themselves(model: Path, stored: dict[str, torch.Tensor]) -> None:
    """Neighbours come by one reading: a vocabulary is not read for the words of a text."""
    checkpoint = opened(model)
    width = tensor_bytes(stored[EMBEDDING][0]).nbytes
    begin = checkpoint.tensors[EMBEDDING].offset
    with counting_reads() as seen:
        checkpoint.rows(EMBEDDING, torch.tensor([2, 3, 4, 9, 11, 12]))
    expected = [(2, 3), (9, 1), (11, 2)]
    assert seen == [(begin + first * width, count * width) for first, count in expected]


def test_rows_that_go_are_left_out_once_the_digest_is_known(
    model: Path, stored: dict[str, torch.Tensor]
) -> None:
    kept: Kept = {EMBEDDING: torch.arange(0, len(stored[EMBEDDING]), 3)}
    half = tensor_bytes(stored[EMBEDDING]).nbytes / 2
    checkpoint = opened(model)
    for all_of_it in (True, False):
        with counting_reads() as seen:
            streamed(checkpoint, kept)
        assert (sum(length for _, length in seen) > half) == all_of_it


@pytest.mark.parametrize("around_the_cache", [False, True])
def test_after_a_stream_of_everything_nothing_is_read_for_the_digest(
    model: Path, stored: dict[str, torch.Tensor], around_the_cache: bool
) -> None:
    checkpoint = opened(model, around_the_cache)
    streamed(checkpoint, drawn_rows(stored, Random(1)))
    with counting_reads() as seen:
        digest = checkpoint.tensor_digest
    assert seen == []
    with counting_reads() as seen:
        assert open_checkpoint(model).tensor_digest == digest
    assert seen, "a fresh one had to read"
    assert digest == digest_listing(digests_of(checkpoint, stored))


def test_the_digest_reads_only_what_was_not_read(model: Path) -> None:
    fresh, checkpoint = open_checkpoint(model).tensor_digest, opened(model)
    for name in checkpoint.tensors:
        if name != EMBEDDING:
            checkpoint.tensor(name)
    with counting_reads() as seen:
        assert checkpoint.tensor_digest == fresh
    assert seen[0][0] == checkpoint.tensors[EMBEDDING].offset
    assert sum(length for _, length in seen) == checkpoint.tensors[EMBEDDING].num_bytes


def test_a_stream_that_is_left_has_digests_of_whole_tensors_only(
    model: Path, stored: dict[str, torch.Tensor]
) -> None:
    """Part of a tensor was hashed when the stream was left; that must not count as its digest."""
    checkpoint = opened(model)
    stream = checkpoint.stream((name, None) for name in checkpoint.tensors)
    for name, _ in stream:
        if name == list(checkpoint.tensors)[3]:
            break
    stream.close()  # type: ignore[attr-defined]
    assert list(checkpoint.digests.known) == list(checkpoint.tensors)[:3]
    expected = digests_of(checkpoint, stored)
    assert checkpoint.digests.known.items() <= expected.items()


# -- JSON beside the weights --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", INDEX_FILE])
def test_json_nested_without_end_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "nested"))
    (copy / name).write_text('{"weight_map":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(InvalidInput, match=f"nested/{name}: "):
        open_checkpoint(copy)


@pytest.mark.parametrize("value", ["gptq", ["gptq"], {"bits": 4}])
def test_a_quantised_source_is_refused_however_it_says_so(
    model: Path, tmp_path: Path, value: object
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "quantised"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": value}))
    with pytest.raises(InvalidInput, match="quantised source"):
        open_checkpoint(copy)


# -- digests that are expected ------------------------------------------------------------------


@pytest.fixture
def damaged(model: Path, tmp_path: Path) -> Path:
    """A copy of the model with one bit of one tensor's last byte flipped."""
    copy = Path(shutil.copytree(model, tmp_path / "damaged"))
    at = open_checkpoint(model).tensors[EMBEDDING]
    content = bytearray((copy / SINGLE_FILE).read_bytes())
    content[at.offset + at.num_bytes - 1] ^= 1
    (copy / SINGLE_FILE).write_bytes(content)
    return copy


@pytest.fixture
def expected(model: Path) -> dict[str, str]:
    checkpoint = open_checkpoint(model)
    _ = checkpoint.tensor_digest
    return checkpoint.digests.known


def read_by(way: str, checkpoint: Checkpoint, name: str) -> None:
    """Read one tensor whole."""
    if way == "stream":
        for _ in checkpoint.stream([(name, None)]):
            pass
    elif way == "stream of no rows":
        for _ in checkpoint.stream([(name, torch.tensor([], dtype=torch.int64))]):
            pass
    else:
        getattr(checkpoint, way)(name)


@pytest.mark.parametrize("way", ["tensor", "digest_tensor", "stream", "stream of no rows"])
def test_a_changed_byte_is_refused_when_it_is_read(
    model: Path, damaged: Path, expected: dict[str, str], way: str
) -> None:
    for directory in (model, damaged):
        checkpoint = open_checkpoint(directory)
        checkpoint.digests.expect(expected, "the statistics are of another model")
        for name in checkpoint.tensors:
            if directory == model or name != EMBEDDING:
                read_by(way, checkpoint, name)
    with pytest.raises(InvalidInput) as caught:
        read_by(way, checkpoint, EMBEDDING)
    message = f"the statistics are of another model: tensor {EMBEDDING} differs"
    assert str(caught.value) == message


def test_a_stream_stops_at_the_changed_tensor(damaged: Path, expected: dict[str, str]) -> None:
    """What follows a tensor that is not the expected one is never given to the writer."""
    checkpoint = open_checkpoint(damaged)
    checkpoint.digests.expect(expected, "changed")
    seen = []
    with pytest.raises(InvalidInput, match=EMBEDDING):
        for name, _ in checkpoint.stream((name, None) for name in checkpoint.tensors):
            seen.append(name)
    assert seen[-1] == EMBEDDING


def test_a_tensor_that_was_read_before_is_refused_at_once(
    damaged: Path, expected: dict[str, str]
) -> None:
    checkpoint = open_checkpoint(damaged)
    checkpoint.tensor(EMBEDDING)
    with pytest.raises(InvalidInput, match=f"changed: tensor {EMBEDDING} differs"):
        checkpoint.digests.expect(expected, "changed")


def test_the_claimed_digest_reads_nothing_and_is_held_to(
    model: Path, damaged: Path, expected: dict[str, str]
) -> None:
    """A model is named by what its tensors are expected to be; reading them proves it."""
    checkpoint = open_checkpoint(damaged)
    checkpoint.digests.expect(expected, "changed")
    with counting_reads() as seen:
        claimed = checkpoint.claimed_digest
    assert seen == []
    assert claimed == open_checkpoint(model).tensor_digest
    with pytest.raises(InvalidInput, match=EMBEDDING):
        _ = checkpoint.tensor_digest
