"""Zero-shot accuracy by lm-eval, on the model in memory and on local rows.

A task is a JSON Lines file. Rows are ``query, choices, gold`` (the continuation of the query is
chosen), or ``options, continuation, gold`` as winogrande is scored: the option after which the
shared continuation is likelier. Prompts stand in the rows, in lm-eval's wording.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.extras import check, require
from bipline.base.progress import ticking
from bipline.values.record import TaskResult


def zero_shot(
    model: Any,
    tokenizer: Any,
    tasks: dict[str, Path],
    batch_size: int,
    num_fewshot: int = 0,
) -> dict[str, TaskResult]:
    """Run every task on an in-memory transformers model.

    Raises InvalidInput when a task file is missing or its rows are of neither form.
    """
    configurations = [task_configuration(name, path) for name, path in tasks.items()]
    if not configurations:
        return {}
    with tempfile.TemporaryDirectory() as cache, _untold():
        for each in configurations:
            each["dataset_kwargs"]["cache_dir"] = cache
        results = _simple_evaluate(model, tokenizer, configurations, batch_size, num_fewshot)
    counts = results["n-samples"]
    return {
        name: _task_result(results["results"][name], counts[name]["effective"]) for name in tasks
    }


@contextmanager
def _untold() -> Iterator[None]:
    """For the length of the block, datasets tells no server that it reads local rows."""
    config: Any = require("datasets.config", "eval")
    before, config.HF_UPDATE_DOWNLOAD_COUNTS = config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = before


def task_configuration(name: str, path: Path) -> dict[str, Any]:
    """lm-eval's configuration of a task file.

    Raises InvalidInput for rows of neither form, and without the extra ``eval``.
    """
    check("eval", f"task {name}")
    row = _first_row(path)
    if {"query", "choices", "gold"} <= row.keys():
        form = {
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
        }
        metrics = ["acc", "acc_norm"]
    elif {"options", "continuation", "gold"} <= row.keys():
        form = {
            "doc_to_text": "{{gold}}",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "{{continuation}}",
        }
        metrics = ["acc"]
    else:
        raise InvalidInput(
            f"{path}: rows need query, choices, gold or options, continuation, gold; "
            f"the first has {', '.join(sorted(row))}"
        )
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path.absolute())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "target_delimiter": " ",
        **form,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
        "metadata": {"version": 1.0},
    }


def _simple_evaluate(
    model: Any,
    tokenizer: Any,
    configurations: list[dict[str, Any]],
    batch_size: int,
    num_fewshot: int,
) -> dict[str, Any]:
    lm_eval = require("lm_eval", "eval")
    tasks = require("lm_eval.tasks", "eval")
    harness = require("lm_eval.models.huggingface", "eval").HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=model.config.max_position_embeddings,
        device=str(model.device),
    )
    named = ", ".join(configuration["task"] for configuration in configurations)
    with ticking(f"zero-shot batches of {named}", None) as tick:
        call = harness._model_call

        def counted(*arguments: Any, **more: Any) -> Any:
            tick()
            return call(*arguments, **more)

        harness._model_call = counted
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=harness,
            tasks=configurations,
            task_manager=tasks.TaskManager(include_defaults=False),
            num_fewshot=num_fewshot,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=0,
        )
    return results


def _task_result(metrics: dict[str, Any], count: int) -> TaskResult:
    acc = float(metrics["acc,none"])
    norm = metrics.get("acc_norm,none")
    return TaskResult(
        acc=acc,
        acc_norm=None if norm is None else float(norm),
        # The binomial standard error, which is what bootstrapping a mean of zeros and ones gives.
        stderr=math.sqrt(acc * (1 - acc) / max(1, count - 1)),
        n=count,
    )


def _first_row(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline())
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such task file") from None
    except ValueError:
        raise InvalidInput(f"{path}: the first line is not JSON") from None
    if not isinstance(row, dict):
        raise InvalidInput(f"{path}: the first line is not a JSON object")
    return row
