"""What a user's process does on a stack of Kubeflow, beside kfp; its last line is JSON."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bipline.base.errors import BiplineError
from bipline.settings.loading import KINDS, load
from bipline.settings.stack import StackSettings
from bipline.settings.stack_file import load_stack

NAME = "cloud"


def scheduled() -> None:
    """A schedule is made, changed and removed; what KFP has of it after each."""
    from zenml.client import Client
    from zenml.config.schedule import Schedule

    from pipelines.compress import configured
    from pipelines.own_stack import own_stack
    from pipelines.remote import placed_options

    settings = load(KINDS["compress"], Path("compress.yaml"))
    with own_stack(NAME, None):
        schedule = Schedule(name="nightly", cron_expression="0 3 * * *")
        options = placed_options(settings)
        configured(settings).with_options(schedule=schedule, **options)(settings)
        _tell_recurring()
        Client().update_schedule("nightly", cron_expression="0 4 * * *")
        _tell_recurring()
        Client().delete_schedule("nightly")
        _tell_recurring()


def broken(files: str) -> None:
    """What doctor and run say of each stack file, and of what no stack can do."""
    from pipelines.run import run_compress
    from pipelines.schedules import check_schedulable

    settings = load(KINDS["compress"], Path("compress.yaml"))
    asked = settings.model_copy(update={"stack": NAME})
    told: dict[str, Any] = {}
    for name, file in json.loads(files).items():
        _apply(file)
        told[name] = {"examined": _examined(), **_refused(lambda: run_compress(asked))}
    _apply(f"{NAME}.yaml")
    _apply("plain.yaml")
    told["well"] = _examined()
    on_gpu = settings.compute.model_copy(update={"device": "cuda"})
    asked = asked.model_copy(update={"compute": on_gpu})
    told["GPU pool absent"] = _refused(lambda: run_compress(asked))
    plain = settings.model_copy(update={"stack": "plain"})
    told["schedule"] = _refused(lambda: check_schedulable(plain, "nightly"))
    absent = settings.model_copy(update={"stack": "absent"})
    told["stack absent"] = _refused(lambda: run_compress(absent))
    print(json.dumps(told))


def away() -> None:
    """What doctor and run say of a ZenML that does not answer this user."""
    from pipelines.run import run_compress

    settings = load(KINDS["compress"], Path("compress.yaml"))
    asked = settings.model_copy(update={"stack": NAME})
    print(json.dumps([_examined(), _refused(lambda: run_compress(asked))]))


def _apply(file: str) -> None:
    from zenml.stack import stack

    from pipelines.stacks import apply_stack

    stack._STACK_CACHE.clear()
    apply_stack(load_stack(Path(file)))


def _examined() -> list[dict[str, Any]]:
    from pipelines.doctor import examine

    return [asdict(each) for each in examine(StackSettings(stack=NAME)) if not each.ok]


def _refused(act: Callable[[], object]) -> dict[str, str]:
    try:
        act()
    except BiplineError as error:
        return {"kind": type(error).__name__, "error": str(error)}
    return {"kind": "none", "error": ""}


def _tell_recurring() -> None:
    address = os.environ["KFP_STAND_IN"] + "/apis/v2beta1/recurringruns"
    with urllib.request.urlopen(address) as answer:
        print(json.dumps(json.load(answer)["recurringruns"]))


if __name__ == "__main__":
    {"scheduled": scheduled, "broken": broken, "away": away}[sys.argv[1]](*sys.argv[2:])
