"""Where the files that come with bipline lie: configurations, reference model, texts, tasks.

``bipline/bundled`` holds links to the checkout's ``assets`` and ``configs``; a wheel holds the
files themselves at the same place. So one path serves a checkout, an editable install and a wheel.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parents[1] / "bundled"


def bundled(name: str) -> Path:
    """The absolute path of a bundled file or folder: ``configs/demo.yaml``, ``assets``.

    Links are followed: in a checkout it is the checkout's own file. Raises FileNotFoundError for
    what is not bundled.
    """
    return (BUNDLED / name).resolve(strict=True)
