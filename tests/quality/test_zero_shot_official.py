"""The usual tasks: rows are what lm-eval's own templates make, answers what its own loop finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.zero_shot import by_lm_eval, compared, configuration_of, published
from bipline.base.errors import InvalidInput
from bipline.model.loading import load_model
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.zero_shot import check_tasks
from bipline.quality.zero_shot_data import write_data_set
from bipline.quality.zero_shot_questions import right_answers
from bipline.quality.zero_shot_tasks import USUAL, configuration_file, task_of
from bipline.storage.task_rows import read_task_rows, task_place
from tests.quality.asking import measured, questions_of, written

FOUR = ["the sky", "a lamp", "ash", "rain"]
ANSWERS = {"text": FOUR, "label": ["A", "B", "C", "D"]}
# An invented row of each task as its authors publish it, and the row it is: both by hand.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "boolq": (
        {"passage": "Tea is a drink.", "question": "is tea a drink", "idx": 0, "label": 1},
        {
            "query": "Tea is a drink.\nQuestion: is tea a drink?\nAnswer:",
            "choices": ["no", "yes"],
            "gold": 1,
        },
    ),
    "piqa": (
        {"goal": "Dry a cup.", "sol1": "Use a cloth.", "sol2": "Use a lake.", "label": 0},
        {
            "query": "Question: Dry a cup.\nAnswer:",
            "choices": ["Use a cloth.", "Use a lake."],
            "gold": 0,
        },
    ),
    "hellaswag": (
        {
            "ind": 3, "activity_label": "Rowing", "ctx_a": "A man [title] rows.", "ctx_b": "he",
            "ctx": "unused", "endings": ["sings  on.", "[step] stops.", "swims.", "sleeps."],
            "source_id": "x", "split": "val", "split_type": "indomain", "label": "2",
        },
        {
            "query": "Rowing: A man.  rows. He".replace("  ", " "),
            "choices": ["sings on.", " stops.", "swims.", "sleeps."],
            "gold": 2,
        },
    ),
    "winogrande": (
        {"sentence": "Anna met Berta as _ was late.", "option1": "Anna", "option2": "Berta",
         "answer": "2"},
        {
            "options": ["Anna met Berta as Anna", "Anna met Berta as Berta"],
            "continuation": "was late.",
            "gold": 1,
        },
    ),
    "arc_easy": (
        {"id": "1", "question": "What is blue?", "choices": ANSWERS, "answerKey": "A"},
        {"query": "Question: What is blue?\nAnswer:", "choices": FOUR, "gold": 0},
    ),
    "arc_challenge": (
        {"id": "2", "question": "What is wet?", "answerKey": "4",
         "choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}},
        {"query": "Question: What is wet?\nAnswer:", "choices": FOUR, "gold": 3},
    ),
    "openbookqa": (
        {"id": "3", "question_stem": "Fire leaves", "choices": ANSWERS, "answerKey": "C"},
        {"query": "Fire leaves", "choices": FOUR, "gold": 2},
    ),
}  # fmt: skip


def asked(task: Any, document: Any = None) -> tuple[list[Any], list[int], list[str]]:
    """What is asked of a task's row (its first), the right answers, by what it is measured."""
    document = document or task.eval_docs[0]
    context = task.fewshot_context(document, num_fewshot=0, gen_prefix=None)
    requests = task.construct_requests(doc=document, ctx=context, metadata=("", 0, 1))
    right = right_answers(task, document, task.doc_to_choice(document))
    return [request.args for request in requests], right, list(task.aggregation())


@pytest.mark.parametrize("name", USUAL)
def test_rows_ask_what_the_official_template_asks(name: str, tmp_path: Path) -> None:
    official, row = ROWS[name]
    ours = task_of(name, written(tmp_path / "rows.jsonl", [row, row]))
    theirs = task_of(name, written(tmp_path / "official.jsonl", [official]))
    assert asked(ours) == asked(theirs)
    assert ours.VERSION == theirs.VERSION
    assert ("acc_norm" in theirs.aggregation()) == (name not in ("boolq", "winogrande"))


def test_usual_tasks_lie_where_lm_eval_keeps_them() -> None:
    for name in USUAL:
        file = configuration_file(name)
        assert file is not None and f"task: {name}\n" in file.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", USUAL)
def test_all_rows_ask_what_the_official_template_asks(data: Path, name: str) -> None:
    from lm_eval.api.task import ConfigurableTask

    place = data / "tasks" / f"{name}.jsonl"
    columns = [published(name, row) for row in read_task_rows(place)[1]]
    ours = task_of(name, place)
    theirs = ConfigurableTask(config=configuration_of(name, columns))
    pairs = zip(ours.doc_iterator(), theirs.doc_iterator(), strict=True)
    for (row, one), (_, other) in pairs:
        assert asked(ours, one) == asked(theirs, other), row


def by_lm_eval_alone(model: Path, tasks: dict[str, Path], rows: dict[str, list[int]]) -> Any:
    """lm-eval's answers to some rows of each task, in the columns of the published data sets."""
    columns = {}
    for name, path in tasks.items():
        held = read_task_rows(path)[1]
        columns[name] = [published(name, held[row]) for row in rows[name]]
    return by_lm_eval(load_model(model, torch.float32), load_tokenizer(model), columns, 16)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("stories260K", 8),
        pytest.param("stories260K", 40, marks=pytest.mark.slow),
        pytest.param("reference-llm", 40, marks=pytest.mark.slow),
    ],
)
def test_the_first_rows_of_the_seven_tasks_are_answered_as_lm_eval_answers_them(
    data: Path, name: str, count: int
) -> None:
    """In memory and block by block: accuracies, choices, and log-likelihoods to 1e-4."""
    model = data / "models" / name
    tasks = {task: data / "tasks" / f"{task}.jsonl" for task in USUAL}
    whole, streamed = (
        measured(model, tasks, by, max_excluded=0.3, limit=count) for by in (False, True)
    )
    rows = {task: [item.row for item in items] for task, (_, items) in whole.items()}
    alone = by_lm_eval_alone(model, tasks, rows)
    assert set(alone) == set(USUAL)
    for task, (metrics, samples) in alone.items():
        for found in (whole[task], streamed[task]):
            assert compared(found, metrics, samples) <= 1e-4
        result = whole[task][0]
        assert result.n + (result.excluded or 0) == count
        assert sorted([*(result.excluded_rows or ()), *rows[task]]) == list(range(count))


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", "splits", "saved", "saved split"])
def test_a_data_set_is_read_however_it_is_kept(kind: str, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    official, row = ROWS["arc_easy"]
    data, folder = Dataset.from_list([official]), tmp_path / "arc_easy"
    if kind == ".jsonl":
        written(tmp_path / "arc_easy.jsonl", [official])
    elif kind == ".parquet":
        data.to_parquet(tmp_path / "arc_easy.parquet")
    elif kind == "splits":
        folder.mkdir()
        data.to_parquet(folder / "test-00000-of-00001.parquet")
        written(folder / "train.jsonl", [official, official])
    else:
        (data if "split" in kind else DatasetDict(test=data, train=data)).save_to_disk(folder)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    task = task_of("arc_easy", task_place(tmp_path, "arc_easy"))
    rows = task_of("arc_easy", written(tmp_path / "rows.jsonl", [row]))
    assert asked(task) == asked(rows)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "read, no more"


def without(name: str, **changed: Any) -> dict[str, Any]:
    row = {**ROWS[name][0], **changed}
    return {key: value for key, value in row.items() if value != "gone"}


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "unlabelled": ("boolq", without("boolq", label=-1), "row 1: .*answer is none of its choices"),
    "beyond": ("piqa", without("piqa", label=2), "row 1: .*answer is none of its choices"),
    "no letter": ("arc_easy", without("arc_easy", answerKey="Z"), "row 1: "),
    "null": ("piqa", without("piqa", goal=None), "row 1 has no goal"),
    "blank label": ("hellaswag", without("hellaswag", label=""), "row 1 has no label"),
    "odd label": ("hellaswag", without("hellaswag", label="x"), "invalid literal"),
    "no blank": ("winogrande", without("winogrande", sentence="none"), "row 1: "),
    "other answer": ("winogrande", without("winogrande", answer="3"), "row 1: "),
    "absent": ("openbookqa", without("openbookqa", answerKey="gone"), "row 1 has no answerKey"),
    "another kind": ("piqa", without("piqa", label="one"), "several kinds"),
    "no object": ("piqa", [], "line 2 is a list"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_row_that_lm_eval_would_stumble_over_is_refused_in_one_line(
    case: str, reference: Path, tmp_path: Path
) -> None:
    name, row, said = WRONG[case]
    path = written(tmp_path / f"{name}.jsonl", [ROWS[name][0], row])
    with pytest.raises(InvalidInput, match=said) as refusal:
        questions_of(reference, {name: path})
    assert "\n" not in str(refusal.value)


def test_what_a_data_set_lacks_is_named(reference: Path, tmp_path: Path) -> None:
    odd = written(tmp_path / "piqa.jsonl", [{"goal": "a", "label": 0}])
    with pytest.raises(InvalidInput, match="lacks sol1, sol2 of piqa's columns"):
        check_tasks({"piqa": odd})
    write_data_set(tmp_path / "arc_easy", {"validation": [ROWS["arc_easy"][0]]})
    with pytest.raises(InvalidInput, match="no split 'test', which arc_easy measures"):
        check_tasks({"arc_easy": tmp_path / "arc_easy"})
    one = written(tmp_path / "boolq.jsonl", [ROWS["boolq"][0]])
    with pytest.raises(InvalidInput, match="2 examples a question come from the split 'train'"):
        questions_of(reference, {"boolq": one}, num_fewshot=2)


def test_examples_come_from_the_split_that_lm_eval_draws_from(
    reference: Path, tmp_path: Path
) -> None:
    train = [without("boolq", passage=f"Tea number {n}.") for n in range(3)]
    write_data_set(tmp_path / "boolq", {"train": train, "validation": [ROWS["boolq"][0]]})
    asked = questions_of(reference, {"boolq": tmp_path / "boolq"}, num_fewshot=2)["boolq"]
    [[request, _]] = asked.requests.values()
    assert request.args[0].count("Tea number") == 2
    assert request.args[0].endswith(ROWS["boolq"][1]["query"])
