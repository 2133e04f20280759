"""More calibration text does not over-fit: the error on other windows does not rise."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.calibration_curve import Curve

NOISE = 1.03


@pytest.mark.slow
def test_more_windows_are_no_worse_beyond_noise(data: Path) -> None:
    curve = Curve(data, "stories260K")
    errors = [curve.point(1, count).error for count in (16, 64, 256)]
    assert errors[1] <= errors[0] * NOISE
    assert errors[2] <= errors[1] * NOISE
    assert errors[2] < errors[0], "sixteen times the text must help"
