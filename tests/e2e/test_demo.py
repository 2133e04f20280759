"""What ``make demo`` shows. A file of its own, so that another worker can run the README's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_twice_ends_with_the_table(tmp_path: Path) -> None:
    """The main job on the embedded model; the second time unchanged stages say they are cached."""
    arguments = ["demo", "--set", f"state={tmp_path}", "--json", tmp_path / "summary.json"]
    for again in (False, True):
        outcome = subprocess.run(
            [sys.executable, "-m", "bipline", *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert outcome.returncode == 0, outcome.stderr
        assert "bipline demo --full" in outcome.stdout
        for word in ("dense", "pruned", "recovered", "perplexity, held-out", "accuracy, cloze"):
            assert word in outcome.stdout
        assert ("cached" in outcome.stdout) == again
        found = re.search(r"^report +(\S+)$", outcome.stdout, re.MULTILINE)
        assert found and Path(found[1]).is_file()
    assert (tmp_path / "summary.json").is_file()
