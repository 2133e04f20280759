"""The main job, stage by stage beside its floor; and a second ratio from saved statistics."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import Failed
from benchmarks.running import Pruned, forget_model, prune
from benchmarks.session import Session, model_bytes
from benchmarks.tables import (
    NOTHING,
    Section,
    Table,
    gigabytes_text,
    seconds_text,
)
from bipline.model.opening import open_checkpoint
from bipline.storage.synced_file import SyncedFile

CRITERION = "llm-bip-glu"
DTYPE = "bfloat16"
RATIO = 0.5
SAMPLES = 10
SECOND_RATIO = 0.3
PIECE_BYTES = 8 << 20
REPEATS = 2
# The stages that have a floor; the others read a text or sort scores.
WORKING_STAGES = ("score", "prune")
COMMON = ("--criterion", CRITERION, "--dtype", DTYPE)
ON_CPU = (*COMMON, "--device", "cpu")


def main_section(session: Session) -> Section:
    """The main job on the CPU. Its statistics and its plan are kept for other sections."""
    kept = ("--statistics", session.statistics, "--plan-out", session.plan)
    return _measured(session, "main job", "cpu", kept)


def gpu_section(session: Session) -> Section:
    """The main job on a GPU, where there is one."""
    import torch  # here, because only this section asks for a GPU

    if not torch.cuda.is_available():
        note = "not measured on a GPU"
        return Section({"measured": False, "note": note}, (), (f"gpu: {note}",))
    return _measured(session, "main job on a GPU", "cuda", ())


def _measured(session: Session, title: str, device: str, kept: tuple[str | Path, ...]) -> Section:
    model = session.main_model()
    options = ("--ratio", str(RATIO), *COMMON, "--device", device, *kept)
    with session.outputs() as folder:
        pruned = prune(session, model, folder / "pruned", *options, samples=SAMPLES)
    values = {"measured": True, "model_bytes": model_bytes(model), **_main_values(pruned)}
    return Section(values, (_main_table(title, pruned, values),), _main_notes(pruned))


def _main_values(pruned: Pruned) -> dict[str, Any]:
    floor = pruned.result["floor_seconds"]
    total = pruned.result["seconds"]["total"]
    return {
        "command": pruned.command,
        "stage_seconds": pruned.stages,
        "total_seconds": total,
        "process_seconds": pruned.seconds,
        "floor_seconds_by_stage": pruned.result["floor_seconds_by_stage"],
        "floor_seconds": floor,
        "total_over_floor": total / floor if floor else None,
        "peak_anonymous_bytes": pruned.result["peak_anonymous_bytes"],
        "peak_resident_bytes": pruned.result["peak_rss_bytes"],
        "peak_device_bytes": pruned.result["peak_device_bytes"],
        "rates": pruned.result["rates"],
        "ratio": pruned.result["ratio"],
    }


def _main_table(title: str, pruned: Pruned, values: dict[str, Any]) -> Table:
    floors = values["floor_seconds_by_stage"]
    rows = [_stage_row(name, seconds, floors) for name, seconds in pruned.stages.items()]
    total, floor = values["total_seconds"], values["floor_seconds"]
    if floor:
        ratio = f"{values['total_over_floor']:.2f}"
        rows.append(("all stages", seconds_text(total), seconds_text(floor), ratio))
    else:
        rows.append(("all stages", seconds_text(total), "too short for a floor", NOTHING))
    rows.append(("whole process", seconds_text(values["process_seconds"]), NOTHING, NOTHING))
    return Table(
        f"{title}: {pruned.result['model']}", ("stage", "s", "floor, s", "ratio"), (*rows,)
    )


def _stage_row(name: str, seconds: float, floors: dict[str, float]) -> tuple[str, ...]:
    if name not in floors:
        why = "too short for a floor" if name in WORKING_STAGES else NOTHING
        return (name, seconds_text(seconds), why, NOTHING)
    return (
        name,
        seconds_text(seconds),
        seconds_text(floors[name]),
        f"{seconds / floors[name]:.2f}",
    )


def _main_notes(pruned: Pruned) -> tuple[str, ...]:
    result = pruned.result
    anonymous, resident = result["peak_anonymous_bytes"], result["peak_rss_bytes"]
    notes = [
        f"peak memory: anonymous {gigabytes_text(anonymous)}, resident {gigabytes_text(resident)}; "
        f"file-backed is roughly the difference, {gigabytes_text(max(0, resident - anonymous))} "
        "(the two peaks need not be at the same time)"
    ]
    if result["peak_device_bytes"]:
        notes.append(f"peak memory of the GPU: {gigabytes_text(result['peak_device_bytes'])}")
    if rates := result["rates"]:
        notes.append(
            f"rates of this machine: reads {rates['read_bytes_per_second'] / 1e9:.2f} GB/s, writes "
            f"{rates['write_bytes_per_second'] / 1e9:.2f} GB/s, computes "
            f"{rates['operations_per_second'] / 1e9:,.0f} GFLOP/s"
        )
    return (*notes, f"command: `{pruned.command}`")


def second_ratio_section(session: Session) -> Section:
    """Another ratio from the statistics that ``main`` saved, beside plain reading and writing."""
    model = session.main_model()
    options = ("--ratio", str(SECOND_RATIO), *ON_CPU, "--statistics", session.statistics)
    with session.outputs() as folder:
        pruned = prune(session, model, folder / "lighter", *options)
        refuse_forward_pass(pruned)
        written = model_bytes(folder / "lighter")
        plain = [_read_and_write(model, folder, written) for _ in range(REPEATS)]
    reading, writing = min(plain, key=sum)
    total = pruned.result["seconds"]["total"]
    values = {
        "command": pruned.command,
        "stage_seconds": pruned.stages,
        "score_seconds": pruned.stages["score"],
        "forward_pass": False,
        "total_seconds": total,
        "process_seconds": pruned.seconds,
        "read_bytes": model_bytes(model),
        "written_bytes": written,
        "read_seconds": reading,
        "write_seconds": writing,
        "total_over_read_and_write": total / (reading + writing),
        "peak_anonymous_bytes": pruned.result["peak_anonymous_bytes"],
    }
    return _second_ratio_tables(pruned, values)


def refuse_forward_pass(pruned: Pruned) -> None:
    """Raise Failed when windows were drawn: without windows there is no forward pass."""
    if "calibrate" in pruned.stages or "no calibration text is read" not in pruned.printed:
        raise Failed(f"{pruned.command}\nran a forward pass in spite of saved statistics")


def _second_ratio_tables(pruned: Pruned, values: dict[str, Any]) -> Section:
    plain = values["read_seconds"] + values["write_seconds"]
    rows = [(f"bipline: {name}", seconds_text(seconds)) for name, seconds in pruned.stages.items()]
    rows += [
        ("bipline: all stages", seconds_text(values["total_seconds"])),
        (f"read {gigabytes_text(values['read_bytes'])}", seconds_text(values["read_seconds"])),
        (f"write {gigabytes_text(values['written_bytes'])}", seconds_text(values["write_seconds"])),
        ("read + write", seconds_text(plain)),
        ("ratio", f"{values['total_over_read_and_write']:.2f}"),
    ]
    notes = (
        f"no forward pass: no windows were drawn, the score stage took "
        f"{seconds_text(values['score_seconds'])} s",
        f"read + write is the faster of {REPEATS}, one after the other; bipline overlaps them, "
        "and hashes every byte that it reads",
        f"command: `{pruned.command}`",
    )
    title = f"second ratio from saved statistics: {pruned.result['model']}"
    return Section(values, (Table(title, ("", "s"), (*rows,)),), notes)


def _read_and_write(model: Path, folder: Path, written: int) -> tuple[float, float]:
    """Seconds to read all of a model as bipline opens it, and to write that many bytes."""
    forget_model(model)
    files = open_checkpoint(model).files.values()
    buffer = memoryview(bytearray(PIECE_BYTES))
    start = time.perf_counter()
    for file in files:
        for offset in range(0, file.size, PIECE_BYTES):
            file.read_into(buffer[: file.size - offset], offset)
    reading = time.perf_counter() - start
    return reading, _write(folder / "written.bin", written)


def _write(path: Path, amount: int) -> float:
    piece = memoryview(os.urandom(PIECE_BYTES))
    start = time.perf_counter()
    with SyncedFile(path) as file:
        for offset in range(0, amount, PIECE_BYTES):
            file.write(piece[: amount - offset])
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds
