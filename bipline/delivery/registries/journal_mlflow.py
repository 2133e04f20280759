"""The journal in MLflow: versions of a registered model ``NAME.promotions``, an entry each.

MLflow gives version numbers in order, each once, in a transaction of its database; its aliases go
to the last writer. So the numbers decide, and the aliases follow. An entry points at the same
logged model as the version it is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.base.extras import require
from bipline.delivery.evidence import Evidence, read_evidence
from bipline.delivery.page import told_of_run
from bipline.delivery.registries.mlflow import (
    DIGEST_TAG,
    check_stored_copy,
    logged_model,
    stored_copy,
)
from bipline.delivery.registries.mlflow_flavors import PACKAGE
from bipline.delivery.registries.mlflow_service import (
    WORK_LIMITS,
    limited,
    mlflow_library,
    pages,
    probe,
    translated,
)
from bipline.delivery.registries.mlflow_source import (
    SCHEME,
    _refuse_absent,
    download_version,
    find_version,
)
from bipline.delivery.run_facts import Fact, run_facts
from bipline.storage.digests import digest_file
from bipline.storage.strict_json import parse_object
from bipline.values.promotion import JournalEntry
from bipline.values.reading import typed
from bipline.values.verdict import Verdict, verdict_file

SUFFIX = ".promotions"
ENTRY_TAG, EVALUATED_TAG = "entry", "evaluated_at"
REPORT = "report.html"


@dataclass(frozen=True)
class Version:
    """A registered version of a package: its number, digest, and where the package's files lie.

    ``model`` is MLflow's logged model that holds it.
    """

    number: str
    package_digest: str
    location: str
    run_id: str
    evaluated_at: datetime | None
    model: Any = field(compare=False, repr=False)


class MlflowRegistry:
    """One registered model, at the registry of an address or where MLflow points now."""

    def __init__(self, name: str, address: str | None = None) -> None:
        self.name = name
        self._address = address
        self._answers = False

    def entries(self) -> dict[int, JournalEntry]:
        """The whole journal by number. Raises Refused for a version that is no entry."""
        found = self._versions_of(f"{self.name}{SUFFIX}")
        return {int(each.version): self._entry(each) for each in found}

    def versions(self) -> list[Any]:
        """MLflow's records of all versions of the model."""
        return self._versions_of(self.name)

    def _versions_of(self, name: str) -> list[Any]:
        with self._asked() as client:
            return list(pages(client.search_model_versions, filter_string=f"name = '{name}'"))

    def append(self, entry: JournalEntry) -> int:
        """Add an entry as the next version of ``NAME.promotions``."""
        with self._asked() as client:
            source, run_id = self._pointed(client, entry.version)
            self._make_journal(client)
            made = client.create_model_version(
                f"{self.name}{SUFFIX}", source, run_id=run_id, tags={ENTRY_TAG: entry.to_json()},
                model_id=source.removeprefix(SCHEME),
            )  # fmt: skip
            return int(made.version)

    def aliases(self) -> dict[str, str]:
        """Versions by alias, as they are now. Raises InvalidInput where there is no such model."""
        failure = require("mlflow.exceptions", "pipeline").MlflowException
        with self._asked() as client:
            try:
                found = client.get_registered_model(self.name).aliases
            except failure as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise InvalidInput(f"the registry knows no model {self.name!r}") from None
            return {alias: str(version) for alias, version in found.items()}

    def point(self, alias: str, version: str | None) -> None:
        """Set an alias, or remove it."""
        try:
            self._point(alias, version)
        except InvalidInput:  # another that settles this alias wrote it at the same moment
            self._point(alias, version)

    def _point(self, alias: str, version: str | None) -> None:
        with self._asked() as client:
            if version is None:
                client.delete_registered_model_alias(self.name, alias)
            else:
                client.set_registered_model_alias(self.name, alias, version)

    def find(self, wanted: str) -> Version:
        """A version by its number, or ``@ALIAS``.

        Raises InvalidInput for one that is not there or is no package.
        """
        separator = "" if wanted.startswith("@") else "/"
        found = find_version(f"{SCHEME}{self.name}{separator}{wanted}", self._address)
        with self._asked() as client:
            model = logged_model(client, found.source, self.name, str(found.version))
            location = _package_in(model.artifact_location)
        told = found.tags.get(EVALUATED_TAG)
        return Version(
            number=str(found.version),
            package_digest=found.tags[DIGEST_TAG],
            location=location,
            run_id=model.source_run_id,
            evaluated_at=_time(told),
            model=model,
        )

    def evidence(self, version: Version) -> Evidence:
        """What the package of a version tells; its weights are not fetched.

        Raises Refused where a document is not the one that its digest covers.
        """
        where = f"version {version.number} of {self.name}"
        with self._asked(), TemporaryDirectory() as temporary:
            read = partial(_download, version.location, Path(temporary))
            return read_evidence(
                read, where, version.package_digest, evaluated_at=version.evaluated_at
            )

    def check(self, version: Version) -> str:
        """Hash every stored file of a version again; its digest. Raises Refused for a change."""
        with self._asked():
            check_stored_copy(version.model, version.package_digest)
        return version.package_digest

    def fetch(self, version: Version, folder: Path) -> Path:
        """The package of a version below a folder, every file of it hashed."""
        source = f"{SCHEME}{self.name}/{version.number}"
        return download_version(source, folder, self._address)[0].parent

    def keep(self, version: Version, verdict: Verdict) -> None:
        """Keep a verdict beside its version: in its run, and by its digest as a tag."""
        with self._asked() as client:
            client.log_text(version.run_id, verdict.to_json(), verdict.file_name)
            tag = f"verdict.{verdict.alias}"
            client.set_model_version_tag(self.name, version.number, tag, verdict.digest)

    def stored(self, version: Version, folder: Path) -> Path:
        """All that is stored of a version, where it lies or fetched into ``folder``, not hashed."""
        with self._asked():
            return stored_copy(version.model, str(folder))

    def run(self, version: Version) -> Any:
        """MLflow's record of the run that registered a version, a deleted one too."""
        with self._asked() as client:
            return client.get_run(version.run_id)

    def run_file(self, version: Version, name: str) -> str:
        """The sha256 of a file that a version's run keeps. Raises Refused where it is gone."""
        with self._asked() as client, TemporaryDirectory() as temporary:
            if name not in {each.path for each in client.list_artifacts(version.run_id)}:
                raise Refused(f"the run keeps no {name} any more")
            return digest_file(Path(client.download_artifacts(version.run_id, name, temporary)))

    def verdict(self, version: Version, digest: str) -> Verdict:
        """A verdict as the version's run keeps it. Raises Refused where it is not there."""
        name = verdict_file(digest)
        with self._asked() as client, TemporaryDirectory() as temporary:
            kept = client.list_artifacts(version.run_id, str(Path(name).parent))
            if name not in {each.path for each in kept}:
                raise Refused(f"the run keeps no verdict {digest[:12]}")
            file = Path(client.download_artifacts(version.run_id, name, temporary))
            return typed(parse_object(file.read_bytes(), name, "verdict"), Verdict, name, "verdict")

    def tell_evaluated(self, version: str, at: datetime) -> None:
        """Keep when the records of a version were measured."""
        with self._asked() as client:
            text = at.isoformat(timespec="seconds")
            client.set_model_version_tag(self.name, version, EVALUATED_TAG, text)

    def tell_report(self, run_id: str, page: str, facts: Sequence[Fact]) -> None:
        """Write a report into a run, in the line of its title these facts and those of the run."""
        with self._asked() as client:
            run = client.get_run(run_id)
            told = [*facts, *run_facts(run, run.data.tags, client.tracking_uri)]
            client.log_text(run_id, told_of_run(page, told), REPORT)

    def _entry(self, version: Any) -> JournalEntry:
        where = f"{self.name}{SUFFIX} version {version.version}"
        text = version.tags.get(ENTRY_TAG)
        if text is None:
            raise Refused(f"{where}: is no entry of the journal; somebody changed it")
        value = parse_object(text.encode(), where, "journal entry", "")
        return typed(value, JournalEntry, where, "journal entry")

    def _pointed(self, client: Any, version: str) -> tuple[str, str]:
        """The logged model of a version, as a source, and its run."""
        found = client.get_model_version(self.name, version)
        model = logged_model(client, found.source, self.name, version)
        return f"{SCHEME}{model.model_id}", model.source_run_id

    def _make_journal(self, client: Any) -> None:
        failure = require("mlflow.exceptions", "pipeline").MlflowException
        try:
            client.create_registered_model(
                f"{self.name}{SUFFIX}", description=f"who moved the aliases of {self.name}, and why"
            )
        except failure as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        """A client, with MLflow pointed at the address; errors are of one line."""
        mlflow = mlflow_library()
        with translated("MLflow"), limited(WORK_LIMITS), pointed_at(self._address):
            if not self._answers:
                _refuse_absent(self.name, mlflow.get_tracking_uri())
                probe(mlflow.get_tracking_uri())
                self._answers = True
            yield mlflow.MlflowClient()


@contextmanager
def pointed_at(address: str | None) -> Iterator[None]:
    """MLflow pointed at an address for the length of the block, and then as it was.

    Its database asks the address of the process for what a version points at.
    """
    if address is None:
        yield
        return
    tracking = require("mlflow.tracking._tracking_service.utils", "pipeline")
    variable, before = tracking.MLFLOW_TRACKING_URI, tracking.MLFLOW_TRACKING_URI.get()
    try:
        with tracking._use_tracking_uri(address):
            yield
    finally:
        # MLflow leaves the address of before in the environment, a default one too.
        if before is None:
            variable.unset()
        else:
            variable.set(before)


def _package_in(location: str) -> str:
    """Where a stored version has its package; versions of before MLmodel are the package itself."""
    found = mlflow_library().artifacts.list_artifacts(artifact_uri=location)
    names = {Path(each.path).name for each in found}
    return f"{location}/{PACKAGE}" if PACKAGE in names else location


def _download(location: str, folder: Path, name: str) -> bytes:
    """One file of a package. What MLflow cannot find is a package without it."""
    mlflow = mlflow_library()
    local = "://" not in location or location.startswith("file://")
    path = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{location}/{name}", dst_path=None if local else str(folder)
    )
    return Path(path).read_bytes()


def _time(text: str | None) -> datetime | None:
    """A time that a tag tells; None for anything else, as tags can be typed."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else None
