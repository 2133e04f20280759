"""A webhook on 127.0.0.1 that keeps what it is told, and fails as it is asked to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

# What nobody but the webhook and its sender may see.
SECRET_PATH = "/services/T0/B0/xoxb-not-to-be-seen"


@dataclass
class Webhook:
    """What came, and what is answered: codes in order, then 200; after ``delay`` seconds."""

    address: str = ""
    told: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    delay: float = 0.0

    @property
    def events(self) -> list[str]:
        return [each["event"] for each in self.told]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Serve for the length of the block."""
    kept = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.told.append(json.loads(body))
            kept.headers.append(dict(self.headers))
            kept.paths.append(self.path)
            time.sleep(kept.delay)
            self.send_response(kept.codes.pop(0) if kept.codes else 200)
            self.send_header("Location", f"{kept.address}/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.address = f"http://127.0.0.1:{server.server_port}{SECRET_PATH}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
