"""Efforts: what they set and leave alone, that more of it is more work, and what is told before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.operations import OperationCounter
from bipline.base.progress import listening
from bipline.compression.allocation import allocation_options, compensated
from bipline.compression.allocation.operations import allocation_operations
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import choices_of
from bipline.compression.auto import method_of, settle, settled_settings
from bipline.compression.compensation.checks import options_by_name
from bipline.compression.computing import Computing
from bipline.compression.efforts import CORRECTIONS, DIFFERING, WIDTHS
from bipline.compression.windows import Windows
from bipline.face import api
from bipline.face.keywords import comparison_settings
from bipline.model.floor import Rates
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings, LineSettings
from bipline.stages.beside_products import BESIDE_PRODUCTS, OPERATIONS_PER_NUMBER
from bipline.stages.calibrate import samples_between
from bipline.stages.forecast import STARTING, Forecast, forecast, slowed
from bipline.values.combination import Method
from bipline.values.plan import BlockPlan
from tests.command import run
from tests.compensated import realised
from tests.compression.test_calibrate import prose
from tests.per_layer import plan_of
from tests.tiny import token_windows

EFFORTS = ("quick", "balanced", "best")


def line(effort: Any, **sections: Any) -> LineSettings:
    return LineSettings.model_validate({"model": "m", "effort": effort, **sections})


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_an_effort_sets_options_that_there_are(effort: Any, layout: str) -> None:
    method, reason = settle(Method.parse("auto"), layout, effort)
    assert reason and method.allocation and method.compensation
    allocation_options(method.allocation.name, 0, method.allocation.options)
    options_by_name(method.compensation.name, method.compensation.options)
    wanted = (WIDTHS if layout == "uniform" else DIFFERING)[effort]
    assert method.allocation.options == wanted
    assert method.compensation.options == CORRECTIONS[effort]
    assert settle(method, layout, effort)[0] == method, "settled once"


def test_what_is_given_stays_and_peers_are_as_published() -> None:
    method, _ = settle(Method.parse("auto/compensated:tried=5/obs:row_steps=9"), "uniform", "quick")
    assert method.allocation and method.allocation.options["tried"] == "5"
    assert method.compensation and method.compensation.options["row_steps"] == "9"
    for text in ("wanda-sp/uniform/osscar", "flap/uniform/bias", "llm-bip/standardized/none"):
        assert settle(Method.parse(text), "uniform", "best") == settle(
            Method.parse(text), "uniform"
        )
    named, _ = settle(Method.parse("llm-bip-glu/compensated/obs"), "uniform", "quick")
    assert named.criterion.name == "llm-bip-glu", "a criterion that was named"
    plain, _ = settle(Method.parse("auto//bias"), "uniform", "quick")
    assert plain.criterion.name == "llm-bip-glu", "a bias needs the scores"


def test_the_usual_effort_changes_nothing_that_is_written() -> None:
    assert "effort" not in LineSettings(model="m").model_dump()
    assert line("quick").model_dump()["effort"] == "quick"
    settled, _ = settled_settings(line("balanced"))
    assert settled.compensate.compensation_option == settled.allocate.allocation_option == {}
    assert method_of(settled_settings(line("quick"))[0]).criterion.name == "magnitude"
    assert comparison_settings({"effort": "quick"}).effort == "quick"


def test_an_effort_that_is_none_is_one_line(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path
) -> None:
    for words in (
        ("prune", llama, "--ratio", "0.2", "--out", tmp_path / "out"),
        ("compare", llama, "--out", tmp_path / "out", "--calibration", tmp_path / "text.txt"),
    ):
        outcome = run(capfd, *words, "--effort", "least")
        outcome.assert_one_line(2, "--effort 'least'", "'quick', 'balanced' or 'best'")


def test_more_effort_is_more_time(reference: Path) -> None:
    checkpoint, rates, told = open_checkpoint(reference), Rates(1e9, 1e9, 1e11), []
    for effort in EFFORTS:
        settings, _ = settled_settings(line(effort, allocate={"ratio": 0.2}))
        told.append(forecast(settings, checkpoint, rates))
    quick, balanced, best = (each.seconds for each in told)
    assert 2 * quick < balanced < best
    assert str(told[0]).startswith("about ") and str(told[0]).endswith(" GB of memory")


def test_best_reads_more_text_where_no_number_of_windows_is_given(reference: Path) -> None:
    checkpoint = open_checkpoint(reference)
    for effort, wanted in (("quick", 128), ("balanced", 128), ("best", 512)):
        settings, _ = settled_settings(line(effort))
        between = samples_between(checkpoint, settings.calibrate, [settings.compensate])
        assert between == (wanted, 128)
    for given, wanted_between in (
        ({"samples": 32}, (32, 32)),
        ({"samples": 32, "fewest_samples": 8}, (32, 8)),
        ({"fewest_samples": 200}, (512, 200)),
        ({"fewest_samples": 2000}, (512, 512)),
        ({"seqlen": 2048}, (128, 128)),
    ):
        section = line("best", calibrate=given).calibrate
        assert samples_between(checkpoint, section, [settings.compensate]) == wanted_between


def test_best_takes_the_text_there_is(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(prose(1, 2000))
    with listening(notes := Notes()):
        api.prune(
            llama, tmp_path / "out", calibration=tmp_path / "text.txt", seqlen=16, ratio=0.3,
            effort="best", state=tmp_path / "state", compensation="least-squares",
            compensation_option={"row_steps": 0}, allocation="uniform",
        )  # fmt: skip
    [foretold] = [text for text in notes.lines if text.startswith("effort best: about ")]
    assert foretold.endswith("; less where the text holds fewer than 4096 windows")
    told = next(text for text in notes.lines if text.startswith("samples "))
    count = int(told.split()[1].rstrip(":"))
    assert 128 < count < 4096 and told.endswith(": the text holds no 4096 windows")


class Notes:
    """Listens to the lines of one note."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, description: str, total: int | None) -> None:
        self.lines.append(description)

    def heading(self, text: str) -> None:
        self.lines.append(text)

    def advance(self) -> None: ...

    def end(self) -> None: ...


def test_time_and_memory_are_told_before_the_first_stage(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(prose(1) * 2)
    with listening(notes := Notes()):
        api.prune(
            llama, tmp_path / "out", calibration=tmp_path / "text.txt", samples=16, seqlen=16,
            ratio=0.3, effort="quick", state=tmp_path / "state",
        )  # fmt: skip
    [place] = [n for n, text in enumerate(notes.lines) if text.startswith("effort quick: about ")]
    assert place < notes.lines.index("calibrate")


def test_a_matrix_that_loses_nothing_stays_unless_it_is_asked_for(
    llama: Path, tmp_path: Path
) -> None:
    """The FFN of every block is cut and its attention whole, so the second block's has drifted."""
    checkpoint = open_checkpoint(llama)
    shape = checkpoint.shape
    whole = tuple(range(shape.num_key_value_heads))
    kept = BlockPlan(attention_groups=whole, ffn_channels=tuple(range(24)))
    plan = plan_of(checkpoint, [kept] * shape.num_hidden_layers)
    names = {"self_attn.o_proj.weight", "self_attn.v_proj.weight"}
    options: dict[str, Any] = {"input_maps": False}
    held = {}
    for asked in (False, True):
        folder = tmp_path / str(asked)
        folder.mkdir()
        done, corrections = realised(
            checkpoint, plan, folder, "obs", whole_matrices=asked, **options
        )
        assert done.compensated
        records = [block.attention for block in done.compensated.blocks]
        assert all(record and "none" in record.errors for record in records)
        held[asked] = {name for i in corrections.blocks for name in corrections.shapes(i)}
    assert not names & held[False] and "mlp.down_proj.weight" in held[False]
    assert names & held[True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "tried"), [("uniform", 1), ("uniform", 2), ("per-layer", 1), ("per-layer", 2)]
)
def test_operations_of_an_allocation(reference: Path, layout: Any, tried: int) -> None:
    """Those that are told, beside those that PyTorch was asked for."""
    checkpoint, ratio = open_checkpoint(reference), 0.4
    given = {"tried": tried, "windows": 16, "margin": 100.0, "probes": 4}
    options = compensated.CompensatedOptions.model_validate(given)
    windows = Windows(token_windows(16, 128, seed=3), "windows", Computing(torch.float32))
    choices = (choices_of(checkpoint.shape, 16),) * checkpoint.shape.num_hidden_layers
    problem = Problem(checkpoint, _scores(checkpoint), layout, ratio, choices, windows)
    with OperationCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        compensated.widths(problem, options)
    section = AllocateSettings(allocation="compensated", allocation_option=given, layout=layout)
    said = allocation_operations(checkpoint.shape, section, ratio, 16, 128).all
    assert said / 1.5 <= counter.total <= said * 1.5, said / counter.total


def _scores(checkpoint: Any) -> Any:
    from bipline.compression.criteria.interface import Options
    from bipline.compression.score import compute_scores
    from bipline.compression.statistics import empty_statistics

    return compute_scores(checkpoint, empty_statistics(checkpoint), "random", Options())


def test_what_is_never_narrower_is_as_slow_in_bfloat16(reference: Path) -> None:
    """Products of moments, and what is no product, take as long in either dtype."""
    checkpoint = open_checkpoint(reference)
    settings, _ = settled_settings(line("quick", allocate={"ratio": 0.2}))
    slow, quick = Rates(1e9, 1e9, 1e11), Rates(1e9, 1e9, 1e20, 1e11)
    both = [forecast(settings, checkpoint, rates).seconds - STARTING for rates in (slow, quick)]
    beside = BESIDE_PRODUCTS * OPERATIONS_PER_NUMBER
    assert beside / (1 + beside) < both[1] / both[0] < 0.8


def test_what_is_beside_products_takes_as_long_however_quick_they_are(reference: Path) -> None:
    """Where the rate of an activation is known, twice as quick products halve theirs alone."""
    checkpoint = open_checkpoint(reference)
    settings, _ = settled_settings(line("quick", allocate={"ratio": 0.2}))

    def told(compute: float, activated: float) -> float:
        rates = Rates(1e9, 1e9, compute, activated=activated)
        return forecast(settings, checkpoint, rates).seconds - STARTING

    both, products, beside = told(1e11, 2e9), told(1e11, 1e30), told(1e30, 2e9)
    assert told(2e11, 2e9) == pytest.approx(both - products / 2, rel=0.02)
    assert both == pytest.approx(products + beside, rel=0.02)


def test_steps_for_kept_rows_are_told_in_the_dtype_they_run_in(reference: Path) -> None:
    """Bfloat16 where the processor multiplies it, whatever windows run in; nothing else is."""
    checkpoint, told = open_checkpoint(reference), {}
    for effort in EFFORTS:
        settings, _ = settled_settings(line(effort, allocate={"ratio": 0.2}))
        plain, quick = Rates(1e9, 1e9, 1e11), Rates(1e9, 1e9, 1e11, quick=1e20)
        both = [
            forecast(settings, checkpoint, rates).seconds - STARTING for rates in (plain, quick)
        ]
        told[effort] = both[1] / both[0]
    assert told["quick"] == 1.0 > told["balanced"] > 0.5 and told["best"] < 0.9


def test_a_busy_machine_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (7.0, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert slowed() == 4.0
    busy = Forecast(90.0, 2 * 10**9, slowed())
    assert str(busy) == "about 90 s (6 min beside what else runs here now) and 2.00 GB of memory"
    assert str(Forecast(90.0, 2 * 10**9)) == "about 90 s and 2.00 GB of memory"
