"""What two records differ in: by hand on invented items, and by the first field of protocols."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bipline.base.errors import Refused
from bipline.settings.protocol import Protocol
from bipline.values.differences import check_comparable, paired_differences
from bipline.values.figures import figures_of, values
from bipline.values.items import EvaluationItems, TaskItem
from bipline.values.paired import paired_answers, paired_difference
from bipline.values.record import EvaluationRecord, Perplexity, TaskResult
from bipline.values.record_difference import RecordDifference
from bipline.values.side_by_side import side_by_side

PROTOCOL: dict[str, Any] = {
    "seqlen": 128, "bos": "none", "dtype": "float32", "texts": {"t": "aa"}, "tasks": {"q": "bb"},
}  # fmt: skip
DENSE, PRUNED = (3.0, 3.5, 2.5, 3.2), (3.1, 3.7, 2.6, 3.5)


def item(row: int, choice: int, norm: int | None = 0) -> TaskItem:
    return TaskItem(row=row, loglikelihoods=(-1.0, -2.0), gold=0, choice=choice, choice_norm=norm)


def record(windows: tuple[float, ...], items: tuple[TaskItem, ...] = ()) -> EvaluationRecord:
    nll = sum(windows) / len(windows)
    right = sum(each.is_right for each in items) / max(1, len(items))
    return EvaluationRecord(
        tensor_digest="d", parameters=1, file_bytes=1, protocol=PROTOCOL,
        environment={"lm_eval": "0.4.13"},
        perplexity={"t": Perplexity(value=math.exp(nll), nll=nll, tokens=508)},
        tasks={"q": TaskResult(acc=right, acc_norm=None, stderr=None, n=len(items))},
        items=EvaluationItems(windows={"t": windows}, tasks={"q": items}),
    )  # fmt: skip


def test_windows_are_paired() -> None:
    found = paired_differences(record(DENSE), record(PRUNED))
    assert found == {"nll.t": paired_difference(DENSE, PRUNED)}


def test_rows_that_only_one_could_be_asked_are_in_neither() -> None:
    before = record(DENSE, (item(0, 0), item(1, 0), item(2, 1)))
    after = record(PRUNED, (item(0, 1), item(2, 1)))
    found = paired_differences(before, after)
    assert found["acc.q"] == paired_answers([True, False], [False, False])
    assert found["acc_norm.q"].difference == 0
    assert "acc_norm.q" not in paired_differences(record(DENSE, (item(0, 0, None),)), after)


@pytest.mark.parametrize("other", [(1.0, 2.0), ()])
def test_other_windows_are_not_paired(other: tuple[float, ...]) -> None:
    assert not paired_differences(record(DENSE), record(PRUNED).model_copy(
        update={"items": EvaluationItems(windows={"t": other})}
    ))  # fmt: skip
    assert not paired_differences(record(DENSE), record(PRUNED).without_items())


def test_a_change_shows_its_interval_and_none_inside_it() -> None:
    def change(after: tuple[float, ...]) -> str:
        records = {"dense": record(DENSE), "pruned": record(after)}
        [line] = [each for each in side_by_side(records, "pruned") if each.name == "perplexity.t"]
        return line.change

    pair = paired_difference(DENSE, PRUNED)
    assert pair.low is not None and pair.high is not None
    ends = (f"{100 * math.expm1(end):+.1f} %" for end in (pair.low, pair.high))
    told = f"{100 * math.expm1(pair.difference):+.1f} % ({' to '.join(ends)})"
    assert change(PRUNED) == told
    assert change((3.1, 3.4, 2.4, 3.3)).startswith("no difference told (\N{MINUS SIGN}")


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("seqlen is 128 in one and 2048", {"seqlen": 2048}),
        ("bos is none in one and text", {"bos": "text"}),
        ("dtype is float32", {"dtype": "bfloat16"}),
        ("texts.t is aa in one and cc", {"texts": {"t": "cc"}}),
        ("texts.u is not told in one and aa", {"texts": {"t": "aa", "u": "aa"}}),
        ("tasks.q is bb in one and not told", {"tasks": {}}),
        ("limit is not told in one and 40", {"limit": 40}),
    ],
)
def test_other_protocols_do_not_compare(field: str, changed: dict[str, Any]) -> None:
    one = record(DENSE)
    other = one.model_copy(update={"protocol": {**PROTOCOL, **changed}})
    with pytest.raises(Refused, match=f"do not compare: {field}"):
        check_comparable(one, other)
    check_comparable(other, other)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"stride": 32}, "stride is 128 in one and 32 in the other"),
        ({"fewshot_seed": 7}, "fewshot_seed is 1234 in one and 7 in the other"),
    ],
)
def test_another_stride_or_seed_does_not_compare(changed: dict[str, int], told: str) -> None:
    """A default is in no protocol, so that older records compare; the record tells it."""
    older = record(DENSE)
    assert Protocol().described({}, {}) == Protocol(stride=None, fewshot_seed=1234).described(
        {}, {}
    )
    one = older.model_copy(update={"stride": 128, "seed": 1234})
    check_comparable(older, one)
    other = one.model_copy(update={"protocol": {**PROTOCOL, **changed}})
    with pytest.raises(Refused, match=told):
        check_comparable(one, other)


def test_another_lm_eval_does_not_compare_where_tasks_were_measured() -> None:
    one = record(DENSE, (item(0, 0),))
    other = one.model_copy(update={"environment": {"lm_eval": "0.4.12"}})
    with pytest.raises(Refused, match=r"lm_eval is 0\.4\.13 in one and 0\.4\.12"):
        check_comparable(one, other)
    bare = [each.model_copy(update={"tasks": {}}) for each in (one, other)]
    check_comparable(*bare)


def test_an_error_of_zero_is_told_and_nats_have_their_change() -> None:
    right = tuple(item(row, 0) for row in range(3))
    before, after = (
        record(windows, right).model_copy(
            update={"tasks": {"q": TaskResult(acc=1.0, acc_norm=None, stderr=0.0, n=3)}}
        )
        for windows in (DENSE, PRUNED)
    )
    figures = figures_of(before)
    assert figures["acc.q"].text == "100.0 % ± 0.0 %"
    assert values(figures)["acc.q.stderr"] == 0.0
    told = RecordDifference.of(before, after).figures["nll.t"]
    pair = paired_difference(DENSE, PRUNED)
    assert told.paired == pair
    assert told.change == f"{pair.difference:+.4f} ({pair.low:+.4f} to {pair.high:+.4f})"
    same = RecordDifference.of(before, before).figures["nll.t"]
    assert same.change == "no difference told (0.0000 to 0.0000)"
