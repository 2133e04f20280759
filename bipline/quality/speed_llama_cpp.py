"""llama.cpp serving a file: ``python speed_llama_cpp.py FILE THREADS SLOTS CONTEXT``.

It prints its address and serves until its input ends. Nothing of bipline is imported, so a crash
of the engine is an exit status. Weights are read into memory, not mapped, so that they count.
"""

from __future__ import annotations

import json
import sys


def main(file: str, threads: int, slots: int, context: int) -> None:
    """Serve a file; ``context`` tokens in each of the slots."""
    import xllamacpp as library

    parameters = library.CommonParams()
    parameters.model.path = file
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context
    parameters.n_gpu_layers = 0
    parameters.load_mode = library.llama_load_mode.LLAMA_LOAD_MODE_NONE
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = library.Server(parameters)
    told = {"url": server.listening_address, "version": library.__version__}
    print(json.dumps(told), flush=True)  # noqa: T201
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
