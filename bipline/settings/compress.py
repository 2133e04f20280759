"""Configuration of a compress run: strict, frozen, one section per stage.

A file is YAML; ``--set section.field=value`` overrides anything in it. Unknown keys are refused
with the nearest valid name. A step gets its own section and nothing else, so an edit of one
section re-runs that stage and what depends on it.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from bipline.base.errors import InvalidInput
from bipline.settings.protocol import DtypeName, Protocol
from bipline.settings.recipes import LoraRecipe


class Section(BaseModel):
    """Base of all sections: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CalibrateSection(Section):
    """Which token windows the scores are computed on."""

    texts: dict[str, float] = Field(
        default={"calibration": 1.0}, description="names of texts with their weight in the mix"
    )
    samples: int = Field(default=128, ge=1, description="number of windows")
    seqlen: int = Field(default=128, ge=2, description="window length in tokens")
    seed: int = Field(default=0, description="shuffles documents and draws windows")


class ScoreSection(Section):
    """How important each group is."""

    criterion: str = Field(
        default="auto",
        description="how importance is measured; docs/methods has a page for each. auto brings "
        "its own allocation and compensation where they are null (docs/auto.md)",
    )
    options: dict[str, str | int | float | bool] = Field(
        default={}, description="the criterion's own options, such as metric: ifv for flap"
    )
    dtype: DtypeName = Field(default="float32", description="compute dtype of the forward pass")
    seed: int = Field(default=0, description="for criteria that draw (random)")
    device: str = Field(
        default="auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, le=16, description="windows run together; null picks by their length"
    )
    parts: int = Field(
        default=1,
        ge=1,
        description="parallel steps that share the calibration windows; the sums are the same",
    )


class AllocateSection(Section):
    """How much goes, and from where."""

    ratio: float = Field(default=0.2, description="share of parameters to remove, between 0 and 1")
    ratio_of: Literal["blocks", "total"] = Field(
        default="blocks",
        description="what ratio is a share of: linear weights of the blocks, or all parameters",
    )
    rule: str | None = Field(
        default=None,
        description="who loses how much; null is uniform, depth for criteria that score blocks, "
        "or what goes with criterion auto",
    )
    options: dict[str, str | int | float | bool] = Field(
        default={}, description="the rule's own options, such as temperature for block-influence"
    )
    seed: int = Field(default=0, description="for rules that draw")
    layout: Literal["uniform", "per-layer"] = Field(
        default="uniform",
        description="uniform: same widths in every block, a plain checkpoint; per-layer: blocks "
        "differ, and transformers loads the package with the code in it",
    )
    keep_first: int = Field(default=0, ge=0, description="first blocks that stay whole")
    keep_last: int = Field(default=0, ge=0, description="last blocks that stay whole")
    divisible_by: int = Field(
        default=1, ge=1, description="kept groups and channels divide by it (tensor parallelism)"
    )
    dtype: DtypeName = Field(default="float32", description="compute dtype of rules that measure")
    device: str = Field(
        default="auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )
    ffn_multiple: int | None = Field(
        default=None, ge=1, description="FFN channels go in multiples of this; null picks one"
    )


class CompensateSection(Section):
    """How the weights that stay make up for those that go."""

    form: Literal["none", "bias", "least-squares", "obs"] | None = Field(
        default=None, description="null is none, or what goes with criterion auto"
    )
    options: dict[str, str | int | float | bool] = Field(
        default={}, description="such as sequential: false; see docs/compensation.md"
    )
    dtype: DtypeName = Field(default="float32", description="compute dtype of the forward passes")
    device: str = Field(
        default="auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )


class PruneSection(Section):
    """How the smaller model is written."""

    shard_bytes: int = Field(default=5 * 10**9, ge=1, description="largest shard, in bytes")


class RecoverSection(Section):
    """Optional LoRA training after pruning."""

    enabled: bool = Field(default=False, description="train, merge, and keep it if it helps")
    text: str = Field(default="recovery", description="name of the training text")
    held_out: str = Field(default="held-out", description="name of the text that judges it")
    recipe: LoraRecipe = Field(default=LoraRecipe(), description="the LoRA training")


class EvaluateSection(Section):
    """What is measured on dense, pruned and recovered model alike."""

    texts: tuple[str, ...] = Field(default=("held-out",), description="texts for perplexity")
    tasks: tuple[str, ...] = Field(default=(), description="zero-shot tasks")
    protocol: Protocol = Field(default=Protocol(), description="how they are measured")
    device: str = Field(
        default="auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )


class ExportSection(Section):
    """Which formats the package holds."""

    formats: tuple[Literal["hf"], ...] = Field(default=("hf",), description="hf: transformers")


class PromoteSection(Section):
    """Where the package is registered."""

    name: str = Field(default="bipline", description="name of the registered model in MLflow")
    alias: str = Field(default="candidate", description="alias the new version gets")


class CompressConfig(Section):
    """One compress run: a model, its texts and tasks, and a section per stage."""

    model: str = Field(description="model directory or hf:org/name@revision")
    texts: dict[str, str] = Field(description="name: .txt or .jsonl file, or hf:org/name?split=...")
    tasks: dict[str, str] = Field(default={}, description="name: .jsonl file of zero-shot rows")
    state: str = Field(
        default=".bipline", description="folder for the store, ZenML's and MLflow's state, logs"
    )
    calibrate: CalibrateSection = CalibrateSection()
    score: ScoreSection = ScoreSection()
    allocate: AllocateSection = AllocateSection()
    compensate: CompensateSection = CompensateSection()
    prune: PruneSection = PruneSection()
    recover: RecoverSection = RecoverSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    promote: PromoteSection = PromoteSection()

    @model_validator(mode="after")
    def _names_exist(self) -> CompressConfig:
        wanted = [*self.calibrate.texts, *self.evaluate.texts]
        if self.recover.enabled:
            wanted += [self.recover.text, self.recover.held_out]
        all_known("text", wanted, self.texts)
        all_known("task", self.evaluate.tasks, self.tasks)
        return self


Configuration = TypeVar("Configuration", bound=Section)


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> CompressConfig:
    """Read a compress configuration (see :func:`load`)."""
    return load(CompressConfig, path, overrides)


def load(kind: type[Configuration], path: Path, overrides: tuple[str, ...] = ()) -> Configuration:
    """Read a YAML file and apply ``section.field=value`` overrides (values are YAML too).

    Raises InvalidInput, in one line, naming the key, the value and what is allowed.
    """
    values = _read_yaml(path)
    for override in overrides:
        _override(values, override)
    try:
        # Through JSON, because YAML gives lists and strict mode wants tuples.
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise InvalidInput(f"{path}: {_first_problem(error, kind)}") from None
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: not a configuration: {error}") from None


def config_schema() -> dict[str, Any]:
    """The JSON schema of a compress configuration, with descriptions and defaults."""
    return CompressConfig.model_json_schema()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such configuration file") from None
    except IsADirectoryError:
        raise InvalidInput(f"{path}: is a directory, not a configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{path}: not a mapping of sections")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InvalidInput(f"--set {override!r}: write section.field=value")
    *sections, field = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InvalidInput(f"--set {override!r}: {section} is a value, not a section")
    try:
        values[field] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidInput(f"--set {override!r}: {text!r} is not a YAML value") from None


def _first_problem(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_nearest(problem, kind)}"
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"the key {where!r} is required"
    return f"{where} = {json.dumps(problem['input'])}: {problem['msg'].lower()}"


def _nearest(problem: ErrorDetails, section: type[BaseModel]) -> str:
    *path, key = (str(part) for part in problem["loc"])
    for part in path:
        annotation = section.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    close = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.4)
    known = ", ".join(section.model_fields)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {known}"


def all_known(kind: str, wanted: list[str] | tuple[str, ...], known: dict[str, str]) -> None:
    """Raise ValueError for a name that is used and not listed."""
    for name in wanted:
        if name not in known:
            names = ", ".join(known) or "none"
            raise ValueError(f"{kind} {name!r} is used but not listed under {kind}s ({names})")
