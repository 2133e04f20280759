"""Export: model, card, report and records become one package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bipline.base import extras
from bipline.delivery import export as core
from bipline.delivery.beside_weights import check_generation
from bipline.model.checkpoint import Checkpoint
from bipline.settings.compress import CompressSettings, ExportSettings
from bipline.stages.resolve import local_copy
from bipline.stages.stage import Context, Stage
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, RecoveryRecord
from bipline.values.resolution import Resolution

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


@dataclass(frozen=True)
class Product:
    """The model to package and all that is told of it.

    ``statistics`` is None where the plan was given.
    """

    model: Handle
    statistics: Handle | None
    resolution: Resolution
    account: Account


def export(context: Context, product: Product, settings: ExportSettings) -> Handle:
    """Write the package of the pruned model, or of the recovered one where that was accepted."""

    def produce(writer: DirectoryWriter, work: Path) -> None:
        open_ = context.store.open
        contents = core.PackageContents(
            model=open_(product.model),
            dense=local_copy(product.resolution.model, context.downloads),
            statistics=open_(product.statistics) if product.statistics else None,
            resolution=product.resolution,
            **vars(product.account),
            formats=settings.formats,
        )
        core.write_package(contents, writer)

    return STAGE.run(context, STAGE.key(_inputs(product), settings.model_dump()), produce)


def _inputs(product: Product) -> dict[str, str]:
    """Digests of all that the package tells; where a local file lies is no part of it."""
    account = product.account
    records: dict[str, Any] = {
        name: record.model_dump(mode="json") for name, record in account.records.items()
    }
    records["recovery"] = account.recovery and account.recovery.model_dump(mode="json")
    return {
        "model": product.model.digest,
        "statistics": product.statistics.digest if product.statistics else "",
        "plan": account.plan.digest,
        "records": digest_json(records),
        "resolution": digest_json(
            core.portable_resolution(product.resolution).model_dump(mode="json")
        ),
        "config": digest_json(account.config),
    }


def check(settings: CompressSettings, checkpoint: Checkpoint | None, thorough: bool) -> None:
    """Raise InvalidInput where no package can be made: for want of a library, or by the model.

    That is what draws the reports, and settings that nobody could load the package with.
    """
    extras.check("pipeline", "a package's report")
    if thorough and checkpoint:
        check_generation(checkpoint.folder)


def tell(settings: CompressSettings, checkpoint: Checkpoint | None) -> list[tuple[str, str]]:
    """The formats."""
    return [("export", ", ".join(settings.export.formats))]
