"""Releases on the hub: a commit of a model's branch main.

A commit counts where the hub says the same of it three times: in the listing, asked for the branch,
and asked for the commit itself, with a file of it. What contradicts itself starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bipline.base.errors import EnvironmentFailure
from bipline.base.extras import require
from bipline.model.hub import TIMEOUT_SECONDS, commit_of, confirm_commit, hub_failures
from bipline.model.resolve import HUB, known_checkpoint
from bipline.settings.watch import SourceSettings
from bipline.storage.names import is_plain_name
from bipline.values.release import Release
from bipline.watch.sources import Description, release_key, told_time

# More models than any owner has: a listing without an end.
MOST_MODELS = 1_000_000


class HubSource:
    """Models of one owner, or models by their names."""

    def __init__(
        self, name: str, settings: SourceSettings, folder: Path, state: Path | None
    ) -> None:
        self._name = name
        self._organisation = settings.organisation
        named = [settings.organisation] if settings.organisation else settings.repositories
        self.places = tuple(f"{HUB}{each}" for each in named)

    def listed(self, place: str) -> list[Release]:
        """The last commit of each model."""
        api = require("huggingface_hub", "hub").HfApi()
        asked = place.removeprefix(HUB)
        with hub_failures(place, "model"):
            if self._organisation:
                found: Iterable[Any] = api.list_models(author=asked, full=True)
            else:
                found = [api.model_info(asked, timeout=TIMEOUT_SECONDS)]
            releases = []
            for each in found:
                releases.append(self._release(place, each))
                if len(releases) > MOST_MODELS:
                    raise EnvironmentFailure(f"{place}: a listing without an end")
        return releases

    def described(self, release: Release) -> Description:
        """The outline of the commit, once it is the branch's still; its tags are the hub's."""
        tags = confirm_commit(release.name, release.revision)
        return Description.of(known_checkpoint(release.model), tags)

    def is_still(self, release: Release) -> bool:
        """True: its address names the commit."""
        return True

    def _release(self, place: str, info: Any) -> Release:
        if not is_plain_name(str(info.id)) or len(str(info.id)) > 200:
            raise EnvironmentFailure(f"{place}: the hub lists {info.id!a:.60}, which is no model")
        commit = commit_of(info, f"{HUB}{info.id}")
        changed = info.last_modified or info.created_at
        return Release(
            key=release_key(self._name, "commit", commit), source=self._name, place=place,
            name=info.id, revision=commit, model=f"{HUB}{info.id}@{commit}",
            published=told_time(changed) if changed else "",
        )  # fmt: skip
