"""A watch's journal behind ``s3://``: records by conditional puts, holds by leases."""

from __future__ import annotations

from contextlib import ExitStack

from bipline.storage.s3 import S3Folder
from bipline.storage.s3_client import MissingObject
from bipline.storage.s3_lease import LEASE_SECONDS, HeldByAnother, Lease
from bipline.watch.journal import HOLDS, RELEASES


class S3Records:
    """A journal at ``s3://bucket/prefix``."""

    def __init__(self, location: str, lease_seconds: float = LEASE_SECONDS) -> None:
        self._place = S3Folder(location)
        self._seconds = lease_seconds

    @property
    def location(self) -> str:
        """As the user would write it."""
        return self._place.location

    def names(self) -> list[str]:
        """Names of all records of releases."""
        return [f"{RELEASES}/{name}" for name in self._place.below(RELEASES).listed()]

    def read(self, name: str) -> bytes | None:
        """A record whole, or None where there is none."""
        try:
            return self._place.read(name)
        except MissingObject:
            return None

    def create(self, name: str, text: str) -> bool:
        """Put a record on the condition that there is none.

        The answer to our own, earlier try may have been lost: what lies there is compared.
        """
        if self._place.put(name, text.encode(), over="") is not None:
            return True
        return self.read(name) == text.encode()

    def hold(self, name: str) -> S3Hold | None:
        """Take the lease of a release and keep it alive, or None while another has it."""
        lease = Lease(self._place, f"{HOLDS}/{name}", self._seconds)
        try:
            lease.take("")
        except HeldByAnother:
            return None
        return S3Hold(lease)


class S3Hold:
    """A lease that a thread renews."""

    descriptors: tuple[int, ...] = ()

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._renewing = ExitStack()
        self._renewing.enter_context(lease.renewing())

    @property
    def held(self) -> bool:
        """Whether it was renewed in time."""
        return self._lease.held

    def release(self) -> None:
        """Let the next one in."""
        self._renewing.close()
        self._lease.release()
