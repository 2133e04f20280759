"""Pods as processes: each is forked from one process that has the libraries imported already.

Run as a program, it reads a line of JSON for every pod and answers with lines of JSON.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import time
from typing import Any

HOLD_SECONDS = 3.0
MIRROR_SECONDS = 0.05
BLOCK_SECONDS = 0.3


def serve() -> None:
    """Start a pod for every line, and tell the exit code of each."""
    _warm()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        pod = json.loads(line)
        number = os.fork()
        if not number:
            _run(pod)
        answers.write(json.dumps({"pod": pod["name"], "pid": number}) + "\n")
        threading.Thread(target=_await, args=(number, pod["name"], answers), daemon=True).start()


def _await(number: int, name: str, answers: Any) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    answers.write(json.dumps({"pod": name, "code": code}) + "\n")


def _run(pod: dict[str, Any]) -> None:
    """Become the pod: its environment alone, its arguments, its output in its log."""
    log = os.open(pod["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.setsid()
    os.environ.clear()
    os.environ.update(pod["environment"])
    os.chdir(pod["folder"])
    module, *arguments = pod["arguments"]
    sys.argv = [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _warm() -> None:
    """Import what every step imports; nothing that reads where it runs."""
    import importlib

    from bipline.storage import s3_lease, s3_work

    # A test does not wait the minute for which a killed holder of work is believed alive, and
    # its models are done before the usual mirror looks at them.
    s3_lease.LEASE_SECONDS, s3_work.MIRROR_SECONDS = HOLD_SECONDS, MIRROR_SECONDS
    _slow_scoring()
    for module in (
        "zenml", "zenml.client", "zenml.integrations.s3.artifact_stores",
        "zenml.integrations.mlflow.experiment_trackers", "zenml.zen_stores.rest_zen_store",
        "zenml.entrypoints.step_entrypoint_configuration", "zenml.execution.step.utils",
        "zenml.orchestrators.step_launcher", "steps.line", "steps.parts",
        "infra.kubeflow.flavor", "mlflow",
        "transformers", "boto3", "bipline.quality.evaluate", "lm_eval.models.huggingface",
    ):  # fmt: skip
        importlib.import_module(module)


def _slow_scoring() -> None:
    """A block takes as long as the mirror needs to look at it: tiny models have none such."""
    from bipline.compression.score_progress import ScoreProgress

    save = ScoreProgress.save

    def slowly(self: ScoreProgress, *arguments: Any) -> None:
        save(self, *arguments)
        time.sleep(BLOCK_SECONDS)

    ScoreProgress.save = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
