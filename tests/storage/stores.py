"""Stores under test: the same store seen from another process or machine, and its faults."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import boto3

from bipline.storage.directory import DirectoryWriter
from bipline.storage.handle import Handle
from bipline.storage.local_store import LocalStore
from bipline.storage.s3_store import S3Store
from bipline.storage.store import Store

BUCKET = "stores"
KEY = "0123456789abcdef" * 4
OTHER_KEY = "fedcba9876543210" * 4
FILES = {"a.json": b"{}", "weights.bin": bytes(range(256)) * 40, "below/empty": b""}
LEASE_SECONDS = 0.5
MIRROR_SECONDS = 0.02


@dataclass
class Case:
    """One place, and how a process opens it; ``machine`` names another disk."""

    place: str
    folder: Path

    @property
    def is_s3(self) -> bool:
        """Whether the place is behind S3."""
        return self.place.startswith("s3://")

    def open(self, machine: str = "first") -> Store:
        """A store of its own at the place."""
        if self.is_s3:
            return S3Store(self.place, self.folder / machine, LEASE_SECONDS, MIRROR_SECONDS)
        return LocalStore(Path(self.place))

    def change(self, handle: Handle, name: str, content: bytes) -> None:
        """Replace what lies in a stored file."""
        if self.is_s3:
            bucket, _, key = f"{handle.location}/{name}".removeprefix("s3://").partition("/")
            boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=content)
        else:
            path = Path(handle.location) / name
            path.chmod(0o644)
            path.write_bytes(content)

    def remove(self, handle: Handle) -> None:
        """Remove what a handle names, behind the store's back."""
        if self.is_s3:
            bucket, _, prefix = handle.location.removeprefix("s3://").partition("/")
            boto3.resource("s3").Bucket(bucket).objects.filter(Prefix=f"{prefix}/").delete()
        else:
            shutil.rmtree(handle.location)

    def names(self) -> list[str]:
        """Every file or object below the place."""
        if self.is_s3:
            prefix = self.place.removeprefix(f"s3://{BUCKET}/") + "/"
            found = boto3.resource("s3").Bucket(BUCKET).objects.filter(Prefix=prefix)
            return sorted(each.key.removeprefix(prefix) for each in found)
        root = Path(self.place)
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())

    def run(self, body: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a process of its own, in which ``store`` is the store."""
        lines = [
            "import os",
            "from pathlib import Path",
            "from tests.storage.stores import Case, FILES, KEY, OTHER_KEY, fill",
            f"store = Case({self.place!r}, Path({str(self.folder)!r})).open()",
            body,
        ]
        return subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60
        )


def fill(writer: DirectoryWriter, files: dict[str, bytes] | None = None) -> None:
    """Write files as a stage does."""
    writer.info = {"declared": 1}
    for name, content in (FILES if files is None else files).items():
        path = writer.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write(store: Store, key: str = KEY, files: dict[str, bytes] | None = None) -> Handle:
    """Store files under a key; the handle that is then found."""
    with store.write("stage", key, "test") as writer:
        fill(writer, files)
    found = store.find("stage", key)
    assert found is not None
    return found


def content(directory: Path) -> dict[str, bytes]:
    """What lies in an opened directory, its manifest left out."""
    found = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    del found["manifest.json"]
    return {name: path.read_bytes() for name, path in found.items()}


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for another thread or process."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
