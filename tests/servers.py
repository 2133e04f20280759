"""The servers that teams have: PostgreSQL, MLflow on it, and S3 for artifacts, on free ports."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.storage.server import free_port, running_server

WAIT_SECONDS = 240.0
BUCKET = "team-artifacts"


@contextmanager
def team_servers(folder: Path) -> Iterator[str]:
    """An MLflow server on PostgreSQL whose artifacts lie in S3; gives its address."""
    import boto3

    with running_server(), postgres(folder / "postgres.log") as database:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        with mlflow_server(folder, database, f"s3://{BUCKET}") as address:
            yield address


@dataclass(frozen=True)
class Stored:
    """A file of a registered version, in a folder or in the servers' bucket."""

    path: Path | None
    key: str = ""

    def read(self) -> bytes:
        if self.path:
            return self.path.read_bytes()
        return bytes(self._client().get_object(Bucket=BUCKET, Key=self.key)["Body"].read())

    def write(self, content: bytes) -> None:
        if self.path:
            self.path.write_bytes(content)
        else:
            self._client().put_object(Bucket=BUCKET, Key=self.key, Body=content)

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3")


def object_of(location: str, name: str) -> Stored:
    """The file of a version by where MLflow says that the version lies."""
    if location.startswith("mlflow-artifacts:/"):
        return Stored(None, f"{location.removeprefix('mlflow-artifacts:/')}/{name}")
    return Stored(Path(location.removeprefix("file://")) / name)


def postgres_program(name: str) -> str:
    """A program of PostgreSQL, which Debian keeps out of the path; its absence is a failure."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(versions[-1]) if versions else None)
    assert found, f"{name} is not installed: apt-get install postgresql"
    return found


@contextmanager
def postgres(log: Path) -> Iterator[str]:
    """A PostgreSQL server with an empty database; gives the address of that.

    Its data lie where another user reaches them, which pytest's own folders are not.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        yield from _postgres(Path(folder), log)


def _postgres(folder: Path, log: Path) -> Iterator[str]:
    port = free_port()
    # It refuses to run as root; Debian's package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
    initdb = [postgres_program("initdb"), "-D", folder / "data", "-U", "mlflow", "-A", "trust"]
    subprocess.run([*initdb, "-E", "UTF8"], check=True, user=user, cwd="/", capture_output=True)
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    command = [postgres_program("postgres"), "-D", folder / "data", *options, "-c", "fsync=off"]
    with running(command, log, user=user, cwd="/"):
        _wait(lambda: _accepts(port))
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"


@contextmanager
def mlflow_server(
    folder: Path, database: str, artifacts: str, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A real MLflow server over a database and an artifact store; gives its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database,
        "--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    # Its job runners are seven more processes, each with all of MLflow: no test has jobs.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    given = {**os.environ, **quiet, **(environment or {})}
    for name in [name for name in given if name.startswith(("MLFLOW_TRACKING", "MLFLOW_REGISTRY"))]:
        del given[name]
    with running(command, folder / "mlflow.log", env=given, cwd=folder):
        _wait(lambda: _healthy(address))
        yield address


@contextmanager
def running(command: list[Any], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process and its children for the length of the block; what it prints goes to ``log``."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=written, stderr=subprocess.STDOUT,
            start_new_session=True, **options,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process with its children, at once."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait(timeout=30)


def _wait(ready: Any) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not ready():
        assert time.monotonic() < until, "the server did not come up"
        time.sleep(0.1)


def _accepts(port: int) -> bool:
    command = [postgres_program("pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
