"""What a package is made from, checked to be about one model, and its numbers side by side.

Model card, report and ``evaluation.json`` all speak from :class:`PackageContents`, so they
cannot disagree. Nothing here is computed anew: every number was measured by a stage before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.compression.statistics import Scores, Statistics, load_statistics
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, RecoveryRecord
from bipline.values.resolution import Resolution

# The models a package may have records of, in the order of every table.
STAGES = ("dense", "pruned", "recovered")
NOT_MEASURED = "not measured"
# Signs as typeset: a real minus is as wide as a plus, so columns line up.
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class PackageContents:
    """Everything a package is written from.

    ``model`` is the directory that is packaged, ``dense`` the one it came from; ``records`` has
    the keys ``dense`` and ``pruned``, and ``recovered`` where a recovery was accepted.
    """

    model: Path
    dense: Path
    plan: PruningPlan
    statistics: Path
    records: dict[str, EvaluationRecord]
    recovery: RecoveryRecord | None
    resolution: Resolution
    config: dict[str, Any]
    formats: tuple[str, ...] = ("hf",)

    @cached_property
    def scored(self) -> tuple[Statistics, Scores]:
        """The sums and scores the plan was made from, read and verified once."""
        return load_statistics(self.statistics)

    @property
    def stages(self) -> tuple[str, ...]:
        """The models there are records of: dense, pruned and perhaps recovered."""
        return tuple(stage for stage in STAGES if stage in self.records)

    @property
    def packaged(self) -> str:
        """Which of them the package holds."""
        return "recovered" if "recovered" in self.records else "pruned"

    @property
    def source_name(self) -> str:
        """The dense model's name without the path it was read from."""
        return str(portable(self.resolution.model.source)).removeprefix("hf:")


@dataclass(frozen=True)
class Measure:
    """One row of the comparison: a text per stage, and the packaged model against the dense."""

    name: str
    values: dict[str, str]
    change: str


def check_contents(contents: PackageContents, tensor_digest: str) -> None:
    """Raise Refused unless plan, scores, records and resolution are about the same models.

    ``tensor_digest`` is the packaged model's own. Raises InvalidInput when a record is missing.
    """
    records = contents.records
    if missing := [stage for stage in ("dense", "pruned") if stage not in records]:
        raise InvalidInput(f"no evaluation record of the {missing[0]} model; evaluate it first")
    if "recovered" in records and not (contents.recovery and contents.recovery.accepted):
        raise Refused("there is a record of a recovered model, but no recovery was accepted")
    dense = contents.resolution.model.tensor_digest
    told = {
        "plan": contents.plan.tensor_digest,
        "record of the dense model": records["dense"].tensor_digest,
        "scores": contents.scored[1].tensor_digest,
    }
    for what, digest in told.items():
        if digest != dense:
            raise Refused(f"{what}: made for model {digest[:12]}, the run resolved {dense[:12]}")
    recorded = records[contents.packaged].tensor_digest
    if recorded != tensor_digest:
        raise Refused(
            f"the record of the {contents.packaged} model is about {recorded[:12]}, "
            f"the model to package is {tensor_digest[:12]}"
        )
    if len({record.protocol_digest for record in records.values()}) > 1:
        raise Refused("the records were made under different protocols and do not compare")


def portable(value: Any) -> Any:
    """A value without local paths: an absolute path, however deep, becomes its last name."""
    if isinstance(value, Mapping):
        return {str(portable(key)): portable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(part) for part in value]
    if isinstance(value, Path):
        return portable(str(value))
    if isinstance(value, str) and value.startswith(("/", "~", "file:")):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return value


def portable_resolution(resolution: Resolution) -> Resolution:
    """The resolution without where files lay on the machine of the run; same digest."""
    value = resolution.model_dump(mode="json")
    for entry in (value["model"], *value["texts"].values(), *value["tasks"].values()):
        entry["source"] = portable(entry["source"])
        entry["location"] = ""
    return Resolution.model_validate(value)


def measures(contents: PackageContents) -> list[Measure]:
    """The comparison of dense, pruned and recovered model, row by row."""
    rows = [
        _row(contents, "Parameters", lambda r: r.parameters, "{:,.0f}".format, _relative),
        _row(contents, "Weights on disk", lambda r: r.file_bytes, byte_size, _relative),
    ]
    texts = _names(contents, lambda record: record.perplexity)
    rows += [_perplexity(contents, name) for name in texts]
    for name in _names(contents, lambda record: record.tasks):
        rows += _task(contents, name)
    return rows + _speed(contents)


def byte_size(count: float) -> str:
    """A number of bytes for reading: decimal units, as disks and hubs count."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def perplexity_text(value: float) -> str:
    """Two decimals while they mean something, then powers of ten."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def _names(
    contents: PackageContents, held: Callable[[EvaluationRecord], Iterable[str]]
) -> list[str]:
    return sorted({name for record in contents.records.values() for name in held(record)})


def _row(
    contents: PackageContents,
    name: str,
    read: Callable[[EvaluationRecord], float | None],
    show: Callable[[float], str],
    compare: Callable[[float, float], str],
) -> Measure:
    numbers = {stage: read(contents.records[stage]) for stage in contents.stages}
    texts = {
        stage: NOT_MEASURED if number is None else show(number) for stage, number in numbers.items()
    }
    dense, packaged = numbers["dense"], numbers[contents.packaged]
    change = "" if dense is None or packaged is None else compare(dense, packaged)
    return Measure(name, texts, change)


def _perplexity(contents: PackageContents, name: str) -> Measure:
    def read(record: EvaluationRecord) -> float | None:
        return record.perplexity[name].value if name in record.perplexity else None

    return _row(contents, f"Perplexity, {name}", read, perplexity_text, _relative)


def _task(contents: PackageContents, name: str) -> list[Measure]:
    def read(field: str) -> Callable[[EvaluationRecord], float | None]:
        return lambda record: getattr(record.tasks.get(name), field, None)

    rows = [_row(contents, f"Accuracy, {name}", read("acc"), percent, _points)]
    if any(read("acc_norm")(record) is not None for record in contents.records.values()):
        title = f"Normalised accuracy, {name}"
        rows.append(_row(contents, title, read("acc_norm"), percent, _points))
    return rows


def _speed(contents: PackageContents) -> list[Measure]:
    if not any(record.speed for record in contents.records.values()):
        return []
    names = {
        "prefill_tokens_per_second": "Prompt tokens per second",
        "decode_tokens_per_second": "Decoded tokens per second",
    }
    return [
        _row(contents, title, _speed_reader(field), "{:,.1f}".format, _factor)
        for field, title in names.items()
    ]


def _speed_reader(field: str) -> Callable[[EvaluationRecord], float | None]:
    return lambda record: getattr(record.speed, field, None)


def _relative(dense: float, packaged: float) -> str:
    return _signed(100 * (packaged / dense - 1), " %") if dense else ""


def _points(dense: float, packaged: float) -> str:
    return _signed(100 * (packaged - dense), " points")


def _factor(dense: float, packaged: float) -> str:
    return f"{TIMES} {packaged / dense:.2f}" if dense else ""


def _signed(number: float, unit: str) -> str:
    text = f"{number:+,.1f}"
    # A change that rounds to nothing has no sign.
    return f"{'0.0' if float(text.replace(',', '')) == 0 else text.replace('-', MINUS)}{unit}"
