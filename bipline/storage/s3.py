"""An ``s3://bucket/prefix`` as a folder: ranged reads, several at once, of one exact version.

This is the only module that knows boto3, and it imports it when a place is first used. Where the
endpoint is and who asks comes from the usual variables and files (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, ``AWS_MAX_ATTEMPTS``, ...).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.storage.folder import S3_SCHEME, ByteFile

# One stream from S3 is far slower than the network: this many ranges of this size at once, so
# that what a checkpoint reads at once (8 and 16 MB) is several ranges.
PART_BYTES = 2 << 20
CONNECTIONS = 8
CONNECT_SECONDS = 10
ATTEMPTS = 5
MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
FORBIDDEN = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
CHANGED = {"412", "PreconditionFailed", "416", "InvalidRange"}


class S3Folder:
    """The objects directly below a prefix."""

    def __init__(self, location: str) -> None:
        bucket, _, prefix = location.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise InvalidInput(f"{location}: names no bucket; write s3://bucket/prefix")
        self.location = location.rstrip("/")
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @cached_property
    def client(self) -> Any:
        """boto3's client, made when it is first needed; it asks again where that may help.

        Raises InvalidInput for variables and files that make no sense.
        """
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session

        session = get_session()
        try:
            attempts = session.get_config_variable("max_attempts") or ATTEMPTS
            retries = {"mode": "standard", "total_max_attempts": attempts}
            config = Config(
                retries=retries,
                max_pool_connections=CONNECTIONS,
                connect_timeout=CONNECT_SECONDS,
            )
            return boto3.Session(botocore_session=session).client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise InvalidInput(f"{self.location}: the AWS settings: {error}") from error

    def exists(self) -> bool:
        """Whether any object lies below the prefix."""
        return bool(self.names())

    def names(self) -> list[str]:
        """Names of the objects directly below the prefix, sorted."""
        pages = self.client.get_paginator("list_objects_v2")
        with failures(self.location):
            found = [
                entry["Key"].removeprefix(self.prefix)
                for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix, Delimiter="/")
                for entry in page.get("Contents", [])
            ]
        return sorted(name for name in found if name)

    def read(self, name: str) -> bytes:
        """A small object whole. Raises InvalidInput when it is missing."""
        file = self.open(name)
        content = bytearray(file.size)
        file.read_into(memoryview(content), 0)
        return bytes(content)

    def open(self, name: str) -> ByteFile:
        """An object to be read by ranges. Raises InvalidInput when it is missing."""
        return S3File(self, name)


class S3File:
    """One object in the version it had when it was opened: another one is refused."""

    def __init__(self, folder: S3Folder, name: str) -> None:
        self.name = name
        self._where = f"{folder.location}/{name}"
        self._key = {"Bucket": folder.bucket, "Key": folder.prefix + name}
        self._client = folder.client
        with failures(self._where):
            head = self._client.head_object(**self._key)
        self.size = int(head["ContentLength"])
        self._etag = head["ETag"]

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
        for _ in range(ATTEMPTS):
            done += self._stream(buffer[done:], offset + done)
            if done == len(buffer):
                return
        raise EnvironmentFailure(f"{self._where}: gave {done} of {len(buffer)} bytes; try again")

    def _stream(self, buffer: memoryview, offset: int) -> int:
        """One answer; returns how many bytes came before it ended or broke off."""
        from botocore.exceptions import BotoCoreError

        if not buffer:
            return 0
        asked = f"bytes={offset}-{offset + len(buffer) - 1}"
        with failures(self._where):
            answer = self._client.get_object(**self._key, Range=asked, IfMatch=self._etag)
        done = 0
        with suppress(BotoCoreError, OSError):
            for piece in answer["Body"].iter_chunks(1 << 20):
                buffer[done : done + len(piece)] = piece
                done += len(piece)
        return done


@contextmanager
def failures(where: str) -> Iterator[None]:
    """Say what S3's answer means for the user, in one line that names the place."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise _meaning(where, code, error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InvalidInput(
            f"{where}: no credentials; set AWS_ACCESS_KEY_ID or a profile"
        ) from error
    except ParamValidationError as error:
        raise InvalidInput(f"{where}: {' '.join(str(error).split())}") from error
    except BotoCoreError as error:
        raise EnvironmentFailure(f"{where}: S3 does not answer: {error}") from error
    except OSError as error:
        raise EnvironmentFailure(f"{where}: the connection to S3 broke: {error}") from error


def _meaning(where: str, code: str, error: Exception) -> Exception:
    if code in MISSING:
        return InvalidInput(f"{where}: no such {'bucket' if code == 'NoSuchBucket' else 'object'}")
    if code in FORBIDDEN:
        return InvalidInput(f"{where}: access denied ({code}); check the credentials")
    if code in CHANGED:
        return Refused(f"{where}: changed while it was read; run again")
    return EnvironmentFailure(f"{where}: S3 answered {code or error}; try again")
