"""Speed as engines serve it: files by llama.cpp, anything else by its OpenAI endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.base.extras import check as check_extra
from bipline.base.progress import heading
from bipline.quality import speed_llama_cpp
from bipline.quality.speed import prompts_of, summary, taken_turns
from bipline.quality.speed_served import Endpoint
from bipline.settings.protocol import Protocol
from bipline.values.speed import Speeds

# llama.cpp would start a debugger on itself where it aborts.
QUIET = {"GGML_NO_BACKTRACE": "1"}
# Beside prompt and decoded tokens: what an engine adds of its own.
ROOM_TOKENS = 8


@dataclass(frozen=True)
class Served:
    """An endpoint, and of an engine that was started here its process and seconds to load."""

    endpoint: Endpoint
    engine: str
    process: int | None = None
    load_seconds: float | None = None


def is_served(source: str) -> bool:
    """Whether a source is for an engine: an address or a .gguf file."""
    return source.startswith(("http://", "https://")) or source.endswith(".gguf")


def measure_served(
    sources: Mapping[str, str], protocol: Protocol, threads: int | None = None
) -> Speeds:
    """Speeds of .gguf files and endpoints by name, taking turns.

    Raises InvalidInput for a file that is not there, EnvironmentFailure where an engine fails.
    """
    for source in sources.values():
        if source.endswith(".gguf") and not Path(source).is_file():
            raise InvalidInput(f"{source}: no such file")
    heading(f"speed of {', '.join(sources)}")
    sizes = dict.fromkeys((1, protocol.speed_batch))
    batches = [prompts_of(size, protocol.speed_prompt_tokens, 2) for size in sizes]
    with ExitStack() as stack:
        served = {
            name: stack.enter_context(_serving(source, protocol, threads))
            for name, source in sources.items()
        }
        subjects = {name: each.endpoint for name, each in served.items()}
        taken_turns(subjects, batches, protocol.speed_decoded_tokens, 1)  # nothing is warm yet
        samples = taken_turns(
            subjects, batches, protocol.speed_decoded_tokens, protocol.speed_repeats
        )
        return Speeds(
            models={
                name: summary(samples[name], batches, protocol, list(sources)).model_copy(
                    update={
                        "engine": each.engine,
                        "load_seconds": each.load_seconds,
                        "peak_memory_bytes": _highest(each.process),
                    }
                )
                for name, each in served.items()
            }
        )


@contextmanager
def _serving(source: str, protocol: Protocol, threads: int | None) -> Iterator[Served]:
    if not source.endswith(".gguf"):
        endpoint = Endpoint.open(source)
        yield Served(endpoint, f"{endpoint.model} at {source}")
        return
    check_extra("gguf", "a .gguf file")
    context = protocol.speed_prompt_tokens + protocol.speed_decoded_tokens + ROOM_TOKENS
    numbers = threads or torch.get_num_threads(), protocol.speed_batch, context
    command = [sys.executable, "-P", str(speed_llama_cpp.__file__), str(Path(source).absolute())]
    start = time.perf_counter()
    with subprocess.Popen(  # noqa: S603
        [*command, *map(str, numbers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, **QUIET},
    ) as process:  # fmt: skip
        try:
            told = _address(process, source)
            seconds = time.perf_counter() - start
            engine = f"llama.cpp by xllamacpp {told['version']}"
            yield Served(Endpoint.open(told["url"]), engine, process.pid, seconds)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], source: str) -> dict[str, str]:
    """What the engine prints when it serves, among the lines of its log."""
    for line in process.stdout or ():
        if line.startswith(b'{"url"'):
            told: dict[str, str] = json.loads(line)
            return told
    raise EnvironmentFailure(f"{source}: llama.cpp does not serve it; exit {process.wait()}")


def _highest(process: int | None) -> int | None:
    """The private memory of a process now; nothing it has worked with was given back yet."""
    status = Path(f"/proc/{process}/status")
    if process is None or not status.is_file():
        return None
    return int(status.read_text("ascii").partition("RssAnon:")[2].split()[0]) * 1024
