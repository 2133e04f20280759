"""The block loop's machinery against plain forms: dividing the work must not change it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.model.block_loop import BlockLoop, micro_batch_of
from bipline.model.block_reader import BlockReader
from bipline.model.devices import CPU, choose_device
from bipline.model.gradients import block_gradients
from bipline.model.hidden_states import HiddenStates
from bipline.model.loading import load_model
from bipline.model.memory import memory_need, states_fit
from bipline.model.opening import open_checkpoint
from tests.tiny import token_windows

WINDOWS = token_windows(windows=37, seqlen=12)


def through_all_blocks(loop: BlockLoop, states: HiddenStates, token_ids: Tensor) -> Tensor:
    """Hidden states after the last block, ``[windows, seqlen, hidden_size]``."""
    loop.embed_into(states, token_ids)
    for block in loop.blocks():
        block.advance(states)
    return torch.cat([states.chunk(number) for number in range(states.shape.chunks)])


@pytest.mark.parametrize("resident", [True, False])
def test_states_on_disk_are_the_states_in_memory(
    llama: Path, tmp_path: Path, resident: bool
) -> None:
    loop = BlockLoop(open_checkpoint(llama), torch.float64)
    expected = through_all_blocks(loop, loop.states(WINDOWS), WINDOWS)
    states = loop.states(WINDOWS, tmp_path, resident)
    assert through_all_blocks(loop, states, WINDOWS).equal(expected)
    # The inputs of the last block and its outputs: nothing older, nothing half written.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "states-0001.bin",
        "states-0002.bin",
    ]


def test_damaged_states_are_refused(llama: Path, tmp_path: Path) -> None:
    loop = BlockLoop(open_checkpoint(llama), torch.float64)
    states = loop.states(WINDOWS, tmp_path)
    loop.embed_into(states, WINDOWS)
    path = tmp_path / "states-0000.bin"
    content = path.read_bytes()
    fresh = loop.states(WINDOWS, tmp_path)
    fresh.resume(0, states.digest)
    assert all(fresh.chunk(n).equal(states.chunk(n)) for n in range(states.shape.chunks))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Refused, match="damaged"):
        fresh.resume(0, states.digest)


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_any_micro_batch_gives_the_same_model(family_model: Path, micro_batch: int) -> None:
    checkpoint = open_checkpoint(family_model)
    whole = BlockLoop(checkpoint, torch.float64)
    divided = BlockLoop(checkpoint, torch.float64, micro_batch=micro_batch)
    windows = token_windows(windows=5, seqlen=12)
    expected = whole.logits(windows)
    torch.testing.assert_close(divided.logits(windows), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("asked", [0, 17, -1])
def test_senseless_micro_batch(asked: int) -> None:
    with pytest.raises(InvalidInput, match=f"micro-batch {asked}"):
        micro_batch_of(128, asked)


def test_micro_batch_by_itself_stays_within_a_chunk() -> None:
    assert micro_batch_of(128, None) == 16
    assert micro_batch_of(2048, None) == 1
    assert micro_batch_of(100_000, None) == 1


def test_blocks_come_by_index_whatever_the_order(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    reader = BlockReader(checkpoint, torch.float64, CPU)
    for index, weights in reader.blocks([1, 0, 1]):
        for name, expected in checkpoint.block_weights(index).items():
            assert weights[name].equal(expected)
    assert list(reader.blocks([])) == []


def test_unreadable_block_is_raised_where_it_would_have_come(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(llama)
    reader = BlockReader(checkpoint, torch.float64, CPU)
    monkeypatch.setattr(reader, "_fill", lambda index, place: 1 / (1 - index))
    blocks = reader.blocks([0, 1])
    assert next(blocks)[0] == 0
    with pytest.raises(ZeroDivisionError):
        next(blocks)


def test_transfer_to_a_device_gives_the_same_blocks(llama: Path) -> None:
    """The path to a GPU, with a copy on the CPU in its place: not measured on a GPU."""
    checkpoint = open_checkpoint(llama)
    reader = BlockReader(checkpoint, torch.float32, CPU, by_transfer=True)
    for index, weights in reader.blocks([0, 1, 0, 1, 1]):
        for name, expected in checkpoint.block_weights(index).items():
            assert weights[name].equal(expected.float())


def test_devices_are_chosen_or_refused() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(InvalidInput, match="'tpu7' is unknown"):
        choose_device("tpu7")
    with pytest.raises(InvalidInput, match="'meta' is not supported"):
        choose_device("meta")
    with pytest.raises(EnvironmentFailure, match="'cuda:99' was asked for"):
        choose_device("cuda:99")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def full_gradients(model: Path, windows: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by plain back-propagation through the whole model."""
    loaded = load_model(model, torch.float64)
    logits = loaded(windows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    return float(loss), {
        name: p.grad for name, p in loaded.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_streamed_gradients_equal_full_back_propagation(
    family_model: Path, tmp_path: Path, micro_batch: int | None
) -> None:
    windows = token_windows(windows=5, seqlen=12)
    loss, expected = full_gradients(family_model, windows)
    checkpoint = open_checkpoint(family_model)
    loop = BlockLoop(checkpoint, torch.float64, micro_batch=micro_batch)
    found = []
    for part in block_gradients(loop, windows, tmp_path if micro_batch else None):
        found.append(part.block.index)
        assert part.loss == pytest.approx(loss, rel=1e-12)
        prefix = checkpoint.block_prefix(part.block.index)
        assert part.gradients.keys() == part.block.weights.keys()
        for name, gradient in part.gradients.items():
            torch.testing.assert_close(gradient, expected[prefix + name], rtol=1e-9, atol=1e-13)
    assert found == [1, 0]
    assert not list(tmp_path.iterdir())


def test_gradients_of_each_window_add_up(llama: Path) -> None:
    windows = token_windows(windows=4, seqlen=12)
    loop = BlockLoop(open_checkpoint(llama), torch.float64, micro_batch=1)
    seen: list[dict[str, Tensor]] = []
    parts = block_gradients(loop, windows, each_batch=lambda block: seen.append)
    last = next(parts)
    assert len(seen) == 4
    for name, gradient in last.gradients.items():
        torch.testing.assert_close(sum(batch[name] for batch in seen), gradient)


def test_memory_is_counted_before_the_start(llama: Path) -> None:
    loop = BlockLoop(open_checkpoint(llama), torch.float64)
    need = memory_need(loop, WINDOWS, logits=False)
    assert need.weights == 2 * loop.reader.elements * 8
    assert need.hidden_states == WINDOWS.numel() * 32 * 8
    assert states_fit(need, None)
    assert states_fit(need, need.total)
    assert not states_fit(need, need.total - 1)
    with pytest.raises(InvalidInput, match=r"--max-memory .*at least .* weights of two blocks"):
        states_fit(need, need.least - 1)


def test_machine_without_that_much_memory_is_said_to_be(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = BlockLoop(open_checkpoint(llama), torch.float64)
    need = memory_need(loop, WINDOWS, logits=True)
    monkeypatch.setattr("bipline.model.memory.available_bytes", lambda: need.least - 1)
    for max_memory in (None, need.total):
        with pytest.raises(EnvironmentFailure, match="are free here"):
            states_fit(need, max_memory)
