"""The report: self-contained, escaped, the same bytes each time, with all its parts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bipline.delivery import pictures
from bipline.delivery.card import render_card
from bipline.delivery.contents import PackageContents, portable
from bipline.delivery.loading_part import loading_part, prose
from bipline.delivery.page import Part
from bipline.delivery.report import PARTS, render_report
from bipline.values.metrics import curves_of
from bipline.values.record import Speed, TaskResult
from bipline.values.resolution import Resolution
from bipline.values.side_by_side import side_by_side
from tests.delivery.conftest import altered, make_contents, with_recovery

HOSTILE = '<script>alert("1")</script>'
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Tags, attributes and texts; fails on a tag that is closed where it was not opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.replace("\N{NO-BREAK SPACE}", " "))


def hostile(contents: PackageContents) -> PackageContents:
    """The contents with markup in every name that comes from outside."""
    value = contents.resolution.model_dump(mode="json")
    value["model"] |= {"source": f"hf:{HOSTILE}/x|`y`", "licence": f"A: {HOSTILE}"}
    value["texts"] = {HOSTILE: value["texts"]["held-out"]}
    records = {}
    for stage, record in contents.records.items():
        perplexity = {HOSTILE: record.perplexity["held-out"]}
        tasks = {f"{HOSTILE}|": TaskResult(acc=0.5, acc_norm=0.25, stderr=0.1, n=20)}
        changed = {"perplexity": perplexity, "tasks": tasks, "environment": {HOSTILE: HOSTILE}}
        records[stage] = record.model_copy(update=changed)
    return altered(
        contents,
        records=records,
        resolution=Resolution.model_validate(value),
        config={HOSTILE: {HOSTILE: HOSTILE}, "model": HOSTILE},
    )


def test_every_part_is_there_in_order(contents: PackageContents) -> None:
    text = render_report(contents)
    places = [text.index(f'<section id="{part.identifier}">') for part in PARTS]
    assert places == sorted(places)
    assert Page(text).tags.count("svg") == 4


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.identifier)
def test_parts_stand_alone(contents: PackageContents, part: Part[PackageContents]) -> None:
    fragment = str(part.html(contents))
    assert Page(fragment).attributes[0] == ("id", part.identifier)
    assert f"<h2>{part.title}</h2>" in fragment
    assert fragment in render_report(contents)


def test_nothing_is_loaded_and_nothing_runs(contents: PackageContents) -> None:
    text = render_report(with_recovery(contents))
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"href", "src", "xlink:href", "action"}:
            assert value.startswith("#")
    assert "url(" not in text and "@import" not in text


def test_hostile_names_are_text(contents: PackageContents) -> None:
    text = render_report(hostile(contents))
    assert "<script" not in text
    assert HOSTILE in "".join(Page(text).words)


def test_the_same_contents_give_the_same_bytes(contents: PackageContents) -> None:
    assert render_report(contents) == render_report(altered(contents))


def test_numbers_are_the_records(contents: PackageContents) -> None:
    text = render_report(contents)
    for stage in ("dense", "pruned"):
        record = contents.records[stage]
        assert f"{record.parameters:,}" in text
        assert f"{record.perplexity['held-out'].value:,.2f}" in text
        assert record.tensor_digest in text
    assert contents.plan.digest in text and contents.resolution.digest in text


def test_query_heads_are_told_in_the_place_of_groups(tmp_path: Path) -> None:
    """A mark for each of eight, of which four stay, one of each KV head; in the card too."""
    of_heads = {"attention": "query-heads"}
    heads = make_contents(tmp_path, 0.25, False, **of_heads)
    text, card = render_report(heads), render_card(heads)
    assert "KV heads stay, and each keeps 1 query head; the others are removed." in text
    assert "4 of 8 kept in each block" in text and "attention group" not in text
    marks = re.findall(r"block 1, query head (\d): [^,]*, (\w+)", text)
    assert [name for name, _ in marks] == list("01234567")
    plan = heads.plan.blocks[1]
    kept = {2 * group + head for group, (head,) in enumerate(plan.query_heads)}
    assert {int(name) for name, state in marks if state == "kept"} == kept
    assert "whole query heads and FFN channels were removed" in card
    assert "of each group's query heads 1 stay" in card and "lists the kept query heads" in card
    assert curves_of(heads.plan)["blocks/query_heads"] == [(0, 4.0), (1, 4.0), (2, 4.0)]


def test_recovery_is_told(contents: PackageContents) -> None:
    assert "No recovery training was run." in render_report(contents)
    recovered = render_report(with_recovery(contents))
    assert "The package holds the recovered model." in recovered
    assert "held-out perplexity fell" in recovered


def test_without_scores_it_says_that_the_plan_was_given(contents: PackageContents) -> None:
    given = altered(contents, statistics=None)
    text = render_report(given)
    page = Page(text)
    assert "No scores: the plan was given." in page.words
    assert page.tags.count("svg") == 2, "widths, and no importance"
    assert "calibration tokens" not in text
    widths = next(part for part in PARTS if part.identifier == "widths")
    assert widths.html(given) == widths.html(contents)


def test_speed_and_tasks_become_rows(contents: PackageContents) -> None:
    speeds = {"dense": 100.0, "pruned": 150.0}
    records = {
        stage: record.model_copy(update={"speed": speed(speeds[stage])})
        for stage, record in hostile(contents).records.items()
    }
    rows = {line.title: line for line in side_by_side(records, "pruned")}
    prefill = rows["Prefill, tokens/s (median)"]
    assert prefill.change == "\N{MULTIPLICATION SIGN} 1.56 [1.40, 1.67]"
    assert prefill.texts["pruned"] == "140 [140, 150]"
    assert rows[f"Accuracy, {HOSTILE}|"].texts["dense"] == "50.0 % ± 10.0 %"
    assert rows[f"Accuracy, {HOSTILE}|"].change == "0.0 points"
    assert f"Normalised accuracy, {HOSTILE}|" in rows


def speed(rate: float) -> Speed:
    return Speed(
        prefill_tokens_per_second=rate,
        prefill_median_tokens_per_second=rate - 10,
        decode_tokens_per_second=rate / 10,
        decode_median_tokens_per_second=rate / 10,
        batch_size=1,
        prompt_tokens=128,
        decoded_tokens=32,
        repeats=5,
    )


def test_local_paths_are_shortened_and_names_are_not() -> None:
    value = {"a": ["/home/me/model", "hf:org/name", "assets/x.txt"], "b": Path("/x/y")}
    assert portable(value) == {"a": ["model", "hf:org/name", "assets/x.txt"], "b": "y"}


@pytest.mark.parametrize("scores", [(0.0, 0.0, 0.0), (0.0, 1e-9, 1e9), (5.0, 5.0), (0.1, 0.2, 0.3)])
def test_pictures_of_odd_scores_stay_inside(scores: tuple[float, ...]) -> None:
    group = pictures.Group(scores, frozenset({0}))
    for draw in (pictures.dots_picture, pictures.histogram_picture):
        page = Page(str(draw([group] * 3, "channel")))
        heights = [float(v) for name, v in page.attributes if name in {"y", "cy", "y1"}]
        assert heights and all(0 <= y <= 320 for y in heights)


def test_pictures_of_wide_models_stay_small() -> None:
    group = pictures.Group(tuple(float(n % 977 + 1) for n in range(11008)), frozenset(range(8000)))
    assert len(pictures.histogram_picture([group] * 80, "FFN channels")) < 600_000


def test_a_histogram_shows_every_channel() -> None:
    group = pictures.Group((1.0, 2.0, 3.0, 4.0), frozenset({2, 3}))
    kept, removed = pictures._counts(group, pictures.axis_over(group.scores))
    assert (sum(kept), sum(removed)) == (2, 2)


def test_the_report_says_how_each_format_is_loaded(contents: PackageContents) -> None:
    both = altered(contents, formats=("hf", "gguf"))
    lead, body = loading_part(both)
    assert "hf, gguf" in lead
    for told in ("from_pretrained(&#34;hf&#34;)", "llama-cli -m gguf/model.gguf", "<pre><code>"):
        assert told in body
    assert "```" not in body and "gguf/model.gguf" not in loading_part(contents)[1]
    assert prose("`a<b` & c\n\n```sh\nx `y`\n```") == (
        "<p><code>a&lt;b</code> &amp; c</p>\n<pre><code>x `y`</code></pre>"
    )
