"""moto's S3 server in this process: what it was asked for is written down, and it can misbehave."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ATTEMPTS = 2
DOWN = ("503 Service Unavailable", [("Content-Length", "0")])


@dataclass
class Server:
    """moto's WSGI application, what it was asked for, and how it is to behave."""

    application: Callable[..., Iterable[bytes]]
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    # Answers to ranges that still are to break off, after this share of their bytes.
    breaking: int = 0
    share: float = 0.5
    down: bool = False
    # Answers every request in place of the server, which it may ask: a proxy that misbehaves.
    proxy: Callable[[dict[str, Any], Any, Any], Iterable[bytes]] | None = None
    # Called before every request, with its method and path: a test's own fault.
    before: Callable[[str, str], None] | None = None

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        ranged = environ.get("HTTP_RANGE", "")
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], ranged))
        if self.before:
            self.before(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if self.down:
            start(*DOWN)
            return []
        if self.proxy:
            return self.proxy(environ, start, self.application)
        answer = self.application(environ, start)
        if ranged and self.breaking:
            self.breaking -= 1
            whole = b"".join(answer)
            return [whole[: int(len(whole) * self.share)]]
        return answer

    def behave(self) -> None:
        """No fault any more, and an empty list."""
        self.breaking, self.share, self.down, self.before = 0, 0.5, False, None
        self.proxy = None
        self.asked.clear()

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of every range asked for, in their order in the file."""
        asked = [ranged.removeprefix("bytes=").split("-") for _, _, ranged in self.asked if ranged]
        return sorted((int(first), int(last)) for first, last in asked)

    def written(self) -> list[str]:
        """Paths of the objects that were put, in order."""
        return [path for method, path, _ in self.asked if method == "PUT"]


def free_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def running_server() -> Iterator[Server]:
    """A running server with the variables that lead to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Server(DomainDispatcherApplication(create_backend_app))
    listening = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield application
    listening.shutdown()
    thread.join()
    listening.server_close()


def refusing(key: str) -> Callable[[dict[str, Any], Any, Any], Iterable[bytes]]:
    """A proxy that knows no user with this access key, as AWS says it; others are let through."""

    def proxy(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
        if f"Credential={key}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            return list(application(environ, start))
        start("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key</Message></Error>"]

    return proxy
