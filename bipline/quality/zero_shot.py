"""Zero-shot accuracy by lm-eval, on the model in memory and on local rows.

A task is a file of rows (:mod:`bipline.storage.task_rows`), with prompts in lm-eval's wording.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.extras import check, require
from bipline.base.progress import ticking
from bipline.model.token_ids import is_guarded, token_ids
from bipline.storage.task_rows import SHARED, read_task_rows
from bipline.values.record import TaskResult

# What lm-eval puts between a query and what continues it.
DELIMITER = " "


def zero_shot(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Path],
    batch_size: int,
    num_fewshot: int = 0,
) -> dict[str, TaskResult]:
    """Run every task on an in-memory transformers model.

    Raises InvalidInput for tasks that :func:`check_tasks` refuses.
    """
    configurations = [task_configuration(name, path) for name, path in tasks.items()]
    if not configurations:
        return {}
    try:
        results = _simple_evaluate(model, tokenizer, configurations, batch_size, num_fewshot)
    except AssertionError:  # what lm-eval says of a choice of which no token is left
        reason = "the model's tokenizer makes no token of one of the choices"
        raise InvalidInput(f"tasks {', '.join(tasks)}: {reason}; leave its row out") from None
    counts = results["n-samples"]
    return {
        name: _task_result(results["results"][name], counts[name]["effective"]) for name in tasks
    }


def check_tasks(
    tasks: Mapping[str, Path], tokenizer: Any = None, vocabulary: float = math.inf
) -> None:
    """Look at every row, and where there is a ``tokenizer`` whether it can be used on them.

    ``vocabulary`` is how many tokens the model has. Raises InvalidInput with the line that cannot
    be measured, without the extra ``eval``, and for a tokenizer that has no token for a text to
    begin with, makes none of a text, or one that the model has not.
    """
    for name, path in tasks.items():
        check("eval", f"task {name}")
        several, rows = read_task_rows(path)
        if tokenizer is None:
            continue
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            reason = "the model's tokenizer has neither BOS nor EOS to begin a text with"
            raise InvalidInput(f"task {name}: {reason}; name one in tokenizer_config.json")
        prompts = _prompts(several, rows)
        tried = prompts if is_guarded(tokenizer) else prompts[:1]
        [bare] = token_ids(tokenizer, prompts[:1], special_tokens=False)
        if not bare:
            reason = f"the model's tokenizer makes no token of {prompts[0]!a:.60}"
            raise InvalidInput(f"task {name}: {reason}")
        for ids in token_ids(tokenizer, tried, special_tokens=True):
            if (highest := max(ids, default=0)) >= vocabulary:
                reason = f"token id {highest} is above the model's vocabulary of {vocabulary}"
                raise InvalidInput(f"task {name}: {reason}; the tokenizer is of another model")


def _prompts(several: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every text that is compared."""
    pairs = [(row[SHARED[several]], text) for row in rows for text in row[several]]
    ordered = pairs if several == "choices" else [(text, one) for one, text in pairs]
    return [DELIMITER.join(pair) for pair in ordered]


def task_configuration(name: str, path: Path) -> dict[str, Any]:
    """lm-eval's configuration of a task file.

    Raises InvalidInput as :func:`check_tasks` without a tokenizer.
    """
    check("eval", f"task {name}")
    several, rows = read_task_rows(path)
    data = require("datasets", "eval").Dataset.from_list(rows)
    # The option is the context there, and what continues it is the same for all.
    begins = several == "options"
    return {
        "task": name,
        "custom_dataset": lambda **more: {"test": data},
        "test_split": "test",
        "output_type": "multiple_choice",
        "target_delimiter": DELIMITER,
        # Functions, because lm-eval takes a text of digits that a template gives for a number.
        "doc_to_text": lambda row: row["gold" if begins else SHARED[several]],
        "doc_to_choice": lambda row: row[several],
        "doc_to_target": lambda row: row[SHARED[several] if begins else "gold"],
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in (["acc"] if begins else ["acc", "acc_norm"])
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
