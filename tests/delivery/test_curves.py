"""Curves, lanes, axes and samples: what pages are drawn from, and its edges."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.delivery import curves, samples
from bipline.delivery.axes import axis_around, axis_over
from bipline.delivery.contents import PackageContents
from bipline.delivery.page import Lane, lanes, render_page, told_of_run
from bipline.delivery.report import PARTS, render_report
from bipline.delivery.run_facts import run_facts, version_facts
from bipline.delivery.samples import PROMPTS, continued
from bipline.model.tokenizer import load_tokenizer
from bipline.values.compensation import BlockRecord, CompensationRecord
from bipline.values.recovery import TrainingPoint
from bipline.values.summary import Registration
from bipline.values.verdict import Check, Verdict
from tests.delivery.conftest import altered, with_recovery
from tests.delivery.test_report import HOSTILE, Page

NUMBERS = st.floats(-1e12, 1e12) | st.floats(1e-12, 1e300)


def test_curves_of_any_number_can_be_told_apart() -> None:
    looks = [str(curves.swatch(number)) for number in range(24)]
    assert len(set(looks)) == 24
    grey = {re.sub("#[0-9a-f]{6}", "", look) for look in looks[:12]}
    assert len(grey) == 12, "a mark and a dash, where colours are not seen"


def test_a_flat_curve_and_a_single_point_can_be_drawn() -> None:
    frame = curves.Frame("x", "x", "y")
    for y, low, high in ((0.0, 0.0, 0.0), (-2.0, -3.0, -1.0), (5e300, 1.0, 5e300)):
        curve = curves.Curve("x", 0, (curves.Point(5.0, y, low, high, "x"),))
        picture = str(curves.curves_picture([curve], frame))
        assert "nan" not in picture and "inf" not in picture
        numbers = [float(y) for y in re.findall(r' y="(-?[\d.]+)"', picture)]
        assert numbers and all(0 <= y <= curves.HEIGHT for y in numbers)


@settings(deadline=None)
@given(values=st.lists(NUMBERS, min_size=1, max_size=9))
def test_axes_hold_their_values_and_have_few_round_ticks(values: list[float]) -> None:
    for axis in (axis_around(values), axis_over(values)):
        for value in values:
            assert -1e-9 <= axis.share(value) <= 1 + 1e-9
        ticks = axis.ticks()
        assert len(ticks) <= 12
        assert all(-1e-6 <= axis.share(tick) <= 1.001 for tick in ticks)


def test_a_lane_shows_value_and_ends_where_they_are() -> None:
    rows = [Lane("a", 0.0, 10.0, 20.0, "ten"), Lane("b", 40.0, 40.0, 40.0, HOSTILE)]
    text = str(lanes("figures", rows, "s"))
    assert "<script" not in text and HOSTILE in "".join(Page(text).words)
    [(left, width)] = re.findall(r'class="reach" style="left:([\d.]+)%;width:([\d.]+)%"', text)
    dots = [float(found) for found in re.findall(r'class="dot" style="left:([\d.]+)%"', text)]
    assert float(left) + float(width) / 2 == pytest.approx(dots[0], abs=0.02)
    assert dots[1] > float(left) + float(width)


def test_bars_begin_at_zero() -> None:
    rows = [Lane(str(value), value, value, value, "", bar=True) for value in (5.0, 10.0)]
    widths = re.findall(r'class="bar" style="width:([\d.]+)%"', str(lanes("cost", rows, "s")))
    first, second = map(float, widths)
    assert second == pytest.approx(2 * first, abs=0.02)


def test_a_copy_can_be_told_of_its_run_and_the_rest_stays() -> None:
    page = render_page("t", "s", [], None, [("Method", "x")])
    told = told_of_run(page, [("Run", HOSTILE, ""), ("Date", "2026-01-02", "https://a/?b&c")])
    assert "<script" not in told and told.index("Method") < told.index("2026-01-02")
    assert ("href", "https://a/?b&c") in Page(told).attributes
    added = re.findall(r"<li>.*?</li>\n", told)[1:]
    assert len(added) == 2
    for line in added:
        told = told.replace(line, "")
    assert told == page
    again = told_of_run(told_of_run(page, [("Run", "1", "")]), [("Verdict", "2", "")])
    assert again.index("<b>Run</b>") < again.index("<b>Verdict</b>")


def test_samples_are_the_likeliest_tokens_of_both_models(contents: PackageContents) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = continued({"dense": contents.dense, "pruned": contents.model})
    assert [each.prompt for each in found] == list(PROMPTS)
    assert found == continued({"dense": contents.dense, "pruned": contents.model})
    tokenizer = load_tokenizer(contents.dense)
    model = AutoModelForCausalLM.from_pretrained(contents.dense, dtype=torch.float32)
    ids = tokenizer(PROMPTS[0])["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + samples.NEW_TOKENS:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert tokenizer.eos_token_id in ids[start:] or found[0].texts["dense"] == expected
    page = Page(render_report(altered(contents, samples=found)))
    assert found[0].texts["dense"] in "".join(page.words)


def test_a_model_larger_than_memory_is_not_sampled(
    contents: PackageContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "free_memory", lambda: 1000)
    told: list[str] = []
    monkeypatch.setattr(samples, "note", told.append)
    assert continued({"dense": contents.dense}) == ()
    assert told == ["no samples of text: the dense model takes 0.53 MB in float32"]


def part(name: str, contents: PackageContents) -> str:
    return str(next(each for each in PARTS if each.identifier == name).html(contents))


def test_a_training_is_drawn_by_its_steps(contents: PackageContents) -> None:
    recovered = with_recovery(contents)
    assert recovered.recovery and "<svg" not in part("recovery", recovered)
    curve = tuple(
        TrainingPoint(step=n, loss=4 / n, learning_rate=0.1, validation=5 / n if n % 2 else None)
        for n in range(1, 7)
    )
    told = recovered.recovery.model_copy(update={"curve": curve, "best_step": 5})
    text = part("recovery", altered(recovered, recovery=told))
    assert text.count("training, step") == 6 and text.count("windows set aside, step") == 3
    assert "The weights of step 5 were kept." in text and ">loss, nats per token" in text


def test_what_compensation_did_to_each_block_is_drawn(contents: PackageContents) -> None:
    blocks = tuple(
        BlockRecord(index=n, attention=None, ffn=None, error_without=0.5, error=0.25 / (n + 1))
        for n in range(3)
    )
    record = CompensationRecord(
        options={"sequential": True}, calibration_digest="0", fitted_tokens=9, held_out_tokens=9,
        asked_plan="0", corrections="0", blocks=blocks,
    )  # fmt: skip
    plan = contents.plan.model_copy(update={"compensation": "obs", "compensated": record})
    text = part("compensation", altered(contents, plan=plan))
    assert text.count('class="ring"') == text.count('<circle class="kept"') == 3
    assert "block 2: 0.5 without, 0.08333 with compensation" in text


def test_facts_of_a_run_link_to_a_server_alone() -> None:
    info = SimpleNamespace(run_id="f00", experiment_id="7", start_time=1_700_000_000_000)
    tags = {"zenml.run_name": "compress-1"}
    told = run_facts(SimpleNamespace(info=info), tags, "http://host:5000/")
    assert told == [
        ("Run on", "2023-11-14 22:13 UTC", ""), ("ZenML run", "compress-1", ""),
        ("MLflow run", "f00", "http://host:5000/#/experiments/7/runs/f00"),
    ]  # fmt: skip
    assert run_facts(SimpleNamespace(info=info), tags, "sqlite:///x.db")[-1][2] == ""


def test_the_verdict_is_told_with_its_reasons() -> None:
    check = Check(name="perplexity", answer="fail", sentence="too high")
    verdict = Verdict(
        model="m", version="3", alias="production", package_digest="0", gate="small",
        gate_digest="0", champion=None, records={}, judged_at="", passed=False, checks=(check,),
    )  # fmt: skip
    registered = Registration(
        mlflow_run_id="f00", model_name="m", version="3", alias="candidate", reused=False
    )
    measured = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    assert version_facts(registered, measured) == [
        ("Measured", "2026-01-02 03:04 UTC", ""), ("Version", "m 3", ""),
        ("Verdict", "no gate was asked", ""),
    ]  # fmt: skip
    refused = registered.model_copy(update={"verdict": verdict, "refusal": "it is"})
    told = {name: value for name, value, _ in version_facts(refused, None)}
    assert told["Verdict"] == "refused by gate small for @production (perplexity: fail)"
    passed = verdict.model_copy(
        update={"passed": True, "checks": (check.model_copy(update={"answer": "pass"}),)}
    )
    promoted = registered.model_copy(update={"verdict": passed, "alias": "production"})
    assert version_facts(promoted, None)[-1][1] == "passed by gate small for @production"
