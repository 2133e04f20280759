"""What a run adds to its copy of a report: when, which run, which version, and what a gate said.

The package's own page tells none of it, or the same inputs would not give the same bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from bipline.values.summary import Registration

Fact = tuple[str, str, str]


def run_facts(run: Any, tags: dict[str, str], tracking_uri: str) -> list[Fact]:
    """Of an MLflow run: when it began, its id with a link where a server has it, and its tags'
    pipeline run and commit.
    """
    run_id, began = run.info.run_id, datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    place = f"{tracking_uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run_id}"
    told = {"ZenML run": tags.get("zenml.run_name"), "Commit": tags.get("git.commit")}
    return [
        ("Run on", _moment(began), ""),
        *((name, value, "") for name, value in told.items() if value),
        ("MLflow run", run_id, place if tracking_uri.startswith(("http://", "https://")) else ""),
    ]


def version_facts(registered: Registration, measured: datetime | None) -> list[Fact]:
    """The date of the measurement, the version, and the gate's verdict with its reasons."""
    facts = [("Version", f"{registered.model_name} {registered.version}", "")]
    if measured:
        facts.insert(0, ("Measured", _moment(measured.astimezone(UTC)), ""))
    if verdict := registered.verdict:
        said = "passed" if verdict.passed else "refused"
        because = "; ".join(f"{check.name}: {check.answer}" for check in verdict.refusals)
        told = f"{said} by gate {verdict.gate} for @{verdict.alias}"
        facts.append(("Verdict", f"{told} ({because})" if because else told, ""))
    else:
        facts.append(("Verdict", registered.refusal or "no gate was asked", ""))
    return facts


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
