"""The job behind ``bipline compare``: from what the user wrote to a comparison and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.comparison.engine import compare
from bipline.comparison.files import comparison_csv, comparison_json
from bipline.comparison.grid import Common, Grid, check_grid, choices
from bipline.comparison.inputs import Settings, named, resolve_inputs
from bipline.comparison.methods import methods
from bipline.comparison.report import render_comparison
from bipline.model.devices import choose_device
from bipline.settings.protocol import Protocol
from bipline.storage.directory import environment_failure, write_text
from bipline.values.comparison import Comparison

RESULTS = {"json": comparison_json, "csv": comparison_csv, "html": render_comparison}


@dataclass(frozen=True)
class CompareRequest:
    """Everything ``bipline compare`` was told (see its ``--help``)."""

    models: tuple[str, ...]
    calibrations: tuple[str, ...]
    texts: tuple[str, ...]
    criteria: tuple[str, ...]
    allocations: tuple[str, ...]
    layouts: tuple[str, ...]
    compensations: tuple[str, ...]
    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    common: Common
    samples: int
    seqlen: int
    evaluation_seqlen: int
    bos: str
    dtype: str
    device: str
    micro_batch: int | None
    max_memory: int | None
    jobs: int
    keep: bool
    out: Path
    copies: dict[str, Path | None]
    downloads: Path


def compare_job(request: CompareRequest) -> Comparison:
    """Compare, and write ``comparison.json``, ``.csv`` and ``.html`` into the folder.

    Raises InvalidInput before any work is done where the request can be seen to fail.
    """
    models, calibrations = named("MODEL", request.models), _calibrations(request)
    grid = Grid(
        models=tuple(models),
        calibrations=tuple(calibrations),
        criteria=choices(request.criteria),
        allocations=choices(request.allocations),
        layouts=request.layouts,
        compensations=choices(request.compensations),
        ratios=request.ratios,
        seeds=request.seeds,
        methods=methods(request.methods),
        common=request.common,
    )
    check_grid(grid)
    settings = Settings(
        request.samples, request.seqlen, _protocol(request), request.device, request.micro_batch,
        request.max_memory,
    )  # fmt: skip
    note(f"device {choose_device(request.device)}, dtype {request.dtype}")
    inputs = resolve_inputs(models, calibrations, _texts(request.texts), request.downloads)
    comparison = compare(grid, inputs, settings, request.out, request.jobs, request.keep)
    write_results(comparison, request)
    return comparison


def write_results(comparison: Comparison, request: CompareRequest) -> None:
    """Write every result into the folder, and where else it was asked for."""
    try:
        for suffix, render in RESULTS.items():
            text = render(comparison)
            for path in (request.out / f"comparison.{suffix}", request.copies.get(suffix)):
                if path is not None:
                    write_text(path, text)
    except OSError as error:
        raise environment_failure(error) or error from None


def _calibrations(request: CompareRequest) -> dict[str, str]:
    if not request.calibrations:
        raise InvalidInput("no calibration text: give --calibration FILE or hf:NAME")
    return named("--calibration", request.calibrations)


def _texts(given: tuple[str, ...]) -> dict[str, str]:
    """Sources of the evaluation texts by name."""
    texts: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise InvalidInput(f"--text {text!r}: write NAME=FILE")
        if name in texts:
            raise InvalidInput(f"--text: two texts are named {name!r}; name them apart")
        texts[name] = source
    return texts


def _protocol(request: CompareRequest) -> Protocol:
    given = {"seqlen": request.evaluation_seqlen, "bos": request.bos, "dtype": request.dtype}
    try:
        return Protocol.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        option = {"seqlen": "evaluation-seqlen"}.get(str(problem["loc"][0]), problem["loc"][0])
        raise InvalidInput(f"--{option} {problem['input']!r}: {problem['msg'].lower()}") from None
