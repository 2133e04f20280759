"""The reports in a browser: at two widths, light, dark and printed, as a reader would have them.

Debian's ``chromium`` shows them without a script of theirs; in CI it must be there.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bipline.audits.page import render_audit, render_registry
from bipline.comparison.report import render_comparison
from bipline.delivery.contents import PackageContents
from bipline.delivery.page import Part, figure, joined, render_page, told_of_run
from bipline.delivery.pictures import (
    Group,
    dots_picture,
    errors_picture,
    histogram_picture,
    widths_picture,
)
from bipline.delivery.report import render_report
from bipline.delivery.samples import Sample
from bipline.values.audit import AuditedVersion, RegistryAudit
from bipline.values.compensation import BlockRecord, CompensationRecord, SublayerRecord
from bipline.values.recovery import TrainingPoint
from tests.audited import sample_audit
from tests.comparison.test_comparison_report import comparison, row
from tests.delivery.conftest import with_recovery
from tests.delivery.test_report import hostile, speed

pytestmark = pytest.mark.slow
# What is between the margins of a sheet of A4, at 96 dots an inch.
SHEET = 703
MODES = [
    (1280, "screen", "light"), (1280, "screen", "dark"), (420, "screen", "light"),
    (420, "screen", "dark"), (SHEET, "print", "light"), (SHEET, "print", "dark"),
]  # fmt: skip
NAMES = ("report", "hostile", "comparison", "one-ratio", "wide", "audit", "audits")
CHECKS = (Path(__file__).parent / "browsed.js").read_text(encoding="utf-8")


def full(contents: PackageContents) -> PackageContents:
    """Contents of which every part has something to show."""
    recovered = with_recovery(contents)
    curve = [
        TrainingPoint(step=n, loss=4 / n, learning_rate=0.1, validation=5 / n) for n in range(1, 9)
    ]
    matrix = SublayerRecord(form="least-squares", errors={"none": 0.5, "least-squares": 0.1})
    blocks = [
        BlockRecord(index=n, attention=matrix, ffn=matrix, error_without=0.5, error=0.3 / (n + 1))
        for n in range(3)
    ]
    did = CompensationRecord(
        options={"sequential": True}, calibration_digest="0", fitted_tokens=9, held_out_tokens=9,
        asked_plan="0", corrections="0", blocks=tuple(blocks),
    )  # fmt: skip
    assert recovered.recovery
    changed = {"curve": tuple(curve), "best_step": 7}
    return dataclasses.replace(
        recovered,
        plan=contents.plan.model_copy(update={"compensation": "least-squares", "compensated": did}),
        recovery=recovered.recovery.model_copy(update=changed),
        records={
            name: record.model_copy(update={"speed": speed(1000.0 * number)})
            for number, (name, record) in enumerate(recovered.records.items(), start=1)
        },
        samples=(Sample("Once", {"dense": "upon a time " * 9, "recovered": "x" * 300}),),
    )


def blocks_page() -> str:
    """The pictures of a model with more blocks than fit on a phone."""
    group = Group(tuple(float(n % 37 + 1) for n in range(40)), frozenset(range(20)))
    drawn = [
        dots_picture([group] * 40, "group"), histogram_picture([group] * 40, "channels"),
        widths_picture([30] * 40, 40, "groups"), errors_picture([0.5] * 40, [0.25] * 40),
    ]  # fmt: skip
    page = joined(figure("Blocks.", "All of them.", each) for each in drawn)
    return render_page("Forty blocks", "", [Part("x", "Pictures", lambda _: ("", page))], None)


def audits_page() -> str:
    """Two versions of a registry: one differs, one does not."""
    whole = sample_audit()
    good = tuple(each for each in whole.findings if each.status != "differs")
    versions = tuple(
        AuditedVersion(model="small", version=str(number), aliases=("candidate", "production"),
                       audit=whole.model_copy(update={"findings": findings}))
        for number, findings in enumerate((whole.findings, good), start=1)
    )  # fmt: skip
    return render_registry(RegistryAudit(registry="http://127.0.0.1:5000", versions=versions))


@pytest.fixture(scope="module")
def pages(contents: PackageContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, contents = tmp_path_factory.mktemp("pages"), full(contents)
    methods = ("wanda-sp", "flap:metric=ifv", "llm-bip-exact", "hywia", f"flap:metric={'a' * 90}")
    rows = [
        row(criterion, ratio, seed, 60.0 * (1 + ratio) ** number + seed, compensation=compensation)
        for number, criterion in enumerate(methods)
        for compensation in ("none", "obs:ridge=0.1")
        for ratio in (0.2, 0.4, 0.6)
        for seed in (0, 1)
    ]
    facts = [("Verdict", f"refused by gate {'g' * 80}", ""), ("MLflow run", "f" * 32, "")]
    texts = {
        "report": told_of_run(render_report(contents), facts),
        "hostile": render_report(hostile(contents)),
        "comparison": render_comparison(comparison(*rows, row("random", 0.4, value=None))),
        "one-ratio": render_comparison(comparison(*rows[::6])),
        "wide": blocks_page(),
        "audit": render_audit(sample_audit()),
        "audits": audits_page(),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium")
    if found is None:
        message = "chromium is not installed: the reports cannot be looked at"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    with sync_playwright() as driver:
        # A container has no user that could be kept apart.
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "media", "scheme"), MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read(
    browser: Any, pages: Path, name: str, width: int, media: Any, scheme: Any
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=False
    )
    page, heard, asked = context.new_page(), [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(media=media, color_scheme=scheme)
    address = (pages / f"{name}.html").as_uri()
    page.goto(address)
    complaints = page.evaluate(CHECKS, {"print": media == "print"})
    context.close()
    assert asked == [address] and heard == []
    assert complaints == []


def test_what_the_checks_are_for_is_found(browser: Any, pages: Path) -> None:
    """Each check complains about a page that is spoiled in its own way."""
    good = (pages / "report.html").read_text(encoding="utf-8")
    spoiled = {
        "leaves the page": (".scroll { overflow-x: auto; }", ".scroll { min-width: 2000px; }"),
        "is broken": ("th, td { ", "th, td { word-break: break-all; width: 9px !important; "),
        "contrast": ("--muted: #5b6470", "--muted: #c0c0c0"),
        "in grey": ("--removed: #d67122", "--removed: #0a50b0"),
        "too small": ("font-size: 12.5px", "font-size: 7px"),
        "no focus": ('tabindex="0"', ""),
    }
    for complaint, (was, becomes) in spoiled.items():
        assert was in good
        page = browser.new_page(viewport={"width": 420, "height": 900})
        page.set_content(good.replace(was, becomes) + SCROLLED * (complaint == "no focus"))
        found = page.evaluate(CHECKS, {"print": False})
        page.close()
        assert any(complaint in each for each in found), complaint


SCROLLED = '<div class="scroll"><svg style="min-width:900px" viewBox="0 0 9 9"></svg></div>'
