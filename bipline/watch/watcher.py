"""A watcher: looks at sources, claims what is new, starts its run, and writes down how it ended.

Any number of watchers may share a journal. What a killed one left is gone on with: its hold is
free, the release is claimed again, and its run has the same name, settings and state, so it
finds what the first one made.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bipline import __version__
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
from bipline.base.progress import note
from bipline.base.waiting import asked_wait
from bipline.delivery.notices import tell
from bipline.settings.watch import NOW, WatchSettings, moment
from bipline.values.release import Release, ReleaseState, WatchBegin, WatchRecord
from bipline.watch.endings import ending, parked_notice
from bipline.watch.filters import filters_digest, passed_over
from bipline.watch.journal import Hold, Journal, Standing
from bipline.watch.launcher import Ended, Launched, Launcher, Run
from bipline.watch.machine_limits import Hindrance, MachineLimits
from bipline.watch.sources import Source, told_time

# Where a run begins, or is gone on with when whoever claimed it is gone.
OPEN: frozenset[ReleaseState] = frozenset({"seen", "claimed", "running"})
LEFT: frozenset[ReleaseState] = frozenset({"claimed", "running"})


# Seconds after which a look that failed is tried again.
ASK_AGAIN = 60.0


@dataclass
class Active:
    """A run that this watcher started: where its release stands, and what it holds meanwhile."""

    standing: Standing
    launched: Launched
    holds: tuple[Hold, ...]


@dataclass
class Tally:
    """What a watcher came to: runs by name; places that are wrong or did not answer, and why."""

    old: int = 0
    started: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Watcher:
    """One watcher of a journal."""

    def __init__(
        self,
        settings: WatchSettings,
        sources: Mapping[str, Source],
        journal: Journal,
        launcher: Launcher,
        limits: MachineLimits,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._sources, self._journal = settings, sources, journal
        self._launcher, self._limits, self._now = launcher, limits, now
        self._asked_to_wait: dict[str, datetime] = {}
        self._told: set[str] = set()
        self._runs: dict[str, Run] = {}
        self.id = uuid.uuid4().hex[:12]
        self.active: dict[str, Active] = {}
        self.tally = Tally()

    def look(self) -> None:
        """Look at every place of every source, and write down what is new."""
        self.tally.old, self.tally.unanswered, self.tally.wrong = 0, [], []
        for name, source in self._sources.items():
            until = self._asked_to_wait.get(name)
            if until and self._now() < until:
                continue
            for place in source.places:
                try:
                    releases = source.listed(place)
                except InvalidInput as error:
                    self.tally.wrong.append(f"source {name}: {error}")
                    self._tell(f"{name} {error}", f"source {name}: {error}")
                except BiplineError as error:
                    self._unanswered(name, place, error)
                else:
                    self._admit(name, place, releases)

    def start_due(self) -> None:
        """Start every run that may start now, as far as the machine's limits go."""
        standings = self._journal.standings()
        for key, standing in sorted(standings.items(), key=lambda each: each[1].records[0].at):
            if self._is_due(key, standing) and not self._start(key, standing):
                return

    def reap(self) -> bool:
        """Write down how runs ended; whether one did.

        What another may start is stopped first: nothing that is written here may fail before.
        """
        for key, active in list(self.active.items()):
            if active.launched.ended() is None and not all(hold.held for hold in active.holds):
                note(f"{active.standing.release.run}: its hold was lost to another; stopped")
                active.launched.stop()
                self._let_go(key)
        ended = False
        for key, active in list(self.active.items()):
            if (outcome := active.launched.ended()) is not None:
                ended = True
                self._end(key, active.standing, outcome)
                self._let_go(key)
        return ended

    def stop(self) -> None:
        """Stop what runs; the next watcher goes on with it."""
        for active in self.active.values():
            active.launched.stop()
        self.reap()

    def _admit(self, name: str, place: str, releases: list[Release]) -> None:
        """See releases that are not old; the first look at a place decides what is old there."""
        since, known = self._settings.sources[name].since, frozenset[str]()
        if since == NOW:
            where = f"{name} {place}"
            keys = tuple(sorted({release.key for release in releases}))
            first = WatchBegin(place=where, at=told_time(self._now()), watcher=self.id, known=keys)
            begin = self._journal.begin(where) or self._journal.begun(first)
            known = frozenset(begin.known)
        for release in releases:
            if _is_old(release, since, known):
                self.tally.old += 1
            else:
                self._see(name, release)

    def _see(self, name: str, release: Release) -> None:
        """Write down a release: seen, or passed over by the filters."""
        standing = self._journal.standing(release.key)
        filters = self._settings.sources[name].filters
        digest: str | None = self._filters(name)
        if standing and (standing.last.state != "passed-over" or standing.last.filters == digest):
            return
        try:
            reason = passed_over(filters, self._sources[name].described(release)) or ""
        except EnvironmentFailure as error:
            self._unanswered(name, release.model, error)
            return
        except BiplineError as error:
            # It is looked at again: a token may have ended, access may be given.
            digest, reason = None, f"cannot be compressed: {error}"
            if standing and standing.last.reason == reason:
                return
        state: ReleaseState = "passed-over" if reason else "seen"
        told: dict[str, Any] = {"reason": reason, "filters": digest if reason else None}
        record = self._record(state, release=None if standing else release, **told)
        self._journal.append(release.key, standing, record)

    def _unanswered(self, name: str, what: str, error: BiplineError) -> None:
        self.tally.unanswered.append(f"{what}: {error}")
        if wait := asked_wait(str(error)):
            self._asked_to_wait[name] = self._now() + timedelta(seconds=wait)
        self._tell(f"{name} {error}", f"source {name}: {error}")

    def _is_due(self, key: str, standing: Standing) -> bool:
        last = standing.last
        if key in self.active or standing.release.source not in self._settings.sources:
            return False
        if last.state == "retry-at":
            return self._now() >= moment(last.until or last.at)
        return last.state in OPEN

    def _start(self, key: str, standing: Standing) -> bool:
        """Claim a release and start its run; False where the machine has no room for another."""
        release = standing.release
        try:
            if key not in self._runs:
                self._runs[key] = Run.of(release, self._settings.sources[release.source])
        except InvalidInput as error:
            self._park_unstarted(key, error)
            return True
        run = self._runs[key]
        room = self._limits.take(run)
        if isinstance(room, Hindrance):
            self._tell(f"{run.name} {room.whole}", f"{run.name} waits: {room.reason}")
            return not room.whole
        holds = [*room]
        try:
            if (hold := self._journal.hold(key)) is not None:
                holds.append(hold)
                self._claim(key, run, tuple(holds))
        finally:
            if key not in self.active:
                for each in holds:
                    each.release()
        return True

    def _claim(self, key: str, run: Run, holds: tuple[Hold, ...]) -> None:
        """Under a hold: start the run, unless it turns out to be done or another's by now."""
        standing = self._journal.standing(key)
        if standing is None or not self._is_due(key, standing):
            return
        if standing.last.state in LEFT:
            note(f"{run.name}: watcher {standing.last.watcher} is gone; going on with its run")
            if earlier := self._launcher.finished(run) or self._too_often(standing):
                self._end(key, standing, earlier)
                return
        else:
            self._launcher.forget(run)
        if not self._is_still(key, standing):
            return
        failures = standing.last.failures + (standing.last.state in LEFT)
        record = self._record("claimed", standing, failures=failures)
        if (claimed := self._journal.append(key, standing, record)) is None:
            return
        try:
            descriptors = [each for hold in holds for each in hold.descriptors]
            launched = self._launcher.start(run, descriptors)
        except OSError as error:
            failure = f"the run could not be started: {error.strerror}"
            self._end(key, claimed, Ended(EnvironmentFailure.exit_code, failure))
            return
        self.active[key] = Active(claimed, launched, holds)
        self.tally.started.append(run.name)
        note(f"{run.name}: started for {run.release.model}")
        running = self._record("running", claimed, log=launched.log)
        self.active[key].standing = self._journal.append(key, claimed, running) or claimed

    def _is_still(self, key: str, standing: Standing) -> bool:
        """Whether what is to be compressed is what was seen; what is not is another release."""
        release = standing.release
        try:
            if self._sources[release.source].is_still(release):
                return True
        except BiplineError as error:
            self._unanswered(release.source, release.model, error)
            return False
        reason = "changed between the look and its start; what lies there now is another release"
        told = {"reason": reason, "filters": self._filters(release.source)}
        self._journal.append(key, standing, self._record("passed-over", standing, **told))
        note(f"{release.run}: {reason}")
        return False

    def _filters(self, name: str) -> str:
        return filters_digest(self._settings.sources[name].filters, __version__)

    def _too_often(self, standing: Standing) -> Ended | None:
        """A run that ended its watcher again and again is no run to go on with for ever."""
        times = standing.last.failures + 1
        if times < self._settings.retry.attempts:
            return None
        return Ended(Refused.exit_code, f"{times} times its watcher was gone, or it failed, in it")

    def _park_unstarted(self, key: str, error: InvalidInput) -> None:
        """Park a release whose run cannot even be asked for."""
        if (hold := self._journal.hold(key)) is None:
            return
        try:
            standing = self._journal.standing(key)
            if standing and self._is_due(key, standing):
                self._end(key, standing, Ended(error.exit_code, str(error)))
        finally:
            hold.release()

    def _end(self, key: str, standing: Standing, ended: Ended) -> None:
        """Write down how a run ended: done, to be tried again, or parked."""
        run = standing.release.run
        state, told = ending(ended, standing.last, self._settings.retry, self._now())
        record = self._record(state, standing, **told)
        if self._journal.append(key, standing, record) is None:
            note(f"{run}: another watcher went on with it; how this one's ended is not kept")
            return
        if state in ("done", "parked"):
            getattr(self.tally, state).append(run)
        if state == "parked":
            tell(parked_notice(standing.release, record))
        what = f"{state} {record.until}" if record.until else state
        note(f"{run}: {what}" + (f": {record.reason}" if record.reason else ""))

    def _record(
        self, state: ReleaseState, before: Standing | None = None, **told: Any
    ) -> WatchRecord:
        """A record of this watcher at this moment; failures are counted on."""
        failures = told.pop("failures", before.last.failures if before else 0)
        return WatchRecord(
            state=state, at=told_time(self._now()), watcher=self.id, failures=failures, **told
        )

    def _let_go(self, key: str) -> None:
        for hold in self.active.pop(key).holds:
            hold.release()

    def _tell(self, about: str, text: str) -> None:
        """Say once what is so for a while."""
        if about not in self._told:
            self._told.add(about)
            note(text)


def watch(
    watcher: Watcher, once: bool, every: float, tick: float = 5.0, sleep: float = 0.2
) -> None:
    """Watch until interrupted, or once: one look, and until nothing runs or can start.

    A journal that does not answer is asked again, unless it is for once.
    """
    next_look = next_start = time.monotonic()
    try:
        while True:
            now = time.monotonic()
            try:
                if now >= next_look:
                    # Before the look: one that fails must not keep runs from being watched.
                    next_look, next_start = math.inf if once else now + every, now
                    watcher.look()
                if watcher.reap() or now >= next_start:
                    watcher.start_due()
                    next_start = now + tick
            except EnvironmentFailure as error:
                if once:
                    raise
                note(f"{error}; asking again")
                next_look, next_start = min(next_look, now + ASK_AGAIN), now + tick
            if once and not watcher.active:
                return
            time.sleep(sleep)
    finally:
        watcher.stop()


def _is_old(release: Release, since: str, known: frozenset[str]) -> bool:
    """Whether a release was there before the watch begins; one without a time is."""
    if since == NOW:
        return release.key in known
    return not release.published or moment(release.published) < moment(since)
