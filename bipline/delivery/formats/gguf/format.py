"""The GGUF format: check, write, verify, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base import extras
from bipline.base.extras import require
from bipline.delivery.formats.engines import check_texts
from bipline.delivery.formats.gguf import verification
from bipline.delivery.formats.gguf.choice import architecture_of
from bipline.delivery.formats.gguf.facts import context_length
from bipline.delivery.formats.gguf.keys import (
    add_attention,
    add_experts,
    add_origin,
    add_rope,
    add_sizes,
    read_origin,
)
from bipline.delivery.formats.gguf.tensors import (
    Entry,
    begin,
    entries,
    tensor_bytes,
    write_tensors,
)
from bipline.delivery.formats.gguf.tokenizer import add_vocabulary, vocabulary_of
from bipline.delivery.formats.interface import Layout, Subject, Verification, of_the_decoder_alone
from bipline.model.checkpoint import Checkpoint
from bipline.model.tokenizer import tokenizer_of
from bipline.settings.gguf import GgufSettings
from bipline.storage.directory import DirectoryWriter
from bipline.values.export import Origin
from bipline.values.plan import Layout as PlanLayout

FILE = "model.gguf"


class Gguf:
    """One file for llama.cpp (:class:`bipline.delivery.formats.interface.Format`)."""

    name, file, extra = "gguf", FILE, "gguf"

    def check(
        self, checkpoint: Checkpoint, texts: Mapping[str, Path], settings: GgufSettings
    ) -> Layout:
        """See the interface. Raises InvalidInput for a missing extra too."""
        extras.check("gguf", "the format gguf")
        architecture, layout = architecture_of(checkpoint)
        tokenizer = tokenizer_of(checkpoint.folder)
        vocabulary_of(tokenizer, checkpoint.shape.vocab_size)
        check_texts(tokenizer, texts, settings, context_length(checkpoint, architecture))
        return replace(layout, notes=(*of_the_decoder_alone(checkpoint), *layout.notes))

    def write(
        self, subject: Subject, writer: DirectoryWriter, folder: str, settings: GgufSettings
    ) -> Path:
        """See the interface."""
        file = writer.path / folder / FILE
        file.parent.mkdir(exist_ok=True)
        model, listed = _keyed(file, subject.checkpoint, subject.origin, settings)
        write_tensors(model, listed, settings.type)
        return file

    def verify(self, file: Path, subject: Subject, settings: GgufSettings) -> Verification:
        """See the interface and :func:`bipline.delivery.formats.gguf.verification.verify`."""
        return verification.verify(file, subject.checkpoint, subject.texts, settings)

    def how_to_load(self, file: str, layout: PlanLayout) -> str:
        """See the interface."""
        return (
            f"```sh\nllama-cli -m {file} -p 'Once upon a time'\nllama-server -m {file}\n```\n\n"
            "or from Python, with `pip install xllamacpp`:\n\n"
            "```python\nimport xllamacpp\n\nparameters = xllamacpp.CommonParams()\n"
            f'parameters.model.path = "{file}"\n'
            "server = xllamacpp.Server(parameters)\n"
            'print(server.handle_completions({"prompt": "Once upon a time", "n_predict": 32}))\n'
            "```\n"
        )

    def origin(self, file: Path) -> dict[str, str]:
        """See the interface."""
        return read_origin(file)


def _keyed(
    file: Path, checkpoint: Checkpoint, origin: Origin, settings: GgufSettings
) -> tuple[Any, list[Entry]]:
    """A ``GGUFWriter`` of the file that has its keys, and the tensors that go into it."""
    architecture, _ = architecture_of(checkpoint)
    vocabulary = vocabulary_of(tokenizer_of(checkpoint.folder), checkpoint.shape.vocab_size)
    model = require("gguf", "gguf").GGUFWriter(file, architecture.name)
    add_origin(model, checkpoint, origin, settings.type)
    add_sizes(model, checkpoint, architecture)
    add_attention(model, checkpoint, architecture)
    add_experts(model, checkpoint)
    add_rope(model, checkpoint, architecture)
    add_vocabulary(model, vocabulary)
    return model, entries(checkpoint, architecture)


def file_bytes(checkpoint: Checkpoint, origin: Origin, settings: GgufSettings) -> int:
    """The bytes of the file of a model that is known by its config and its tensors' shapes.

    Its keys are written, to a file that goes again; no tensor is.
    """
    with TemporaryDirectory() as folder:
        model, listed = _keyed(Path(folder) / FILE, checkpoint, origin, settings)
        begin(model, listed, settings.type)
        (file,) = model.fout
        size = int(file.tell()) + tensor_bytes(model, listed, settings.type)
        model.close()
    return size
