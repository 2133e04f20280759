"""podman and buildah with a place of their own: what they keep lies in memory and is gone after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.layers import ROOT

PROGRAMS = ("podman", "buildah", "runc", "mmdebstrap")
IMAGE = "localhost/bipline:test"
BASE = "localhost/base:test"
FOLDER = ROOT / "infra" / "docker"
# Without them runc may not start a container here.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
# As a pod is run: nothing but what is mounted can be written, and nothing can be gained.
CONFINED = (
    "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt",
    "no-new-privileges", "--pull", "never",
)  # fmt: skip
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/store"\nrunroot = "{0}/run"\n'
ENGINE = """[containers]
default_ulimits = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{0}/libpod"
volume_path = "{0}/volumes"
"""


@contextmanager
def container_storage() -> Iterator[Path]:
    """The variables by which podman and buildah find an empty place; their absence fails."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"apt-get install {' '.join(missing)}"
    with (
        tempfile.TemporaryDirectory(prefix="bipline-containers-", dir="/dev/shm") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(name)
        (folder / "storage.conf").write_text(STORAGE.format(folder))
        (folder / "containers.conf").write_text(ENGINE.format(folder))
        (folder / "tmp").mkdir()
        patch.setenv("CONTAINERS_STORAGE_CONF", str(folder / "storage.conf"))
        patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
        try:
            yield folder
        finally:
            for command in (
                ["rm", "--all", "--force", "--time", "0"],
                ["image", "umount", "--all"],
            ):
                told("podman", *command)
            for mounted in reversed(mounts(folder)):
                told("umount", mounted)


def mounts(folder: Path) -> list[str]:
    """What is mounted below a folder, outermost first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [place for place in (line.split()[1] for line in lines) if f"{folder}/" in place]


def told(*command: str | Path, **options: Any) -> str:
    """What a program prints; it must end well."""
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert ended.returncode == 0, (command, ended.stdout[-3000:], ended.stderr[-3000:])
    return ended.stdout.strip()


def build(folder: Path) -> None:
    """The base by its script, then the image by the Dockerfile, as the README says."""
    base = folder / "base.tar"
    with base.open("wb") as out:
        environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        subprocess.run(["sh", FOLDER / "base.sh"], stdout=out, env=environment, check=True)
    told("podman", "import", "--quiet", base, BASE)
    base.unlink()
    told(
        "buildah", "build", "--isolation", "chroot", "--ignorefile",
        FOLDER / "Dockerfile.dockerignore", "--file", FOLDER / "Dockerfile", "--build-arg",
        f"BASE={BASE}", "--build-arg", "TORCH_INDEX=", *pip_volumes(folder), "--tag", IMAGE, ROOT,
    )  # fmt: skip


def pip_volumes(folder: Path) -> list[str]:
    """What makes pip in the build find packages where pip finds them on this machine.

    Its settings, with the files and folders that they name, at the same places: mounted while the
    image is built, and not in it.
    """
    listed = told(sys.executable, "-m", "pip", "config", "list")
    settings = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    (folder / "pip.conf").write_text(
        "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    named = {word.removeprefix("file://") for value in settings.values() for word in value.split()}
    # An index of files leads to them from the folder above it.
    places = {path for path in map(Path, named) if path.is_absolute() and path.exists()}
    places = {path.parent if path.name == "simple" else path for path in places}
    volumes = [f"{path}:{path}:ro" for path in sorted(places)]
    return [part for each in (f"{folder}/pip.conf:/etc/pip.conf:ro", *volumes)
            for part in ("--volume", each)]  # fmt: skip


def start_one() -> subprocess.CompletedProcess[str]:
    """A container of ``true`` and the libraries that it needs, which shows whether any starts."""
    with container_storage() as folder:
        program = Path(shutil.which("true") or "/bin/true").resolve()
        libraries = [word for word in told("ldd", program).split() if word.startswith("/")]
        for path in map(Path, [str(program), *libraries]):
            place = folder / "root" / path.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
        return subprocess.run(
            ["podman", "run", "--rm", "--network", "none", *LIMITS, "--rootfs", folder / "root",
             program],
            capture_output=True, text=True, check=False,
        )  # fmt: skip


def inspected(image: str = IMAGE) -> dict[str, Any]:
    """What the image says of itself."""
    [found] = json.loads(told("podman", "image", "inspect", image))
    return dict(found)


if __name__ == "__main__":
    try:
        found = start_one()
        why = found.returncode and (found.stderr.strip() or found.returncode)
    except AssertionError as failed:
        why = failed
    if why:
        sys.exit(f"this machine starts no container: {why}")
