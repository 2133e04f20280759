"""Speed by an endpoint: against a small server that streams as OpenAI's protocol says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.quality.speed_served import Endpoint
from bipline.settings.protocol import Protocol
from bipline.stages.speed_served import measure_served

FIRST, EACH = 0.05, 0.01
SHORT = Protocol(
    speed=True, speed_prompt_tokens=16, speed_decoded_tokens=5, speed_repeats=3, speed_batch=3
)


class StandIn(ThreadingHTTPServer):
    """Streams tokens at a known pace; remembers what it was asked."""

    daemon_threads = True
    fewer = 0
    models = ("served",)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        found = {"data": [{"id": name} for name in self.server.models]}
        self._say(json.dumps(found).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        self.server.asked.append(asked)
        self.send_response(200)
        self.end_headers()
        count = asked["max_tokens"] - self.server.fewer
        for place in range(count):
            time.sleep(EACH if place else FIRST)
            self._event({"choices": [{"text": "x"}]})
        self._event({"choices": [], "usage": {"completion_tokens": count}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running
        running.shutdown()


def test_an_endpoint_is_timed_by_the_arrival_of_its_tokens(server: StandIn) -> None:
    told = measure_served({"dense": server.url, "pruned": f"{server.url}/v1"}, SHORT).models
    for speed in told.values():
        assert speed.engine is not None and speed.engine.startswith("served at http://")
        assert speed.taking_turns == ("dense", "pruned")
        assert speed.first_token_seconds is not None and speed.filled is not None
        assert speed.first_token_seconds.best >= FIRST
        assert speed.prefill.best <= 16 / FIRST
        # A busy machine hands over a first token late, which shortens the rest: the median holds.
        assert speed.decode.median <= 1.15 / EACH
        assert speed.filled.decode.median <= 3 * 1.15 / EACH
    prompts = Counter(tuple(asked["prompt"]) for asked in server.asked)
    assert {len(each) for each in prompts} == {16}
    assert set(prompts.values()) == {2}, "each model has every prompt once: no cache can help"
    assert all(asked["ignore_eos"] and asked["min_tokens"] == 5 for asked in server.asked)


def test_an_engine_that_stops_early_is_not_compared(server: StandIn) -> None:
    server.fewer = 2
    with pytest.raises(EnvironmentFailure, match="5 tokens were asked for and 3 came"):
        measure_served({"model": server.url}, SHORT)


def test_what_serves_nothing_is_named(server: StandIn) -> None:
    server.models = ()
    with pytest.raises(EnvironmentFailure, match="serves no model"):
        Endpoint.open(server.url)
    with pytest.raises(EnvironmentFailure, match="no answer"):
        Endpoint.open("http://127.0.0.1:9")
    with pytest.raises(InvalidInput, match="write http"):
        Endpoint.open("localhost:8000")
    with pytest.raises(InvalidInput, match="no such file"):
        measure_served({"model": "nowhere.gguf"}, SHORT)
