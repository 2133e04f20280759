"""Run a command that ends with the process that started it: ``python -m bipline.watch.bound``.

Linux sends a process this signal when its parent is gone, whatever program it becomes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """``PARENT PROGRAM ARGUMENT...``: become the program, unless the parent is gone already."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606 - the watcher names the program


if __name__ == "__main__":
    main()
