"""The display never ends the work, and names are never instructions."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from bipline.base.printable import printable
from bipline.base.progress import heading, note, track
from bipline.face.console import PlainConsole, working
from bipline.face.streams import LossyStream, open_lossy
from bipline.face.tables import table_of
from tests.command import run

# Names as a hostile folder may hold them.
HOSTILE = [
    "[/b]", "[bold red]x[/]", "[link=file:///etc/passwd]x[/link]", "[[", "[/]", ":smile:",
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "a\rb", "a\bb", "\x9b31m",
    "\u202etxt.exe", "\u2066x", "\udcff\udc80", "\x00", "\x7f",
    "a\nerror: b", "a\tb",
]  # fmt: skip


@given(st.text(st.characters()) | st.sampled_from(HOSTILE))
def test_printable_text_steers_nothing_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert not any(letter in shown for letter in "\x1b\x9b\x07\x08\r\n\t\x00\u202e\u2066")
    shown.encode()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_console_shows_names_as_they_are(name: str) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, width=200, force_terminal=True, color_system=None)
    table = Table(title=name, box=None)
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    console.print(name)
    assert out.getvalue().count(printable(name)) == 4
    assert "\x1b" not in out.getvalue().replace("\x1b[3m", "").replace("\x1b[0m", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_display_shows_names_as_they_are(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with working(tmp_path / "log"):
        heading(name)
        note(name)
        assert list(track([1], name)) == [1]
    shown = capfd.readouterr().out
    assert shown.count(printable(name)) == 3
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["[/b]", "\x1b[31mred", "a\rb", "[bold]x"])
def test_a_refusal_shows_names_as_they_are(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capfd, "evaluate", tmp_path / name, "--text", f"t={tmp_path / name}")
    outcome.assert_one_line(2, printable(name).replace("\\r", " "))
    assert "\x1b" not in outcome.errors


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_of_results_show_names_as_they_are(name: str) -> None:
    """Whatever console shows them."""
    out = io.StringIO()
    Console(file=out, width=200).print(table_of([name], [[name]], left={0}, title=name))
    assert out.getvalue().count(printable(name)) == 3
    assert "\x1b" not in out.getvalue()


def test_a_panic_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A library in Rust raises what is no Exception; whatever else is none goes its way."""
    panic = type("PanicException", (BaseException,), {})
    monkeypatch.chdir(tmp_path)
    asked = "bipline.delivery.vouching.verify"
    monkeypatch.setattr(asked, mock.Mock(side_effect=panic("no entry\nfound")))
    run(capfd, "verify", tmp_path).assert_one_line(1, "PanicException: no entry found")
    monkeypatch.setattr(asked, mock.Mock(side_effect=GeneratorExit))
    with pytest.raises(GeneratorExit):
        run(capfd, "verify", tmp_path)


@pytest.mark.parametrize("name", ["n" * 300, "loop", "loop/x", "file/x"])
def test_a_path_that_can_never_be_right_is_bad_input(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    run(capfd, "compress", tmp_path / name).assert_one_line(2, name)


class _Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokenPipeError(32, "Broken pipe"), None),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError("I/O operation on closed file"), "I/O operation on closed file"),
    ],
)
def test_a_stream_loses_what_it_cannot_write(error: Exception, reason: str | None) -> None:
    stream = LossyStream(_Failing(error))
    assert stream.write("lost") == 4
    stream.flush()
    stream.close()
    assert stream.failure is error
    assert stream.reason == reason


def test_a_log_that_cannot_be_written_is_told_and_the_work_is_done(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for log in (tmp_path / "file" / "log", Path("/dev/full")):
        with working(log):
            print("a line of a library", flush=True)
            os.write(1, b"") if log.name == "log" else None
            heading("the work")
        shown = capfd.readouterr()
        assert "the work" in shown.out
        assert str(log) in shown.out + shown.err


def test_the_display_survives_its_reader(tmp_path: Path) -> None:
    """A pipe whose reader is gone, in the place of standard output."""
    reading, writing = os.pipe()
    os.close(reading)
    saved = os.dup(1)
    os.dup2(writing, 1)
    done = False
    try:
        with working(tmp_path / "log"):
            heading("unheard")
            done = list(track(range(3), "unseen")) == [0, 1, 2]
    finally:
        os.dup2(saved, 1)
    assert done
    stream = open_lossy(writing)
    stream.write("x\n")
    stream.close()
    assert isinstance(stream.failure, BrokenPipeError)


REDIRECTED = {
    "a reader that leaves": "{command} | true",
    "a full disk": "{command} > /dev/full",
    "closed output": "{command} >&-",
    "closed output and errors": "{command} >&- 2>&-",
    "closed input": "{command} <&- | cat > /dev/null",
}


@pytest.mark.parametrize("way", REDIRECTED)
def test_a_command_ends_well_whatever_reads_it(way: str, tmp_path: Path) -> None:
    """A result that is a file is whole: no line of the screen went into it."""
    made = tmp_path / "schema.json"
    code = (
        "import sys; from bipline.face import streams, cli; from pathlib import Path\n"
        "sys.argv = ['bipline', 'config', 'schema']\n"
        f"with streams.standard_streams():\n  Path({str(made)!r}).write_text('whole'); cli.main()\n"
    )
    (tmp_path / "run.py").write_text(code)
    command = REDIRECTED[way].format(command=f"{sys.executable} {tmp_path / 'run.py'}")
    done = subprocess.run(
        f"set -o pipefail; {command}", shell=True, executable="/bin/bash", capture_output=True,
        text=True, cwd=Path.cwd(), check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert made.read_text() == "whole"
    assert ("No space left" in done.stderr) == (way == "a full disk")
