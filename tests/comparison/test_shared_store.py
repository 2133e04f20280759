"""A row's key does not depend on who asks: compare and sweep find in a Store what either made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bipline.base.errors import InvalidInput
from bipline.base.progress import listening
from bipline.comparison import rows
from bipline.comparison.engine import compare
from bipline.comparison.folder import MARKER_NAME
from bipline.comparison.grid import compensations_of
from bipline.comparison.rows import RowInputs, measure_row, score_rows
from bipline.model.opening import open_checkpoint
from bipline.stages.calibrate import calibrate, samples_between
from bipline.stages.evaluate import evaluate_dense
from bipline.stages.stage import Context, Stage
from bipline.storage.local_store import LocalStore
from bipline.storage.store import StoredGone
from bipline.values.combination import Combination
from bipline.values.comparison import Outcome
from tests.comparing import Bench

AXES: dict[str, Any] = {
    "criteria": "wanda-sp,llm-bip-glu", "seeds": (0, 1), "methods": ("magnitude//obs",),
}  # fmt: skip


@pytest.fixture
def bench(llama: Path, tmp_path: Path) -> Bench:
    return Bench.of(llama, tmp_path)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were computed and not found; those inside a row too."""
    seen: list[str] = []
    produced = Stage._produced

    def noted(self: Stage, *arguments: Any) -> Any:
        seen.append(self.name)
        return produced(self, *arguments)

    monkeypatch.setattr(Stage, "_produced", noted)
    return seen


def store_of(bench: Bench) -> LocalStore:
    """The Store of a comparison into ``out``, also where there has been none yet."""
    folder = bench.folder / "out"
    folder.mkdir(exist_ok=True)
    (folder / MARKER_NAME).touch()
    return LocalStore(folder / "work")


def row_inputs(bench: Bench, context: Context, row: Combination) -> RowInputs:
    """What the steps of a sweep hand to the step of a row, each made by itself."""
    inputs, settings = bench.inputs(), bench.settings()
    given, protocol = inputs.models[bench.model.name], settings.evaluate.protocol
    windows = calibrate(
        context, given.model, inputs.calibrations, settings.calibrate, (),
        given.texts.values(),
    )  # fmt: skip
    return RowInputs(
        given=given,
        calibration=windows,
        statistics=score_rows(context, given, windows, (row,))[0],
        combination=row,
        dense=evaluate_dense(context, given, protocol),
        protocol=protocol,
    )


def swept(bench: Bench, store: LocalStore) -> list[Outcome]:
    found = []
    for row in bench.combinations(**AXES):
        context = Context(store, bench.settings().compute, row.seed)
        found.append(measure_row(context, row_inputs(bench, context, row)))
    return found


def test_a_sweep_finds_what_compare_made(bench: Bench, made: list[str]) -> None:
    compared = bench.compare("out", **AXES).rows
    assert {"calibrate", "score", "evaluate", "row"} <= set(made)
    made.clear()
    assert swept(bench, store_of(bench)) == [
        Outcome(measured=row.measured, cost=row.cost) for row in compared
    ]
    assert made == []


def test_compare_finds_what_a_sweep_made(bench: Bench, made: list[str]) -> None:
    outcomes = swept(bench, store_of(bench))
    assert made.count("row") == 6 and made.count("score") == 6
    assert made.count("evaluate") == 7, "the dense model once, and every row"
    made.clear()
    screen = Mock()
    with listening(screen):
        compared = bench.compare("out", **AXES).rows
    assert [Outcome(measured=row.measured, cost=row.cost) for row in compared] == outcomes
    assert made == []
    notes = [call.args[0] for call in screen.note.call_args_list]
    assert "6 rows were finished before" in notes
    assert not [note for note in notes if note.startswith("row ")]


def test_what_is_gone_from_the_store_is_no_refusal(bench: Bench) -> None:
    [row] = bench.combinations()
    context = Context(store_of(bench), bench.settings().compute)
    inputs = row_inputs(bench, context, row)
    shutil.rmtree(inputs.statistics.location)
    with pytest.raises(StoredGone):
        measure_row(context, inputs)


def test_a_refusal_on_the_way_names_no_folder_of_the_run_and_leaves_no_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed first, so that there is work; the folder is given as a relative path."""
    monkeypatch.chdir(bench.folder)

    def run() -> Any:
        return compare(bench.settings(), bench.inputs(), Path("out"))

    with monkeypatch.context() as patched:
        patched.setattr(rows, "evaluate", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run()
    assert list(Path("out/work/row").glob("*.work"))

    def refuse(context: Context, *_: object) -> None:
        raise InvalidInput(f"{Path(context.store.location).absolute()}/prune/a: it cannot be")

    with monkeypatch.context() as patched:
        patched.setattr(rows, "prune", refuse)
        [row] = run().rows
    assert row.refusal == "it cannot be"
    assert not list(Path("out").rglob("*.work"))
    assert run().rows[0].measured, "a refusal is not stored"


@pytest.mark.parametrize("option", ["", ":text_tokens=99999"])
def test_windows_that_are_not_counted_are_those_of_the_neediest_method_alone(
    bench: Bench, made: list[str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """So that a sweep finds what compress drew for its method, and all rows see the same."""
    monkeypatch.setattr("bipline.stages.calibrate.DEFAULT_SAMPLES", 2)
    axes = {**AXES, "methods": (f"magnitude//obs{option}",)}
    asked = bench.settings(**axes)
    section = asked.calibrate.model_copy(update={"samples": None})
    settings = asked.model_copy(update={"calibrate": section})
    compared = compare(settings, bench.inputs(), bench.folder / "out")
    needy = compensations_of(bench.combinations(**axes))[-1]
    assert needy.chosen == "obs"
    checkpoint, drawn = open_checkpoint(bench.model), compared.calibrations["calibration"].samples
    most, fewest = samples_between(checkpoint, section, [needy])
    assert fewest > 2 and samples_between(checkpoint, section, ()) == (2, 2)
    assert fewest < drawn < most if option else fewest == drawn == most
    made.clear()
    inputs = bench.inputs()
    calibrate(
        Context(store_of(bench), settings.compute), inputs.models[bench.model.name].model,
        inputs.calibrations, section, [needy],
    )  # fmt: skip
    assert made == []
