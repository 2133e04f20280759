"""The hf format: a model directory for transformers, byte for byte the one that was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bipline.base.progress import track
from bipline.delivery.formats.interface import Layout, Subject
from bipline.delivery.verification import verify_hf
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import check_generation
from bipline.storage.digests import digest_file
from bipline.storage.directory import DirectoryWriter, copy_listed, write_text
from bipline.storage.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    compare_names,
    read_manifest,
    relative_files,
)
from bipline.values.plan import Layout as PlanLayout
from bipline.values.resolution import CONFIG

PLAIN = "The folder `{file}` is a plain transformers checkpoint; no code of its own is needed."
WITH_CODE = (
    "The blocks differ in width, and transformers has no class for that: the folder `{file}` "
    "brings code, which runs only with `trust_remote_code=True`. Its README says what that code "
    "does."
)


class Hf:
    """A directory for transformers (:class:`bipline.delivery.formats.interface.Format`)."""

    name, file, extra = "hf", "", ""

    def check(self, checkpoint: Checkpoint, texts: Mapping[str, Path], settings: None) -> Layout:
        """See the interface. Raises InvalidInput for settings that nobody could load it with."""
        check_generation(checkpoint.folder)
        return Layout(str(checkpoint.config["architectures"][0]))

    def write(self, subject: Subject, writer: DirectoryWriter, folder: str, settings: None) -> Path:
        """The model's own files, but for a config that the subject brings, and a manifest of them.

        So the folder alone verifies too. Raises Refused where a byte is not the one that the
        model's own manifest lists.
        """
        model = subject.checkpoint.directory
        manifest, present = read_manifest(model), relative_files(model)
        compare_names(str(model), present, manifest)
        for name in track(present, f"copy {folder}"):
            copy_listed(model / name, writer, f"{folder}/{name}", manifest.files[name])
        if subject.config is not None:
            manifest = _with_config(manifest, subject.config, writer, folder)
        write_text(writer.path / folder / MANIFEST_NAME, manifest.to_json())
        return writer.path / folder

    def verify(self, file: Path, subject: Subject, settings: None) -> None:
        """See the interface and :func:`bipline.delivery.verification.verify_hf`."""
        model = subject.checkpoint.directory
        verify_hf(file, model, subject.dense or model)

    def how_to_load(self, file: str, layout: PlanLayout) -> str:
        """See the interface."""
        own = layout == "per-layer"
        allowed, denied = (f", trust_remote_code={each}" if own else "" for each in (True, False))
        return (
            f"{(WITH_CODE if own else PLAIN).format(file=file)}\n\n"
            "```python\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{file}"{allowed})\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{file}"{denied})\n'
            "```\n\n"
            "Before it was packaged its tensors, logits and token ids were compared with its "
            f"source; where memory holds it whole, it was loaded "
            f"{'by the same code' if own else 'this way'}, and decoded greedily with and without "
            "a KV cache, which gave the same tokens."
        )

    def origin(self, file: Path) -> dict[str, str]:
        """See the interface."""
        return {}


def _with_config(manifest: Manifest, text: str, writer: DirectoryWriter, folder: str) -> Manifest:
    path = writer.path / folder / CONFIG
    write_text(path, text)
    entry = FileEntry(size=path.stat().st_size, sha256=digest_file(path))
    writer.add_hashed(f"{folder}/{CONFIG}", entry.size, entry.sha256)
    return manifest.model_copy(update={"files": {**manifest.files, CONFIG: entry}})
