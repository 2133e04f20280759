"""What bipline does on a GPU, in one command: see benchmarks/README.md.

    python -m benchmarks.gpu.main --out DIR [--rehearse] [--only PART,...]

Parts run one after the other, each within its own limit of time and all within ``--seconds``. A
part that fails is told with its reason, and the others go on; exit code 1 says that one did.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, Findings
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.results import FAILED, PASSED, UNFINISHED, Outcome, Results
from benchmarks.gpu.scale import FULL, REHEARSAL, ROOT
from benchmarks.processes import Failed
from bipline.base.errors import EnvironmentFailure
from bipline.storage.digests import digest_file, digest_listing

SECONDS = 540.0


def main() -> None:
    """Run the parts that were asked for."""
    given = _parsed()
    scale = REHEARSAL if given.rehearse else FULL
    if scale.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch sees no GPU; --rehearse tries everything on the CPU", file=sys.stderr)
        sys.exit(EnvironmentFailure.exit_code)
    work = (given.work or ROOT / "build" / "gpu" / scale.name).absolute()
    out = given.out.absolute()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(scale, work, out / "gpu.log", time.monotonic() + given.seconds)
    results = Results(out, work / "results", scale.name, _code())
    run_parts({name: PARTS[name] for name in given.only}, bench, results, given.again)
    sys.exit(0 if results.passed else 1)


def run_parts(
    parts: Mapping[str, Part], bench: Bench, results: Results, again: bool = False
) -> None:
    """Run parts until ``bench.ends``; what an earlier run passed is kept unless ``again``."""
    end = bench.ends
    for name, part in parts.items():
        if not again and results.load(name):
            print(f"{name}: passed before", flush=True)
            continue
        results.add(name, Outcome(UNFINISHED, "cut off while it ran"))
        bench.ends = min(end, time.monotonic() + part.seconds)
        outcome = _outcome(part, bench)
        results.add(name, outcome)
        print(f"{name}: {outcome.status} in {outcome.seconds:.1f} s {outcome.reason}", flush=True)
    results.write()
    print(results.out / "gpu.md", flush=True)


def _outcome(part: Part, bench: Bench) -> Outcome:
    start, findings, status, reason = time.monotonic(), Findings(), PASSED, ""
    try:
        part.run(bench, findings)
    except Failed as failure:
        status, reason = FAILED, _line(str(failure))
    except Exception as failure:
        # What a part could not foresee must not take the others with it.
        status, reason = FAILED, _line(f"{type(failure).__name__}: {failure}")
    seconds = time.monotonic() - start
    return Outcome(status, reason, seconds, findings.values, findings.section.markdown())


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _code() -> str:
    """A digest of the code that is measured: what another code found is not gone on from."""
    files = sorted([*(ROOT / "bipline").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
    return digest_listing({str(file.relative_to(ROOT)): digest_file(file) for file in files})[:12]


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure bipline on a GPU.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for gpu.json, gpu.md and gpu.log")
    add("--work", type=Path, help="folder for models and outputs [default: build/gpu/SCALE]")
    add("--rehearse", action="store_true", help="small shapes on the CPU, in a minute")
    add("--only", type=_part_names, default=list(PARTS), help=f"some of: {', '.join(PARTS)}")
    add("--again", action="store_true", help="also what an earlier run has passed")
    add("--seconds", type=float, default=SECONDS, help="for all parts [default: %(default)s]")
    return parser.parse_args()


def _part_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        known = ", ".join(PARTS)
        raise argparse.ArgumentTypeError(f"unknown part {unknown[0]!r}; known: {known}")
    return [name for name in PARTS if name in names]


if __name__ == "__main__":
    main()
