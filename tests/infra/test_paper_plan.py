"""The plan on paper: its formulas beside the simulation, the simulation beside what is known."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.cluster_simulation import Nodes, Simulation, Step
from benchmarks.paper_plan import CASES, Case, Told, floor_seconds, page, told
from tests.layers import ROOT

WITHIN = 0.10
FIGURES = ("seconds", "node_hours", "dollars", "bytes")
ONE = Step("one", (), "pool", 5.0, 10.0, 0.0, 10, 1000)
TWO = Step("two", ("one",), "pool", 0.0, 3.0, 0.0, 1, 500)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Told:
    asked: Case = request.param
    return told(asked)


def test_the_formulas_are_within_a_tenth_of_the_simulation(case: Told) -> None:
    for name in FIGURES:
        by_hand, played = (getattr(each, name) for each in (case.planned, case.simulated))
        assert by_hand == pytest.approx(played, rel=WITHIN), name


def test_all_that_is_read_and_written_is_moved(case: Told) -> None:
    whole = sum(step.moved for step in case.steps)
    assert whole <= case.simulated.bytes <= whole * 1.05, "lost pods read a little again"


def test_the_page_is_what_the_command_writes() -> None:
    told = (ROOT / "infra" / "plan.md").read_text("utf-8")
    assert told == page(), "python -m benchmarks.paper_plan infra/plan.md"


@given(
    st.lists(st.floats(0, 1e4), min_size=3, max_size=3),
    st.integers(1, 126),
)
@example([0.0, 0.0, 5e-324], 2)
def test_a_step_is_as_long_as_its_slowest_part_and_less_than_all(
    each: list[float], blocks: int
) -> None:
    step = Step("step", (), "pool", *each, blocks, 0)  # type: ignore[misc]
    assert max(each) <= step.seconds * (1 + 1e-9) and step.seconds <= sum(each) * (1 + 1e-9)
    assert step.seconds == pytest.approx(floor_seconds(step), rel=1e-6, abs=1e-6)


def played(number: int, arrivals: list[float], lost: float = 0.0) -> Simulation:
    simulation = Simulation([ONE, TWO], {"pool": Nodes(number, 1.0, lost)}, start=2.0, wait=7.0)
    simulation.run(arrivals)
    return simulation


def test_steps_follow_each_other_and_queue_for_one_node() -> None:
    first = 2 + ONE.seconds + 2 + TWO.seconds
    assert played(2, [0.0]).outcome.latencies == pytest.approx([first])
    outcome = played(1, [0.0, 0.0]).outcome
    # The second one's first step comes before the first one's second: it was asked for before.
    both = 2 * (2 + ONE.seconds) + 2 + TWO.seconds
    assert outcome.latencies == pytest.approx([both, both + 2 + TWO.seconds])
    assert outcome.held["pool"] == pytest.approx(2 * first)
    assert outcome.moved == 2 * 1500


def test_lost_pods_cost_time_and_end_all_the_same() -> None:
    arrivals = [1000.0 * number for number in range(50)]
    well, lost = played(1, arrivals).outcome, played(1, arrivals, lost=60.0).outcome
    assert lost.lost > 0 and well.lost == 0
    assert len(lost.latencies) == 50
    assert sum(lost.latencies) > sum(well.latencies) + lost.lost * 7.0
    assert lost.moved >= well.moved
