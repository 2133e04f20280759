"""Tasks as lm-eval knows them: its own configuration, on rows or on a data set at hand.

A task whose data set is at hand keeps lm-eval's prompts and metrics to the letter. Rows
(:mod:`bipline.storage.task_rows`) hold such prompts already, and take the metrics of the task
whose name they have; under a name of their own they are measured by acc and acc_norm.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from bipline.base.errors import BiplineError, InvalidInput
from bipline.base.extras import check, require
from bipline.model.built import one_line
from bipline.quality.zero_shot_data import ONLY, read_data_set
from bipline.settings.protocol import FEWSHOT_SEED
from bipline.storage.task_rows import SHARED, holds_rows, read_task_rows

# What lm-eval puts between a query and what continues it.
DELIMITER = " "
# The tasks the field reports, where lm-eval keeps them, and the columns that must hold something.
USUAL = {
    "boolq": ("super_glue/boolq/default.yaml", ("passage", "question", "label")),
    "piqa": ("piqa/piqa.yaml", ("goal", "sol1", "sol2", "label")),
    "hellaswag": ("hellaswag/hellaswag.yaml", ("activity_label", "ctx_a", "endings", "label")),
    "winogrande": ("winogrande/default.yaml", ("sentence", "option1", "option2", "answer")),
    "arc_easy": ("arc/arc_easy.yaml", ("question", "choices", "answerKey")),
    "arc_challenge": ("arc/arc_challenge.yaml", ("question", "choices", "answerKey")),
    "openbookqa": ("openbookqa/openbookqa.yaml", ("question_stem", "choices", "answerKey")),
}
# The metrics that are shares of right answers, the first of them a task has is its ``acc``.
ACCURACIES = ("acc", "exact_match")
TASK_LINE = re.compile(rb"""^task:[ \t]*["']?([^\s"'#]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def task_of(name: str, path: Path, num_fewshot: int = 0, fewshot_seed: int = FEWSHOT_SEED) -> Any:
    """lm-eval's task on the rows or the data set at ``path``.

    Raises InvalidInput where they cannot be measured, for a task that is no such measurement, and
    for examples (``num_fewshot``) that the data set does not have.
    """
    check("eval", f"task {name}")
    if are_rows(name, path):
        configuration = _on_rows(name, path)
    else:
        configuration = _on_data_set(name, path, num_fewshot)
    require("lm_eval.tasks", "eval")  # it registers metrics and filters
    try:
        task = require("lm_eval.api.task", "eval").ConfigurableTask(config=configuration)
    except BiplineError:
        raise
    except Exception as error:  # templates and functions of thousands of tasks
        reason = f"lm-eval cannot make the task of {path}: {one_line(error)}"
        raise InvalidInput(f"task {name}: {reason[:400]}") from error
    if accuracy_of(metrics := list(task.aggregation())) is None:
        raise InvalidInput(f"task {name}: lm-eval measures {', '.join(metrics)}, no accuracy")
    # A task that is asked without examples by its own configuration stays so, as in lm-eval.
    task.config.num_fewshot = 0 if task.config.num_fewshot == 0 else num_fewshot
    task.set_fewshot_seed(seed=fewshot_seed)
    return task


def are_rows(name: str, path: Path) -> bool:
    """Whether a place holds rows, not the data set of one of lm-eval's tasks.

    Rows of other columns under a name that lm-eval does not have are rows, and told what they lack.
    """
    return holds_rows(path) or (path.is_file() and configuration_file(name) is None)


def official(name: str) -> dict[str, Any]:
    """lm-eval's configuration of a task.

    Raises InvalidInput for a name it does not have, and for a task that is none of right answers
    by one model: groups, classes in Python, perplexities, images, code that is run.
    """
    file = configuration_file(name)
    if file is None:
        hint = "give its rows by --task-data, a group or tag by the names of its tasks"
        raise InvalidInput(f"task {name!r}: lm-eval has no task of this name; {hint}")
    load = require("lm_eval.tasks._yaml_loader", "eval").load_yaml
    # Its functions are imported only where it is one that is measured.
    if reason := _unusable(load(file, resolve_func=False)):
        raise InvalidInput(f"task {name}: {reason}")
    try:
        configuration: dict[str, Any] = load(file)
    except Exception as error:  # modules of its authors, which import what they like
        reason = f"lm-eval cannot load its functions: {one_line(error)}"
        raise InvalidInput(f"task {name}: {reason[:400]}") from error
    return configuration


def configuration_file(name: str) -> Path | None:
    """Where lm-eval keeps a task's configuration. Reads no other where the name is a usual one."""
    if name in USUAL:
        return _tasks_folder() / USUAL[name][0]
    return _all_files().get(name)


def accuracy_of(metrics: Any) -> str | None:
    """The metric that stands as a task's ``acc``, of the names of those it has."""
    return next((metric for metric in ACCURACIES if metric in metrics), None)


def measured_split(configuration: dict[str, Any]) -> str:
    """The split that lm-eval measures: test, or validation where it has no test."""
    return str(configuration.get("test_split") or configuration.get("validation_split"))


def examples_split(configuration: dict[str, Any]) -> str | None:
    """The split that lm-eval draws examples from."""
    own = (configuration.get("fewshot_config") or {}).get("split")
    splits = ("fewshot_split", "training_split", "validation_split", "test_split")
    found = own or next(filter(None, map(configuration.get, splits)), None)
    return None if found is None else str(found)


def _tasks_folder() -> Path:
    return Path(str(require("lm_eval.tasks", "eval").__file__)).parent


@cache
def _all_files() -> dict[str, Path]:
    """Every task of lm-eval with its file. Its own index parses all of them, ten times slower."""
    found: dict[str, Path] = {}
    for file in sorted(_tasks_folder().rglob("*.yaml")):
        if match := TASK_LINE.search(file.read_bytes()):
            found.setdefault(match[1].decode(), file)
    return found


def _unusable(configuration: dict[str, Any]) -> str:
    """Why a task of lm-eval is not measured, empty where it is."""
    if "class" in configuration:
        return "is a class in Python and no configuration, which bipline does not run"
    if configuration.get("unsafe_code"):
        return "runs code that the model writes, which bipline does not"
    if configuration.get("doc_to_image") or configuration.get("doc_to_audio"):
        return "asks of images or sounds"
    if configuration.get("output_type") == "loglikelihood_rolling":
        return "measures the perplexity of a text; give the text by --text"
    listed = [each.get("metric") for each in configuration.get("metric_list") or ()]
    if listed and accuracy_of(listed) is None:
        shown = ", ".join(map(str, listed))
        return f"lm-eval measures {shown} of it, none of {', '.join(ACCURACIES)}"
    return ""


def _on_rows(name: str, path: Path) -> dict[str, Any]:
    several, rows = read_task_rows(path)
    data = require("datasets", "eval").Dataset.from_list(rows)
    # The option is the context there, and what continues it is the same for all.
    begins = several == "options"
    return {
        "task": name,
        "custom_dataset": lambda **more: {"test": data},
        "test_split": "test",
        # The same split, so that no question is among its own examples.
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "target_delimiter": DELIMITER,
        # Functions, because lm-eval takes a text of digits that a template gives for a number.
        "doc_to_text": lambda row: row["gold" if begins else SHARED[several]],
        "doc_to_choice": lambda row: row[several],
        "doc_to_target": lambda row: row[SHARED[several] if begins else "gold"],
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in _metrics(name, begins)
        ],
        "metadata": official(name)["metadata"] if name in USUAL else {"version": 1.0},
    }


def _metrics(name: str, begins: bool) -> list[str]:
    """Those of lm-eval's task of this name; options that are begun with have no acc_norm."""
    if name in USUAL:
        return [each["metric"] for each in official(name)["metric_list"]]
    return ["acc"] if begins else ["acc", "acc_norm"]


def _on_data_set(name: str, path: Path, num_fewshot: int) -> dict[str, Any]:
    configuration, splits = official(name), read_data_set(path)
    split = measured_split(configuration)
    if set(splits) == {ONLY}:
        splits = {split: splits[ONLY]}
    if split not in splits:
        raise InvalidInput(f"{path}: no split {split!r}, which {name} measures; has {set(splits)}")
    _check_columns(name, path, splits[split])
    if num_fewshot and (examples := examples_split(configuration)) not in splits:
        reason = f"{num_fewshot} examples a question come from the split {examples!r}"
        raise InvalidInput(f"task {name}: {reason}; {path} has {', '.join(splits)} alone")
    absent = {key: None for key in SPLITS if configuration.get(key) not in splits}
    shots = {**(configuration.get("fewshot_config") or {})}
    if shots.get("split") not in splits:
        shots.pop("split", None)
    own = {"custom_dataset": lambda **more: splits, "dataset_kwargs": None}
    return {**configuration, **absent, **own, "fewshot_config": shots or None}


def _check_columns(name: str, path: Path, data: Any) -> None:
    """Raise InvalidInput with the first row of a usual task that lacks what a prompt is made of.

    A template would write the word None there, and no answer is none of the choices.
    """
    _, needed = USUAL.get(name, ("", ()))
    if missing := [column for column in needed if column not in data.column_names]:
        has = ", ".join(data.column_names)
        raise InvalidInput(f"{path}: lacks {', '.join(missing)} of {name}'s columns; has {has}")
    for column in needed:
        for number, value in enumerate(data[column]):
            if value is None or not str(value).strip():
                raise InvalidInput(f"{path}: row {number} has no {column}")
