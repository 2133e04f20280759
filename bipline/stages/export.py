"""Export: model, card, report and records become one package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bipline.base import extras
from bipline.base.progress import heading
from bipline.delivery import export as core
from bipline.delivery.contents import packaged_of
from bipline.delivery.formats.directory import export_to, origin_of
from bipline.delivery.formats.interface import Subject
from bipline.delivery.formats.registry import engine_format
from bipline.delivery.samples import continued
from bipline.delivery.signer import signer_of
from bipline.model.checkpoint import Checkpoint
from bipline.model.opening import open_checkpoint
from bipline.quality.evaluate import fitted_shares
from bipline.settings.base import Settings
from bipline.settings.compress import CompressSettings, ExportSettings
from bipline.stages import formats
from bipline.stages.resolve import local_copy, resolve_model, resolve_texts
from bipline.stages.speed import with_speeds
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, refuse_occupied
from bipline.storage.store import Handle
from bipline.values.export import ExportRecord
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.recovery import RecoveryRecord
from bipline.values.resolution import Resolution
from bipline.values.speed import Speeds

STAGE = Stage("export", core.KIND, ("bipline.delivery.export",))


@dataclass(frozen=True)
class Account:
    """What a run tells of itself.

    ``records`` are by model: dense, pruned, and recovered where a recovery was accepted.
    """

    plan: PruningPlan
    records: dict[str, EvaluationRecord]
    recovery: RecoveryRecord | None
    config: dict[str, Any]


def records_of(
    dense: EvaluationRecord,
    pruned: EvaluationRecord,
    recovered: EvaluationRecord | None,
    recovery: RecoveryRecord | None,
    speeds: Speeds | None = None,
) -> dict[str, EvaluationRecord]:
    """Records by model, with their speeds; a recovered one counts where it was accepted."""
    records = {"dense": dense, "pruned": pruned}
    if recovered and recovery and recovery.accepted:
        records["recovered"] = recovered
    return with_speeds(records, speeds)


def export(
    context: Context,
    model: Handle,
    statistics: Handle | None,
    resolution: Resolution,
    account: Account,
    settings: ExportSettings,
) -> Handle:
    """Write the package of a model; no ``statistics`` where the plan was given."""
    records = {name: each.model_dump(mode="json") for name, each in account.records.items()}
    recovery = account.recovery and account.recovery.model_dump(mode="json")
    # Digests of all that the package tells; where a local file lies is no part of it.
    portable = core.portable_resolution(resolution).model_dump(mode="json")
    inputs = {
        "model": model.digest,
        "statistics": statistics.digest if statistics else "",
        "plan": account.plan.digest,
        "records": digest_json({**records, "recovery": recovery}),
        "resolution": digest_json(portable),
        "config": digest_json(account.config),
    }

    def produce(writer: DirectoryWriter, work: Path) -> None:
        open_ = context.store.open
        place, dense = open_(model), local_copy(resolution.model, context.downloads)
        contents = core.PackageContents(
            model=place,
            dense=dense,
            statistics=open_(statistics) if statistics else None,
            resolution=resolution,
            **vars(account),
            formats=settings.formats,
            format_settings={name: getattr(settings, name, None) for name in settings.formats},
            samples=continued({"dense": dense, packaged_of(account.records): place}),
        )
        core.write_package(contents, writer)

    return STAGE.run(context, STAGE.key(inputs, settings.model_dump()), produce)


def export_model(
    source: str,
    out: Path,
    name: str,
    texts: Mapping[str, str],
    settings: Settings,
    downloads: Path,
) -> ExportRecord:
    """Write a model in one format to a directory of its own: sources of the model and of texts."""
    format_ = engine_format(name)
    refuse_occupied(out)
    heading("resolve")
    model = resolve_model(source, downloads)
    files = {text: Path(t.location) for text, t in resolve_texts(texts, downloads).items()}
    checkpoint = open_checkpoint(model.location, model.tensor_digest)
    fitted_shares(checkpoint, files, remedy="measure on other text")
    subject = Subject(checkpoint, origin_of(model, checkpoint), files)
    return export_to(out, subject, format_, settings)


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """The formats. Raises InvalidInput where no package can be made.

    That is for want of what draws reports, for a format that cannot hold the smaller model, or for
    a key that cannot sign.
    """
    extras.check("pipeline", "a package's report")
    if (signer := signer_of(settings.export.sign)) is not None:
        signer.check()
    told = formats.check_settings(settings, checkpoint, thorough) if checkpoint else []
    by = [("  sign", str(signer))] if signer else []
    return [("export", ", ".join(settings.export.formats)), *told, *by]
