"""Pods as containers: podman runs each step in the image that the compiled pipeline names.

As on a cluster, a pod is the image's own user, sees the files of the image, and can write to
``/tmp``, ``/work`` and the step's ``/scratch`` alone, all of them empty when it begins. Unlike
there, it has this machine's network, on whose loopback all servers of a test listen, and sees the
folders that a test shows, read-only, where a cluster would have S3.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.containers import CONFINED, IMAGE, LIMITS, told

USER = 10001
WRITTEN = ("tmp", "work", "scratch")
KILLED = 128


@dataclass(frozen=True)
class Containers:
    """Folders of this machine that every pod is shown, at their own places."""

    shown: tuple[Path, ...] = ()

    def name_image(self, name: str) -> None:
        """Give the image that was built the name by which a stack knows it."""
        told("podman", "tag", IMAGE, name)

    def start(
        self, image: str, folder: Path, command: Sequence[str], environment: Mapping[str, str],
        limit: int,
    ) -> tuple[int, Callable[[], int]]:  # fmt: skip
        """Start a pod; gives the number of its first process, and what waits for its exit code."""
        variables = folder / "environment"
        variables.touch(mode=0o600)
        variables.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
        arguments = [
            "podman", "run", "--rm", "--network", "host", *CONFINED, *LIMITS, "--memory",
            f"{limit}b", "--env-file", variables, "--pidfile", folder / "pid",
            *self._volumes(folder), image, *command,
        ]  # fmt: skip
        with (folder / "log").open("ab") as log:
            pod = subprocess.Popen(
                [str(each) for each in arguments], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        number = _number(pod, folder / "pid")
        variables.unlink()
        return number, lambda: _code(pod.wait())

    def _volumes(self, folder: Path) -> list[str]:
        for name in WRITTEN:
            (folder / name).mkdir()
            os.chown(folder / name, USER, USER)
        mounted = [f"{folder / name}:/{name}" for name in WRITTEN]
        mounted += [f"{place}:{place}:ro" for place in self.shown]
        return [part for each in mounted for part in ("--volume", each)]


def _number(pod: subprocess.Popen[bytes], file: Path) -> int:
    """The process in the container, as soon as there is one."""
    while pod.poll() is None:
        if file.is_file() and (text := file.read_text().strip()):
            return int(text)
        time.sleep(0.02)
    return pod.pid


def _code(code: int) -> int:
    """An exit code as a process has it: negative for what a signal ended."""
    return KILLED - code if code > KILLED else code
