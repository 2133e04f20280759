"""Operations of scoring and allocating as counted, beside those that torch counts meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bipline.compression.allocation import allocation_options, load_allocation
from bipline.compression.allocation.operations import allocation_operations
from bipline.compression.computing import Computing
from bipline.compression.criteria import needs_of, options_of
from bipline.compression.scoring_operations import scoring_operations
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
from bipline.settings.method_names import CRITERIA
from tests.compression.test_measuring_allocations import MEASURING, problem_of
from tests.scored import scored
from tests.tiny import tiny_model, token_windows

WINDOWS = token_windows(windows=18, seqlen=12)
# Small budgets; whole steps of them.
SEARCHES: dict[str, dict[str, Any]] = {
    "policy-gradient": {"tokens": 4 * 2 * 8 * 12},
    "bi-level": {"tokens": 4 * 2 * 8 * 12},
    "block-shapley": {"of": "sublayers"},
}
BUDGETS: dict[str, dict[str, Any]] = {
    "threshold": {"tokens": 3 * 8 * 12}, "learned": {"steps": 8, "samples": 16}, "error-aware": {},
    "block-influence": {},
}  # fmt: skip
READING = sorted(name for name in CRITERIA if needs_of(name).windows)


class Counting(TorchDispatchMode):
    """torch's own counts of what it runs, without the modules that ask for it."""

    total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_model(tmp_path_factory.mktemp("model") / "llama", "llama-gqa")
    scored(made, "wanda-sp", windows=WINDOWS)  # a process tries some things once
    return made


@pytest.mark.parametrize("criterion", READING)
def test_what_is_counted_is_what_torch_counts(model: Path, criterion: str) -> None:
    given = SEARCHES.get(criterion, {})
    with Counting() as counting:
        scored(model, criterion, Computing(torch.float32), windows=WINDOWS, **given)
    options, shape = options_of(criterion, 0, given), open_checkpoint(model).shape
    counted = scoring_operations(criterion, options, shape, *WINDOWS.shape)
    told = counted.all / counting.total
    assert 0.95 < told < 1.1  # attention is counted as causal, which torch's count is not


@pytest.mark.parametrize("allocation", BUDGETS)
def test_what_an_allocation_runs_is_what_torch_counts(model: Path, allocation: str) -> None:
    problem, given = problem_of(model), BUDGETS[allocation]
    options = allocation_options(allocation, 0, given)
    with Counting() as counting:
        load_allocation(allocation).widths(problem, options)
    settings = AllocateSettings(allocation=allocation, allocation_option=given, ratio=0.4)
    shape, drawn = problem.checkpoint.shape, problem.windows.token_ids.shape
    told = allocation_operations(shape, settings, 0.4, *drawn).all / counting.total
    assert 0.95 < told < 1.1


def test_every_allocation_that_runs_windows_is_held_to_it() -> None:
    assert set(MEASURING) == {*BUDGETS, "compensated"}  # tests/stages/test_step_operations.py
