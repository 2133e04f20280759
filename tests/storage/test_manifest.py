"""Properties of manifests: content decides, place does not, every difference is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


# -- what verify covers beside bytes ------------------------------------------------------------


def edited(directory: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A directory whose manifest was changed, and its digest left as it was."""
    path = directory / MANIFEST_NAME
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return directory


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["files"]["a"].update(size=2),
        lambda v: v["files"]["a"].update(size=-1),
        lambda v: v["files"]["a"].update(size="1"),
        lambda v: v["files"]["a"].update(sha256="0" * 64),
        lambda v: v["files"]["a"].update(mode=0),
        lambda v: v.update(schema_version=1),
        lambda v: v.update(schema_version=3),
        lambda v: v.update(schema_version="2"),
        lambda v: v.update(kind="model"),
        lambda v: v.update(digest=None),
        lambda v: v.pop("digest"),
        lambda v: v.update(extra=1),
        lambda v: v["files"].update({"../a": v["files"]["a"]}),
        lambda v: v["files"].update({"/a": v["files"]["a"]}),
        lambda v: v["files"].update({"a//b": v["files"]["a"]}),
        lambda v: v["files"].update({"..\\a": v["files"]["a"]}),
        lambda v: v["files"].update({MANIFEST_NAME: v["files"]["a"]}),
    ],
)
def test_an_edited_manifest_is_refused(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    directory = edited(written(tmp_path / "d", {"a": b"1"}), change)
    for read in (read_manifest, verify_directory):
        with pytest.raises(InvalidInput, match=r"manifest\.json: "):
            read(directory)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    directory = written(tmp_path / "d", {"a": b"1"})
    path = directory / MANIFEST_NAME
    path.write_text(path.read_text().replace('"kind":', '"kind": "model", "kind":'))
    with pytest.raises(InvalidInput, match="'kind' stands twice"):
        verify_directory(directory)


def test_a_size_that_version_1_did_not_cover_is_compared(tmp_path: Path) -> None:
    directory = as_version_1(written(tmp_path / "d", {"a": b"1"}))
    edited(directory, lambda value: value["files"]["a"].update(size=2))
    with pytest.raises(Refused, match="a has 1 bytes, not 2"):
        verify_directory(directory)


@pytest.mark.parametrize("place", ["empty", "a folder/empty"])
def test_an_empty_folder_is_a_difference(place: str, tmp_path: Path) -> None:
    directory = written(tmp_path / "d", {"a": b"1"})
    (directory / place).mkdir(parents=True)
    with pytest.raises(InvalidInput, match="an empty folder"):
        verify_directory(directory)


@pytest.mark.parametrize("mode", [0o755, 0o744, 0o645, 0o4644, 0o2644, 0o1644, 0o646, 0o777])
def test_programs_and_files_for_all_to_write_are_refused(mode: int, tmp_path: Path) -> None:
    directory = written(tmp_path / "d", {"a": b"1"})
    (directory / MANIFEST_NAME).chmod(0o644)
    (directory / "a").chmod(mode)
    with pytest.raises(Refused, match=f"a has mode {mode:04o}"):
        verify_directory(directory)


@pytest.mark.parametrize("mode", [0o644, 0o444, 0o400, 0o664, 0o777, 0o700])
def test_modes_that_a_file_system_gives_to_all_are_no_difference(mode: int, tmp_path: Path) -> None:
    directory = written(tmp_path / "d", {"a": b"1"})
    for path in directory.iterdir():
        path.chmod(mode)
    verify_directory(directory)


# -- versions -----------------------------------------------------------------------------------


def as_version_1(directory: Path) -> Path:
    """The directory as it was written before the listing was JSON."""

    def change(value: dict[str, Any]) -> None:
        files = {name: entry["sha256"] for name, entry in value["files"].items()}
        lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
        listing = hashlib.sha256(lines.encode()).hexdigest()
        about = {"kind": value["kind"], "files": listing, "info": value["info"]}
        value |= {"schema_version": 1, "digest": digest_json(about)}

    return edited(directory, change)


@settings(deadline=None, max_examples=15)
@given(files=FILES)
def test_directories_of_version_1_stay_verifiable(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = as_version_1(written(tmp_path_factory.mktemp("m") / "d", files))
    manifest = verify_directory(directory)
    assert manifest.schema_version == 1
    assert manifest.digest == json.loads((directory / MANIFEST_NAME).read_text())["digest"]


def test_a_newline_in_a_name_makes_no_two_folders_alike(tmp_path: Path) -> None:
    """One file whose name spells the line of another: version 1 digested the same lines."""
    one = {"a": b"1", "b": b"2"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in one.items()}
    other = {f"a\n{digests['b']}  b": b"1"}
    lines = [f"{digests['a']}  {name}\n" for name in other]
    assert "".join(lines) == "".join(f"{digests[name]}  {name}\n" for name in sorted(one))
    manifests = [read_manifest(written(tmp_path / str(n), f)) for n, f in enumerate((one, other))]
    assert manifests[0].digest != manifests[1].digest
    with pytest.raises(InvalidInput, match="holds a newline"):
        read_manifest(as_version_1(tmp_path / "1"))
