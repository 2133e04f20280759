"""Places behind ``s3://bucket/prefix``: the client that asks for them, and what its errors mean.

This is the only module that knows boto3, and it imports it when a place is first used. Where the
endpoint is and who asks comes from the usual variables and files (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, ``AWS_MAX_ATTEMPTS``, ...).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
from bipline.base.extras import require
from bipline.storage.names import is_plain_name
from bipline.storage.strict_json import LARGEST_BYTES

S3_SCHEME = "s3://"
CONNECTIONS = 8
CONNECT_SECONDS, READ_SECONDS = 10, 60
ATTEMPTS = 5
MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
FORBIDDEN = {
    "403", "AccessDenied", "AccessDeniedException", "UnrecognizedClientException",
    "InvalidAccessKeyId", "SignatureDoesNotMatch",
}  # fmt: skip
CHANGED = {"412", "PreconditionFailed", "416", "InvalidRange"}
DAMAGED = {"BadDigest", "XAmzContentChecksumMismatch"}
# What a conditional write is told when another one came first.
OVERTAKEN = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict", "NoSuchKey"}
# What is never put, on a condition that is never fulfilled.
PROBE, NO_ETAG = "bipline-probe", '"00000000000000000000000000000000"'
ELSEWHERE = {
    "301", "307", "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}  # fmt: skip
# A page has a thousand names: what goes on longer is no folder of ours or of a model.
MOST_PAGES = 1000
# What one request may remove.
REMOVED_AT_ONCE = 1000


class MissingObject(InvalidInput):
    """There is no such object."""


class S3Place:
    """A prefix in a bucket."""

    def __init__(self, location: str) -> None:
        bucket, _, prefix = location.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise InvalidInput(f"{location}: names no bucket; write s3://bucket/prefix")
        if "@" in bucket:
            raise InvalidInput(
                f"{without_secrets(location)}: an s3:// address takes no user and password; set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        self.location = location.rstrip("/")
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @property
    def client(self) -> Any:
        """boto3's client. Raises InvalidInput for variables and files that make no sense."""
        return aws_client("s3", self.location)

    def below(self, name: str) -> S3Place:
        """A place below this one."""
        return S3Place(self.where(name))

    def where(self, name: str) -> str:
        """An object as the user would write it."""
        return f"{self.location}/{name}"

    def address(self, name: str) -> dict[str, str]:
        """An object as the client is asked for it."""
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def listed(self, delimiter: str = "") -> list[str]:
        """Names of all objects below the prefix, or of those before the next ``delimiter``.

        Raises EnvironmentFailure for a listing without an end, or of what cannot lie there.
        """
        return sorted(name for name, _ in self._entries(delimiter))

    def entries(self) -> list[tuple[str, str, datetime]]:
        """All objects below the prefix: name, size and ETag as one text, and the last change.

        Those that stand for a folder in a browser are left out.
        """
        with failures(self.location):
            return [
                (name, f"{entry['Size']}:{entry['ETag']}", entry["LastModified"])
                for name, entry in self._entries("", "/")
            ]

    def _entries(self, delimiter: str, without: str = "\0") -> list[tuple[str, dict[str, Any]]]:
        asked = {"Bucket": self.bucket, "Prefix": self.prefix, "Delimiter": delimiter}
        entries: list[dict[str, Any]] = []
        with failures(self.location):
            pages = self.client.get_paginator("list_objects_v2").paginate(**asked)
            for number, page in enumerate(pages):
                # A page of HTML is read as a listing of nothing; S3 always says this.
                _ = page["IsTruncated"]
                entries += [{**entry, "Key": entry["Key"]} for entry in page.get("Contents", [])]
                if number == MOST_PAGES:
                    raise ValueError(f"{number} pages of a listing and no end")
        own = [
            entry
            for entry in entries
            if entry["Key"] != self.prefix and not entry["Key"].endswith(without)
        ]
        return [(self._name_of(entry["Key"]), entry) for entry in own]

    def _name_of(self, key: str) -> str:
        """An object's name below the prefix: it becomes that of a file, so it must be one."""
        name = key.removeprefix(self.prefix)
        if not key.startswith(self.prefix) or not is_plain_name(name):
            raise EnvironmentFailure(f"{self.location}: S3 lists {key!r}, which cannot lie there")
        return name

    def head(self, name: str) -> dict[str, Any] | None:
        """What S3 says of an object, or None where there is none."""
        try:
            with failures(self.where(name)):
                return dict(self.client.head_object(**self.address(name)))
        except MissingObject:
            return None

    def small(self, name: str) -> tuple[bytes, str] | None:
        """A small object whole, by one request, and its ETag; None where there is none.

        An answer that breaks off, or does not match its checksum, is asked for again.
        """
        where = self.where(name)
        for _ in range(ATTEMPTS):
            try:
                with failures(where):
                    answer = self.client.get_object(**self.address(name))
                    size, etag, stream = answer["ContentLength"], answer["ETag"], answer["Body"]
                    if not 0 <= int(size) <= LARGEST_BYTES:
                        raise ValueError(f"{size} bytes of a small object")
            except MissingObject:
                return None
            with broken_streams():
                body = bytes(stream.read())
                if len(body) == size:
                    return body, str(etag)
        raise EnvironmentFailure(f"{where}: breaks off, or arrives changed; try again")

    def put(
        self, name: str, body: bytes | BinaryIO, over: str | None = None, **options: Any
    ) -> str | None:
        """Put an object and return its ETag.

        ``over`` is the ETag that it replaces, or empty where nothing may lie there: None is
        returned where that is not so.
        """
        with failures(self.where(name)):
            try:
                answer = self.client.put_object(
                    **self.address(name), Body=body, **condition(over), **options
                )
            except self.client.exceptions.ClientError as error:
                if over is not None and code_of(error) in OVERTAKEN:
                    return None
                raise
            return str(answer["ETag"])

    def check_writable(self) -> None:
        """Ask before any work whether objects may be listed and put here.

        The one that is asked for is put on a condition that nothing fulfils, so it never lies
        there. Raises InvalidInput where it may not be, or where conditions are not known.
        """
        with failures(self.location):
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        if self.put(PROBE, b"", over=NO_ETAG) is None:
            return
        self.remove([PROBE])
        raise InvalidInput(
            f"{self.location}: {_endpoint()} puts an object whatever the condition; promotions "
            "need conditional writes, as S3 has them"
        )

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        keys = [{"Key": self.prefix + name} for name in names]
        for start in range(0, len(keys), REMOVED_AT_ONCE):
            objects = {"Objects": keys[start : start + REMOVED_AT_ONCE], "Quiet": True}
            with failures(self.location):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete=objects)
            for error in answer.get("Errors", []):
                raise _meaning(f"{S3_SCHEME}{self.bucket}/{error['Key']}", error["Code"], None)


def aws_client(service: str, where: str) -> Any:
    """boto3's client of a service. Raises InvalidInput for settings that make no sense."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    try:
        return _client(service, os.getpid(), tuple(sorted(settings.items())))
    except ValueError as error:
        raise InvalidInput(f"{where}: the AWS settings: {error}") from error


@lru_cache(maxsize=4)
def _client(service: str, _process: int, _settings: tuple[tuple[str, str], ...]) -> Any:
    """The client of a process under these variables, made once; it asks again where that may help.

    Raises ValueError for variables and files that make no sense.
    """
    require("boto3", "s3")
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
            # Readings, and beside them the lease and the mirror of work.
            max_pool_connections=2 * CONNECTIONS,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        )
        return boto3.Session(botocore_session=session).client(service, config=config)
    except BotoCoreError as error:
        raise ValueError(str(error)) from error


def condition(over: str | None) -> dict[str, str]:
    """What makes a write conditional: see :meth:`S3Place.put`."""
    if over is None:
        return {}
    return {"IfMatch": over} if over else {"IfNoneMatch": "*"}


def code_of(error: Any) -> str:
    """The code in S3's answer."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def broken_streams() -> Iterator[None]:
    """Pass over an answer that breaks off: what came of it stays."""
    from botocore.exceptions import BotoCoreError

    with suppress(BotoCoreError, OSError):
        yield


@contextmanager
def failures(where: str, service: str = "S3") -> Iterator[None]:
    """Say in one line that names the place what an answer of S3, or another service, means."""
    require("boto3", "s3")
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
        raise _meaning(where, code_of(error), error, service) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InvalidInput(
            f"{where}: no credentials; set AWS_ACCESS_KEY_ID or a profile"
        ) from error
    except ParamValidationError as error:
        raise InvalidInput(f"{where}: {' '.join(str(error).split())}") from error
    except BotoCoreError as error:
        raise EnvironmentFailure(f"{where}: {service} does not answer: {error}") from error
    except OSError as error:
        raise EnvironmentFailure(f"{where}: the connection to {service} broke: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # What is asked for in here is S3 alone: a proxy's page, or an answer that lacks a field.
        raise EnvironmentFailure(
            f"{where}: {_endpoint()} does not answer as {service} does "
            f"({type(error).__name__}: {' '.join(str(error).split())}); check AWS_ENDPOINT_URL"
        ) from error


def _endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), "the endpoint")


def _meaning(where: str, code: str, error: Exception | None, service: str = "S3") -> BiplineError:
    if code == "NoSuchBucket":
        return InvalidInput(f"{where}: no such bucket")
    if code in MISSING:
        return MissingObject(f"{where}: no such object")
    if code in FORBIDDEN:
        return InvalidInput(f"{where}: access denied ({code}); check the credentials")
    if code in ELSEWHERE:
        return InvalidInput(
            f"{where}: the bucket lies in another region ({code}); set AWS_DEFAULT_REGION"
        )
    if code in DAMAGED:
        return Refused(f"{where}: what arrived does not match its checksum; run again")
    if code in CHANGED:
        return Refused(f"{where}: changed while it was read; run again")
    return EnvironmentFailure(f"{where}: {service} answered {code or error}; try again")
