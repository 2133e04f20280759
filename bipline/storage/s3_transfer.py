"""Files to and from S3, whole, with their sha256 compared on the way.

Every object carries its sha256 as metadata, so that a rerun sees what is there already. S3 compares
what arrives with the sha256 that is sent: of the file, or of each part of a large one.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bipline.base.errors import EnvironmentFailure, Refused
from bipline.storage.digests import digest_file
from bipline.storage.folder import ByteFile
from bipline.storage.manifest import FileEntry
from bipline.storage.s3_client import OVERTAKEN, S3Place, code_of, condition, failures
from bipline.storage.synced_file import SyncedFile

# A file above this goes in parts of this size, a few of them in memory at once.
UPLOAD_BYTES = 32 << 20
UPLOADS = 4
# S3 takes at most so many parts of one object.
MOST_PARTS = 10_000
WINDOW_BYTES = 32 << 20


def entry_of(path: Path) -> FileEntry:
    """Size and sha256 of a file as it is now."""
    return FileEntry(size=path.stat().st_size, sha256=digest_file(path))


def upload(place: S3Place, name: str, path: Path, entry: FileEntry) -> None:
    """Put a file there, unless the same content lies there already.

    Raises Refused when the file is not the one of ``entry``, or another writer puts other content
    there at the same time; EnvironmentFailure when S3 cannot take it.
    """
    there = place.head(name)
    if _same(there, entry):
        return
    with failures(place.where(name)):
        over = str(there["ETag"]) if there else ""
    if entry.size <= UPLOAD_BYTES:
        put = _put(place, name, path, entry, over)
    else:
        put = _Parts(place, name, entry).put(path, over)
    if not put and not _same(place.head(name), entry):
        raise Refused(f"{place.where(name)}: another writer puts other content there; run again")


def download(file: ByteFile, target: Path) -> FileEntry:
    """Fetch an object into a new file; size and sha256 of what came."""
    target.parent.mkdir(parents=True, exist_ok=True)
    buffer = memoryview(bytearray(min(file.size, WINDOW_BYTES)))
    with SyncedFile(target) as written:
        for start in range(0, file.size, WINDOW_BYTES):
            piece = buffer[: file.size - start]
            file.read_into(piece, start)
            written.write(piece)
    return FileEntry(size=written.size, sha256=written.sha256)


def _same(there: dict[str, Any] | None, entry: FileEntry) -> bool:
    if there is None or there.get("ContentLength") != entry.size:
        return False
    return bool(there.get("Metadata", {}).get("sha256") == entry.sha256)


def _put(place: S3Place, name: str, path: Path, entry: FileEntry, over: str) -> bool:
    checksum = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
    compared = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum}
    with path.open("rb") as file:
        put = place.put(name, file, over, Metadata={"sha256": entry.sha256}, **compared)
    return put is not None


class _Parts:
    """A large file on its way, in parts that are compared one by one."""

    def __init__(self, place: S3Place, name: str, entry: FileEntry) -> None:
        self._place, self._name, self._entry = place, name, entry
        self._upload: dict[str, str] = {}

    def put(self, path: Path, over: str) -> bool:
        """Send all parts; False where another object came first."""
        client, where = self._place.client, self._place.where(self._name)
        address = self._place.address(self._name)
        with failures(where):
            begun = client.create_multipart_upload(
                **address, ChecksumAlgorithm="SHA256", Metadata={"sha256": self._entry.sha256}
            )
            self._upload = {**address, "UploadId": begun["UploadId"]}
            try:
                parts = self._send(path)
                return self._complete(parts, over)
            except BaseException:
                client.abort_multipart_upload(**self._upload)
                raise

    def _send(self, path: Path) -> list[dict[str, Any]]:
        sha256, parts = hashlib.sha256(), []
        sending: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(UPLOADS) as pool:
            for number, part in enumerate(self._pieces(path), start=1):
                sending.append(pool.submit(self._send_part, number, part))
                sha256.update(part)
                if len(sending) == UPLOADS:
                    parts.append(sending.popleft().result())
            parts += [part.result() for part in sending]
        if sha256.hexdigest() != self._entry.sha256:
            raise Refused(f"{path}: changed after it was hashed")
        return parts

    def _pieces(self, path: Path) -> Iterator[bytes]:
        size = max(UPLOAD_BYTES, -(-self._entry.size // MOST_PARTS))
        with path.open("rb") as file:
            while piece := file.read(size):
                yield piece

    def _send_part(self, number: int, part: bytes) -> dict[str, Any]:
        checksum = base64.b64encode(hashlib.sha256(part).digest()).decode()
        answer = self._place.client.upload_part(
            **self._upload, PartNumber=number, Body=part, ChecksumSHA256=checksum
        )
        if answer.get("ChecksumSHA256", checksum) != checksum:
            where = self._place.where(self._name)
            raise EnvironmentFailure(f"{where}: part {number} arrived changed; try again")
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _complete(self, parts: list[dict[str, Any]], over: str) -> bool:
        client = self._place.client
        try:
            client.complete_multipart_upload(
                **self._upload, MultipartUpload={"Parts": parts}, **condition(over)
            )
        except client.exceptions.ClientError as error:
            if code_of(error) not in OVERTAKEN:
                raise
            client.abort_multipart_upload(**self._upload)
            return False
        return True
