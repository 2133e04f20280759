"""The gate, case by case: what it says of each, and that nothing but a whole answer passes."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from bipline.delivery.evidence import Evidence, Measured, Signature
from bipline.values.verdict import Override, Verdict
from tests import gated
from tests.gated import MACHINE, NOW, asked, check, documents, edited, evidence, rows, verdict

PERPLEXITY = {"figure": "perplexity.prose", "against": "dense", "worse_at_most": 0.1}
ACCURACY = {"figure": "acc.cloze", "against": "dense", "worse_at_most": 0.05}
CHAMPION = {"figure": "perplexity.prose", "against": "champion", "worse_at_most": 0.1}
SPEED = {"figure": "decode_tokens_per_second", "against": "dense", "better_at_least": 0.1}
SMALL = {"figure": "parameters", "at_most": 800}
GOOD = evidence(documents())


def without(*path: str) -> Evidence:
    """The good package without one field of its documents."""

    def drop(changed: dict[str, Any]) -> None:
        *above, last = path
        for name in above:
            changed = changed[name]
        del changed[last]

    return evidence(edited(documents(), drop))


def with_figure(model: str, **values: float) -> Evidence:
    """The good package with fields of a model's perplexity replaced, behind any file's reader."""
    models = dict(GOOD.models)
    old = models[model].record
    prose = old.perplexity["prose"].model_copy(update=values)
    record = old.model_copy(update={"perplexity": {"prose": prose}})
    models[model] = Measured(record, models[model].items)
    return Evidence(**{**vars(GOOD), "models": models})


def with_parameters(count: int) -> Evidence:
    record = GOOD.models["packaged"].record.model_copy(update={"parameters": count})
    models = {**GOOD.models, "packaged": Measured(record)}
    return Evidence(**{**vars(GOOD), "models": models})


def of_machine(model: str, **changes: Any) -> Evidence:
    def edit(changed: dict[str, Any]) -> None:
        changed["evaluation.json"]["records"][model]["environment"] = {**MACHINE, **changes}

    return evidence(edited(documents(), edit))


RECORDS = ("evaluation.json", "records")
ITEMS = ("items.json",)
Case = tuple[dict[str, Any], Evidence, str, str]
# What is asked, of which package, the check that answers, and its answer.
CASES: dict[str, Case] = {
    "small enough": (SMALL, GOOD, "parameters", "pass"),
    "not small enough": ({**SMALL, "at_most": 699}, GOOD, "parameters", "fail"),
    "as small as asked": ({**SMALL, "at_most": 700}, GOOD, "parameters", "pass"),
    "a share of dense": (
        {"figure": "parameters_ratio", "at_most": 0.7}, GOOD, "parameters_ratio", "pass",
    ),
    "no parameters": (SMALL, with_parameters(0), "parameters", "cannot tell"),
    "wrong sign of a count": (SMALL, with_parameters(-5), "parameters", "cannot tell"),
    "smaller than dense by enough": (
        {"figure": "parameters", "against": "dense", "better_at_least": 0.3}, GOOD,
        "parameters against dense", "pass",
    ),
    "smaller than dense by too little": (
        {"figure": "parameters", "against": "dense", "better_at_least": 0.31}, GOOD,
        "parameters against dense", "fail",
    ),
    "perplexity alone": (
        {"figure": "perplexity.prose", "at_most": 8.0}, GOOD, "perplexity.prose", "pass",
    ),
    "accuracy alone, too low": (
        {"figure": "acc.cloze", "at_least": 0.8}, GOOD, "acc.cloze", "fail",
    ),
    "within the interval": (PERPLEXITY, GOOD, "perplexity.prose against dense", "pass"),
    "the mean over the limit": (
        PERPLEXITY, evidence(documents(gated.windows(2.2, 0.2))), "perplexity.prose against dense",
        "fail",
    ),
    "the interval over the limit": (
        PERPLEXITY, evidence(documents(gated.windows(2.05, 0.5))), "perplexity.prose against dense",
        "fail",
    ),
    "the same by its value": (
        {**PERPLEXITY, "judged_by": "value"}, evidence(documents(gated.windows(2.05, 0.5))),
        "perplexity.prose against dense", "pass",
    ),
    "an increase is a loss against dense": (
        {"figure": "perplexity_increase.prose", "at_most": 0.1},
        evidence(documents(gated.windows(2.05, 0.5))), "perplexity.prose against dense", "fail",
    ),
    "nats against dense": (
        {"figure": "nll.prose", "against": "dense", "worse_at_most": 0.06}, GOOD,
        "nll.prose against dense", "pass",
    ),
    "no metric": (PERPLEXITY, without(*RECORDS, "pruned", "perplexity", "prose"),
                  "perplexity.prose against dense", "cannot tell"),
    "no metric of dense": (PERPLEXITY, without(*RECORDS, "dense", "perplexity", "prose"),
                           "perplexity.prose against dense", "cannot tell"),
    "no text at all": (PERPLEXITY, without(*RECORDS, "pruned", "perplexity"),
                       "perplexity.prose against dense", "cannot tell"),
    "every text, one not measured": (
        {**PERPLEXITY, "figure": "perplexity.*"}, without(*RECORDS, "pruned", "perplexity"),
        "perplexity.prose against dense", "cannot tell",
    ),
    "a text nobody knows": (
        {**PERPLEXITY, "figure": "perplexity.other"}, GOOD, "perplexity.other against dense",
        "cannot tell",
    ),
    "a figure that records have not": (
        {"figure": "seconds", "at_most": 9.0}, GOOD, "seconds", "cannot tell",
    ),
    "NaN": (PERPLEXITY, with_figure("packaged", value=math.nan),
            "perplexity.prose against dense", "cannot tell"),
    "NaN alone": ({"figure": "perplexity.prose", "at_most": 8.0},
                  with_figure("packaged", value=math.nan), "perplexity.prose", "cannot tell"),
    "infinite": (PERPLEXITY, with_figure("packaged", value=math.inf),
                 "perplexity.prose against dense", "cannot tell"),
    "minus infinity": (PERPLEXITY, with_figure("packaged", value=-math.inf),
                       "perplexity.prose against dense", "cannot tell"),
    "NaN of dense": (PERPLEXITY, with_figure("dense", value=math.nan),
                     "perplexity.prose against dense", "cannot tell"),
    "a perplexity below one": (PERPLEXITY, with_figure("packaged", value=0.5),
                               "perplexity.prose against dense", "cannot tell"),
    "wrong sign of a perplexity": (PERPLEXITY, with_figure("packaged", value=-7.0),
                                   "perplexity.prose against dense", "cannot tell"),
    "wrong sign of nats": (
        {"figure": "nll.prose", "at_most": 3.0}, with_figure("packaged", nll=-2.0), "nll.prose",
        "cannot tell",
    ),
    "no items": (PERPLEXITY, without("items.json"), "perplexity.prose against dense",
                 "cannot tell"),
    "no items of dense": (PERPLEXITY, without(*ITEMS, "dense"), "perplexity.prose against dense",
                          "cannot tell"),
    "items of another record": (
        PERPLEXITY, evidence(edited(documents(), lambda d: d["items.json"]["pruned"]
                                    .update(windows={"prose": [1.0] * 20}))),
        "perplexity.prose against dense", "cannot tell",
    ),
    "items that do not pair": (
        PERPLEXITY, evidence(documents(gated.windows(2.05, 0.2, 18))),
        "perplexity.prose against dense", "cannot tell",
    ),
    "one window": (
        PERPLEXITY, evidence(documents((2.05,), dense=(2.0,))),
        "perplexity.prose against dense", "cannot tell",
    ),
    "accuracy as good": (ACCURACY, GOOD, "acc.cloze against dense", "pass"),
    "accuracy, the interval over the limit": (
        ACCURACY, evidence(documents(right=29)), "acc.cloze against dense", "fail",
    ),
    "accuracy, by its value": (
        {**ACCURACY, "judged_by": "value"}, evidence(documents(right=29)),
        "acc.cloze against dense", "pass",
    ),
    "accuracy, rows of another task": (
        ACCURACY, evidence(edited(documents(), lambda d: d["items.json"]["pruned"]
                                  ["tasks"]["cloze"][0].update(row=77))),
        "acc.cloze against dense", "cannot tell",
    ),
    "normalised accuracy without its choices": (
        {**ACCURACY, "figure": "acc_norm.cloze"},
        evidence(edited(documents(), lambda d: d["items.json"]["pruned"]
                        ["tasks"]["cloze"][0].pop("choice_norm"))),
        "acc_norm.cloze against dense", "cannot tell",
    ),
    "another harness": (ACCURACY, of_machine("dense", lm_eval="0.4.2"), "acc.cloze against dense",
                        "cannot tell"),
    "no harness named": (ACCURACY, of_machine("dense", lm_eval=None), "acc.cloze against dense",
                         "cannot tell"),
    "another protocol": (
        PERPLEXITY, evidence(gated.reprotocolled(documents(), "dense", seqlen=32)),
        "perplexity.prose against dense", "cannot tell",
    ),
    "another protocol, of a package": (
        PERPLEXITY, evidence(gated.reprotocolled(documents(), "dense", seqlen=32)), "protocol",
        "cannot tell",
    ),
    "a protocol under another's digest": (
        PERPLEXITY, evidence(edited(documents(), lambda d: d["evaluation.json"]["records"]
                                    ["pruned"]["protocol"].update(seqlen=32))),
        "perplexity.prose against dense", "cannot tell",
    ),
    "faster": (SPEED, GOOD, "decode_tokens_per_second against dense", "pass"),
    "faster by its best alone": (
        {**SPEED, "better_at_least": 0.19}, GOOD, "decode_tokens_per_second against dense", "fail",
    ),
    "not faster": (SPEED, evidence(documents(speed=100.0)),
                   "decode_tokens_per_second against dense", "fail"),
    "no speed": (SPEED, without(*RECORDS, "pruned", "speed"),
                 "decode_tokens_per_second against dense", "cannot tell"),
    "speed of another machine": (SPEED, of_machine("dense", processor="two"),
                                 "decode_tokens_per_second against dense", "cannot tell"),
    "a record about other tensors": (
        SMALL, evidence(edited(documents(), lambda d: d["manifest"].update(tensor_digest="x"))),
        "package", "cannot tell",
    ),
    "a dense model that was not resolved": (
        SMALL, evidence(edited(documents(), lambda d: d["resolution.json"]["model"]
                               .update(tensor_digest="y" * 64))),
        "package", "cannot tell",
    ),
    "no resolution": (SMALL, without("resolution.json"), "package", "cannot tell"),
    "no evaluation": (SMALL, without("evaluation.json"), "parameters", "cannot tell"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_limit_says(case: str) -> None:
    limit, package, name, answer = CASES[case]
    found = verdict(asked(limit), package)
    assert check(found, name).answer == answer, check(found, name)
    assert found.passed == (answer == "pass")
    assert Verdict.model_validate_json(found.to_json()) == found


CHAMPIONS: dict[str, tuple[dict[str, Any], Evidence | None, str | None, str]] = {
    "as good": ({}, GOOD, "1", "pass"),
    "much better": ({}, evidence(documents(gated.windows(1.8, 0.2))), "1", "fail"),
    "no champion": ({}, None, None, "cannot tell"),
    "no champion, and a first one may be": ({"first_champion": True}, None, None, "pass"),
    "without metrics": ({}, None, "1", "cannot tell"),
    "without metrics is no first one": ({"first_champion": True}, None, "1", "cannot tell"),
    "without its record": ({}, without(*RECORDS, "pruned"), "1", "cannot tell"),
    "without this metric": (
        {}, without(*RECORDS, "pruned", "perplexity", "prose"), "1", "cannot tell",
    ),
    "without items": ({}, without("items.json"), "1", "cannot tell"),
    "of records that are not its own": (
        {}, evidence(edited(documents(), lambda d: d["manifest"].update(tensor_digest="x"))), "1",
        "cannot tell",
    ),
    "of another protocol": (
        {}, evidence(gated.reprotocolled(documents(), "dense", "pruned", bos="text")), "1",
        "cannot tell",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHAMPIONS)
def test_what_it_says_beside_a_champion(case: str) -> None:
    more, champion, incumbent, answer = CHAMPIONS[case]
    found = verdict(asked(CHAMPION, **more), GOOD, champion, incumbent)
    assert check(found, "perplexity.prose against champion").answer == answer
    assert found.passed == (answer == "pass")
    assert (found.champion is None) == (incumbent is None)


DAYS = timedelta(days=31)
REQUIRED: dict[str, tuple[dict[str, Any], Evidence, str, str]] = {
    "the format is there": ({"formats": ["hf"]}, GOOD, "formats", "pass"),
    "a format is not": ({"formats": ["hf", "gguf"]}, GOOD, "formats", "fail"),
    "formats are not told": ({"formats": ["hf"]}, without("manifest", "formats"), "formats",
                             "cannot tell"),
    "signed": ({"signature": True}, GOOD, "signature", "pass"),
    "unsigned": ({"signature": True}, evidence(documents(), signature=None), "signature",
                 "cannot tell"),
    "a signature that does not hold": (
        {"signature": True}, evidence(documents(), signature=Signature(holds=False, key="team")),
        "signature", "fail",
    ),
    "the licence will do": ({"licences": ["Apache-2.0"]}, GOOD, "licence", "pass"),
    "another licence": ({"licences": ["mit"]}, GOOD, "licence", "fail"),
    "no licence": ({"licences": ["mit"]}, without("resolution.json", "model", "licence"),
                   "licence", "cannot tell"),
    "fresh": ({"evaluation_days": 30.0}, GOOD, "evaluation age", "pass"),
    "expired": ({"evaluation_days": 30.0}, evidence(documents(), evaluated_at=NOW - DAYS),
                "evaluation age", "fail"),
    "of no known time": ({"evaluation_days": 30.0}, evidence(documents(), evaluated_at=None),
                         "evaluation age", "cannot tell"),
    "of the future": ({"evaluation_days": 30.0}, evidence(documents(), evaluated_at=NOW + DAYS),
                      "evaluation age", "cannot tell"),
    "the protocol by name": ({"protocol": "house"}, GOOD, "protocol asked", "pass"),
    "the protocol by digest": (
        {"protocol": GOOD.models["dense"].record.protocol_digest}, GOOD, "protocol asked", "pass",
    ),
    "not the protocol": ({"protocol": "published"}, GOOD, "protocol asked", "fail"),
    "a protocol of no name": (
        {"protocol": "house"},
        evidence(gated.reprotocolled(documents(), "dense", "pruned", name=None)),
        "protocol asked", "fail",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUIRED)
def test_what_a_requirement_says(case: str) -> None:
    requirements, package, name, answer = REQUIRED[case]
    found = verdict(asked(SMALL, requirements=requirements), package)
    assert check(found, name).answer == answer
    assert found.passed == (answer == "pass")


def test_a_table_of_this_many_cases() -> None:
    assert len(CASES) + len(CHAMPIONS) + len(REQUIRED) >= 40


def test_an_override_opens_and_changes_no_answer() -> None:
    override = Override(reason="a demonstration, for an hour", by="Ada")
    gate = asked({**SMALL, "at_most": 1})
    refused, opened = verdict(gate, GOOD), verdict(gate, GOOD, override=override)
    assert not refused.opens and opened.opens
    assert not opened.passed and opened.checks == refused.checks
    assert opened.digest != refused.digest


@pytest.mark.parametrize("field", ["reason", "by"])
@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 1001])
def test_an_override_needs_a_reason_and_a_name(field: str, text: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Override.model_validate({"reason": "because", "by": "Ada", field: text})


def test_an_edited_verdict_is_none() -> None:
    value = verdict(asked({**SMALL, "at_most": 1}), GOOD).model_dump(mode="json")
    with pytest.raises(ValidationError, match="does not follow"):
        Verdict.model_validate({**value, "passed": True})
    with pytest.raises(ValidationError):
        Verdict.model_validate({**value, "passed": True, "checks": []})


def test_rows_differ_where_they_should() -> None:
    """The stand-ins: as many right answers on other rows are another difference of pairs."""
    assert sum(row.is_right for row in rows(30)) == sum(row.is_right for row in rows(30, first=5))
    assert rows(30) != rows(30, first=5)
