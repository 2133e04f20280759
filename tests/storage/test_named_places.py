"""Places a user names: whatever would cost a file is refused, whatever is apart is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.storage.places import Place, Use, check_places


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model, a text, and odd things, to run in."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_text("weights")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "other.txt").write_text("other")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file-link.json").symlink_to("other.txt")
    (tmp_path / "earlier.json").write_text("earlier")
    (tmp_path / "linked-sub").symlink_to("sub")
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / ".taken.json.partial").mkdir()
    (tmp_path / ".linked.partial").symlink_to("sub")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
        yield tmp_path


def places(**named: str) -> list[Place]:
    """Those of a ``prune`` with other paths for what is named."""
    uses = {
        "model": ("model", Use.READ_FOLDER), "calibration": ("text.txt", Use.READ_FILE),
        "out": ("o", Use.FOLDER), "work": ("w", Use.WORK), "statistics": ("s", Use.FOLDER),
        "json": ("r.json", Use.FILE), "plan_out": ("p.json", Use.FILE),
        "state": (".bipline", Use.STATE),
    }  # fmt: skip
    return [
        Place(f"--{name}", Path(named.get(name, path)), use, _is_earlier)
        for name, (path, use) in uses.items()
    ]


def _is_earlier(path: Path) -> bool:
    return path.read_text() == "earlier"


REFUSED = [
    ({"out": "w/pruned"}, "lies in --work"),
    ({"work": "o/w"}, "lies in --out"),
    ({"statistics": "w/sums"}, "lies in --work"),
    ({"plan_out": "w/plan.json"}, "lies in --work"),
    ({"json": "o/r.json"}, "lies in --out|folder does not exist"),
    ({"json": "model/model.safetensors"}, "exists and is no earlier result|lies in"),
    ({"json": "model/new.json"}, "lies in --model"),
    ({"json": "link/new.json"}, "lies in --model"),
    ({"out": "model"}, "same place"),
    ({"out": "link"}, "same place"),
    ({"out": "link/x"}, "lies in --model"),
    ({"out": "model/../model/x"}, "lies in --model"),
    ({"out": "dangling"}, "is a link"),
    ({"work": "link"}, "same place"),
    ({"work": "model"}, "same place"),
    ({"work": "."}, "lies in --work|no name"),
    ({"work": "sub", "calibration": "sub/t.txt"}, "lies in --work"),
    ({"out": "."}, "write --out"),
    ({"out": ".."}, "this command runs in|is no name"),
    ({"out": "sub/.."}, "this command runs in"),
    ({"out": "/"}, "cannot be replaced"),
    ({"out": "/proc"}, "mount point"),
    ({"out": "other.txt"}, "not a directory"),
    ({"out": "other.txt/x"}, "is no folder"),
    ({"out": "pipe"}, "not a directory"),
    ({"json": "/dev/null"}, "no plain file"),
    ({"json": "/dev/stdout"}, "no plain file|is a link"),
    ({"json": "pipe"}, "no plain file"),
    ({"json": "socket"}, "no plain file"),
    ({"json": "sub"}, "is a folder"),
    ({"json": "other.txt"}, "no earlier result"),
    ({"json": "file-link.json"}, "is a link"),
    ({"json": "gone/r.json"}, "folder does not exist"),
    ({"json": "p.json"}, "same place"),
    ({"json": "sub/../p.json"}, "same place"),
    ({"json": "linked-sub/x.json", "plan_out": "sub/x.json"}, "same place"),
    ({"json": ".o.partial"}, "names of this shape"),
    ({"out": ".x.partial"}, "names of this shape"),
    ({"out": "n" * 300}, "longer than 246 bytes"),
    ({"out": "a\0b"}, "NUL"),
    ({"out": ".bipline"}, "holds --state"),
    ({"out": "x", "state": "x/y"}, "holds --state"),
    ({"work": "sub", "state": "sub/.bipline"}, "holds --state"),
    ({"out": ".bipline/store/x"}, "keeps its state"),
    ({"json": "sub/logs", "state": "sub"}, "keeps its state"),
    ({"work": "n" * 250}, "longer than 246 bytes"),
    ({"json": "n" * 250}, "longer than 246 bytes"),
    ({"calibration": "n" * 256}, "longer than 255 bytes"),
    ({"model": "d/" * 2000}, "longer than 3,000 bytes"),
    ({"out": "s3:/bucket/x"}, "s3:/ begins an address"),
    ({"work": "hf:x"}, "begins an address"),
    ({"json": "models:/x"}, "begins an address"),
    ({"state": "http:/u:p@h/x"}, "--state: http:/ begins an address"),
    ({"out": "o\udcff"}, "not UTF-8"),
    ({"model": "m\udcff"}, "not UTF-8"),
    ({"calibration": "\udce9.txt"}, "not UTF-8"),
    ({"json": "taken.json"}, ".taken.json.partial: is a folder"),
    ({"out": "linked"}, ".linked.partial: is a link"),
    ({"statistics": "linked"}, ".linked.partial: is a link"),
    ({"work": "other.txt"}, "not a directory"),
    ({"state": "model/sub/state"}, "is a model's folder"),
    ({"state": "link/state"}, "is a model's folder"),
    ({"state": "dangling"}, "is no folder"),
]


@pytest.mark.parametrize(("named", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_would_cost_something_is_refused(
    here: Path, named: dict[str, str], words: str
) -> None:
    before = sorted(str(path) for path in here.rglob("*"))
    with pytest.raises(InvalidInput, match=words):
        check_places(places(**named))
    assert sorted(str(path) for path in here.rglob("*")) == before


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"out": "sub/o", "work": "sub/w", "json": "sub/r.json"},
        {"out": "linked-sub/o"},
        {"json": "earlier.json"},
        {"out": ".bipline/out"},
        {"state": "."},
        {"calibration": "/dev/stdin"},
        {"out": "sub"},
        {"out": "names with [brackets] and \u202e"},
        {"out": "o", "work": "o.work", "statistics": "o-s"},
        {"out": "n" * 246},
        {"model": "hf:x", "out": "sub/hf:x"},
    ],
)
def test_what_lies_apart_is_not(here: Path, named: dict[str, str]) -> None:
    check_places(places(**named))


names = st.lists(st.sampled_from(["a", "b", "..", "c"]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=200)
@given(names, names)
def test_two_results_are_apart_or_refused(one: str, other: str) -> None:
    """The oracle: neither real path is the other's beginning."""
    root = Path("/nowhere-at-all/x/y/z/w")
    first = Place("--out", root / one, Use.FOLDER)
    second = Place("--work", root / other, Use.WORK)
    real = [Path(os.path.normpath(place.path)) for place in (first, second)]
    apart = not (real[0].is_relative_to(real[1]) or real[1].is_relative_to(real[0]))
    named = all(path.path.name != ".." for path in (first, second))
    try:
        check_places([first, second])
        refused = False
    except InvalidInput as error:
        refused = "lies in" in str(error) or "same place" in str(error)
        assert refused or not named
    if named:
        assert refused == (not apart)
