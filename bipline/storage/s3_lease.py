"""A lease: an object in S3 that says who works, and that its holder still lives.

It is put on the condition that nobody else put it meanwhile, and put again while the holder lives.
How old it is is told by S3's own clock, so the clocks of machines need not agree.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any

from bipline.base.errors import BiplineError, InvalidInput
from bipline.storage.s3_client import S3Place, failures

LEASE_SECONDS = 60.0
# S3 tells times in whole seconds.
CLOCK_SECONDS = 1.0


class HeldByAnother(InvalidInput):
    """Another process holds the lease."""


class Lease:
    """The right to work, for as long as it is renewed. ``holder`` is this holding's own name."""

    def __init__(self, place: S3Place, name: str, seconds: float) -> None:
        self.holder = uuid.uuid4().hex
        self._place, self._name, self._seconds = place, name, seconds
        self._etag = ""
        self._lost = False
        self._renewed = 0.0

    @property
    def held(self) -> bool:
        """Whether nobody else can have taken it: it was renewed in time."""
        return not self._lost and time.monotonic() - self._renewed < self._seconds

    def take(self, previous: str) -> str:
        """Take the lease; who held it before, or empty where nobody left it.

        A lease that ``previous`` left is taken at once: the caller knows that this holder is dead.
        Raises HeldByAnother while another one holds it.
        """
        where = self._place.where(self._name)
        there = self._place.head(self._name)
        with failures(where):
            before = there["Metadata"].get("holder", "") if there else ""
            free = there is None or before == previous or _expired(there)
            etag = str(there["ETag"]) if there else ""
        if not free or not self._put(etag, self._seconds):
            raise HeldByAnother(
                f"{where}: another process is working on this output; "
                f"if it was killed, its lease ends within {self._seconds:g} seconds"
            )
        return str(before)

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Keep the lease alive for the length of the block, in a thread."""
        ended = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def release(self) -> None:
        """Let the next holder in; whose work it was stays known."""
        if not self._lost:
            self._put(self._etag, 0.0)

    def remove(self) -> None:
        """Remove the lease: the work is done."""
        if not self._lost:
            self._place.remove([self._name])

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds / 3) and not self._lost:
            # Where S3 does not answer, the next turn tries again, and the condition tells
            # whether another one came meanwhile.
            with suppress(BiplineError):
                self._lost = not self._put(self._etag, self._seconds)

    def _put(self, over: str, seconds: float) -> bool:
        metadata = {"holder": self.holder, "seconds": str(seconds)}
        begun = time.monotonic()
        etag = self._place.put(self._name, self._body(), over, Metadata=metadata)
        if etag is None:
            # The answer to our own, earlier try may have been lost on the way.
            there = self._place.head(self._name)
            with failures(self._place.where(self._name)):
                if there is None or there["Metadata"].get("holder") != self.holder:
                    return False
                etag = str(there["ETag"])
        self._etag, self._renewed = etag, begun
        return True

    def _body(self) -> bytes:
        """Another one each time: an ETag is the digest of the body."""
        return f"{self.holder} {uuid.uuid4().hex}\n".encode()


def _expired(there: dict[str, Any]) -> bool:
    seconds = float(there["Metadata"].get("seconds", 0))
    now = parsedate_to_datetime(there["ResponseMetadata"]["HTTPHeaders"]["date"])
    age = (now - there["LastModified"]).total_seconds()
    return seconds == 0 or bool(age > seconds + CLOCK_SECONDS)
