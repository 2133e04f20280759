"""Promote: the package becomes a version in the registry, and a gate decides about its alias.

A run registers its package as ``candidate``. Whether the version gets the alias that is asked for
is the gate's to say, in the same run; a refusal leaves it where it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.base.progress import heading, note
from bipline.delivery.evidence import RESOLUTION, read_evidence
from bipline.delivery.lineage import record_run
from bipline.delivery.registries import mlflow as core
from bipline.delivery.registries.addresses import (
    EXAMPLES,
    is_place,
    known_registry,
    open_registry,
)
from bipline.delivery.registries.journal import check_alias, history_of
from bipline.delivery.registries.journal_mlflow import REPORT, SUFFIX, MlflowRegistry
from bipline.delivery.registries.mlflow_run import RunContent, Tracking
from bipline.delivery.registries.mlflow_service import registry_at, tracking_uri
from bipline.delivery.registries.promotion import (
    Gate,
    GateRefused,
    promote_version,
    roll_back_alias,
)
from bipline.delivery.run_facts import version_facts
from bipline.delivery.signer import Signer
from bipline.delivery.version_summary import base_model, version_summary
from bipline.model.checkpoint import Checkpoint
from bipline.settings.base import flattened
from bipline.settings.compress import CANDIDATE, CompressSettings, PromoteSettings
from bipline.settings.gate import GateSettings, gate_name, load_gate
from bipline.stages.export import Account
from bipline.stages.gate_figures import check_format_limits, check_measured
from bipline.stages.other_registries import check_others, promote_in_others
from bipline.stages.signing import Telling, signed
from bipline.stages.stage import Context, Lines
from bipline.storage.store import Handle
from bipline.values.lineage import RunLineage
from bipline.values.metrics import curves_of, final_metrics, metrics_of
from bipline.values.promotion import History, Promotion
from bipline.values.resolution import Resolution, ResolvedTask, ResolvedText, read_resolution
from bipline.values.summary import Registration
from bipline.values.verdict import Override


def promote(
    context: Context,
    package: Handle,
    account: Account,
    settings: PromoteSettings,
    gate: GateSettings | None,
    tags: Mapping[str, str],
    seconds: Mapping[str, float],
    evaluated_at: datetime | None = None,
    run: RunLineage | None = None,
    signer: Signer | None = None,
) -> Registration:
    """Register the package as candidate, with every number of the run; then ask the gate.

    ``seconds`` are of the stages that ran; ``run`` is added to the package's lineage first, and
    ``signer`` signs both before anything is registered. Never
    found in a Store: whether the registry has it is the registry's to say. A refusal is told in the
    registration, so that the run's other results stay. Raises InvalidInput for an alias that needs
    a gate and has none.
    """
    heading("promote")
    _check_gate(settings)
    place = context.store.open(package)
    if run is not None:
        record_run(place, account.config, run)
    signature = signed(place, signer)
    with registry_at(settings.registry_uri):
        registered = core.track_and_register(
            package=place,
            package_digest=package.digest,
            name=settings.name,
            alias=CANDIDATE,
            content=_content(package, place, account, tags, seconds),
        )
        registry = MlflowRegistry(settings.name)
        if evaluated_at is not None:
            registry.tell_evaluated(registered.version, evaluated_at)
        chosen = None if gate is None else Gate(gate, gate_name(str(settings.gate)))
        if chosen is not None:
            told = Telling(place, signer, signature)
            registered = _gated(registry, told, place, registered, settings.alias, chosen)
        others = promote_in_others(
            settings.also, settings.name, place, evaluated_at, settings.alias, chosen
        )
        registered = registered.model_copy(update={"also": others})
        page = (place / REPORT).read_text(encoding="utf-8")
        facts = version_facts(registered, evaluated_at)
        registry.tell_report(registered.mlflow_run_id, page, facts)
        return registered


def _content(
    package: Handle,
    place: Path,
    account: Account,
    tags: Mapping[str, str],
    seconds: Mapping[str, float],
) -> RunContent:
    """What the tracker is told of the run and of its package, which lies at ``place``."""
    records, plan = account.records, account.plan
    packaged = str(package.info["packaged"])
    model = read_resolution(place / RESOLUTION).model
    documents = {name: (place / name).read_text(encoding="utf-8") for name in (REPORT, "README.md")}
    return RunContent(
        params=flattened({k: v for k, v in account.config.items() if k != "published"}),
        metrics={
            **{f"seconds/{stage}": each for stage, each in seconds.items()},
            **metrics_of(records, plan, account.recovery),
        },
        final=final_metrics(records, packaged),
        curves=curves_of(plan, account.recovery),
        artifacts={
            "pruning_plan.json": plan.to_json(),
            "evaluation.json": _json(
                {name: each.to_json_value() for name, each in records.items()}
            ),
            "config.json": _json(account.config),
            **documents,
        },
        tags=dict(tags),
        version_tags={
            "tensor_digest": str(package.info["tensor_digest"]),
            "plan_digest": plan.digest,
            "base_model": base_model(model),
            "base_tensor_digest": str(model.tensor_digest),
            "git_commit": tags.get("git.commit", "unknown"),
        },
        summary=version_summary(records, plan, packaged, model),
    )


def _gated(
    registry: MlflowRegistry,
    telling: Telling,
    place: Path,
    registered: Registration,
    alias: str,
    gate: Gate,
) -> Registration:
    """The registration with what the gate said, and the alias that came of it."""
    version = registry.find(registered.version)
    evidence = read_evidence(
        lambda name: (place / name).read_bytes(), str(place), version.package_digest,
        evaluated_at=version.evaluated_at, signature=telling.signature,
    )  # fmt: skip
    try:
        promotion = promote_version(registry, version, alias, gate, evidence)
    except Refused as refusal:
        note(str(refusal))
        verdict = refusal.verdict if isinstance(refusal, GateRefused) else None
        telling.tell(verdict, version)
        return registered.model_copy(update={"refusal": str(refusal), "verdict": verdict})
    note(str(promotion))
    telling.tell(promotion.verdict, version)
    return registered.model_copy(update={"alias": alias, "verdict": promotion.verdict})


def promote_registered(
    source: str,
    alias: str,
    gate: str | None,
    override: Override | None,
    registry: str | None,
    also: Sequence[str] = (),
) -> Promotion:
    """Promote a registered version, ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION``, by its records.

    Every file is hashed again where it lies before anything points at it. The package goes to
    ``also`` too, and each registry's gate is asked apart; what they came to is told even where this
    one refuses. Raises InvalidInput before anything is asked of the registry where the request can
    be seen to fail.
    """
    name, wanted = parts_of(source, f"@{CANDIDATE}")
    model = open_registry(name, alias, registry)
    _check_gate(PromoteSettings(name=name, alias=alias, gate=gate))
    chosen = Gate(load_gate(str(gate)), gate_name(str(gate)), override)
    heading("promote")
    check_others(also, name, alias)
    version = model.find(wanted)
    evidence = model.evidence(version)
    model.check(version)
    with TemporaryDirectory() as temporary:
        package = model.fetch(version, Path(temporary)) if also else Path()
        others = partial(
            promote_in_others, also, name, package, version.evaluated_at, alias, chosen
        )
        telling = Telling()
        try:
            promotion = promote_version(model, version, alias, chosen, evidence)
        except BiplineError as error:
            if isinstance(error, GateRefused):
                telling.tell(error.verdict, version)
            others()  # each tells what it came to
            raise
        telling.tell(promotion.verdict, version)
        return promotion.model_copy(update={"also": others()})


def roll_back(
    source: str,
    expected: str | None,
    reason: str | None,
    by: str | None,
    registry: str | None,
) -> Promotion:
    """Give ``NAME@ALIAS`` back to the version before. Raises Refused where there is none."""
    name, wanted = parts_of(source, "")
    if not wanted.startswith("@"):
        raise InvalidInput(f"{source}: write NAME@ALIAS, the alias that is to go back")
    model = known_registry(name, wanted[1:], registry)
    heading("rollback")
    return roll_back_alias(model, wanted[1:], expected, reason, by)


def history(name: str, registry: str | None) -> History:
    """Who moved which alias when, and why, of a registered model."""
    return history_of(known_registry(name, CANDIDATE, registry))


def registry_address(
    given: str | None, state: Path | None, usual: Path, places: bool = False
) -> str | None:
    """The registry that is meant: an address, a state folder's, MLflow's variables', or the usual.

    None leaves it to MLflow. With ``places`` it may be one of those that are no MLflow server.
    Raises InvalidInput where there is none at all.
    """
    if given is not None:
        if places and is_place(given):
            return given
        if "://" not in given or is_place(given):
            more = f", or {EXAMPLES}" if places else ""
            raise InvalidInput(
                f"--registry {given}: give MLflow's address, such as http://host:5000 or "
                f"sqlite:///FILE{more}"
            )
        return given
    if state is None and any(os.environ.get(f"MLFLOW_{w}_URI") for w in ("TRACKING", "REGISTRY")):
        return None
    place = (state or usual) / "mlflow" / "mlflow.db"
    if not place.is_file():
        raise InvalidInput(
            f"{place}: no registry there; give --registry ADDRESS, --state DIR, or set "
            "MLFLOW_TRACKING_URI"
        )
    return tracking_uri(state or usual)


def parts_of(source: str, otherwise: str) -> tuple[str, str]:
    """The name, and ``@ALIAS`` or a version. Raises InvalidInput for anything else."""
    text = source.removeprefix("models:/")
    for sign in ("@", "/"):
        name, found, wanted = text.partition(sign)
        if found and name and wanted:
            return name, f"@{wanted}" if sign == "@" else wanted
        if found:
            raise InvalidInput(f"{source}: write NAME, NAME@ALIAS or NAME/VERSION")
    return text, otherwise


def gate_of(settings: PromoteSettings) -> GateSettings | None:
    """The gate of a run, read; None where none is asked. Raises InvalidInput for a senseless one.

    An alias that is served moves through a gate alone.
    """
    _check_gate(settings)
    return None if settings.gate is None else load_gate(settings.gate)


def _check_gate(settings: PromoteSettings) -> None:
    check_alias(settings.alias)
    if settings.name.endswith(SUFFIX):
        raise InvalidInput(f"promote.name {settings.name!r}: {SUFFIX} is kept for journals")
    if settings.gate is None and settings.alias != CANDIDATE:
        raise InvalidInput(
            f"alias {settings.alias!r} needs a gate: set promote.gate to strict, lenient or a "
            f"file (--gate), or leave the new version at {CANDIDATE}"
        )
    if settings.gate is not None and settings.alias == CANDIDATE:
        raise InvalidInput(
            f"promote.gate {settings.gate!r} decides about no alias: {CANDIDATE} is what every "
            "new version gets; set promote.alias, such as production"
        )


def track_inputs(tracking: Tracking, settings: CompressSettings, resolution: Resolution) -> None:
    """Tell the run what it starts from: the dense model, and each text with what it is read for."""
    files: dict[str, ResolvedText | ResolvedTask] = {**resolution.texts, **resolution.tasks}
    tracking.log_inputs(resolution.model, files, contexts_of(settings))


def contexts_of(settings: CompressSettings) -> dict[str, str]:
    """What each text and task is read for: calibration, training, validation, evaluation."""
    recover, evaluate = settings.recover, settings.evaluate
    readers = {
        "calibration": settings.calibrate.texts,
        "training": (recover.text,) if recover.enabled else (),
        "validation": (recover.held_out,) if recover.enabled else (),
        "evaluation": (*evaluate.texts, *evaluate.tasks),
    }
    return {
        name: ", ".join(context for context, names in readers.items() if name in names) or "unread"
        for name in (*settings.texts, *settings.tasks)
    }


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """The name, the alias and the gate.

    Raises InvalidInput for what the registry will refuse, and for a gate that cannot tell because
    the run does not measure what it asks for.
    """
    section = settings.promote
    core.check_names(section.name, section.alias)
    gate = gate_of(section)
    check_others(section.also, section.name, section.alias)
    if gate is None:
        return [("promote", f"register {section.name}, alias {section.alias}"), *_also(section)]
    check_measured(gate, settings)
    check_format_limits(gate, settings)
    told = f"register {section.name}, alias {CANDIDATE}; if gate {section.gate} passes it, "
    return [("promote", told + section.alias), *_also(section)]


def _also(section: PromoteSettings) -> Lines:
    return [(" also", address) for address in section.also]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
