"""ExportRecord: what a model was written as, where it came from, and what its engine said of it."""

from __future__ import annotations

from typing import Literal

from bipline.values.frozen import Frozen
from bipline.values.origin import metadata_of
from bipline.values.record import Perplexity

SCHEMA_VERSION: Literal[1] = 1


class Origin(Frozen):
    """Where the tensors came from, and which code wrote them so. It names no path of a machine."""

    name: str
    revision: str | None = None
    licence: str | None = None
    tensor_digest: str
    plan_digest: str | None = None
    base_tensor_digest: str | None = None
    base_model: str | None = None
    base_revision: str | None = None
    version: str | None = None
    git_commit: str | None = None

    def metadata(self) -> dict[str, str]:
        """What the metadata of a file says, under ``bipline.FIELD``."""
        return metadata_of(self.model_dump(exclude={"name", "licence"}, exclude_none=True))


class EngineCheck(Frozen):
    """The engine beside the block loop in float32, on a page of text.

    ``largest_difference`` is of log-probabilities over the whole vocabulary, in nats, after so many
    ``contexts``; ``divergence`` the mean Kullback-Leibler divergence of the engine's distributions
    from the model's, ``divergence_as_stored`` from the model's with the weights that the file has.
    """

    engine: str
    page_tokens: int
    special_tokens_same: bool
    contexts: int
    compared: int
    largest_difference: float
    divergence: float
    divergence_as_stored: float
    continuation: tuple[int, ...]


class TextCheck(Frozen):
    """Perplexity on the first windows of a text: by the engine, and of the model by bipline."""

    sha256: str
    seqlen: int
    windows: int
    engine: Perplexity
    model: Perplexity


class ExportRecord(Frozen):
    """One model in one format."""

    schema_version: Literal[1] = SCHEMA_VERSION
    format: str
    type: str
    architecture: str
    origin: Origin
    parameters: int
    file_bytes: int
    notes: tuple[str, ...]
    check: EngineCheck
    perplexity: dict[str, TextCheck]
