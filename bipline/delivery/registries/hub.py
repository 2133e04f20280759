"""The registry on the Hugging Face Hub: ``hf:OWNER``, where a registered model is ``OWNER/NAME``.

The branch ``main`` holds the newest package, and the books of
:mod:`bipline.delivery.registries.ledger` in ``registry/``; a version is the commit that brought its
package, an alias a branch. What lies in the package's ``hf/`` lies at the root too, where engines
look for a model. Every write is one commit on the condition that the branch is still where it was
read (``parent_commit``), so nobody writes over what came later. A branch whose files are not those
of a version, as when one was edited there, is told as one that points elsewhere.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.base.extras import require
from bipline.base.progress import note
from bipline.delivery.registries.ledger import LedgerRegistry
from bipline.model.hub import TIMEOUT_SECONDS, commit_of, fetch_files, hub_failures
from bipline.storage.manifest import (
    MANIFEST_NAME,
    is_beside,
    parse_manifest,
    read_manifest,
    verify_directory,
)
from bipline.values.promotion import RegisteredPackage

SCHEME, MAIN, BOOKS, MODEL = "hf:", "main", "registry/", "hf/"
OWNED = ".gitattributes"
PART = re.compile(r"[A-Za-z0-9][\w.-]{0,94}", re.ASCII)
# How the hub says that a branch is not where the writer saw it, or is there already.
OVERTAKEN = {409, 412}
MOST_TRIES = 50


class HubRegistry(LedgerRegistry):
    """One repository."""

    def __init__(self, name: str, address: str) -> None:
        owner = address.removeprefix(SCHEME)
        for part, what in ((owner, "owner"), (name, "model name")):
            if not PART.fullmatch(part):
                raise InvalidInput(
                    f"{without_secrets(address)}: {what} {without_secrets(part)!r}: write hf:OWNER,"
                    " and a name of letters, digits, - _ and ."
                )
        self.name, self.address, self._repository = name, address, f"{owner}/{name}"
        self._head, self._refs = "", dict[str, str]()
        self._trees = dict[str, dict[str, str]]()
        self._texts = dict[str, bytes]()

    def check_ready(self) -> None:
        """See :meth:`LedgerRegistry.check_ready`; the repository is made by whoever owns it."""
        with self._asked() as api:
            api.auth_check(self._repository, write=True)

    def check_alias(self, alias: str) -> None:
        """As that of every ledger; the branch of all versions is no alias."""
        super().check_alias(alias)
        if alias == MAIN:
            raise InvalidInput(f"alias {alias!r}: is the branch of all versions on the hub")

    def find(self, wanted: str) -> Any:
        """See :meth:`LedgerRegistry.find`."""
        self._look()
        return super().find(wanted)

    def aliases(self) -> dict[str, str]:
        """Versions by alias: of every branch that holds a package."""
        with self._asked() as api:
            found = api.list_repo_refs(self._repository).branches
            self._refs = {str(each.name): str(each.target_commit) for each in found}
        known = self.versions()
        told = {
            name: self._told(commit, known) for name, commit in self._refs.items() if name != MAIN
        }
        return {name: version for name, version in told.items() if version}

    def _told(self, commit: str, known: Mapping[int, RegisteredPackage]) -> str:
        """Which version a branch holds, or what else; empty where it is no package."""
        here = _packaged(self._tree(commit))
        text = self._text(commit, MANIFEST_NAME)
        if text is None:
            return ""
        digest = parse_manifest(text, f"{self._repository}@{commit}/{MANIFEST_NAME}").digest
        for number, version in sorted(known.items()):
            if version.package_digest == digest and _packaged(self._tree(version.location)) == here:
                return str(number)
        return f"other files (commit {commit[:12]})"

    def point(self, alias: str, version: str | None) -> None:
        """See :meth:`LedgerRegistry.point`."""
        self.check_alias(alias.removeprefix("previous-"))
        there = self._refs.get(alias)
        if version is None:
            if there is not None:
                self._unless_overtaken("delete_branch", missing=True, branch=alias)
            return
        commit = self.versions()[int(version)].location
        if there is None:
            self._unless_overtaken("create_branch", branch=alias, revision=commit)
            return
        operations = self._copies(_packaged(self._tree(commit)), commit, self._tree(there))
        if operations:
            told = f"{alias} is version {version}"
            self._commit(operations, told, there, alias)

    def _copies(
        self, wanted: Mapping[str, str], commit: str, there: Mapping[str, str]
    ) -> list[Any]:
        """What makes the files of a branch those of a commit."""
        hub = require("huggingface_hub", "hub")
        changed = [name for name in wanted if there.get(name) != wanted[name]]
        gone = [name for name in _packaged(there) if name not in wanted]
        return [
            *(hub.CommitOperationCopy(name, name, src_revision=commit) for name in changed),
            *(hub.CommitOperationDelete(name) for name in gone),
        ]

    def _names(self, folder: str) -> list[str]:
        self._look()
        below = f"{BOOKS}{folder}/"
        return [name.removeprefix(below) for name in self._tree(self._head)
                if name.startswith(below)]  # fmt: skip

    def _read(self, name: str) -> bytes | None:
        return self._text(self._head or self._look(), BOOKS + name)

    def _text(self, commit: str, name: str) -> bytes | None:
        """A small file of a commit; what was read once is known by what git calls it."""
        blob = self._tree(commit).get(name)
        if blob is not None and blob not in self._texts:
            self._texts[blob] = self._file(commit, name)
        return None if blob is None else self._texts[blob]

    def _write(self, name: str, text: str, new: bool) -> bool:
        hub = require("huggingface_hub", "hub")
        for _ in range(MOST_TRIES):
            if not new:
                self._look()
            added = hub.CommitOperationAdd(BOOKS + name, text.encode())
            if self._commit([added], name, self._head, MAIN) is not None:
                return True
            if new:
                return False
        raise EnvironmentFailure(f"{self._repository}: is written by others all the time")

    def _store(self, package: Path) -> str:
        """One commit brings the whole package; one that is a version already stays where it is."""
        digest = read_manifest(package).digest
        known = [v.location for v in self.versions().values() if v.package_digest == digest]
        if known:
            return known[0]
        hub = require("huggingface_hub", "hub")
        files = _files(package)
        note(f"uploading {self.name} to {self.address}: {len(files)} files")
        for _ in range(MOST_TRIES):
            gone = [n for n in _packaged(self._tree(self._look())) if n not in files]
            operations = [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
            operations += [hub.CommitOperationDelete(name) for name in gone]
            made = self._commit(operations, f"package {digest[:12]}", self._head, MAIN)
            if made is not None:
                return made
        raise EnvironmentFailure(f"{self._repository}: is written by others all the time")

    def _file(self, location: str, name: str) -> bytes:
        hub = require("huggingface_hub", "hub")
        utilities = require("huggingface_hub.utils", "hub")
        with self._asked():
            url = hub.hf_hub_url(self._repository, name, revision=location)
            headers = utilities.build_hf_headers()
            answer = utilities.get_session().get(url, headers=headers, timeout=TIMEOUT_SECONDS)
            utilities.hf_raise_for_status(answer)
            return bytes(answer.content)

    def _check(self, location: str, package_digest: str) -> None:
        tree = _packaged(self._tree(location))
        for name in self._copied(location):
            if tree[name] != tree[MODEL + name]:
                raise Refused(f"{self._repository}: {name} is not {MODEL}{name}")
        with TemporaryDirectory() as temporary:
            self._fetch(location, Path(temporary))
            found = verify_directory(Path(temporary)).digest
        if found != package_digest:
            raise Refused(f"{self._repository}: is package {found[:12]}")

    def _fetch(self, location: str, folder: Path) -> None:
        tree = _packaged(self._tree(location))
        with self._asked():
            fetch_files(
                self._repository, location, folder, sorted({*tree} - self._copied(location))
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)

    def _copied(self, location: str) -> set[str]:
        """Files at the root that are there for engines alone: those of the model."""
        tree = _packaged(self._tree(location))
        text = self._file(location, MANIFEST_NAME)
        own = parse_manifest(text, f"{self._repository}@{location}/{MANIFEST_NAME}").files
        return {n for n in tree if n not in own and not is_beside(n) and MODEL + n in tree}

    def _look(self) -> str:
        """Where main is now."""
        with self._asked() as api:
            info = api.repo_info(self._repository, revision=MAIN, timeout=TIMEOUT_SECONDS)
        self._head = commit_of(info, self._repository)
        return self._head

    def _tree(self, commit: str) -> dict[str, str]:
        """The files of a commit, each by what git calls its content."""
        if commit not in self._trees:
            with self._asked() as api:
                found = api.list_repo_tree(self._repository, recursive=True, revision=commit)
                self._trees[commit] = {
                    str(each.path): str(each.blob_id) for each in found if hasattr(each, "blob_id")
                }
        return self._trees[commit]

    def _commit(self, operations: list[Any], told: str, parent: str, branch: str) -> str | None:
        """One commit on a branch that is still where it was read, else None."""
        made = self._unless_overtaken(
            "create_commit", missing=branch != MAIN, operations=operations, commit_message=told,
            parent_commit=parent, revision=branch,
        )  # fmt: skip
        return None if made is None else str(made.oid)

    def _unless_overtaken(self, method: str, missing: bool = False, **given: Any) -> Any:
        """What the hub answers; None where another one was first, or ``missing`` a branch."""
        errors = require("huggingface_hub.errors", "hub")
        with self._asked() as api:
            try:
                return getattr(api, method)(self._repository, **given)
            except errors.HfHubHTTPError as error:
                status = error.response.status_code
                if status in OVERTAKEN or (missing and status == 404):
                    return None
                raise

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        hub = require("huggingface_hub", "hub")
        with hub_failures(f"hf:{self._repository}", "repository"):
            yield hub.HfApi()


def _files(package: Path) -> dict[str, Path]:
    """The files of a package by name, and those of the model in it at the root too."""
    paths = [path for path in sorted(package.rglob("*")) if path.is_file()]
    own = {path.relative_to(package).as_posix(): path for path in paths}
    model = {name.removeprefix(MODEL): path for name, path in own.items() if name.startswith(MODEL)}
    return {**model, **own}


def _packaged(tree: Mapping[str, str]) -> dict[str, str]:
    """The files of a commit but for the books and what the hub keeps itself."""
    return {n: blob for n, blob in tree.items() if n != OWNED and not n.startswith(BOOKS)}
