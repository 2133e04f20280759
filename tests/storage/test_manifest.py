"""Properties of manifests: content decides, place does not, every difference is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.digests import digest_json, digest_listing
from bipline.storage.directory import atomic_directory
from bipline.storage.handle import Handle, StoredGone, open_directory
from bipline.storage.manifest import MANIFEST_NAME, read_manifest, verify_directory

FILES = st.dictionaries(
    st.text("abcxyz", min_size=1, max_size=8), st.binary(max_size=200), min_size=1, max_size=5
)


def written(directory: Path, files: dict[str, bytes]) -> Path:
    with atomic_directory(directory, "test") as writer:
        for name, content in files.items():
            (writer.path / name).write_bytes(content)
        writer.info = {"declared": len(files)}
    return directory


@settings(deadline=None, max_examples=25)
@given(files=FILES)
def test_moved_directory_keeps_its_digest(
    files: dict[str, bytes], tmp_path_factory: object
) -> None:
    base = tmp_path_factory.mktemp("manifest")  # type: ignore[attr-defined]
    manifest = read_manifest(written(base / "here", files))
    shutil.move(base / "here", base / "there")
    assert verify_directory(base / "there") == manifest
    assert Handle.to_directory(base / "there").digest == manifest.digest


@settings(deadline=None, max_examples=25)
@given(files=FILES, data=st.data())
def test_one_changed_bit_is_found(
    files: dict[str, bytes], data: st.DataObject, tmp_path_factory: object
) -> None:
    files["solid"] = b"at least one byte"
    directory = written(tmp_path_factory.mktemp("m") / "d", files)  # type: ignore[attr-defined]
    name = data.draw(st.sampled_from(sorted(name for name in files if files[name])))
    content = bytearray(files[name])
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    content[position // 8] ^= 1 << position % 8
    (directory / name).write_bytes(content)
    with pytest.raises(Refused, match=name):
        verify_directory(directory)


def test_added_removed_renamed_and_swapped_files_are_found(tmp_path: Path) -> None:
    def fresh(case: str) -> Path:
        return written(tmp_path / case, {"a": b"1234", "b": b"5678"})

    added = fresh("added")
    (added / "c").write_bytes(b"")
    removed = fresh("removed")
    (removed / "a").unlink()
    renamed = fresh("renamed")
    (renamed / "a").rename(renamed / "c")
    swapped = fresh("swapped")
    (swapped / "a").write_bytes(b"5678")
    (swapped / "b").write_bytes(b"1234")
    for directory in (added, removed, renamed, swapped):
        with pytest.raises(Refused):
            verify_directory(directory)


def test_edited_declaration_is_found(tmp_path: Path) -> None:
    directory = written(tmp_path / "d", {"a": b"1"})
    path = directory / MANIFEST_NAME
    path.write_text(path.read_text().replace('"declared": 1', '"declared": 2'))
    with pytest.raises(InvalidInput, match="does not follow"):
        read_manifest(directory)


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    linked = written(tmp_path / "linked", {"a": b"1"})
    (linked / "link").symlink_to("/etc/hostname")
    piped = written(tmp_path / "piped", {"a": b"1"})
    os.mkfifo(piped / "pipe")
    for directory in (linked, piped):
        with pytest.raises(InvalidInput, match="only plain files"):
            verify_directory(directory)


def test_handle_of_other_content_is_refused(tmp_path: Path) -> None:
    handle = Handle.to_directory(written(tmp_path / "d", {"a": b"1"}))
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(StoredGone, match="is gone"):
        open_directory(handle)
    written(tmp_path / "d", {"a": b"2"})
    with pytest.raises(Refused, match="handle was made for"):
        open_directory(handle)


@given(st.dictionaries(st.text(max_size=5), st.integers()))
def test_digest_of_json_does_not_depend_on_order(value: dict[str, int]) -> None:
    assert digest_json(value) == digest_json(dict(reversed(list(value.items()))))


@given(FILES)
def test_listing_digest_depends_on_names(files: dict[str, bytes]) -> None:
    digests = {name: digest_json(len(content)) for name, content in files.items()}
    renamed = {f"{name}!": digest for name, digest in digests.items()}
    assert digest_listing(digests) != digest_listing(renamed)
