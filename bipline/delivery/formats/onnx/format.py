"""The ONNX format: check, write, verify, and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from bipline.base import extras
from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.delivery.formats.engines import check_texts
from bipline.delivery.formats.interface import Layout, Subject, Verification, of_the_decoder_alone
from bipline.delivery.formats.onnx import verification
from bipline.delivery.formats.onnx.graph import EXTRA, read_origin, write_graph
from bipline.model.built import longest_window, transformers_config
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import tensor_shapes
from bipline.model.family import spelled
from bipline.model.loading import load_model
from bipline.model.memory import available_bytes, gigabytes, memory_limit
from bipline.model.side_files import PROCESSOR_FILES, is_side_file
from bipline.model.tokenizer import tokenizer_of
from bipline.settings.onnx import OnnxSettings
from bipline.storage.directory import DirectoryWriter
from bipline.storage.strict_json import parse_object
from bipline.values.origin import SECTION
from bipline.values.plan import Layout as PlanLayout
from bipline.values.resolution import CONFIG

FILE = "model.onnx"
# What writing and verifying take in memory (docs/export.md): of the libraries, and of the weights
# in float32 at once.
LIBRARIES_BYTES, COPIES = 700 << 20, 2
OTHERWISE = "leave onnx out of the formats, or take gguf, which is written in pieces"
LOAD = """```python
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

session = onnxruntime.InferenceSession("{file}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
tokens = tokenizer("Once upon a time")["input_ids"]
caches = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
past = {{each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in caches}}
given = tokens
for _ in range(32):
    seen = len(tokens)
    feed = {{
        "input_ids": np.array([given]),
        "attention_mask": np.ones((1, seen), np.int64),
        "position_ids": np.arange(seen - len(given), seen)[None],
    }}
    logits, *present = session.run(None, feed | past)
    past = dict(zip(past, present))
    given = [int(logits[0, -1].argmax())]
    tokens = [*tokens, *given]
print(tokenizer.decode(tokens, skip_special_tokens=True))
```

Weights lie beside the graph, in `{file}.data`. Batch and length are free; a batch of texts of
unequal length is padded on the left, with zeros in `attention_mask` and positions counted from
each text's first token."""


class Onnx:
    """A graph for ONNX Runtime (:class:`bipline.delivery.formats.interface.Format`)."""

    name, file, extra = "onnx", FILE, EXTRA

    def check(
        self, checkpoint: Checkpoint, texts: Mapping[str, Path], settings: OnnxSettings
    ) -> Layout:
        """See the interface. Raises as :func:`check_memory`, InvalidInput for no extra too."""
        extras.check(EXTRA, "the format onnx")
        check_memory(checkpoint, settings)
        check_texts(tokenizer_of(checkpoint.folder), texts, settings, context_length(checkpoint))
        return Layout(str(checkpoint.config["architectures"][0]), of_the_decoder_alone(checkpoint))

    def write(
        self, subject: Subject, writer: DirectoryWriter, folder: str, settings: OnnxSettings
    ) -> Path:
        """See the interface."""
        file = writer.path / folder / FILE
        file.parent.mkdir(exist_ok=True)
        write_beside(subject, file.parent)
        model = load_model(subject.checkpoint, torch.float32)
        write_graph(model, file, subject.origin.metadata())
        return file

    def verify(self, file: Path, subject: Subject, settings: OnnxSettings) -> Verification:
        """See the interface and :func:`bipline.delivery.formats.onnx.verification.verify`."""
        return verification.verify(file, subject, settings)

    def how_to_load(self, file: str, layout: PlanLayout) -> str:
        """See the interface."""
        return LOAD.format(file=file, folder=str(Path(file).parent))

    def origin(self, file: Path) -> dict[str, str]:
        """See the interface."""
        return read_origin(file)


def write_beside(subject: Subject, folder: Path) -> None:
    """The tokenizer's files as they are, and the config, by which its class is found.

    A config of blocks that differ is of no class that transformers has: none is found by it. Of a
    decoder that lies in another model it is the decoder's, and nothing that reads images is there.
    """
    held = subject.checkpoint.folder
    for name in filter(is_side_file, held.names()):
        if subject.checkpoint.nesting is None or name not in PROCESSOR_FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(held.read(name))
    if not subject.checkpoint.shape.per_layer:
        text = subject.config
        whole = held.read(CONFIG) if text is None else text.encode()
        (folder / CONFIG).write_bytes(_of_decoder(subject.checkpoint, whole))


def _of_decoder(checkpoint: Checkpoint, whole: bytes) -> bytes:
    """The config of a decoder by itself, with the origin that its model's tells."""
    if checkpoint.nesting is None:
        return whole
    told = parse_object(whole, f"{checkpoint.location}/{CONFIG}", "config", "")
    origin = {SECTION: told[SECTION]} if SECTION in told else {}
    config = {**spelled(checkpoint.config), **origin}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def context_length(checkpoint: Checkpoint) -> int:
    """Positions that the model has been made for."""
    return longest_window(transformers_config(checkpoint.config))


def check_memory(checkpoint: Checkpoint, settings: OnnxSettings) -> None:
    """Raise where the exporter, which holds the model whole in float32, needs too much memory.

    InvalidInput where it is more than the settings allow, EnvironmentFailure where it is more than
    the machine has.
    """
    shapes = tensor_shapes(checkpoint.family, checkpoint.config, checkpoint.shape).values()
    needed = LIBRARIES_BYTES + COPIES * sum(map(prod, shapes)) * torch.float32.itemsize
    if needed <= memory_limit(settings.max_memory):
        return
    available, allowed = available_bytes(), settings.max_memory
    least = (
        "onnx: transformers' exporter holds the model whole in float32, for which "
        f"{gigabytes(needed)} of memory are needed"
    )
    if allowed is not None and allowed <= available:
        raise InvalidInput(f"{least}, and max_memory is {gigabytes(allowed)}; {OTHERWISE}")
    raise EnvironmentFailure(f"{least}, and {gigabytes(available)} are free here; {OTHERWISE}")
