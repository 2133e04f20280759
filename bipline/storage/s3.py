"""An ``s3://bucket/prefix`` as a folder: ranged reads, several at once, of one exact version."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bipline.base.errors import EnvironmentFailure
from bipline.storage import s3_client
from bipline.storage.containment import INNER_FOLDERS
from bipline.storage.s3_client import CONNECTIONS, S3Place, broken_streams, failures
from bipline.storage.strict_json import LARGEST_BYTES

# One stream from S3 is far slower than the network: this many ranges of this size at once, so
# that what a checkpoint reads at once (8 and 16 MB) is several ranges.
PART_BYTES = 2 << 20


class S3Folder(S3Place):
    """The objects directly below a prefix, and in its inner folders."""

    def exists(self) -> bool:
        """Whether any object lies below the prefix."""
        return bool(self.names())

    def names(self) -> list[str]:
        """Names of the objects below the prefix, sorted; in folders those of ``INNER_FOLDERS``."""
        found = self.listed("/")
        for inner in INNER_FOLDERS if found else ():
            found += [f"{inner}/{name}" for name in self.below(inner).listed("/")]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """A small object whole. Raises InvalidInput when it is missing."""
        file = self.open(name)
        if file.size > LARGEST_BYTES:
            raise EnvironmentFailure(f"{self.where(name)}: {file.size} bytes of a small file")
        content = bytearray(file.size)
        file.read_into(memoryview(content), 0)
        return bytes(content)

    def open(self, name: str) -> S3File:
        """An object to be read by ranges. Raises InvalidInput when it is missing."""
        return S3File(self, name)


class S3File:
    """One object in the version it had when it was opened: another one is refused."""

    def __init__(self, folder: S3Place, name: str) -> None:
        self.name = name
        self._where = folder.where(name)
        self._key = folder.address(name)
        self._client = folder.client
        with failures(self._where):
            head = self._client.head_object(**self._key)
            self.size = int(head["ContentLength"])
            self._etag = head["ETag"]
            if self.size < 0:
                raise ValueError(f"an object of {self.size} bytes")
        # The content's digest, where this project wrote the object.
        self.sha256 = str(head.get("Metadata", {}).get("sha256", ""))

    @property
    def state(self) -> str:
        """The size and the ETag."""
        return f"{self.size}:{self._etag}"

    @property
    def skips_well(self) -> bool:
        """Every range is a request."""
        return False

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on, by several ranges at once."""
        starts = range(0, len(buffer), PART_BYTES)
        if len(starts) <= 1:
            self._read_part(buffer, offset)
            return
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            parts = [
                pool.submit(self._read_part, buffer[start : start + PART_BYTES], offset + start)
                for start in starts
            ]
            for part in parts:
                part.result()

    def will_read(self, offset: int, length: int) -> None:
        """Nothing: what is read ahead is read by the caller's own thread."""

    def avoid_cache(self) -> None:
        """Nothing: there is no cache."""

    def _read_part(self, buffer: memoryview, offset: int) -> None:
        """One range; a stream that breaks off is asked for again from where it broke."""
        done = 0
        for _ in range(s3_client.ATTEMPTS):
            done += self._stream(buffer[done:], offset + done)
            if done == len(buffer):
                return
        raise EnvironmentFailure(f"{self._where}: gave {done} of {len(buffer)} bytes; try again")

    def _stream(self, buffer: memoryview, offset: int) -> int:
        """One answer; returns how many bytes came before it ended or broke off."""
        if not buffer:
            return 0
        asked = f"bytes={offset}-{offset + len(buffer) - 1}"
        with failures(self._where):
            answer = self._client.get_object(**self._key, Range=asked, IfMatch=self._etag)
            pieces = answer["Body"].iter_chunks(1 << 20)
            if (told := answer.get("ContentLength")) != len(buffer):
                raise ValueError(f"{told} bytes where {len(buffer)} were asked for")
        done = 0
        with broken_streams():
            for piece in pieces:
                room = buffer[done : done + len(piece)]
                room[:] = piece[: len(room)]
                done += len(room)
        return done
