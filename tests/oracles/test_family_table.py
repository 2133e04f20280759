"""docs/families.md says of every family what its class really holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bipline.model.families import families
from tests.family_table import COLUMNS, HEAD, line, row

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(families()))
def test_a_row_is_what_its_cuts_give(model_type: str, tmp_path: Path) -> None:
    assert line(model_type, row(model_type, tmp_path)) in PAGE.read_text().splitlines()


def test_every_family_has_one_row_and_the_page_says_how_it_is_made() -> None:
    page = PAGE.read_text()
    assert page.startswith(HEAD)
    rows = [each.split(" | ") for each in page.removeprefix(HEAD).splitlines()[2:]]
    assert [each[0].removeprefix("| ") for each in rows] == sorted(families())
    assert {len(each) for each in rows} == {len(COLUMNS) + 1}
