"""The gate fails closed: no field that is taken away turns a refusal into a pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.settings.gate import GateSettings
from tests.gated import NOW, Documents, asked, documents, evidence, verdict, windows

LIMITS: tuple[dict[str, Any], ...] = (
    {"figure": "perplexity.*", "against": "dense", "worse_at_most": 0.15},
    {"figure": "acc.*", "against": "dense", "worse_at_most": 0.1},
    {"figure": "acc_norm.*", "against": "dense", "worse_at_most": 0.1},
    {"figure": "perplexity.*", "against": "champion", "worse_at_most": 0.02},
    {"figure": "parameters_ratio", "at_most": 0.9},
    {"figure": "perplexity_increase.prose", "at_most": 0.15},
    {"figure": "decode_tokens_per_second", "against": "dense", "better_at_least": 0.05},
)
REQUIRED = {
    "formats": ["hf"], "licences": ["apache-2.0"], "evaluation_days": 30.0, "protocol": "house",
    "signature": True,
}  # fmt: skip
GATE = asked(*LIMITS, requirements=REQUIRED, first_champion=True)
FEW = windows(2.05, 0.01, 3)
DENSE = windows(2.0, 0.01, 3)


def made(**changes: Any) -> Documents:
    """A small package that the gate passes, unless changed."""
    few = documents(**{"nats": FEW, "dense": DENSE, **changes})
    for items in few["items.json"].values():
        answers = items["tasks"]["cloze"]
        # Three rows a model are enough: right where the first of the forty were.
        items["tasks"]["cloze"] = [answers[0], answers[1], answers[-1]]
    for model, record in few["evaluation.json"]["records"].items():
        rows = few["items.json"][model]["tasks"]["cloze"]
        share = sum(row["choice"] == row["gold"] for row in rows) / len(rows)
        record["tasks"]["cloze"].update(acc=share, acc_norm=share, n=len(rows))
    return few


def stricter(**changes: Any) -> GateSettings:
    return asked(*LIMITS, requirements={**REQUIRED, **changes})


Refusal = tuple[Documents, Documents, GateSettings, dict[str, Any]]
# Why it is refused: the package, the champion, the gate, and what else is known.
REFUSED: dict[str, Refusal] = {
    "perplexity": (made(nats=windows(2.2, 0.01, 3)), made(nats=windows(2.3, 0.01, 3)), GATE, {}),
    "interval": (made(nats=(2.0, 2.05, 2.3)), made(nats=(2.0, 2.05, 2.3)), GATE, {}),
    "accuracy": (made(right=1), made(), GATE, {}),
    "champion": (made(), made(nats=windows(1.9, 0.01, 3)), GATE, {}),
    "parameters": (made(parameters=950), made(), GATE, {}),
    "speed": (made(speed=100.0), made(), GATE, {}),
    "formats": (made(), made(), stricter(formats=["hf", "gguf"]), {}),
    "licence": (made(), made(), stricter(licences=["mit"]), {}),
    "protocol": (made(), made(), stricter(protocol="published"), {}),
    "age": (made(), made(), GATE, {"evaluated_at": NOW - timedelta(days=99)}),
    "unsigned": (made(), made(), GATE, {"signature": None}),
}


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every field and every part of a list lies."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in parts:
        yield (*above, name)
        if isinstance(part, (dict, list)):
            yield from paths(part, (*above, name))


def less(given_: Documents, path: tuple[Any, ...]) -> Documents:
    """Documents without the field at a path."""
    changed: Any = copy.deepcopy(given_)
    part = changed
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return changed  # type: ignore[no-any-return]


def passes(refusal: Refusal, package: Documents, champion: Documents | None) -> bool:
    beside = evidence(champion) if champion else None
    return verdict(refusal[2], evidence(package, **refusal[3]), beside).passed


def test_the_package_itself_passes() -> None:
    found = verdict(GATE, evidence(made()), evidence(made()))
    assert found.passed, found.refusals


@pytest.mark.parametrize("case", REFUSED)
def test_no_field_that_is_missing_lets_it_through(case: str) -> None:
    refusal = REFUSED[case]
    package, champion = refusal[:2]
    assert not passes(refusal, package, champion)
    assert not passes(refusal, package, None)
    for path in paths(package):
        assert not passes(refusal, less(package, path), champion), path
    for path in paths(champion):
        assert not passes(refusal, package, less(champion, path)), path


# What limits and requirements of the gate above are about, wherever it stands.
NEEDED = {
    "acc", "acc_norm", "choice", "choice_norm", "cloze", "decode_median_tokens_per_second",
    "decode_tokens_per_second", "digest", "formats", "gold", "licence", "lm_eval", "name",
    "nll", "packaged", "parameters", "perplexity", "processor", "prose", "protocol", "records",
    "row", "speed", "tensor_digest", "threads", "value",
}  # fmt: skip


def test_what_a_gate_reads_is_needed() -> None:
    package, champion = made(), evidence(made())
    unread = [
        path for path in paths(package)
        if verdict(GATE, evidence(less(package, path)), champion).passed
    ]  # fmt: skip
    assert unread
    assert not {path[-1] for path in unread} & NEEDED


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 5), min_size=3, max_size=3), st.floats(0, 5), st.integers(0, 40),
    st.floats(1, 300), st.integers(1, 2000), st.data(),
)  # fmt: skip
def test_random_figures(
    nats: list[float], dense: float, right: int, speed: float, parameters: int, data: st.DataObject
) -> None:
    package = made(
        nats=tuple(nats), dense=windows(dense, 0.0, 3), right=right, speed=speed,
        parameters=parameters,
    )  # fmt: skip
    champion = made()
    path = data.draw(st.sampled_from(sorted(paths(package), key=str)))
    of_champion = data.draw(st.sampled_from(sorted(paths(champion), key=str)))
    refusal = (package, champion, GATE, {})
    if not passes(refusal, package, champion):
        assert not passes(refusal, less(package, path), champion)
        assert not passes(refusal, package, less(champion, of_champion))
