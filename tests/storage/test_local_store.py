"""A Store on the disk whose outputs lie where the user wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.storage.local_store import LocalStore
from tests.storage.stores import FILES, KEY, OTHER_KEY, Case, content, fill, write


def store_with_output(folder: Path) -> LocalStore:
    return LocalStore(folder / "store", {"stage": folder / "user" / "out"})


def test_an_output_lies_at_the_user_s_path_alone(tmp_path: Path) -> None:
    store, out = store_with_output(tmp_path), tmp_path / "user" / "out"
    handle = write(store)
    assert handle.location == str(out)
    assert content(store.open(handle)) == FILES
    assert store_with_output(tmp_path).find("stage", KEY) == handle
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not list((tmp_path / "store").rglob("weights.bin"))
    # The user may edit what is the user's.
    assert all((out / name).stat().st_mode & 0o200 for name in FILES)


def test_other_stages_stay_below_the_root(tmp_path: Path) -> None:
    store = store_with_output(tmp_path)
    with store.write("other", KEY, "test") as writer:
        fill(writer)
    assert store.place("other", KEY).is_relative_to(tmp_path / "store")
    assert LocalStore(tmp_path / "store").find("other", KEY)


def test_another_key_finds_nothing_and_is_refused(tmp_path: Path) -> None:
    store = store_with_output(tmp_path)
    handle = write(store)
    assert store.find("stage", OTHER_KEY) is None
    assert store.find("stage", KEY[:32] + OTHER_KEY[32:]) is None
    store.discard("stage", OTHER_KEY)
    with pytest.raises(InvalidInput, match="not empty"), store.write("stage", OTHER_KEY, "test"):
        pass
    assert store.find("stage", KEY) == handle


def test_what_another_root_wrote_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Not even when it is finished, of this stage and of this kind."""
    write(store_with_output(tmp_path))
    stranger = LocalStore(tmp_path / "second", {"stage": tmp_path / "user" / "out"})
    assert stranger.find("stage", KEY) is None
    stranger.discard("stage", KEY)
    with pytest.raises(InvalidInput, match="not empty"), stranger.write("stage", KEY, "test"):
        pass
    assert content(tmp_path / "user" / "out") == FILES


def test_a_directory_that_holds_something_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "user" / "out"
    out.mkdir(parents=True)
    (out / "mine").write_text("keep")
    store = store_with_output(tmp_path)
    assert store.find("stage", KEY) is None
    store.discard("stage", KEY)
    with pytest.raises(InvalidInput, match=f"{out}: .*not empty"), store.write("stage", KEY, "t"):
        pass
    assert (out / "mine").read_text() == "keep"


def test_content_that_was_replaced_is_not_found(tmp_path: Path) -> None:
    store = store_with_output(tmp_path)
    write(store)
    other = write(LocalStore(tmp_path / "other"), files={"a.json": b"other"})
    store.discard("stage", KEY)
    assert not (tmp_path / "user" / "out").exists()
    Path(other.location).rename(tmp_path / "user" / "out")
    assert store.find("stage", KEY) is None


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_run_killed_at_its_last_step(tmp_path: Path, moment: str) -> None:
    """After it the directory is found; before it, it is made whole of the same files."""
    before = "" if moment == "after the rename" else "        os._exit(9)\n"
    killed = Case(str(tmp_path), tmp_path).run(
        "from bipline.storage.digests import digest_bytes\n"
        "from tests.storage.test_local_store import store_with_output\n"
        "rename = Path.rename\n"
        "def last_step(path, target):\n"
        "    if path.name == '.out.partial':\n"
        f"{before}"
        "        rename(path, target)\n"
        "        os._exit(9)\n"
        "    return rename(path, target)\n"
        "Path.rename = last_step\n"
        f"with store_with_output(Path({str(tmp_path)!r})).write('stage', KEY, 'test') as writer:\n"
        "    fill(writer)\n"
        "    for name, data in FILES.items():\n"
        "        writer.add_hashed(name, len(data), digest_bytes(data))\n"
    )
    assert killed.returncode == 9, killed.stderr
    store = store_with_output(tmp_path)
    if before:
        assert store.find("stage", KEY) is None
        with store.write("stage", KEY, "test") as writer:
            assert all(writer.has(name) for name in FILES)
            writer.info = {"declared": 1}
    found = store.find("stage", KEY)
    assert found is not None
    assert content(store.open(found)) == FILES
    assert [path.name for path in (tmp_path / "user").iterdir()] == ["out"]


def test_a_kill_within_discard_leaves_nothing_to_readers_or_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    handle = write(store)
    with monkeypatch.context() as patch:
        patch.setattr("bipline.storage.local_store.shutil.rmtree", _killed)
        with pytest.raises(KeyboardInterrupt):
            store.discard("stage", KEY)
    assert write(store, files={"a.json": b"2"}).digest != handle.digest
    store.discard("stage", KEY)
    assert not list((tmp_path / "stage").iterdir())


def _killed(path: Path, ignore_errors: bool = False) -> None:
    if not ignore_errors:
        raise KeyboardInterrupt
