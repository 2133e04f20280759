"""Node pools: the cheapest with room, and a line that says what is missing where none has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.settings.pools import SHARE_FOR_PODS, NodePool, cheapest
from bipline.settings.stack_file import node_pools
from bipline.values.need import StepNeed

GB = 10**9
SIZES = st.integers(1, 100)


def pool(name: str, memory: int, price: float, gpu_memory: int = 0, disk: int = 100) -> NodePool:
    on_gpu = {"gpus": 1, "gpu_memory": gpu_memory * GB} if gpu_memory else {}
    return NodePool(
        name=name, cpus=4, memory=memory * GB, disk=disk * GB, price=price, **on_gpu
    )  # fmt: skip


def need(memory: int, gpu_memory: int = 0, disk: int = 1) -> StepNeed:
    return StepNeed(memory * GB, disk * GB, 1.0, bool(gpu_memory), gpu_memory * GB)


POOLS = st.lists(st.builds(pool, st.just("p"), SIZES, st.floats(0, 9), st.just(0) | SIZES, SIZES))


@given(POOLS, st.builds(need, SIZES, st.just(0) | SIZES, SIZES))
def test_no_cheaper_pool_has_room(pools: list[NodePool], wanted: StepNeed) -> None:
    """Against the definition, written out."""
    fitting = [
        each.price
        for each in pools
        if each.memory * SHARE_FOR_PODS >= wanted.memory
        and each.disk >= wanted.disk
        and (each.gpus > 0) == wanted.gpu
        and (not wanted.gpu or (each.gpu_memory or 0) * SHARE_FOR_PODS >= wanted.gpu_memory)
    ]
    if fitting:
        assert cheapest(tuple(pools), "score", wanted).price == min(fitting)
    else:
        with pytest.raises(InvalidInput, match=r"^step score needs "):
            cheapest(tuple(pools), "score", wanted)


def test_a_gpu_that_is_missing_is_named() -> None:
    only = (pool("cpu", 16, 0.1),)
    with pytest.raises(InvalidInput, match=r"step score needs a GPU .* set compute.device to cpu"):
        cheapest(only, "score", need(1, gpu_memory=1))
    small = (*only, pool("t4", 16, 0.5, gpu_memory=16))
    with pytest.raises(InvalidInput, match=r"a GPU with 40.0 GB.* t4 \(16 GB, 1 GPU of 16 GB"):
        cheapest(small, "score", need(1, gpu_memory=40))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"name": "a"}], "cpus: Field required"),
        ([{"name": "a", "cpus": 1, "memory": "much", "price": 0}], "is not a size"),
        ([{"name": "a", "cpus": 1, "memory": 1, "price": -1}], "greater than or equal to 0"),
        ([{"name": "a", "cpus": 1, "memory": 1, "price": 0, "zone": 1}], "zone: Extra"),
    ],
)
def test_what_is_no_pool(values: list[dict[str, object]], said: str) -> None:
    with pytest.raises(InvalidInput, match=f"orchestrator pools: .*{said}"):
        node_pools(values)
