"""The graph: transformers' own exporter, and what is set right in what it gives.

Traced for dynamic sizes from two rows with something in the cache: torch takes a size of one for
a constant. Names are those of Optimum, which ONNX Runtime's tools know.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import Refused
from bipline.base.extras import require
from bipline.model.built import one_line
from bipline.values.origin import SECTION

EXTRA = "onnx"
DATA_SUFFIX = ".data"
ROWS, PAST, NEW = 2, 3, 2
LONGEST_REASON = 300
# transformers' way to run experts that the exporter writes for every routing: one product for each
# expert, with whichever tokens pass through it. The classes' own loop over the experts that were
# hit cannot be traced, and `batched_mm` gathers matrices anew for each token of a prompt.
EXPERTS = "grouped_mm"
# Dimensions of the inputs by name; the symbols that torch finds for them have names of its own.
DIMENSIONS = {
    "input_ids": ("batch", "tokens"),
    "attention_mask": ("batch", "past_tokens + tokens"),
    "position_ids": ("batch", "tokens"),
}


@torch.no_grad()
def write_graph(model: Any, file: Path, metadata: Mapping[str, str]) -> None:
    """Write a model of transformers as ONNX: the graph in ``file``, weights in ``file.data``.

    ``metadata`` is what the file tells of itself. Raises Refused where it cannot be exported.
    """
    library = require("transformers.exporters.exporter_onnx", EXTRA)
    model.requires_grad_(False)
    if model._can_set_experts_implementation():
        model.set_experts_implementation(EXPERTS)
    inputs = _inputs(model)
    sizes = torch.export.Dim.AUTO
    shapes: dict[str, Any] = {name: {0: sizes, 1: sizes} for name in DIMENSIONS}
    shapes["past_key_values"] = [{0: sizes, 2: sizes}] * _tensors(inputs["past_key_values"])
    asked = library.OnnxConfig(dynamic=True, dynamic_shapes=shapes)
    try:
        with _quiet():
            program = library.OnnxExporter().export(model, inputs, asked).program
    except Exception as error:
        # torch and onnxscript raise whatever their parts raise; here all of it means the same.
        reason = one_line(error)[:LONGEST_REASON]
        raise Refused(f"onnx: transformers' exporter cannot export the model: {reason}") from error
    _strip(program)
    _name(program.graph)
    program.metadata_props.update(metadata)
    require("onnx_ir", EXTRA).save(program, str(file), external_data=f"{file.name}{DATA_SUFFIX}")


def _inputs(model: Any) -> dict[str, Any]:
    """What it is traced with: a few tokens after a cache of a few, in two rows."""
    from transformers import DynamicCache

    # Without a config every layer of it keeps all tokens; the mask alone makes a window slide.
    ids, cache = torch.ones(ROWS, PAST + NEW, dtype=torch.long), DynamicCache()
    model(ids[:, :PAST], past_key_values=cache)
    return {
        "input_ids": ids[:, PAST:],
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(PAST, PAST + NEW).repeat(ROWS, 1),
        "past_key_values": cache,
    }


def _tensors(cache: Any) -> int:
    """Tensors of a cache: two for every layer that an attention has filled."""
    return 2 * sum(layer.is_initialized for layer in cache.layers)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints of its own passes and of operators that no language model has."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _strip(program: Any) -> None:
    """Take out where the code lay that was traced, and shapes that are under torch's names."""
    graph = program.graph
    for held in (program, graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        held.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None


def _name(graph: Any) -> None:
    """Name inputs, outputs and their dimensions."""
    caches = [each for each in graph.inputs if each.name not in DIMENSIONS]
    for given, dimensions in ((each, DIMENSIONS.get(each.name)) for each in graph.inputs):
        if dimensions:
            _reshape(given, dict(enumerate(dimensions)))
    _reshape(graph.outputs[0], {0: "batch", 1: "tokens"})
    for place, (past, present) in enumerate(zip(caches, graph.outputs[1:], strict=True)):
        part = f"{place // 2}.{'value' if place % 2 else 'key'}"
        past.name, present.name = f"past_key_values.{part}", f"present.{part}"
        _reshape(past, {0: "batch", 2: "past_tokens"})
        _reshape(present, {0: "batch", 2: "past_tokens + tokens"})


def _reshape(value: Any, names: Mapping[int, str]) -> None:
    library = require("onnx_ir", EXTRA)
    held = enumerate(value.shape)
    named = (library.SymbolicDim(names[i]) if i in names else size for i, size in held)
    value.shape = library.Shape(list(named))


def read_origin(file: Path) -> dict[str, str]:
    """What a model's metadata tells of its origin, weights not opened.

    Raises Refused for a file that is no ONNX model, or whose weights lie in any other place than
    beside it.
    """
    library = require("onnx", EXTRA)
    try:
        model = library.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's own, which onnx does not name
        raise Refused(f"{file}: not an ONNX model: {one_line(error)[:LONGEST_REASON]}") from None
    if not model.HasField("graph"):  # anything short is a message of protobuf
        raise Refused(f"{file}: not an ONNX model: no graph")
    places = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    for entry in places:
        if entry.key == "location" and entry.value != f"{file.name}{DATA_SUFFIX}":
            raise Refused(f"{file}: takes weights from {entry.value!r}, which is not its own file")
    told = {entry.key: entry.value for entry in model.metadata_props}
    return {key: value for key, value in told.items() if key.startswith(f"{SECTION}.")}
