"""Audit: from the bytes that are served back to the model, texts and code they were made from.

Every question gets an answer: it holds, it differs, or it cannot be known here, with what follows
from that. Nothing is written, but for copies below ``downloads`` and a replay's own folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bipline.audit.findings import answered
from bipline.audit.package import package_findings
from bipline.audit.records import record_findings
from bipline.audit.registered import Served, registered_findings
from bipline.audit.replay import replay_findings
from bipline.audit.source import Given, source_findings
from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import heading
from bipline.model.resolve import HUB
from bipline.stages.resolve import REGISTRY
from bipline.storage.manifest import MANIFEST_NAME, read_manifest
from bipline.storage.s3_client import S3_SCHEME
from bipline.values.audit import Audit, Finding

UNREACHABLE = (HUB, S3_SCHEME)


@dataclass(frozen=True)
class Request:
    """What is audited, and what may be looked at again.

    ``source`` is a package's directory or ``models:/NAME@ALIAS``; ``model`` the dense model,
    ``texts`` files by the names that the run used, ``corrections`` those that it stored; ``key``
    the public key that is trusted.
    """

    source: str
    key: Path | None = None
    registry: str | None = None
    model: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    corrections: Path | None = None
    replay: bool = False
    downloads: Path = Path(".bipline/downloads")


def audit(request: Request) -> Audit:
    """Every finding about a package. Raises InvalidInput for what is no package of bipline."""
    _check(request)
    findings: list[Finding] = []
    served: Served | None = None
    if request.source.startswith(REGISTRY):
        heading("registry")
        served = Served.found(request.source, request.registry, request.downloads)
        findings += registered_findings(served)
    place = served.place if served else Path(request.source)
    if place is None:
        return Audit(source=request.source, package_digest=None, findings=tuple(findings))
    findings += _findings(request, place, served)
    digest = read_manifest(place).digest
    return Audit(source=request.source, package_digest=digest, findings=tuple(findings))


def _findings(request: Request, place: Path, served: Served | None) -> Iterator[Finding]:
    given = Given.read(place, request.model, request.texts, request.downloads)
    heading("package")
    yield from package_findings(place, request.key, served.digest if served else None)
    heading("source")
    yield from answered("source", lambda: source_findings(place, given))
    heading("records")
    yield from answered("records", lambda: record_findings(place))
    if request.replay:
        heading("replay")
        yield from answered(
            "replay",
            lambda: replay_findings(place, request.model, request.corrections, request.downloads),
            "the tensors were not made by the plan from that model",
        )


def _check(request: Request) -> None:
    """Raise InvalidInput for what can be seen to be no request, before any work."""
    if request.source.startswith(UNREACHABLE):
        raise InvalidInput(
            f"{request.source}: an audit reads a package's directory or models:/NAME@ALIAS; "
            "fetch it first"
        )
    if request.replay and request.model is None:
        raise InvalidInput("--replay: prunes the dense model again; give it by --model")
    if request.corrections is not None and not request.replay:
        raise InvalidInput("--corrections: are for --replay alone")
    if not request.source.startswith(REGISTRY):
        _check_package(Path(request.source))


def _check_package(place: Path) -> None:
    if not (place / MANIFEST_NAME).is_file():
        raise InvalidInput(f"{place}: no package: there is no {MANIFEST_NAME}")
    try:
        kind = read_manifest(place).kind
    except Refused as error:
        raise InvalidInput(str(error)) from None
    if kind != "package":
        raise InvalidInput(f"{place}: holds a {kind}, not a package; bipline verify checks it")
