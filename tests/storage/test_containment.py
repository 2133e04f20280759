"""A model folder gives what lies in it: links that leave it and devices are refused by all."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.compression.prune import copy_side_files
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model
from bipline.storage.directory import atomic_directory, copy_directory
from bipline.storage.folder import LocalFolder
from bipline.storage.manifest import list_files

INNER = "additional_chat_templates"


@pytest.fixture
def model(local: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, with a secret beside it."""
    (tmp_path / "secret").write_text("TOPSECRET")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "rag.jinja").write_text("TOPSECRET")
    place = Path(shutil.copytree(local, tmp_path / "model"))
    (place / "LICENSE").write_text("terms")
    (place / INNER).mkdir()
    return place


def linked(name: str, target: str, folder: bool = False) -> Callable[[Path], None]:
    def plant(model: Path) -> None:
        (model / name).unlink() if (model / name).is_file() else None
        (model / name).symlink_to(target, folder)

    return plant


def inner_folder(model: Path) -> None:
    (model / INNER).rmdir()
    (model / INNER).symlink_to("../secrets")


def chained(model: Path) -> None:
    (model / "NOTICE").symlink_to("LICENSE.link")
    (model / "LICENSE.link").symlink_to("../secret")


def through_a_folder(model: Path) -> None:
    (model / "sub").symlink_to("..")
    (model / "NOTICE").symlink_to("sub/secret")


def piped(model: Path) -> None:
    os.mkfifo(model / "NOTICE")


def piped_inside(model: Path) -> None:
    os.mkfifo(model / INNER / "tool.jinja")


def listening(model: Path) -> None:
    here = Path.cwd()
    os.chdir(model)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("NOTICE")
    finally:
        os.chdir(here)


def planted_cache(model: Path) -> None:
    """Blobs that are a link are nobody's cache."""
    blobs, snapshot = model.parent / "blobs", model.parent / "snapshots" / "x"
    blobs.symlink_to("secrets")
    shutil.copytree(model, snapshot)
    shutil.rmtree(model)
    (snapshot / "NOTICE").symlink_to("../../blobs/rag.jinja")
    model.symlink_to(snapshot)


PLANTED = {
    "a licence": linked("LICENSE", "../secret"),
    "an absolute path": linked("NOTICE", "/etc/hostname"),
    "a tokenizer": linked("tokenizer.json", "../secret"),
    "weights": linked("extra.safetensors", "../secret"),
    "a config": linked("config.json", "../secret"),
    "a file nobody reads": linked("notes.txt", "../secret"),
    "a folder": linked("docs", "..", folder=True),
    "a template": linked(f"{INNER}/rag.jinja", "../../secret"),
    "the folder of templates": inner_folder,
    "a chain": chained,
    "through a folder": through_a_folder,
    "nowhere": linked("NOTICE", "gone"),
    "itself": linked("NOTICE", "NOTICE"),
    "a circle": linked(f"{INNER}/a.jinja", "../" + INNER + "/a.jinja"),
    "a pipe": piped,
    "a pipe of a template": piped_inside,
    "a socket": listening,
    "a device": linked("NOTICE", "/dev/zero"),
    "a process": linked("NOTICE", "/proc/self/environ"),
    "a planted cache": planted_cache,
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_no_door_lets_it_in(plant: Callable[[Path], None], model: Path, tmp_path: Path) -> None:
    plant(model)
    out = tmp_path / "out"
    out.mkdir()
    doors: tuple[Callable[[], object], ...] = (
        lambda: LocalFolder(model).names(),
        lambda: open_checkpoint(model),
        lambda: resolve_model(str(model), tmp_path),
        lambda: copy_side_files(LocalFolder(model), out),
    )
    for door in doors:
        with pytest.raises(InvalidInput) as caught:
            door()
        assert "\n" not in str(caught.value) and "TOPSECRET" not in str(caught.value)
    assert not any(out.iterdir())


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE", "config.json"])
@pytest.mark.parametrize("target", ["../secret", "/dev/zero", "/proc/self/environ"])
def test_a_link_that_came_after_the_listing_is_not_followed(
    name: str, target: str, model: Path
) -> None:
    folder = LocalFolder(model)
    folder.names()
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(target)
    for read in (folder.read, folder.open):
        with pytest.raises(InvalidInput):
            read(name)


def test_a_pipe_is_not_waited_for(model: Path) -> None:
    piped(model)
    with pytest.raises(InvalidInput, match="not a plain file"):
        LocalFolder(model).read("NOTICE")


def test_links_inside_the_folder_and_to_it_are_followed(model: Path, tmp_path: Path) -> None:
    (model / "COPYING").symlink_to("LICENSE")
    (model / INNER / "a.jinja").symlink_to("../LICENSE")
    (tmp_path / "other").symlink_to(model)
    folder = LocalFolder(tmp_path / "other")
    assert {"COPYING", f"{INNER}/a.jinja"} < set(folder.names())
    assert folder.read("COPYING") == folder.read(f"{INNER}/a.jinja") == b"terms"
    open_checkpoint(tmp_path / "other")


@pytest.mark.parametrize("name", ["LICENSE\n0000  x", "LICENSE\x1b[31m", "tokenizer\udcff"])
def test_names_that_no_listing_can_show_are_refused(name: str, model: Path) -> None:
    (model / name).write_text("x")
    with pytest.raises(InvalidInput, match="cannot be shown"):
        LocalFolder(model).names()


def test_a_directory_of_ours_holds_no_links_wherever_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("TOPSECRET")
    with atomic_directory(tmp_path / "made", "test") as writer:
        (writer.path / "a").write_text("TOPSECRET")
    (tmp_path / "made" / "a").unlink()
    (tmp_path / "made" / "a").symlink_to("../secret")
    with pytest.raises(InvalidInput, match="only plain files"):
        list_files(tmp_path / "made")
    with pytest.raises(InvalidInput, match="only plain files"):
        copy_directory(tmp_path / "made", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_planted_partial_directory_is_left_alone(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("keep me")
    (tmp_path / ".out.partial").symlink_to(victim)
    with pytest.raises(InvalidInput, match="is a link"), atomic_directory(tmp_path / "out", "test"):
        pass
    assert (victim / "precious").read_text() == "keep me"
