"""Audit: from the bytes that are served back to the model, texts and code they were made from.

Every question gets an answer: it holds, it differs, or it cannot be known here, with what follows
from that. Nothing is written, but for copies below ``downloads`` and a replay's own folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bipline.audits.findings import answered, differs
from bipline.audits.opening import Opened, is_remote, opened
from bipline.audits.orchestrated import AskRuns, orchestrated_findings
from bipline.audits.package import bytes_finding, vouching_findings
from bipline.audits.records import record_findings
from bipline.audits.registered import OTHER_BYTES, registered_findings
from bipline.audits.replay import replay_findings
from bipline.audits.source import Given, source_findings
from bipline.audits.statement import statement_findings
from bipline.audits.trust import read_trust, signature_findings, trust_findings
from bipline.base.addresses import without_secrets
from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import heading
from bipline.settings.trust import TrustSettings
from bipline.storage.manifest import MANIFEST_NAME
from bipline.values.audit import Audit, Finding


@dataclass(frozen=True)
class Request:
    """What is audited, and what may be looked at again.

    ``source`` is a package's directory, ``s3://bucket/prefix``, ``hf:org/name`` or
    ``models:/NAME@ALIAS``; ``model`` the dense model, ``texts`` files by the names that the run
    used, ``corrections`` those that it stored; ``key`` and ``trust`` say who is trusted; ``runs``
    asks ZenML.
    """

    source: str
    key: Path | None = None
    registry: str | None = None
    model: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    corrections: Path | None = None
    replay: bool = False
    downloads: Path = Path(".bipline/downloads")
    trust: Path | None = None
    runs: AskRuns | None = field(default=None, repr=False)


def audit(request: Request) -> Audit:
    """Every finding about a package. Raises InvalidInput for what is no package of bipline."""
    check(request)
    trust = read_trust(request.key, request.trust)
    found, digest = list(trust_findings(trust)), None
    try:
        with opened(request.source, request.registry, request.downloads) as package:
            digest = package.digest
            found += _findings(request, package, trust)
    except Refused as error:  # a version whose files are gone
        found.append(differs("registry's copy", str(error), OTHER_BYTES))
    return Audit(
        source=without_secrets(request.source),
        package_digest=digest,
        audited_at=datetime.now(UTC).replace(microsecond=0),
        findings=tuple(_without_secrets(each) for each in found),
    )


def _findings(request: Request, package: Opened, trust: TrustSettings) -> Iterator[Finding]:
    if package.served is not None:
        heading("registry")
        yield from registered_findings(package, package.served, trust)
    heading("package")
    yield bytes_finding(package)
    if package.manifest is None:
        return
    place, kept = package.place, package.served.digest if package.served else None
    yield from signature_findings(place, trust, package.manifest.digest, kept)
    yield from vouching_findings(place, package.manifest)
    manifest = package.manifest
    yield from answered("provenance", lambda: statement_findings(place, manifest))
    heading("source")
    given = Given.read(place, request.model, request.texts, request.downloads)
    yield from answered("source", lambda: source_findings(place, given))
    heading("records")
    yield from answered("records", lambda: record_findings(place))
    yield from answered("ZenML run", lambda: orchestrated_findings(package, request.runs))
    if request.replay:
        heading("replay")
        yield from answered(
            "replay",
            lambda: replay_findings(place, request.model, request.corrections, request.downloads),
            "the tensors were not made by the plan from that model",
        )


def _without_secrets(finding: Finding) -> Finding:
    """An address with a password in it is shown without."""
    return finding.model_copy(update={"said": without_secrets(finding.said)})


def check(request: Request) -> None:
    """Raise InvalidInput for what can be seen to be no request, before any work."""
    if request.replay and request.model is None:
        raise InvalidInput("--replay: prunes the dense model again; give it by --model")
    if request.corrections is not None and not request.replay:
        raise InvalidInput("--corrections: are for --replay alone")
    if not is_remote(request.source) and not (Path(request.source) / MANIFEST_NAME).is_file():
        raise InvalidInput(f"{request.source}: no package: there is no {MANIFEST_NAME}")
