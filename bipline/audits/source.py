"""The source: which model and texts, and whether what lies there now is what was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bipline.audits.findings import compared, differs, holds, unknown
from bipline.base.errors import InvalidInput
from bipline.compression.corrections import PLAN_NAME
from bipline.delivery.evidence import RESOLUTION
from bipline.stages.resolve import resolve_model
from bipline.storage.digests import digest_file
from bipline.values.audit import Finding
from bipline.values.plan import read_plan
from bipline.values.resolution import Resolution, ResolvedModel, read_resolution


@dataclass(frozen=True)
class Given:
    """What an auditor has of the source: the model as it lies there now, and texts by name."""

    place: str | None
    model: ResolvedModel | None
    texts: Mapping[str, Path]

    @classmethod
    def read(
        cls, package: Path, model: str | None, texts: Mapping[str, str], downloads: Path
    ) -> Given:
        """Resolve what was given. Raises InvalidInput for what the run did not read, or is not."""
        names = _texts_of(package)
        for name, file in texts.items():
            if names is not None and name not in names:
                known = ", ".join(names) or "none"
                raise InvalidInput(f"--text {name}: the run read no such text; known: {known}")
            if not Path(file).is_file():
                raise InvalidInput(f"--text {name}={file}: no such file")
        now = resolve_model(model, downloads) if model else None
        return cls(model, now, {name: Path(file) for name, file in texts.items()})


def _texts_of(package: Path) -> list[str] | None:
    """The names of the texts that the run read; None where the package does not tell."""
    try:
        return list(read_resolution(package / RESOLUTION).texts)
    except InvalidInput:
        return None


def source_findings(package: Path, given: Given) -> Iterator[Finding]:
    """The dense model and the texts as the package names them, and as they are where given."""
    resolution, plan = read_resolution(package / RESOLUTION), read_plan(package / PLAN_NAME)
    read = resolution.model
    yield compared(
        "dense model", _named(read),
        {"the dense model's tensors": (read.tensor_digest, plan.tensor_digest)},
    )  # fmt: skip
    yield _model_again(read, given)
    yield from _texts(resolution, given.texts)


def _named(model: ResolvedModel) -> str:
    revision = f" at {model.revision}" if model.revision else ", no revision"
    licence = f"licence {model.licence}" if model.licence else "no licence told"
    return f"{model.source}{revision}; tensors {str(model.tensor_digest)[:12]}; {licence}"


def _model_again(read: ResolvedModel, given: Given) -> Finding:
    about, now, model = "dense model again", given.model, given.place
    if now is None:
        return unknown(about, "not looked at", "give --model to hash what lies there now")
    if now.tensor_digest != read.tensor_digest:
        tensors = f"tensors {str(now.tensor_digest)[:12]}, the run read"
        said = f"{model} has {tensors} {str(read.tensor_digest)[:12]}"
        return differs(about, said, "it is not the model that was pruned")
    names = sorted({*read.files, *now.files})
    changed = [name for name in names if read.files.get(name) != now.files.get(name)]
    if changed:
        said = f"{model}: the same tensors, other files: {', '.join(changed)}"
        return differs(about, said, "configuration or tokenizer are not those that were read")
    return holds(about, f"{model}: all {len(now.files)} files are those that were read")


def _texts(resolution: Resolution, texts: Mapping[str, Path]) -> Iterator[Finding]:
    for name, read in resolution.texts.items():
        about, said = f"text {name}", f"{read.source}, sha256 {read.sha256[:12]}"
        if name not in texts:
            yield unknown(about, said, f"give --text {name}=FILE to hash it again")
            continue
        file = texts[name]
        if digest_file(file) == read.sha256:
            yield holds(about, f"{file} is the text that was read; {said}")
        else:
            other = f"{file} is not the text that was read ({said})"
            yield differs(about, other, "windows drawn from it now are others")
