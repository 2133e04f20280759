"""One copy: what two places hold is shared where nobody writes, and never written through."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bipline.base.errors import Refused
from bipline.storage import sharing
from bipline.storage.directory import atomic_directory, copy_directory, copy_listed, write_text
from bipline.storage.local_store import LocalStore
from bipline.storage.manifest import MANIFEST_NAME, read_manifest, verify_directory

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A Store that holds a model."""
    made = LocalStore(tmp_path / "store")
    with made.write("prune", KEY, "model") as writer:
        write_text(writer.path / "weights", "w" * 1000)
    return made


def model_of(store: LocalStore) -> Path:
    return store.place("prune", KEY)


def copy_into(store: LocalStore, key: str) -> Path:
    """A package in the Store with the model's file."""
    entry = read_manifest(model_of(store)).files["weights"]
    with store.write("export", key, "package") as writer:
        copy_listed(model_of(store) / "weights", writer, "hf/weights", entry)
    return store.place("export", key)


@pytest.fixture
def no_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system as most are."""

    def refuse(descriptor: int, request: int, argument: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(sharing.fcntl, "ioctl", refuse)


@pytest.mark.usefixtures("no_reflinks")
def test_directories_of_a_store_share_a_read_only_file(store: LocalStore) -> None:
    package = copy_into(store, OTHER)
    mine, its = (model_of(store) / "weights").stat(), (package / "hf" / "weights").stat()
    assert os.path.samestat(mine, its)
    assert its.st_mode & 0o777 == 0o444
    verify_directory(package)
    store.discard("prune", KEY)
    assert verify_directory(package).total_bytes == 1000, "the last name keeps the bytes"


@pytest.mark.usefixtures("no_reflinks")
def test_what_a_user_gets_is_a_file_of_its_own(store: LocalStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copy_directory(model_of(store), out)
    (out / "weights").write_text("changed")
    assert (model_of(store) / "weights").read_text() == "w" * 1000
    verify_directory(model_of(store))


@pytest.mark.usefixtures("no_reflinks")
def test_a_file_that_somebody_may_write_is_copied(store: LocalStore, tmp_path: Path) -> None:
    source = model_of(store) / "weights"
    source.chmod(0o644)
    package = copy_into(store, OTHER)
    assert not os.path.samestat(source.stat(), (package / "hf" / "weights").stat())
    source.chmod(0o444)
    target = tmp_path / "other"
    assert sharing.linked(source, target) and os.path.samestat(source.stat(), target.stat())
    link = tmp_path / "symbolic"
    link.symlink_to(source)
    assert not sharing.linked(link, tmp_path / "third")


@pytest.mark.usefixtures("no_reflinks")
def test_another_file_system_gets_a_copy(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "link", far)
    package = copy_into(store, OTHER)
    assert not os.path.samestat(
        (model_of(store) / "weights").stat(), (package / "hf" / "weights").stat()
    )
    sharing.shared(model_of(store) / "weights", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "w" * 1000


@pytest.mark.usefixtures("no_reflinks")
def test_a_killed_run_that_left_a_link_is_not_written_through(store: LocalStore) -> None:
    """The next writer finds the link under the name it is about to write."""
    source = model_of(store) / "weights"
    place = store.place("export", OTHER)
    partial = place.with_name(f".{place.name}.partial")
    with pytest.raises(KeyboardInterrupt), store.write("export", OTHER, "package") as writer:
        copy_listed(source, writer, "hf/weights", read_manifest(model_of(store)).files["weights"])
        raise KeyboardInterrupt
    assert (partial / "hf" / "weights").stat().st_nlink == 2, "kept for the next run"
    copy_into(store, OTHER)
    with store.write("export", "c" * 64, "package") as writer:
        os.link(source, writer.path / "weights")
        entry = read_manifest(model_of(store)).files["weights"]
        source.chmod(0o644)  # so that it is copied, into the name that stands for the source
        copy_listed(source, writer, "weights", entry)
    assert source.read_text() == "w" * 1000


@pytest.mark.parametrize("reflinks", [True, False])
def test_what_is_not_listed_is_refused_however_it_was_shared(
    store: LocalStore, reflinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reflinks:
        monkeypatch.setattr("bipline.storage.directory.cloned", lambda *paths: False)
    source = model_of(store) / "weights"
    source.chmod(0o644)
    source.write_text("other")
    source.chmod(0o444)
    with pytest.raises(Refused, match="does not match its sha256"):
        copy_into(store, OTHER)
    assert not store.place("export", OTHER).exists()


def test_a_reflink_is_asked_for_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not this disk can: where it can, the target is the file system's to fill."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"bytes")
    asked = []

    def clone(descriptor: int, request: int, argument: int) -> int:
        asked.append(request)
        os.write(descriptor, os.pread(argument, 100, 0))
        return 0

    monkeypatch.setattr(sharing.fcntl, "ioctl", clone)
    assert sharing.cloned(source, target) and target.read_bytes() == b"bytes"
    assert asked == [0x40049409]
    with atomic_directory(tmp_path / "made", "model") as writer:
        write_text(writer.path / "weights", "w")
    copy_directory(tmp_path / "made", tmp_path / "again")
    assert (tmp_path / "again" / MANIFEST_NAME).is_file() and len(asked) == 2
