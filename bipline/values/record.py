"""EvaluationRecord: what was measured, under which protocol, about which tensors, on what."""

from __future__ import annotations

import math
import platform
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from bipline.storage.digests import digest_json
from bipline.storage.stage_key import library_versions, processor
from bipline.values.frozen import Frozen
from bipline.values.items import EvaluationItems
from bipline.values.paired import CONFIDENCE, LARGEST_NATS, student_quantile
from bipline.values.speed import ADDED, Speed

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION: Literal[1] = 1


class Perplexity(Frozen):
    """Perplexity of one text: exp of the mean negative log-likelihood (nats) per token.

    ``nll_stderr`` is the standard error of the mean over ``windows``, None where one window or an
    older record tells none.
    """

    value: float
    nll: float
    tokens: int
    nll_stderr: float | None = ADDED
    windows: int | None = ADDED

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the perplexity: Student's, of the mean nats over the windows."""
        if not self.nll_stderr or not self.windows or self.windows < 2:
            return None
        reach = student_quantile(0.5 + CONFIDENCE / 2, self.windows - 1) * self.nll_stderr
        low, high = (math.exp(min(self.nll + end, LARGEST_NATS)) for end in (-reach, reach))
        return low, high

    @property
    def stderr(self) -> float | None:
        """The standard error of the perplexity, to first order in that of the mean."""
        return None if self.nll_stderr is None else self.value * self.nll_stderr


class TaskResult(Frozen):
    """Zero-shot accuracy of one task. ``acc_norm`` divides log-likelihoods by length in
    characters, as lm-eval does.

    ``n`` rows were measured; ``excluded`` more were not, because they are longer than the model's
    window: ``excluded_rows``, counted from 0. Standard errors are None where one row tells none,
    what an older record lacks is None.
    """

    acc: float
    acc_norm: float | None
    stderr: float | None
    n: int
    acc_norm_stderr: float | None = ADDED
    excluded: int | None = ADDED
    excluded_rows: tuple[int, ...] | None = ADDED


class EvaluationRecord(Frozen):
    """One model under one protocol. Two records compare only when ``protocol_digest`` agrees.

    ``items`` are what single windows and rows gave, ``seed`` is what the tasks' examples were drawn
    by, ``stride`` the tokens from one window to the next; an older record has none of them.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    tensor_digest: str
    parameters: int
    file_bytes: int
    perplexity: dict[str, Perplexity] = Field(default_factory=dict)
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    speed: Speed | None = None
    protocol: dict[str, Any]
    environment: dict[str, Any]
    items: EvaluationItems | None = ADDED
    seed: int | None = ADDED
    stride: int | None = ADDED

    @property
    def protocol_digest(self) -> str:
        """The digest of the protocol: texts, windows, BOS policy, tasks, dtype, batch size."""
        return digest_json(self.protocol)

    def to_json_value(self, items: bool = False) -> dict[str, Any]:
        """The record as JSON, the protocol with its digest; with the ``items`` or not."""
        value = self.model_dump(mode="json", exclude=set() if items else {"items"})
        value["protocol"] = {**value["protocol"], "digest": self.protocol_digest}
        return value

    def with_tasks_of(self, other: EvaluationRecord) -> EvaluationRecord:
        """This record of texts with the tasks of another of the same model; the protocol stays."""
        items = self.items or EvaluationItems()
        more = other.items.tasks if other.items else {}
        both = items.model_copy(update={"tasks": more})
        told = {"tasks": other.tasks, "items": both, "seed": other.seed}
        return self.model_copy(update=told)

    def without_items(self) -> EvaluationRecord:
        """The figures alone."""
        return self.model_copy(update={"items": None})


def device_name(device: torch.device | str) -> str:
    """A device by its type and, on a GPU, its card: two cards may round otherwise."""
    import torch

    chosen = torch.device(device)
    if chosen.type != "cuda":
        return chosen.type
    return f"{chosen.type} ({torch.cuda.get_device_name(chosen)})"


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The hardware and libraries a number was measured with; ``device`` is where it was."""
    import torch

    return {
        "device": device_name(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **library_versions(),
    }
