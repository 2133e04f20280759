"""What an audit asks of a stack: its ZenML for runs, and where its runs are tracked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bipline.audits.orchestrated import AskRuns, ToldRun
from bipline.settings.stack import StackSettings
from pipelines.runs import check_state, reading


def asking(settings: StackSettings) -> AskRuns:
    """What asks the ZenML of a stack. Raises InvalidInput for a state folder where nothing ran."""
    check_state(settings)

    def ask(run_ids: Sequence[str]) -> Mapping[str, ToldRun]:
        with reading(settings):
            from steps.told_runs import told_runs

            return told_runs(run_ids)

    return ask


def tracker_of(settings: StackSettings) -> str:
    """Where a stack tells its runs."""
    with reading(settings) as address:
        return address
