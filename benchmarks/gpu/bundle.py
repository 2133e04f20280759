"""Collect what a machine without network lacks: wheels, and trained models that are not tracked.

    python -m benchmarks.gpu.bundle [--python 3.12]

Wheels are of the versions in constraints.txt, for that CPython on x86-64 Linux. The folder
is carried beside the tracked files and is never committed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.scale import BUNDLE, ROOT, trained_models

# What `bipline prune` and `bipline evaluate` import beyond what PyTorch and transformers require.
PACKAGES = (
    "annotated-doc", "annotated-types", "markdown-it-py", "mdurl", "pydantic", "pydantic-core",
    "pygments", "rich", "shellingham", "typer", "typing-extensions", "typing-inspection",
)  # fmt: skip
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT_BYTES = 64 << 20


def main() -> None:
    """Make the bundle anew; exit code 1 when the tracked files and it are too large together."""
    parser = argparse.ArgumentParser(description="Collect what a machine without network lacks.")
    parser.add_argument("--python", default=PYTHON, help="its version there [default: %(default)s]")
    python, bundle = parser.parse_args().python, ROOT / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    collect_wheels(bundle / "wheels", python)
    copied = copy_models(bundle / "models")
    size, tracked = folder_bytes(bundle), tracked_bytes()
    print(f"{BUNDLE}: {len(PACKAGES)} wheels, models: {', '.join(copied) or 'none'}")
    print(f"{size / 2**20:.1f} MiB, beside {tracked / 2**20:.1f} MiB of tracked files")
    if size + tracked > LIMIT_BYTES:
        sys.exit(f"error: together more than {LIMIT_BYTES >> 20} MiB")


def collect_wheels(folder: Path, python: str) -> None:
    """Download the wheels for a version of Python; whoever lacks network is told so by pip."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    words = [
        "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, *platforms,
        "--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder), *PACKAGES,
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)  # noqa: S603


def copy_models(folder: Path) -> list[str]:
    """Copy the trained models that lie outside the checkout; their names."""
    outside = {
        name: path
        for name, path in trained_models().items()
        if path and not path.is_relative_to(ROOT)
    }
    for name, path in outside.items():
        shutil.copytree(path, folder / name)
    return list(outside)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tracked_bytes() -> int:
    """Size of the checkout's tracked files, in bytes."""
    git = shutil.which("git") or "git"
    told = subprocess.run([git, "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True)  # noqa: S603
    names = [name for name in told.stdout.decode().split("\0") if name]
    return sum(path.stat().st_size for name in names if (path := ROOT / name).is_file())


if __name__ == "__main__":
    main()
