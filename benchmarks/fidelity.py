"""How true are the criteria? Rank correlations with what removing a group really changes.

    python -m benchmarks.fidelity --models MODEL=CALIBRATION,HELD_OUT ... --folder DIR
        [--criteria a,b] [--samples 128] [--channels 32] [--markdown FILE] [--json FILE]

Every criterion scores each model on the calibration text (128 windows of 128 tokens, seed 0). The
truth is measured on windows of another text: the change of the block's output and of the model's
loss when one attention group, or one drawn FFN channel, goes. Criteria that are searches run with
their default budgets, some minutes each; ``--criteria`` leaves them out. Finished parts are kept in
``--folder`` and not measured again; models of earlier runs stay in the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.correlations import (
    KINDS,
    Scores,
    agreement,
    between,
    by_block,
    load_scores,
    pooled,
    spearman,
)
from benchmarks.fidelity_tables import sections
from benchmarks.processes import Failed, run
from benchmarks.true_changes import TrueChanges, true_changes
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.model.opening import open_checkpoint
from bipline.storage.directory import write_text

# Every criterion that scores groups, and the published variants of those that have some.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "llm-bip": ("llm-bip", ()),
    "llm-bip-glu": ("llm-bip-glu", ()),
    "llm-bip-exact": ("llm-bip-exact", ()),
    "llm-bip-adjoint": ("llm-bip-adjoint", ()),
    "wanda-sp": ("wanda-sp", ()),
    "flap wifv": ("flap", ()),
    "flap ifv": ("flap", ("metric=ifv",)),
    "flap wifn": ("flap", ("metric=wifn",)),
    "llm-pruner element-first": ("llm-pruner", ()),
    "llm-pruner element-second": ("llm-pruner", ("importance=element-second",)),
    "llm-pruner element-mixed": ("llm-pruner", ("importance=element-mixed",)),
    "llm-pruner vector": ("llm-pruner", ("importance=vector",)),
    "hywia": ("hywia", ()),
    "saap": ("saap", ()),
    "activation": ("activation", ()),
    "magnitude": ("magnitude", ()),
    "random": ("random", ()),
    "policy-gradient": ("policy-gradient", ()),
    "bi-level": ("bi-level", ()),
}
TRUTH_WINDOWS = 16


def main() -> None:
    """Measure every model, show the tables, write JSON and Markdown."""
    given = _arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    names = given.criteria.split(",") if given.criteria else list(VARIANTS)
    file = given.json or given.folder / "fidelity.json"
    results: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for model, calibration, held_out in given.models:
        place = given.folder / model.name
        place.mkdir(exist_ok=True)
        results[model.name] = _of_model(model, (calibration, held_out), names, place, given)
        write_text(file, json.dumps(results, indent=1))
    shown = sections(results)
    text = "\n\n".join(section.markdown() for section in shown)
    if given.markdown:
        write_text(given.markdown, text + "\n")
    sys.stdout.write(text + "\n")


def _of_model(
    model: Path, texts: tuple[Path, Path], names: list[str], place: Path, given: argparse.Namespace
) -> dict[str, Any]:
    truth = _truth(model, texts[1], place / "truth.json", given)
    scores: dict[str, Scores] = {}
    costs: dict[str, Any] = {}
    for name in names:
        costs[name] = _cost(model, texts[0], name, place, given.samples)
        scores[name] = load_scores(_file(place, name, "safetensors"))
    return {
        "calibration": {"text": texts[0].name, "samples": given.samples, "seqlen": 128, "seed": 0},
        "truth": {
            "text": texts[1].name,
            "windows": TRUTH_WINDOWS,
            "seqlen": 128,
            **{kind: len(held.places) for kind, held in truth.items()},
        },
        "agreement": {name: agreement(held, truth) for name, held in scores.items()},
        "heads_by_block": {name: by_block(held, truth[KINDS[0]]) for name, held in scores.items()},
        "costs": costs,
        "between": {
            f"{one} | {other}": between(scores[one], scores[other])
            for one, other in combinations(names, 2)
        },
        "adjoint_distance": _distance(scores),
    }


def _truth(
    model: Path, text: Path, file: Path, given: argparse.Namespace
) -> dict[str, TrueChanges]:
    if not file.exists():
        checkpoint = open_checkpoint(model)
        drawn = calibrate(checkpoint.folder, {text: 1.0}, TRUTH_WINDOWS, 128, 0)
        found = true_changes(Computing().loop(checkpoint), drawn.token_ids, given.channels)
        write_text(file, json.dumps({kind: asdict(held) for kind, held in found.items()}))
    value = json.loads(file.read_text(encoding="utf-8"))
    return {kind: TrueChanges(**value[kind]) for kind in KINDS}


def _cost(model: Path, text: Path, name: str, place: Path, samples: int) -> dict[str, Any]:
    """The cost of one criterion; its scores lie beside it. Measured in a process of its own."""
    criterion, options = VARIANTS[name]
    file = _file(place, name, "json")
    if not file.exists():
        sys.stderr.write(f"{model.name}: {name}\n")
        words = [
            sys.executable,
            "-m",
            "benchmarks.criterion_cost",
            str(model),
            criterion,
            str(text),
        ]
        words += [word for option in options for word in ("--option", option)]
        words += ["--samples", str(samples), "--json", str(file)]
        run([*words, "--scores", str(_file(place, name, "safetensors"))])
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value


def _distance(scores: dict[str, Scores]) -> dict[str, float] | None:
    """How far ``llm-bip-adjoint`` lies from ``llm-bip-exact`` on attention groups."""
    if not {"llm-bip-adjoint", "llm-bip-exact"} <= set(scores):
        return None
    probed, exact = (pooled(scores[f"llm-bip-{n}"], KINDS[0]) for n in ("adjoint", "exact"))
    relative = abs(probed / exact - 1)
    return {
        "median": float(sorted(relative)[len(relative) // 2]),
        "largest": float(max(relative)),
        "rank_correlation": spearman(probed, exact),
    }


def _file(place: Path, name: str, suffix: str) -> Path:
    return place / f"{name.replace(' ', '-')}.{suffix}"


def _model(text: str) -> tuple[Path, Path, Path]:
    model, _, texts = text.partition("=")
    calibration, _, held_out = texts.partition(",")
    if not held_out:
        raise argparse.ArgumentTypeError(f"{text!r}: write MODEL=CALIBRATION,HELD_OUT")
    return Path(model), Path(calibration), Path(held_out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="rank correlations of criteria with the truth")
    parser.add_argument("--models", type=_model, nargs="+", required=True)
    parser.add_argument("--folder", type=Path, default=Path("build/fidelity"))
    parser.add_argument("--criteria", default="", help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32, help="drawn FFN channels of a block")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(str(error))
