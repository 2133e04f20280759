"""The model card: values only, honest names, front matter that parses, names that cannot escape."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from bipline.compression.criteria import CRITERIA
from bipline.compression.descriptions import criterion_description
from bipline.delivery.card import render_card
from bipline.delivery.contents import PackageContents
from bipline.values.record import TaskResult
from bipline.values.resolution import Resolution
from tests.delivery.conftest import altered, with_recovery
from tests.delivery.test_report import HOSTILE, hostile


def front_matter(card: str) -> dict[str, Any]:
    opening, matter, _ = card.split("---\n", 2)
    assert opening == ""
    values: dict[str, Any] = yaml.safe_load(matter)
    return values


def with_model(contents: PackageContents, **changes: Any) -> PackageContents:
    value = contents.resolution.model_dump(mode="json")
    value["model"] |= changes
    return altered(contents, resolution=Resolution.model_validate(value))


def table(card: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_front_matter_of_a_local_model(contents: PackageContents) -> None:
    values = front_matter(render_card(contents))
    assert values["library_name"] == "transformers"
    assert values["license"] == "apache-2.0"
    assert "base_model" not in values
    assert "structured-pruning" in values["tags"]


def test_base_model_and_revision_of_a_hub_model(contents: PackageContents) -> None:
    source = with_model(contents, source="hf:org/name@main", revision="c0ffee")
    card = render_card(source)
    assert front_matter(card)["base_model"] == "org/name"
    assert "`c0ffee`" in card


def test_the_hubs_tools_read_results_with_their_errors(contents: PackageContents) -> None:
    pruned = contents.records["pruned"]
    result = TaskResult(acc=0.5, acc_norm=None, stderr=0.1, n=10)
    record = pruned.model_copy(update={"tasks": {"quiz": result}})
    told = altered(
        with_model(contents, source="hf:org/name"), records={**contents.records, "pruned": record}
    )
    data = ModelCard(render_card(told)).data
    assert (data.base_model, data.base_model_relation) == ("org/name", "finetune")
    found = {each.metric_name: each for each in data.eval_results}
    assert {name: each.metric_value for name, each in found.items()} == {
        "Perplexity, held-out": pruned.perplexity["held-out"].value, "Accuracy, quiz": 0.5,
    }  # fmt: skip
    assert found["Accuracy, quiz"].metric_args["standard_error"] == 0.1
    digest = record.protocol["texts"]["held-out"]
    assert found["Perplexity, held-out"].dataset_args == {"sha256": digest}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("Llama 2: terms", {"license": "other", "license_name": "Llama 2: terms"}),
        (None, {}),
    ],
)
def test_licences(contents: PackageContents, licence: str | None, expected: dict[str, str]) -> None:
    card = render_card(with_model(contents, licence=licence))
    values = front_matter(card)
    assert {k: v for k, v in values.items() if k.startswith("license")} == expected
    assert licence or "licence: unknown" in card


def test_the_table_compares_what_was_measured(contents: PackageContents) -> None:
    head, _, *rows = table(render_card(contents))
    assert head == ["", "Dense", "Pruned", "Change"]
    values = {row[0]: row[1:] for row in rows}
    dense, pruned = (contents.records[stage] for stage in ("dense", "pruned"))
    assert values["Parameters"][:2] == [f"{dense.parameters:,}", f"{pruned.parameters:,}"]
    measured = pruned.perplexity["held-out"]
    assert values["Perplexity, held-out"][1] == f"{measured.value:,.2f} ± {measured.stderr:,.2f}"
    assert " % to " in values["Perplexity, held-out"][2]
    recovered = table(render_card(with_recovery(contents)))
    assert recovered[0] == ["", "Dense", "Pruned", "Recovered", "Change"]


def test_it_says_what_was_removed_and_how_to_load(contents: PackageContents) -> None:
    card = render_card(contents)
    assert "keeps 3 of 4 attention groups" in card and "72 of 96 FFN channels" in card
    assert 'AutoModelForCausalLM.from_pretrained("hf")' in card
    assert "Not evaluated for anything else" in card
    assert contents.records["dense"].protocol_digest in card


def test_without_scores_it_says_that_the_plan_was_given(contents: PackageContents) -> None:
    card = render_card(altered(contents, statistics=None))
    assert "* no scores: the plan was given" in card and "calibration tokens" not in card
    assert "keeps 3 of 4 attention groups" in card and "72 of 96 FFN channels" in card


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_methods_are_named_honestly(contents: PackageContents, criterion: str) -> None:
    plan = contents.plan.model_copy(update={"criterion": criterion})
    card = render_card(altered(contents, plan=plan))
    method = criterion_description(criterion)
    assert f"`{criterion}`: {method.idea}".replace("``", "`") in card
    assert " ".join(method.status[0].text.split()).replace("``", "`") in card
    if criterion.startswith("llm-bip"):
        assert "reconstruction" in card or "ours" in card


def test_hostile_names_break_nothing(contents: PackageContents) -> None:
    card = render_card(hostile(contents))
    assert front_matter(card)["base_model"] == f"{HOSTILE}/x|`y`"
    body = card.split("---\n", 2)[2]
    assert "<script" not in body.replace(r"\<script", "").replace("`<script", "")
    rows = table(body)
    assert all(len(row) == len(rows[0]) for row in rows)


def test_the_same_contents_give_the_same_bytes(contents: PackageContents) -> None:
    assert render_card(contents) == render_card(altered(contents))


def test_it_says_which_engines_were_run_and_which_only_read(contents: PackageContents) -> None:
    card = render_card(contents)
    assert "Run on this package when it was made: transformers. Not run on it" in card
    assert "vLLM 0.33.0, which takes all sizes of `hf` from its config.json" in card
    plan = contents.plan.model_copy(update={"layout": "per-layer"})
    assert "a block without attention it refuses" in render_card(altered(contents, plan=plan))
