"""The work directory: who holds it, what it remembers, when it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.storage.work import claim, work_directory

KEY = {"criterion": "llm-bip", "code": "0123456789abcdef" * 4, "samples": 128}


def finish_a_part(work: Path) -> None:
    (work / "part").mkdir(exist_ok=True)
    claim(work / "part", KEY)
    (work / "part" / "block-0000.json").write_text("{}")


def test_it_is_gone_when_the_work_is_done(tmp_path: Path) -> None:
    with work_directory(tmp_path / "out.work") as work:
        finish_a_part(work)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, EnvironmentFailure, RuntimeError])
def test_what_is_finished_outlives_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), work_directory(tmp_path / "out.work") as work:
        finish_a_part(work)
        raise error
    with work_directory(tmp_path / "out.work") as work:
        assert (work / "part" / "block-0000.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, EnvironmentFailure, InvalidInput])
def test_nothing_finished_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), work_directory(tmp_path / "out.work") as work:
        claim(work / "part", KEY)
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [InvalidInput, Refused])
def test_unusable_input_ends_fresh_work_but_not_taken_up_work(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), work_directory(tmp_path / "fresh.work") as work:
        finish_a_part(work)
        raise error
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), work_directory(tmp_path / "old.work") as work:
        finish_a_part(work)
        raise RuntimeError
    with pytest.raises(error), work_directory(tmp_path / "old.work"):
        raise error
    assert (tmp_path / "old.work" / "part" / "block-0000.json").is_file()


@pytest.mark.parametrize("field", KEY)
def test_other_work_is_refused_naming_the_field(tmp_path: Path, field: str) -> None:
    finish_a_part(tmp_path)
    claim(tmp_path / "part", KEY)
    with pytest.raises(InvalidInput, match=f"{field} was .*, is other") as refusal:
        claim(tmp_path / "part", {**KEY, field: "other"})
    others = set(KEY) - {field}
    assert not [name for name in others if f"{name} was" in str(refusal.value)]
    assert json.loads((tmp_path / "part" / "key.json").read_text()) == KEY


def test_a_claim_with_nothing_finished_is_taken_over(tmp_path: Path) -> None:
    claim(tmp_path / "part", KEY)
    claim(tmp_path / "part", {**KEY, "samples": 8})
    assert json.loads((tmp_path / "part" / "key.json").read_text())["samples"] == 8


def test_only_one_process_holds_it(tmp_path: Path) -> None:
    with (
        work_directory(tmp_path / "out.work"),
        pytest.raises(InvalidInput, match="another process"),
        work_directory(tmp_path / "out.work"),
    ):
        pass


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("keep me")
    with pytest.raises(InvalidInput, match="no work of"), work_directory(tmp_path / "mine"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]
