"""A stand-in for the API of Kubeflow Pipelines: it runs every compiled step as a process.

Steps run in the order of the DAG with their environment, their secrets, their memory limit and
their deadline, and are repeated as their retry policy says. It imitates no image, volume, node,
taint or GPU, no namespace and no login; it waits seconds between attempts, not minutes, and of the
steps that may run at once two do. A pod is a container of the image that was built, where a test
gives it one (see tests/kfp_containers.py), and a process with an empty home otherwise. The first
line of its log says which.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

from tests.kfp_containers import Containers
from tests.kfp_process import kfp_environment
from tests.layers import ROOT

UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "M": 10**6, "G": 10**9}
# The image that the registry has; the API answers for it too.
IMAGE = "bipline"
# After a pod was lost: until its hold on its work in S3 has run out, see tests/kfp_pods.py.
LOST_SECONDS = 5.0
# Steps whose pods run at once, where nothing of the DAG is between them.
SIDE_BY_SIDE = 2


@dataclass
class Attempt:
    """A pod that ran: its step, its exit code, its log, and the most private memory it had.

    ``began`` and ``ended`` are seconds of this machine's clock.
    """

    step: str
    code: int
    log: Path
    memory: int
    limit: int
    began: float
    ended: float

    def ran_beside(self, other: Attempt) -> bool:
        """Whether both ran at one time."""
        return self.began < other.ended and other.began < self.ended


@dataclass
class KubeflowStandIn:
    """What it was given, what it ran, and what it is to do to a step's first pod."""

    folder: Path
    secrets: dict[str, dict[str, str]]
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    # A step whose first pod is killed when this says so of the pod's folder.
    kills: dict[str, Callable[[Path], bool]] = field(default_factory=dict)
    # Pods are containers where this is given.
    containers: Containers | None = None
    address: str = ""
    _answers: dict[str, Queue[dict[str, Any]]] = field(default_factory=dict)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    @property
    def told(self) -> list[tuple[str, int, str]]:
        """What every pod ended with: for the message of a test that fails."""
        return [(each.step, each.code, each.log.read_text()[-1500:]) for each in self.attempts]

    def execute(self, run_id: str, documents: dict[str, Any]) -> None:
        """Run every task whose upstream tasks ended well; then say how the run ended."""
        specification, platform = _parts(documents)
        tasks, ended = specification["root"]["dag"]["tasks"], dict[str, bool]()
        running: dict[Future[bool], str] = {}
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            while len(ended) < len(tasks):
                for name, task in tasks.items():
                    before = task.get("dependentTasks", [])
                    if name in {*ended, *running.values()} or not set(before) <= set(ended):
                        continue
                    if not all(ended[each] for each in before):
                        ended[name] = False
                        continue
                    pod = pool.submit(self._task, run_id, name, task, specification, platform)
                    running[pod] = name
                for pod in wait(running, return_when=FIRST_COMPLETED).done:
                    ended[running.pop(pod)] = pod.result()
        self.runs[run_id] |= {"state": "SUCCEEDED" if all(ended.values()) else "FAILED",
                              "finished_at": _now()}  # fmt: skip

    def _task(
        self, run_id: str, name: str, task: dict[str, Any], specification: dict[str, Any],
        platform: dict[str, Any],
    ) -> bool:  # fmt: skip
        label = specification["components"][task["componentRef"]["name"]]["executorLabel"]
        container = specification["deploymentSpec"]["executors"][label]["container"]
        pod = platform.get(label, {})
        step = task["taskInfo"]["name"]
        attempts = 1 + int(task.get("retryPolicy", {}).get("maxRetryCount", 0))
        for number in range(attempts):
            ended = self._pod(run_id, f"{name}-{number}", step, container, pod)
            self.attempts.append(ended)
            if ended.code == 0:
                return True
            if ended.code < 0:
                time.sleep(LOST_SECONDS)
        return False

    def _pod(
        self, run_id: str, name: str, step: str, container: dict[str, Any], pod: dict[str, Any]
    ) -> Attempt:
        folder = self.folder / run_id / name
        folder.mkdir(parents=True)
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        for each in container.get("env", ()):
            environment[each["name"]] = each["value"].replace("{{$.pipeline_job_uuid}}", run_id)
        for secret in pod.get("secretAsEnv", ()):
            values = self.secrets[secret["secretName"]]
            environment |= {k["envVar"]: values[k["secretKey"]] for k in secret["keyToEnv"]}
        log, began = folder / "log", time.monotonic()
        limit = _bytes(container.get("resources", {}).get("resourceMemoryLimit", "999Gi"))
        number, code = self._start(container, folder, environment, limit)
        deadline = time.monotonic() + float(pod.get("activeDeadlineSeconds", 3600))
        kill, most = self.kills.get(step), 0
        while (private := _private(number)) is not None:
            most = max(most, private)
            if private > limit or time.monotonic() > deadline or (kill and kill(folder)):
                os.kill(number, signal.SIGKILL)
                self.kills.pop(step, None)
                break
            time.sleep(0.05)
        return Attempt(step, code(), log, most, limit, began, time.monotonic())

    def _start(
        self, container: dict[str, Any], folder: Path, environment: dict[str, str], limit: int
    ) -> tuple[int, Callable[[], int]]:
        """Start a pod; gives the number of its process, and what waits for its exit code."""
        command = [*container["command"], *container["args"]]
        assert command[:2] == ["python", "-m"], command
        where = f"a container of {container['image']}" if self.containers else "a process"
        (folder / "log").write_text(f"this pod is {where}\n")
        if self.containers:
            image = container["image"]
            return self.containers.start(image, folder, command, environment, limit)
        own = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        here = {name: value.replace("/scratch", str(folder)) for name, value in environment.items()}
        name = str(folder)
        self._ask({
            "name": name, "folder": name, "log": str(folder / "log"), "arguments": command[2:],
            "environment": {**own, **here},
        })  # fmt: skip
        return self._answer(name, "pid"), lambda: self._answer(name, "code")

    def _ask(self, pod: dict[str, Any]) -> None:
        self._answers[pod["name"]] = Queue()
        with self._asking:
            self._pods.stdin.write(json.dumps(pod) + "\n")
            self._pods.stdin.flush()

    def _answer(self, pod: str, wanted: str) -> int:
        return int(self._answers[pod].get()[wanted])

    def _listen(self) -> None:
        """Hand every answer to the thread that waits for that pod."""
        for line in self._pods.stdout:
            answer = json.loads(line)
            self._answers[answer["pod"]].put(answer)

    @contextmanager
    def serving(self) -> Iterator[KubeflowStandIn]:
        """The API on a free port for the length of the block, with what runs pods."""
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"stand_in": self})
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_port}/pipeline"
        try:
            if self.containers:
                self.containers.name_image(f"127.0.0.1:{server.server_port}/{IMAGE}:1")
                yield self
            else:
                with self._processes():
                    yield self
        finally:
            server.shutdown()
            server.server_close()

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """The process that has pods."""
        environment = kfp_environment(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        for name in [name for name in environment if name.startswith(("ZENML", "MLFLOW", "AWS"))]:
            del environment[name]
        command = [sys.executable, "-m", "tests.kfp_pods"]
        self._pods: Any = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert json.loads(self._pods.stdout.readline())["ready"]
            threading.Thread(target=self._listen, daemon=True).start()
            yield
        finally:
            self._pods.stdin.close()
            self._pods.terminate()
            self._pods.wait(timeout=30)


class Handler(BaseHTTPRequestHandler):
    """The part of v2beta1 that kfp's client asks for."""

    stand_in: KubeflowStandIn

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._path()
        kind, _, name = path.partition("/")
        found = _kinds(self.stand_in).get(kind)
        if path == "healthz":
            self._send({"multi_user": False})
        elif found is not None and name in found:
            self._send(found[name])
        elif found is not None and not name:
            values = list(found.values())
            self._send({kind: values, "total_size": len(values)})
        else:
            self._send({"error": "not found"}, 404)

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if path.endswith((":disable", ":enable")):
            name, _, mode = path.partition("/")[2].partition(":")
            self.stand_in.recurring[name]["mode"] = mode.upper()
            return self._send({})
        kind = {"experiments": "experiment", "runs": "run", "recurringruns": "recurring_run"}
        made = {**body, f"{kind[path]}_id": str(uuid.uuid4()), "created_at": _now()}
        _kinds(self.stand_in)[path][made[f"{kind[path]}_id"]] = made
        if path == "runs":
            made["state"] = "RUNNING"
            arguments = made["run_id"], made["pipeline_spec"]
            threading.Thread(
                target=_executed, args=(self.stand_in, *arguments), daemon=True
            ).start()
        return self._send(made)

    def do_HEAD(self) -> None:
        """A registry's answer: one image is there."""
        there = self.path == f"/v2/{IMAGE}/manifests/1"
        self.send_response(200 if there else 404)
        self.end_headers()

    def do_DELETE(self) -> None:
        kind, _, name = self._path().partition("/")
        self._send({}, 200 if _kinds(self.stand_in)[kind].pop(name, None) else 404)

    def _path(self) -> str:
        return re.sub(r"^.*/apis/v2beta1/", "", self.path.partition("?")[0])

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        return dict(json.loads(self.rfile.read(length) or b"{}"))

    def _send(self, value: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _kinds(stand_in: KubeflowStandIn) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        "runs": stand_in.runs, "recurringruns": stand_in.recurring,
        "experiments": stand_in.experiments,
    }  # fmt: skip


def _executed(stand_in: KubeflowStandIn, run_id: str, documents: dict[str, Any]) -> None:
    try:
        stand_in.execute(run_id, documents)
    except BaseException as error:
        stand_in.runs[run_id] |= {"state": "FAILED", "error": {"message": repr(error)}}
        raise


def _parts(documents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline, and what is Kubernetes' own of every executor."""
    specification = documents.get("pipeline_spec", documents)
    platform = documents.get("platform_spec", {}).get("platforms", {}).get("kubernetes", {})
    return specification, platform.get("deploymentSpec", {}).get("executors", {})


def _private(number: int) -> int | None:
    """Private bytes of a process; None when it has ended."""
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(r"RssAnon:\s+(\d+)", status)
    return int(found[1]) * 1024 if found and "State:\tZ" not in status else None


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
