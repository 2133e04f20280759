"""Tasks are measured once: a second run finds the record, another limit or row does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bipline.quality import evaluate as core
from bipline.settings.compress import CompressSettings
from bipline.stages import evaluate, resolve
from bipline.stages.stage import Context
from bipline.storage.local_store import LocalStore
from tests.quality.asking import written

BARE = {"model": "m", "calibrate": {"texts": {}}, "evaluate": {"texts": ()}}
ROW = {"query": "the sea is", "choices": ["blue", "never"], "gold": 0}


def test_a_second_run_measures_no_task_again(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path / "cloze.jsonl", [ROW] * 3)
    measured: list[Any] = []
    ask = core.ask
    monkeypatch.setattr(core, "ask", lambda *a, **m: measured.append(a) or ask(*a, **m))

    def run(**protocol: Any) -> Any:
        settings = CompressSettings.model_validate(
            {
                "model": str(reference),
                "tasks": {"cloze": str(rows)},
                "evaluate": {"texts": (), "tasks": ("cloze",), "protocol": protocol},
                "calibrate": {"texts": {}},
            }
        )
        context = Context(LocalStore(tmp_path / "store"), settings.compute, 0)
        given = resolve.resolve(settings, tmp_path)
        return evaluate.evaluate_dense(context, given, settings.evaluate.protocol)

    first = run()
    assert (run(), len(measured)) == (first, 1)
    assert run(limit=2).tasks["cloze"].n == 2
    written(rows, [ROW] * 4)
    assert run().tasks["cloze"].n == 4
    assert len(measured) == 3


def test_a_list_of_tasks_is_of_the_hub() -> None:
    names = ("boolq", "piqa")
    for given in (names, list(names)):
        settings = CompressSettings.model_validate({**BARE, "tasks": given})
        assert settings.tasks == {"boolq": "hf:", "piqa": "hf:"}
    with pytest.raises(ValueError, match="give names"):
        CompressSettings.model_validate({**BARE, "tasks": [1]})
