"""A team's servers on one machine: PostgreSQL, MLflow on it, an S3 endpoint, ZenML's server.

``python -m infra.stacks.server up FOLDER`` starts what does not run yet and writes what the stack
file needs; ``down`` ends what ``up`` started. All listen on this machine alone. The S3 endpoint is
moto's, which keeps objects in memory: it is for trying the stack out, and ``down`` forgets them.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WAIT_SECONDS = 240
HOST = "127.0.0.1"
BUCKET = "bipline"
ROOT = Path(__file__).parents[2]
# Of `make environment`: what ZenML's server takes beside, and instead of, the rest.
SERVER_LIBRARIES = Path(sys.prefix) / "server"
# And s3fs, by which ZenML's client finds artifacts in S3.
CLIENT_LIBRARIES = Path(sys.prefix) / "kubeflow"
PROCESSES, VALUES, VARIABLES = "processes.json", "values.json", "variables"


class Servers:
    """The servers whose state and logs lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.started: dict[str, int] = {}

    def up(self) -> None:
        """Start all, or none: what was started is ended where a later one does not come up."""
        if alive := self.running():
            raise SystemExit(f"{', '.join(alive)}: running already; make server-down ends them")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            values, variables = self._all()
        except BaseException:
            self.down()
            raise
        private(self.folder / VALUES, json.dumps(values, indent=1) + "\n")
        private(self.folder / VARIABLES, "".join(f"export {k}={v}\n" for k, v in variables.items()))
        sys.stdout.write(f"source {self.folder / VARIABLES}\n")

    def down(self) -> None:
        """End what runs of them, with their children."""
        for name in self.running():
            # PostgreSQL would wait for its clients otherwise.
            kind = signal.SIGINT if name == "postgres" else signal.SIGTERM
            os.killpg(self._known()[name], kind)
        until = time.monotonic() + 20
        while (left := self.running()) and time.monotonic() < until:
            time.sleep(0.1)
        for name in left:
            os.killpg(self._known()[name], signal.SIGKILL)
        for name in (PROCESSES, VALUES, VARIABLES):
            (self.folder / name).unlink(missing_ok=True)

    def running(self) -> list[str]:
        """The names of those that run."""
        return [name for name, number in self._known().items() if _alive(number)]

    def _known(self) -> dict[str, int]:
        path = self.folder / PROCESSES
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def _all(self) -> tuple[dict[str, str], dict[str, str]]:
        endpoint = self._s3()
        database = self._postgres()
        environment = {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "trial",
            "AWS_SECRET_ACCESS_KEY": "trial", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        mlflow = self._mlflow(database, environment)
        zenml, key = self._zenml(environment)
        values = {
            "bucket": BUCKET, "s3_endpoint": endpoint, "s3_key": "trial", "s3_secret": "trial",
            "mlflow_uri": mlflow, "mlflow_username": "team", "mlflow_password": "team",
        }  # fmt: skip
        variables = {"ZENML_STORE_URL": zenml, "ZENML_STORE_API_KEY": key, **environment}
        if CLIENT_LIBRARIES.is_dir():
            variables["PYTHONPATH"] = str(CLIENT_LIBRARIES)
        return values, variables

    def _s3(self) -> str:
        port = free_port()
        self._start("s3", ["-m", "moto.server", "-H", HOST, "-p", port])
        address = f"http://{HOST}:{port}"
        wait("s3", lambda: answers(f"{address}/moto-api/data.json"))
        request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")  # noqa: S310
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
        return address

    def _postgres(self) -> str:
        port, data = free_port(), self.folder / "postgres"
        # It refuses to run as root; Debian's package brings a user for it.
        user = "postgres" if os.geteuid() == 0 else None
        if not data.is_dir():
            data.mkdir(mode=0o700)
            if user:
                os.chown(data, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
            made = subprocess.run(  # noqa: S603
                [program("initdb"), "-D", str(data), "-U", "mlflow", "-A", "trust", "-E", "UTF8"],
                check=False, user=user, cwd="/", capture_output=True, text=True,
            )  # fmt: skip
            if made.returncode:
                shutil.rmtree(data)
                said = (made.stderr.strip().splitlines() or ["no reason told"])[-1]
                raise SystemExit(
                    f"PostgreSQL in {data}: {said}; the user {user or 'who runs this'} must reach "
                    "that folder"
                )
        options = ["-p", port, "-k", data, "-c", f"listen_addresses={HOST}"]
        self._run("postgres", [program("postgres"), "-D", data, *options], user=user, cwd="/")
        ready = [program("pg_isready"), "-h", HOST, "-p", port]
        wait("postgres", lambda: ends_well(ready))
        return f"postgresql+psycopg2://mlflow@{HOST}:{port}/postgres"

    def _mlflow(self, database: str, environment: Mapping[str, str]) -> str:
        port = free_port()
        arguments = [
            "-m", "mlflow", "server", "--backend-store-uri", database, "--artifacts-destination",
            f"s3://{BUCKET}/mlflow", "--host", HOST, "--port", port, "--workers", "1",
        ]  # fmt: skip
        # Its job runners are seven more processes, and nothing here has jobs for them.
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._start("mlflow", arguments, {**environment, **quiet})
        wait("mlflow", lambda: answers(f"http://{HOST}:{port}/health"))
        return f"http://{HOST}:{port}"

    def _zenml(self, environment: Mapping[str, str]) -> tuple[str, str]:
        port, password = free_port(), secrets.token_urlsafe(24)
        shutil.rmtree(self.folder / "zenml", ignore_errors=True)
        (self.folder / "zenml").mkdir()
        arguments = ["-m", "uvicorn", "zenml.zen_server.zen_server_api:app", "--port", port]
        settings = {
            "PYTHONPATH": os.pathsep.join([str(SERVER_LIBRARIES), str(ROOT)]),
            "ZENML_CONFIG_PATH": str(self.folder / "zenml"),
            "ZENML_STORE_URL": f"sqlite:///{self.folder}/zenml/zenml.db",
            "ZENML_SERVER": "true", "ZENML_SERVER_AUTO_ACTIVATE": "1",
            "ZENML_DEFAULT_USER_PASSWORD": password, "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_SERVER_JWT_SECRET_KEY": secrets.token_urlsafe(32),
        }  # fmt: skip
        self._start("zenml", arguments, {**environment, **settings})
        address = f"http://{HOST}:{port}"
        wait("zenml", lambda: answers(f"{address}/health"))
        return address, account_key(f"{address}/api/v1", password)

    def _start(
        self, name: str, arguments: list[Any], environment: Mapping[str, str] | None = None
    ) -> None:
        outer = {n: v for n, v in os.environ.items() if not n.startswith(("ZENML_", "MLFLOW_"))}
        command = [sys.executable, *arguments]
        self._run(name, command, env={**outer, **(environment or {})}, cwd=self.folder)

    def _run(self, name: str, command: list[Any], **options: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [str(part) for part in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, **options,
            )  # fmt: skip
        self.started[name] = process.pid
        private(self.folder / PROCESSES, json.dumps(self.started))


def account_key(api: str, password: str) -> str:
    """A key of a new service account of ZenML's server."""
    login = urllib.parse.urlencode({"username": "default", "password": password}).encode()
    token = posted(f"{api}/login", login)["access_token"]
    account = {"name": "bipline", "active": True}
    made = posted(f"{api}/service_accounts", json.dumps(account).encode(), token)
    keys = f"{api}/service_accounts/{made['id']}/api_keys"
    return str(posted(keys, json.dumps({"name": "bipline"}).encode(), token)["body"]["key"])


def posted(url: str, body: bytes, token: str | None = None) -> Any:
    """What a server answers to a POST, as JSON."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers if token else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.loads(answer.read())


def program(name: str) -> str:
    """A program of PostgreSQL, which Debian keeps out of the path. Ends where it is missing."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(versions[-1]) if versions else None)
    if found is None:
        raise SystemExit(f"{name} is not installed: apt-get install postgresql")
    return found


def free_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.create_server((HOST, 0)) as listening:
        return int(listening.getsockname()[1])


def answers(address: str) -> bool:
    """Whether a server says that it is well."""
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def ends_well(command: list[Any]) -> bool:
    """Whether a command answers with 0."""
    shown = [str(part) for part in command]
    return subprocess.run(shown, capture_output=True, check=False).returncode == 0  # noqa: S603


def wait(name: str, ready: Callable[[], bool]) -> None:
    """Wait for a server. Ends where it does not come up."""
    until = time.monotonic() + WAIT_SECONDS
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(f"{name} did not come up; see {name}.log")
        time.sleep(0.2)


def private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text, encoding="utf-8")


def _alive(number: int) -> bool:
    """Whether a server or a child of it is left: they are one process group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == number and state != "Z":
            return True
    return False


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        raise SystemExit("usage: python -m infra.stacks.server up|down FOLDER")
    servers = Servers(Path(sys.argv[2]))
    servers.up() if sys.argv[1] == "up" else servers.down()
