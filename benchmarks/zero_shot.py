"""The seven tasks on all of their rows: bipline beside lm-eval itself, row by row.

``python -m benchmarks.zero_shot MODEL... --rows FOLDER`` measures each model as
``bipline evaluate --tasks`` does, and then by lm-eval alone: its own task configurations on the
rows put back into the columns of the published data sets, its own model class, its own loop. Every
accuracy and every choice must be the same, every log-likelihood within 1e-4. ``--streamed`` runs
bipline's part through the block loop. ``--twice STORE`` runs the stage of ``bipline compress``
instead, and again, which must find the record there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.zero_shot import Measured, model_questions, zero_shot
from bipline.quality.zero_shot_tasks import USUAL, official
from bipline.settings.compress import CompressSettings
from bipline.settings.protocol import Protocol
from bipline.stages.evaluate import evaluate_dense
from bipline.stages.resolve import resolve
from bipline.stages.stage import Context
from bipline.storage.local_store import LocalStore
from bipline.storage.task_rows import read_task_rows

NEAR = 1e-4
ENDS = "\nAnswer:"


def published(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row in the columns that the official template reads.

    They are those of the published data set but for hellaswag, whose rows went through a function
    of lm-eval that changes some of them again where it meets them twice.
    """
    gold = row["gold"]
    if name == "winogrande":
        one, two = row["options"]
        sentence = f"_ {row['continuation']}"
        return {"sentence": sentence, "option1": one, "option2": two, "answer": str(gold + 1)}
    query, choices = row["query"], row["choices"]
    if name == "boolq":
        passage, _, question = query.removesuffix(f"?{ENDS}").rpartition("\nQuestion: ")
        return {"passage": passage, "question": question, "label": gold}
    if name == "hellaswag":
        return {"query": query, "choices": choices, "label": str(gold)}
    stem = query.removesuffix(ENDS).removeprefix("Question: ")
    if name == "piqa":
        return {"goal": stem, "sol1": choices[0], "sol2": choices[1], "label": gold}
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    listed = {"choices": {"text": choices, "label": letters}, "answerKey": letters[gold]}
    return {"question_stem" if name == "openbookqa" else "question": stem, **listed}


def by_lm_eval(
    model: Any, tokenizer: Any, rows: Mapping[str, list[dict[str, Any]]], batch_size: int
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """lm-eval's own metrics and samples by task, on rows in published columns."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size,
        max_length=model.config.max_position_embeddings, device=str(model.device),
    )  # fmt: skip
    found: Any = lm_eval.simple_evaluate(
        model=harness, tasks=[configuration_of(name, some) for name, some in rows.items()],
        task_manager=TaskManager(include_defaults=False), num_fewshot=0, bootstrap_iters=0,
    )  # fmt: skip
    return {
        name: (found["results"][name], sorted(samples, key=lambda sample: int(sample["doc_id"])))
        for name, samples in found["samples"].items()
    }


def configuration_of(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """lm-eval's configuration of a task on rows in memory, whichever split it asks for."""
    from datasets import Dataset

    data = Dataset.from_list(rows)
    splits = dict.fromkeys(("train", "validation", "test"), data)
    own = {"custom_dataset": lambda **_: splits}
    return {**official(name), **own, **({"process_docs": None} if name == "hellaswag" else {})}


def compared(measured: Measured, metrics: dict[str, Any], samples: list[dict[str, Any]]) -> float:
    """The largest distance of two log-likelihoods. Raises SystemExit where a choice differs."""
    result, items = measured
    accuracies = [metrics["acc,none"], metrics.get("acc_norm,none")]
    if accuracies != [result.acc, result.acc_norm] or len(items) != len(samples):
        raise SystemExit(f"lm-eval has {accuracies} of {len(samples)} rows, bipline {result}")
    farthest = 0.0
    for item, sample in zip(items, samples, strict=True):
        theirs = [answer[0] for answer in sample["filtered_resps"]]
        if max(range(len(theirs)), key=theirs.__getitem__) != item.choice:
            raise SystemExit(f"row {item.row}: lm-eval chooses otherwise: {theirs}, {item}")
        norm = float(item.is_right_norm)
        if item.is_right != bool(sample["acc"]) or norm != sample.get("acc_norm", norm):
            raise SystemExit(f"row {item.row}: right for one alone: {sample['acc']}, {item}")
        pairs = zip(theirs, item.loglikelihoods, strict=True)
        farthest = max(farthest, *(abs(one - other) for one, other in pairs))
    return farthest


def measure(
    directory: Path, folder: Path, names: list[str], protocol: Protocol, streamed: bool
) -> list[dict[str, Any]]:
    """Every task by both, with seconds; refuses to go on where they differ."""
    checkpoint, tokenizer = open_checkpoint(directory), load_tokenizer(directory)
    model = load_model(checkpoint, torch.float32)
    runner = BlockLoop(checkpoint) if streamed else model
    table = []
    for name in names:
        place, start = folder / f"{name}.jsonl", time.perf_counter()
        questions = model_questions(checkpoint, tokenizer, {name: place}, protocol)
        asked = time.perf_counter()
        found = zero_shot(runner, tokenizer, questions, protocol.batch_size)[name]
        ours = time.perf_counter()
        rows = read_task_rows(place)[1]
        columns = [published(name, rows[item.row]) for item in found[1]]
        theirs = by_lm_eval(model, tokenizer, {name: columns}, protocol.batch_size)[name]
        line = {"model": directory.name, "task": name, **found[0].model_dump()}
        line |= {"seconds_asked": asked - start, "seconds": ours - asked}
        line |= {"seconds_lm_eval": time.perf_counter() - ours, "far": compared(found, *theirs)}
        print(json.dumps(line), flush=True)
        if line["far"] > NEAR:
            raise SystemExit(f"{name}: log-likelihoods differ by {line['far']}")
        table.append(line)
    return table


def twice(directory: Path, folder: Path, names: list[str], protocol: Protocol, store: Path) -> str:
    """The seconds of the evaluation's stage, and of the same stage run again."""
    values = {
        "model": str(directory), "tasks": {name: str(folder / f"{name}.jsonl") for name in names},
        "calibrate": {"texts": {}}, "evaluate": {"texts": (), "tasks": tuple(names)},
    }  # fmt: skip
    settings = CompressSettings.model_validate(values)
    context = Context(LocalStore(store), settings.compute, settings.seed)
    found, seconds = [], []
    for _ in range(2):
        start = time.perf_counter()
        given = resolve(settings, store / "downloads")
        found.append(evaluate_dense(context, given, protocol))
        seconds.append(time.perf_counter() - start)
    if found[0] != found[1]:
        raise SystemExit(f"{directory}: the second run tells other figures")
    return f"{directory.name}: {seconds[0]:.1f} s, again {seconds[1]:.2f} s"


def main() -> None:
    """Measure the models that are named, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="folder of NAME.jsonl")
    parser.add_argument("--tasks", default=",".join(USUAL))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--streamed", action="store_true")
    parser.add_argument("--twice", type=Path, metavar="STORE")
    given = parser.parse_args()
    # Every row that fits is compared, however many do not.
    protocol = Protocol(limit=given.limit, max_excluded=1.0)
    names = given.tasks.split(",")
    for directory in given.models:
        if given.twice:
            print(twice(directory, given.rows, names, protocol, given.twice))
            continue
        start = time.perf_counter()
        for line in measure(directory, given.rows, names, protocol, given.streamed):
            norm = "" if line["acc_norm"] is None else f"{line['acc_norm']:.4f}"
            seconds = (
                f"{line['seconds_asked'] + line['seconds']:.0f} | {line['seconds_lm_eval']:.0f}"
            )
            counts = f"{line['n']:,} | {line['excluded']:,} | {line['acc']:.4f} | {norm}"
            row = f"| {line['model']} | {line['task']} | {counts} | {seconds} | {line['far']:.1e} |"
            print(row, file=sys.stderr)
        print(f"{directory.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
