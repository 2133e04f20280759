"""The functions of ``import bipline`` that audit: one package, and all that a registry serves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.errors import InvalidInput
from bipline.face import named_places
from bipline.face.keywords import Place
from bipline.face.output import write_json
from bipline.settings.audit import AuditSettings
from bipline.settings.loading import validated
from bipline.settings.stack import USUAL_STATE, StackSettings

if TYPE_CHECKING:
    from bipline.audits.orchestrated import AskRuns
    from bipline.values.audit import Audit, RegistryAudit

REGISTRY = "models:/"


def audit(
    source: Place,
    *,
    key: Place | None = None,
    trust: Place | None = None,
    model: str | None = None,
    text: Mapping[str, Place] | None = None,
    replay: bool = False,
    corrections: Place | None = None,
    registry: str | None = None,
    json_file: Place | None = None,
    html_file: Place | None = None,
    state: Place | None = None,
    stack: str | None = None,
) -> Audit:
    """From a package's bytes back to its source; what differs is told, not raised.

    ``source`` is a directory, ``s3://bucket/prefix``, ``hf:org/name`` or ``models:/NAME@ALIAS``;
    ``key`` and ``trust`` say whose word counts; ``model`` and ``text`` are hashed again; ``state``
    or ``stack`` is whose ZenML is asked. Raises InvalidInput for what is no package.
    """
    from bipline.audits.audit import Request
    from bipline.audits.audit import audit as run
    from bipline.audits.page import render_audit

    texts, given = {name: str(file) for name, file in (text or {}).items()}, str(source)
    named_places.check_audit(given, key, trust, texts, json_file, html_file, state or USUAL_STATE)
    settings = _asked_stack(given, registry, state, stack)
    address = _address(registry, state, settings, stack) if given.startswith(REGISTRY) else None
    request = Request(
        given, _path(key), address, model, texts, _path(corrections), replay,
        Path(state or USUAL_STATE) / "downloads", _path(trust), _asking(settings),
    )  # fmt: skip
    found = run(request)
    write_json(json_file, "audit", found.model_dump(mode="json"))
    _write_page(html_file, lambda: render_audit(found))
    return found


def audit_registry(
    name: str | None = None,
    *,
    key: Place | None = None,
    trust: Place | None = None,
    registry: str | None = None,
    json_file: Place | None = None,
    html_file: Place | None = None,
    state: Place | None = None,
    stack: str | None = None,
) -> RegistryAudit:
    """Audit every version that an alias points at, of one registered model or of all.

    A run of the pipeline ``audit`` on the stack; what differs is told, not raised.
    """
    from bipline.audits.page import render_registry
    from bipline.audits.trust import read_trust, trusted
    from bipline.base.extras import check

    check("pipeline", "an audit of a registry")
    named_places.check_audit(None, key, trust, {}, json_file, html_file, state or USUAL_STATE)
    trusted(read_trust(_path(key), _path(trust)))
    if state is None and stack is None and Path(USUAL_STATE).is_dir():
        state = USUAL_STATE
    absolute = {"key": _absolute(key), "trust": _absolute(trust)}
    where = {"state": state and str(state), "stack": stack}
    settings = validated(AuditSettings, {"name": name, "registry": registry, **absolute, **where})
    if settings.state is not None and registry is None:
        # Says in one line, before a stack is opened, where there is no registry at all.
        _address(None, settings.state, None, None)
    found: RegistryAudit = import_module("pipelines.run").run_audit(settings)
    write_json(json_file, "audit", found.model_dump(mode="json"))
    _write_page(html_file, lambda: render_registry(found))
    return found


def _asked_stack(
    source: str, registry: str | None, state: Place | None, stack: str | None
) -> StackSettings | None:
    """Whose ZenML is asked: the one that is named, or the one beside the usual registry."""
    if stack is not None:
        return validated(StackSettings, {"stack": stack, "state": state and str(state)})
    pointed = any(os.environ.get(f"MLFLOW_{which}_URI") for which in ("TRACKING", "REGISTRY"))
    usual = source.startswith(REGISTRY) and registry is None and not pointed
    folder = state or (USUAL_STATE if usual else None)
    if folder is None or not (Path(folder) / "zenml").is_dir():
        return None
    return validated(StackSettings, {"state": str(folder)})


def _asking(settings: StackSettings | None) -> AskRuns | None:
    from bipline.base.extras import check

    if settings is None:
        return None
    check("pipeline", "asking ZenML")
    ask: AskRuns = import_module("pipelines.audits").asking(settings)
    return ask


def _address(
    registry: str | None, state: Place | None, settings: StackSettings | None, stack: str | None
) -> str | None:
    from bipline.stages.promote import registry_address

    if stack is not None and registry is None:
        return str(import_module("pipelines.audits").tracker_of(settings))
    return registry_address(registry, _path(state), Path(USUAL_STATE))


def _path(given: Place | None) -> Path | None:
    return Path(given) if given is not None else None


def _absolute(given: Place | None) -> str | None:
    return str(Path(given).absolute()) if given is not None else None


def _write_page(path: Place | None, render: Callable[[], str]) -> None:
    from bipline.storage.directory import write_text

    if path is not None:
        write_text(Path(path), render())


def registered_name(source: str) -> str | None:
    """The registered model of ``models:/NAME``, without alias or version; None for all else."""
    name = source.removeprefix(REGISTRY)
    if not source.startswith(REGISTRY) or "@" in name or "/" in name:
        return None
    if not name:
        raise InvalidInput(f"{source}: write models:/NAME, or models:/NAME@ALIAS")
    return name


def only_for_packages(given: Mapping[str, Any]) -> None:
    """Raise InvalidInput for flags that ask about one package, where a registry is audited."""
    for flag, value in given.items():
        if value:
            raise InvalidInput(f"{flag}: is for one package; give models:/NAME@ALIAS or a folder")
