"""What the steps share: the Store beside ZenML's artifacts, and ZenML's cache kept in line with it.

ZenML skips a step whose parameters, inputs' content hashes and fingerprint it has seen. Where
it does not, the Store answers with the finished directory of the same stage key. The first is
quick; the second is exact, and holds when ZenML's database is new or a run was killed.
"""

from __future__ import annotations

from pydantic import BeforeValidator
from zenml import log_metadata
from zenml.client import Client
from zenml.config.cache_policy import CachePolicy

import materializers  # noqa: F401  (its import tells ZenML how our types are stored)
from bipline.settings.base import tuples
from bipline.settings.line import ComputeSettings
from bipline.stages.stage import Context, StageReport
from bipline.storage.store import Store, open_store

# Parameters come back from ZenML's database as JSON, where a tuple is a list; the strict
# settings accept tuples only.
FROM_JSON = BeforeValidator(tuples)


def store() -> Store:
    """The Store of the active stack, beside ZenML's own artifacts."""
    return open_store(f"{Client().active_stack.artifact_store.path}/bipline")


def context(compute: ComputeSettings | None = None, seed: int = 0) -> Context:
    """What a step hands to its stage; what the stage tells is logged as the step's metadata."""
    return Context(store(), compute or ComputeSettings(), seed, report=_log)


def cached_by(fingerprint: str) -> CachePolicy:
    """Cache by parameters, content of inputs, and a function's result given by its full name.

    The step's own source is left out: an edited comment changes nothing, and an edit that does
    changes the fingerprint.
    """
    return CachePolicy(
        include_step_code=False,
        include_artifact_ids=False,
        include_artifact_values=True,
        include_step_parameters=True,
        cache_func=fingerprint,
    )


def _log(report: StageReport) -> None:
    seconds = sum(report.cost.seconds.values()) if report.cost else 0.0
    log_metadata(
        {
            "stage_key": report.key,
            "reused": report.reused,
            "work_seconds": round(seconds, 3),
            "output_digest": report.digest,
        }
    )
