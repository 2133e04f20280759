"""What a package is made from, checked to be about one model.

Model card, report and ``evaluation.json`` all speak from :class:`PackageContents`, so they
cannot disagree. Nothing here is computed anew: every number was measured by a stage before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import InvalidInput, Refused
from bipline.compression.statistics import Scores, Statistics, load_statistics
from bipline.delivery.samples import Sample
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import ModelShape
from bipline.storage.documents import CHAT
from bipline.storage.places import is_elsewhere
from bipline.values.differences import check_comparable
from bipline.values.export import ExportRecord
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.recovery import RecoveryRecord
from bipline.values.resolution import Resolution

# The models a package may have records of, in the order of every table.
MODELS = ("dense", "pruned", "recovered")
NO_SCORES = "no scores: the plan was given"


@dataclass(frozen=True)
class PackageContents:
    """Everything a package is written from.

    ``model`` is the directory that is packaged, ``dense`` the one it came from; ``records`` has
    the keys ``dense`` and ``pruned``, and ``recovered`` where a recovery was accepted. There are
    no ``statistics`` where the plan was given rather than made from scores. ``format_settings``
    are each format's own by its name, ``exports`` what engines said of what was written for them.
    """

    model: Path
    dense: Path
    plan: PruningPlan
    statistics: Path | None
    records: dict[str, EvaluationRecord]
    recovery: RecoveryRecord | None
    resolution: Resolution
    config: dict[str, Any]
    formats: tuple[str, ...] = ("hf",)
    format_settings: Mapping[str, Any] = field(default_factory=dict)
    exports: Mapping[str, ExportRecord] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    @cached_property
    def scored(self) -> tuple[Statistics, Scores] | None:
        """The sums and scores the plan was made from, read and verified once; None without any."""
        return load_statistics(self.statistics) if self.statistics else None

    @cached_property
    def dense_widths(self) -> tuple[int, int]:
        """How many attention groups and FFN channels or experts the dense model's blocks have.

        Channels of an expert, where these went.
        """
        shape = self.dense_shape.within(self.plan.within_experts)
        return shape.num_key_value_heads, shape.ffn_units

    @cached_property
    def dense_shape(self) -> ModelShape:
        """The sizes of the dense model."""
        return open_checkpoint(self.dense).shape

    @cached_property
    def around(self) -> str:
        """What lies around the decoder, in a sentence; empty for a decoder alone."""
        nesting = open_checkpoint(self.dense).nesting
        if nesting is None:
            return ""
        return (
            f"It is the decoder inside a {nesting.config['model_type']}; the {len(nesting.beside)} "
            "other tensors were copied unchanged."
        )

    @property
    def measured(self) -> dict[str, EvaluationRecord]:
        """The records by model: dense, pruned and perhaps recovered, in this order."""
        return {model: self.records[model] for model in MODELS if model in self.records}

    @property
    def packaged(self) -> str:
        """Which of them the package holds."""
        return packaged_of(self.records)

    @property
    def source_name(self) -> str:
        """The dense model's name without the path it was read from."""
        return portable_source(self.resolution.model.source).removeprefix("hf:")


def packaged_of(records: Mapping[str, EvaluationRecord]) -> str:
    """Which model a package with these records holds."""
    return "recovered" if "recovered" in records else "pruned"


def check_contents(contents: PackageContents, tensor_digest: str) -> None:
    """Raise Refused unless plan, scores, records and resolution are about the same models.

    ``tensor_digest`` is the packaged model's own. Raises InvalidInput when a record is missing.
    """
    records = contents.records
    if missing := [model for model in ("dense", "pruned") if model not in records]:
        raise InvalidInput(f"no evaluation record of the {missing[0]} model; evaluate it first")
    if "recovered" in records and not (contents.recovery and contents.recovery.accepted):
        raise Refused("there is a record of a recovered model, but no recovery was accepted")
    dense = str(contents.resolution.model.tensor_digest)
    told = {
        "plan": contents.plan.tensor_digest,
        "record of the dense model": records["dense"].tensor_digest,
    }
    if contents.scored:
        told["scores"] = contents.scored[1].tensor_digest
    for what, digest in told.items():
        if digest != dense:
            raise Refused(f"{what}: made for model {digest[:12]}, the run resolved {dense[:12]}")
    recorded = records[contents.packaged].tensor_digest
    if recorded != tensor_digest:
        raise Refused(
            f"the record of the {contents.packaged} model is about {recorded[:12]}, "
            f"the model to package is {tensor_digest[:12]}"
        )
    for record in records.values():
        check_comparable(records["dense"], record)


def portable(value: Any) -> Any:
    """A value without local paths: one that can be told, however deep, becomes its last name."""
    if isinstance(value, Mapping):
        return {str(portable(key)): portable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(part) for part in value]
    if isinstance(value, Path):
        return portable(str(value))
    if isinstance(value, str) and value.startswith(("/", "~", "file:", "./", "../")):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return without_secrets(value) if isinstance(value, str) else value


def portable_source(source: str) -> str:
    """Where a model, text or task came from: an address without secrets, or a path's last name."""
    if source.startswith(CHAT):
        return f"{CHAT}{portable_source(source.removeprefix(CHAT))}"
    return without_secrets(source) if is_elsewhere(source) else Path(source).name


def portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration without local paths; sources as :func:`portable_source` has them."""
    told: dict[str, Any] = portable(config)
    if isinstance(told.get("model"), str):
        told["model"] = portable_source(told["model"])
    for kind in ("texts", "tasks"):
        if isinstance(told.get(kind), Mapping):
            told[kind] = {name: portable_source(str(each)) for name, each in told[kind].items()}
    return told


def portable_resolution(resolution: Resolution) -> Resolution:
    """The resolution without where files lay on the machine of the run; same digest."""
    value = resolution.model_dump(mode="json")
    for entry in (value["model"], *value["texts"].values(), *value["tasks"].values()):
        entry["source"] = portable_source(entry["source"])
        entry["location"] = ""
    return Resolution.model_validate(value)
