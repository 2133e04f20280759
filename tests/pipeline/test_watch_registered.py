"""Versions of a registered model are releases, by the digest of their package."""

from __future__ import annotations

from pathlib import Path

import pytest

from bipline.base.errors import BiplineError
from bipline.settings.watch import SourceSettings
from bipline.values.summary import RunSummary
from bipline.watch.sources import open_source
from tests.pipeline.conftest import Run
from tests.watch.world import CONFIG


@pytest.mark.slow
def test_a_version_is_known_by_its_package(first: RunSummary, run: Run, folder: Path) -> None:
    other = run(promote={"name": "another"})
    assert other.package.digest == first.package.digest
    found = {}
    for name, summary in (("tiny", first), ("another", other)):
        settings = SourceSettings(registered=name, compress=str(CONFIG))
        source = open_source("here", settings, folder / "watch", folder / "state")
        [place] = source.places
        releases = {each.model: each for each in source.listed(place)}
        release = releases[f"models:/{name}/{summary.registration.version}"]
        tags = source.described(release).tags
        assert f"package_digest={first.package.digest}" in tags
        assert release.revision == first.package.digest
        found[name] = release
    assert found["tiny"].key == found["another"].key, "the same package under another name"


def test_no_registry_and_no_model(folder: Path, first: RunSummary, tmp_path: Path) -> None:
    for name, state in (("nobody", folder / "state"), ("tiny", tmp_path)):
        settings = SourceSettings(registered=name, compress=str(CONFIG))
        source = open_source("here", settings, tmp_path, state)
        if state == tmp_path:
            with pytest.raises(BiplineError, match="no registry there"):
                source.listed(source.places[0])
        else:
            assert source.listed(source.places[0]) == []
