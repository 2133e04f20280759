"""The configurations of the paper's table are readable, and ask for what the table is of."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from bipline.base.bundled import bundled
from bipline.delivery.published import published_table
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load
from bipline.settings.published import PublishedRow
from bipline.values.record import EvaluationRecord, Perplexity, TaskResult

FILES = sorted(bundled("configs/reproduce").glob("*.yaml"))
PAGE = bundled("configs/reproduce/README.md").read_text(encoding="utf-8")


def test_every_model_and_ratio_is_there() -> None:
    assert {path.stem for path in FILES} == {
        f"llm-bip-{model}-{share}"
        for model in ("llama-7b", "vicuna-7b", "llama-13b")
        for share in (20, 50)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("recover", [False, True])
def test_a_configuration_follows_the_protocol(path: Path, recover: bool) -> None:
    sets = (f"recover.enabled={str(recover).lower()}", "model=somewhere")
    settings = load(CompressSettings, path, sets)
    assert settings.model == "somewhere" and settings.recover.enabled == recover
    assert settings.score.criterion == "llm-bip"
    assert f"{settings.allocate.ratio:.0%}".rstrip("%") == path.stem.rpartition("-")[2]
    assert settings.allocate.ratio_of == "total"
    assert settings.evaluate.protocol.seqlen == 128
    assert len(settings.evaluate.tasks) == 7
    assert settings.recover.recipe.rank == 8


def cells(row: PublishedRow) -> list[str]:
    """A row as the page has it."""
    printed = [row.perplexity.get("wikitext2"), row.perplexity.get("ptb"), row.accuracy]
    shown = ["not published" if each is None else f"{each:.2f}" for each in printed]
    return [row.model, f"{row.removed:.0%}".replace("%", " %"), row.method, *shown, row.source]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_figures_are_those_of_the_page(path: Path) -> None:
    rows = load(CompressSettings, path).published
    listed = [[cell.strip() for cell in line.strip("| ").split("|")] for line in PAGE.splitlines()]
    assert rows
    for row in rows:
        wanted = cells(row)
        wanted[1] = wanted[1] if row.removed else "0"
        assert wanted in listed
        assert row.removed in (0, int(path.stem.rpartition("-")[2]) / 100)


def test_what_others_printed_stands_below_what_was_measured() -> None:
    rows = load(CompressSettings, FILES[0]).published
    found = EvaluationRecord(
        tensor_digest="a", parameters=1, file_bytes=1,
        perplexity={"wikitext2": Perplexity(value=12.5, nll=2.5, tokens=8)},
        tasks={"piqa": TaskResult(acc=0.5, acc_norm=None, stderr=None, n=2)},
        protocol={}, environment={},
    )  # fmt: skip
    head, lines = published_table(rows, {"dense": found, "pruned": found}, 0.2)
    assert head[:3] == ["Model", "Removed", "Perplexity, ptb"] or "Perplexity, wikitext2" in head
    assert [line[0] for line in lines[:2]] == ["this run, dense", "this run, pruned"]
    assert len({len(line) for line in (head, *lines)}) == 1
    assert all(line[-1] for line in lines[2:]) and not any(line[-1] for line in lines[:2])
    assert lines[1][-2] == "50.00 of 1 tasks" and "12.50" in lines[1]
    with pytest.raises(ValidationError, match="method"):
        PublishedRow.model_validate({**rows[0].model_dump(), "method": ""})


def test_no_published_figure_stands_beside_our_method() -> None:
    [line] = [line for line in PAGE.splitlines() if "LLM-BIP |" in line]
    assert not any(character.isdigit() for character in line.partition("LLM-BIP")[2])
