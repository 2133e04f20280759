"""The shipped schedules are read by their own tools, and run a command that there is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from bipline.face.cli import application

SCHEDULES = Path(__file__).parents[2] / "infra" / "schedules"
ROOT = "/srv/bipline"


# When each schedule runs next after midnight, and again.
TIMES = {
    "watch": (datetime(2026, 12, 1, 0, 15), timedelta(minutes=15)),
    "audit": (datetime(2026, 12, 1, 3, 30), timedelta(days=1)),
}
FILES = {
    "watch": ("bipline.cron", "bipline-watch", "cronjob.yaml"),
    "audit": ("audit.cron", "bipline-audit", "audit-cronjob.yaml"),
}
each_command = pytest.mark.parametrize("name", ["watch", "audit"])


def command_of(text: str) -> list[str]:
    """What follows ``bipline`` in the one line that runs it, up to a redirection."""
    [found] = re.findall(r"^(?!#)[^#\n]*?bin/bipline ((?:watch|audit) [^>\n]*)", text, re.MULTILINE)
    return shlex.split(found)


def check_command(arguments: list[str]) -> None:
    """The command line takes these arguments, for a configuration that exists."""
    command: Any = get_command(application(arguments))
    parsed = command.commands[arguments[0]].make_context(arguments[0], arguments[1:]).params
    if arguments[0] == "watch":
        assert parsed["once"] and parsed["config"] == Path("configs/watch.yaml")
    else:
        assert parsed["all_"] and parsed["trust"] == Path("configs/trust.yaml")


@each_command
def test_the_cron_line_is_one_that_cron_reads(name: str) -> None:
    from croniter import croniter

    text = (SCHEDULES / FILES[name][0]).read_text()
    [line] = [line for line in text.splitlines() if line[:1] not in ("#", "") and "=" not in line]
    *when, user, command = line.split(maxsplit=6)
    assert user == "bipline" and command.startswith(f"cd {ROOT} && ")
    assert "%" not in line, "cron reads it as the end of a line"
    looks, (first, apart) = croniter(" ".join(when), datetime(2026, 12, 1)), TIMES[name]
    assert looks.get_next(datetime) == first and looks.get_next(datetime) == first + apart
    check_command(command_of(text))


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which(name):
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    command = [name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@each_command
def test_systemd_reads_service_and_timer(name: str, tmp_path: Path) -> None:
    """With the program and the user of this machine, as systemd asks for both."""
    unit = FILES[name][1]
    for file in (f"{unit}.service", f"{unit}.timer"):
        text = (SCHEDULES / file).read_text()
        text = text.replace(f"{ROOT}/.venv/bin/bipline", "/bin/true").replace(ROOT, str(tmp_path))
        (tmp_path / file).write_text(text.replace("User=bipline", "User=root"))
    done = tool("systemd-analyze", "verify", "--man=no", *sorted(tmp_path.glob(f"{unit}.*")))
    assert done.returncode == 0 and unit not in done.stderr, done
    # The tool tells what it does not know.
    timer = tmp_path / f"{unit}.timer"
    timer.write_text(timer.read_text().replace("Persistent", "Persistant"))
    assert "Persistant" in tool("systemd-analyze", "verify", "--man=no", timer).stderr
    check_command(command_of((SCHEDULES / f"{unit}.service").read_text()))


@each_command
def test_systemd_reads_the_calendar(name: str) -> None:
    text = (SCHEDULES / f"{FILES[name][1]}.timer").read_text()
    [calendar] = re.findall(r"^OnCalendar=(.*)$", text, re.MULTILINE)
    done = tool("systemd-analyze", "calendar", "--iterations=2", calendar)
    assert done.returncode == 0, done
    times = re.findall(r"(?:Next elapse|Iter\. #2): \w+ ([\d-]+ [\d:]+)", done.stdout)
    first, second = map(datetime.fromisoformat, times)
    assert second - first == TIMES[name][1]


@pytest.mark.slow
@each_command
def test_kubernetes_knows_every_field_of_the_cronjob(name: str) -> None:
    import kubernetes_validate
    from croniter import croniter

    job = yaml.safe_load((SCHEDULES / FILES[name][2]).read_text())
    kubernetes_validate.validate(job, "1.31", strict=True)
    assert croniter.is_valid(job["spec"]["schedule"])
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"][0] == "bipline"
    check_command(container["command"][1:])
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
    del job["spec"]["schedule"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)
