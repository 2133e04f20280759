"""A watcher from its settings, and what a journal says without one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.base.extras import check
from bipline.settings.watch import SourceSettings, WatchSettings
from bipline.storage.s3_client import S3_SCHEME
from bipline.values.release import Release, ReleaseStanding, WatchRecord, WatchStatus
from bipline.watch.journal import Journal, LocalRecords, Standing
from bipline.watch.journal_s3 import S3Records
from bipline.watch.launcher import Launcher, ProcessLauncher, Run
from bipline.watch.machine_limits import MachineLimits
from bipline.watch.sources import open_source, told_time
from bipline.watch.watcher import Watcher

# What each kind of source needs installed.
EXTRAS = {"organisation": "hub", "repositories": "hub", "s3": "s3", "registered": "pipeline"}


def open_watcher(settings: WatchSettings, launcher: Launcher | None = None) -> Watcher:
    """A watcher, with every configuration that it may start read once.

    Raises InvalidInput where one cannot be used, or a library is missing.
    """
    sources = {}
    for name, source in settings.sources.items():
        if extra := EXTRAS.get(source.kind):
            check(extra, f"the source {name}")
        run = Run.of(_example(name, source), source)
        asked = source.model_copy(update={"registry": run.registry})
        sources[name] = open_source(name, asked, settings.folder, run.state)
    limits = MachineLimits(settings.folder, settings.limits)
    starting = launcher or ProcessLauncher(settings.folder, shared_folder(settings))
    return Watcher(settings, sources, open_journal(settings), starting, limits)


def shared_folder(settings: WatchSettings) -> Path | None:
    """The journal's folder, which several machines may mount; None for one in S3 or the usual."""
    journal = settings.journal
    return None if journal is None or "://" in journal else Path(journal)


def open_journal(settings: WatchSettings) -> Journal:
    """The journal that all watchers of these settings share."""
    place = settings.journal or str(settings.folder)
    if place.startswith(S3_SCHEME):
        check("s3")
        return Journal(S3Records(place))
    if "://" in place:
        raise InvalidInput(f"journal {place!r}: give a folder or s3://bucket/prefix")
    return Journal(LocalRecords(Path(place)))


def status_of(journal: Journal) -> WatchStatus:
    """Where every release stands. Nothing is written."""
    standings = sorted(journal.standings().values(), key=lambda each: each.records[0].at)
    releases = tuple(_told(each) for each in standings)
    return WatchStatus(journal=journal.place.location, releases=releases)


def ask_again(journal: Journal, name: str) -> list[str]:
    """Let what is parked, or waits for its next try, start at the next chance; the runs by name.

    ``name`` is a run, a release's name, or a source. Raises InvalidInput where nothing is meant.
    """
    now, asked = told_time(datetime.now(UTC)), []
    waiting = {
        key: each
        for key, each in journal.standings().items()
        if each.last.state in ("parked", "retry-at")
    }
    for key, standing in waiting.items():
        release = standing.release
        if name in (release.run, release.name, release.source):
            told = {"reason": "asked for", "log": standing.last.log}
            record = WatchRecord(state="retry-at", at=now, until=now, watcher="--retry", **told)
            if journal.append(key, standing, record):
                asked.append(release.run)
    if not asked:
        known = ", ".join(sorted(each.release.run for each in waiting.values())) or "nothing"
        raise InvalidInput(f"--retry {name}: no such run is parked or waits; {known} is")
    return asked


def _told(standing: Standing) -> ReleaseStanding:
    fields = ("state", "at", "failures", "exit_code", "reason", "until", "log")
    told = {name: getattr(standing.last, name) for name in fields}
    return ReleaseStanding(run=standing.release.run, release=standing.release, **told)


def _example(name: str, source: SourceSettings) -> Release:
    """A release that nobody made, by which a configuration is read before there is one."""
    place = getattr(source, source.kind)
    return Release(
        key="0" * 64, source=name, place=str(place), name="example", revision="0" * 40,
        model="example", published="",
    )  # fmt: skip
