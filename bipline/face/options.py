"""The options of the commands: their types and what ``--help`` says of each, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from bipline.base.errors import InvalidInput

if TYPE_CHECKING:
    from bipline.compression.auto import Method

Number = TypeVar("Number", int, float)


def in_a_folder(path: Path | None) -> Path | None:
    """Refuse a result file whose folder is missing now, not after the work."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InvalidInput(f"{path}: its folder does not exist")
    return path


def byte_count(value: str | None) -> int | None:
    """A number of bytes, with or without a unit. Raises InvalidInput for anything else."""
    if value is None:
        return None
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise InvalidInput(f"{value!r} is not a size; write bytes, or 2.5GB or 2GiB") from None


def key_values(given: list[str] | None) -> dict[str, str]:
    """KEY=VALUE pairs as a mapping. Raises InvalidInput for anything else."""
    pairs = [text.partition("=") for text in given or ()]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise InvalidInput(f"option {key + equals + value!r}: write KEY=VALUE")
    return {key: value for key, _, value in pairs}


def method(
    criterion: tuple[str, list[str] | None],
    allocation: tuple[str | None, list[str] | None],
    compensation: tuple[str | None, list[str] | None],
    layout: str,
    applies: bool,
) -> tuple[Method, str]:
    """The method of these names and their KEY=VALUE options, and why where it was ``auto``.

    A plan that a command only ``applies`` stays as it is, unless more is asked for by name.
    Raises InvalidInput for what is no pair.
    """
    from bipline.compression.auto import Method, settled

    named = Method(
        criterion=criterion[0],
        criterion_options=key_values(criterion[1]),
        rule=allocation[0],
        rule_options=key_values(allocation[1]),
        compensation=compensation[0],
        compensation_options=key_values(compensation[1]),
    )
    return (named.without_auto(), "") if applies else settled(named, layout)


def several(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list, blank ones left out."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str, kind: type[Number]) -> tuple[Number, ...]:
    """The numbers of a comma-separated list. Raises InvalidInput for what is none."""
    try:
        return tuple(kind(part) for part in several(text))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InvalidInput(f"{text!r}: write {what}, separated by commas") from None


CRITERIA = (
    "auto (brings its own allocation and compensation), llm-bip-glu, llm-bip, llm-bip-exact, "
    "llm-bip-adjoint, wanda-sp, flap, llm-pruner, hywia, saap, activation, magnitude, random, "
    "policy-gradient, bi-level; for depth: block-influence, block-shapley"
)
COMPENSATIONS = "none, bias, least-squares, obs (default: none, or what goes with criterion auto)"
RULES = (
    "uniform, standardized, block-influence, log-increase, error-aware, compensated, learned, "
    "threshold; depth (default: uniform, depth where the criterion scores blocks, or what goes "
    "with criterion auto)"
)

COMPARED = "auto,llm-bip-glu,wanda-sp,magnitude,random"
METHOD = "comma-separated; with options NAME:KEY=VALUE, such as"

Model = Annotated[str, typer.Argument(help="model directory, or s3://bucket/prefix")]
Out = Annotated[Path, typer.Option(help="output directory; must be empty or not exist")]
Ratio = Annotated[float | None, typer.Option(help="share to remove, between 0 and 1")]
RatioOf = Annotated[str, typer.Option(help="blocks: their linear weights; or total")]
Criterion = Annotated[str, typer.Option(help=CRITERIA)]
CriterionOption = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE, see docs/methods; may be repeated")
]
Allocation = Annotated[str | None, typer.Option(help=RULES, show_default=False)]
AllocationOption = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE, see docs/methods; may be repeated")
]
Layout = Annotated[
    str, typer.Option(help="uniform: same widths, a plain checkpoint; or per-layer: custom code")
]
KeepFirst = Annotated[int, typer.Option(help="leave this many first blocks whole")]
KeepLast = Annotated[int, typer.Option(help="leave this many last blocks whole")]
DivisibleBy = Annotated[
    int, typer.Option(help="kept groups and channels divide by this (tensor parallelism)")
]
Compensation = Annotated[str | None, typer.Option(help=COMPENSATIONS, show_default=False)]
CompensationOption = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE, see docs/compensation.md; may be repeated")
]
Corrections = Annotated[
    Path | None, typer.Option(help="corrected tensors: apply them with their plan, or write them")
]
Calibration = Annotated[str | None, typer.Option(help="text: FILE or hf:NAME?split=...")]
Samples = Annotated[int, typer.Option(help="number of calibration windows")]
FittingSamples = Annotated[
    int | None,
    typer.Option(help="number of calibration windows (default: 128, or what compensation needs)"),
]
Seqlen = Annotated[int, typer.Option(help="window length in tokens")]
Seed = Annotated[int, typer.Option(help="draws calibration windows and whatever a method draws")]
FfnMultiple = Annotated[
    int | None, typer.Option(help="cut FFN channels in multiples of this (default: chosen)")
]
Plan = Annotated[Path | None, typer.Option(help="apply this plan, compute nothing")]
PlanOut = Annotated[
    Path | None, typer.Option(help="also write the plan here", callback=in_a_folder)
]
Statistics = Annotated[Path | None, typer.Option(help="saved statistics: reuse or write")]
Work = Annotated[
    Path | None, typer.Option(help="where a killed run goes on from (default: OUT.work)")
]
ComputeDtype = Annotated[str, typer.Option(help="compute dtype: float32 or bfloat16")]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:N")]
MicroBatch = Annotated[
    int | None, typer.Option(help="windows run together, 1 to 16 (default: by their length)")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="most memory to use, such as 2.5GB (default: what is free)"),
]
ShardSize = Annotated[str, typer.Option(help="largest shard, in bytes or as 5GB")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="write the result as JSON here", callback=in_a_folder),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be repeated")
]
State = Annotated[Path, typer.Option(help="folder for logs and state")]
Models = Annotated[
    list[str], typer.Argument(help="model directories, or hf:org/name@revision", show_default=False)
]
ComparisonOut = Annotated[
    Path, typer.Option(help="folder for results, and for what a later run goes on from")
]
Calibrations = Annotated[
    list[str] | None, typer.Option("--calibration", help="text: FILE or hf:NAME; may be repeated")
]
Texts = Annotated[
    list[str] | None, typer.Option("--text", help="NAME=FILE to measure on; may be repeated")
]
Criteria = Annotated[
    str | None,
    typer.Option(
        help=f"{METHOD} flap:metric=ifv (default: {COMPARED}; none where a --method is given)",
        show_default=False,
    ),
]
Allocations = Annotated[
    str | None,
    typer.Option(
        help=f"{METHOD} threshold:tokens=4000 (default: the rule that goes with the criterion)",
        show_default=False,
    ),
]
Layouts = Annotated[str, typer.Option(help="comma-separated: uniform, per-layer")]
Compensations = Annotated[
    str | None,
    typer.Option(
        help=f"{METHOD} none,obs:ridge=0.1 (default: none; for auto its own)", show_default=False
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="CRITERION/ALLOCATION/COMPENSATION beside the axes, such as flap/uniform/bias; a part "
        "left out goes with the criterion; may be repeated",
    ),
]
Ratios = Annotated[str, typer.Option(help="comma-separated shares to remove")]
Seeds = Annotated[
    str, typer.Option(help="comma-separated; each draws its windows, the table shows the spread")
]
EvaluationSeqlen = Annotated[int, typer.Option(help="window length in tokens, for perplexity")]
Bos = Annotated[str, typer.Option(help="for perplexity: none, text or window")]
CommonDtype = Annotated[
    str, typer.Option(help="compute dtype of scoring and of perplexity: float32 or bfloat16")
]
Jobs = Annotated[
    int, typer.Option(help="processes, as far as memory has room; they share the cores")
]
Keep = Annotated[bool, typer.Option(help="keep every pruned model, below OUT/models")]
CsvFile = Annotated[
    Path | None, typer.Option("--csv", help="write the rows as CSV here", callback=in_a_folder)
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="write the report here too", callback=in_a_folder)
]
