"""S3 behind a small proxy that fails: what is uploaded and promoted is whole, or nothing is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import BiplineError
from bipline.delivery.registries.journal import settle
from bipline.delivery.registries.promotion import promote_version
from bipline.delivery.registries.s3 import S3Registry
from bipline.storage import s3_client
from tests.delivery.test_registries import ALIAS, BACK, OPEN
from tests.delivery.worlds import HubWorld, S3World, make_package, running_world
from tests.storage.server import Server

Proxy = Callable[[dict[str, Any], Any, Any], Iterable[bytes]]
FAILED = ("503 Service Unavailable", [("Content-Length", "0")])
EMPTY = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Name>registry</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>"
    b"</ListBucketResult>"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3World]:
    with running_world("s3", tmp_path_factory.mktemp("world")) as running:
        assert isinstance(running, S3World)
        yield running


@pytest.fixture
def server(world: S3World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, asked again at once after a fault, and waited for half a second."""
    name = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(name, lambda self, context: 0)
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.5)
    monkeypatch.setenv("AWS_TEST", "faults")  # a client of its own
    world.server.behave()
    yield world.server
    world.server.behave()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("fifth"), "5")


def is_list(environ: dict[str, Any]) -> bool:
    return environ["REQUEST_METHOD"] == "GET" and "list-type" in environ.get("QUERY_STRING", "")


def now_and_then(fault: Proxy, often: int = 4) -> Proxy:
    """A fault of every so many requests; the others, and what boto asks again, are answered.

    Requests come side by side, and a client that asks twice must not meet the fault twice.
    """
    asked = 0

    def proxy(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
        nonlocal asked
        asked += 1
        again = "attempt=1" not in environ.get("HTTP_AMZ_SDK_REQUEST", "attempt=1")
        answer: Proxy = well if again or asked % often else fault
        return answer(environ, start, application)

    return proxy


def well(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    return iter(application(environ, start))


def failing(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    start(*FAILED)
    return []


def lost(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    """It is done, and the answer to it is not."""
    list(application(environ, lambda *told: None))
    start(*FAILED)
    return []


def hanging(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    time.sleep(0.7)
    return well(environ, start, application)


def slow(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    time.sleep(0.05)
    return well(environ, start, application)


def cut(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    whole = b"".join(application(environ, start))
    return [whole[: len(whole) // 2] if environ["REQUEST_METHOD"] == "GET" else whole]


def flipped(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    """One byte of an object arrives changed; its checksum is told as it was."""
    whole = bytearray(b"".join(application(environ, start)))
    if environ["REQUEST_METHOD"] == "GET" and not is_list(environ) and whole:
        whole[-1] ^= 1
    return [bytes(whole)]


def stale(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
    """Listings of a time when nothing lay there."""
    if not is_list(environ):
        return well(environ, start, application)
    start("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(EMPTY)))])
    return [EMPTY]


FAULTS: dict[str, tuple[Proxy, set[int]]] = {
    # What a client asks again for ends well.
    "5xx now and then": (now_and_then(failing), {0}),
    "answers lost": (now_and_then(lost), {0}),
    "time-outs": (now_and_then(hanging, 17), {0}),
    "slow": (now_and_then(slow), {0}),
    "cut now and then": (now_and_then(cut), {0}),
    "stale lists": (stale, {0}),
    "down": (failing, {3}),
    "always cut": (cut, {3}),
    # A byte that differs on the way cannot be told from one that differs there.
    "wrong checksums": (flipped, {1, 3}),
    "wrong checksums now and then": (now_and_then(flipped), {0, 1, 3}),
}


QUICK = {"5xx now and then", "stale lists", "down"}


@pytest.mark.parametrize(
    "fault",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS],
)
def test_whole_or_nothing(world: S3World, server: Server, package: Path, fault: str) -> None:
    registry, (proxy, allowed) = world.begun(), FAULTS[fault]
    version = registry.find("1")
    promote_version(registry, version, ALIAS, OPEN, registry.evidence(version))
    server.proxy = proxy
    told = ""
    try:
        place = world.opened(registry)
        added = place.put(package)
        promote_version(place, added, ALIAS, OPEN, place.evidence(added))
        code = 0
    except BiplineError as error:
        code, told = error.exit_code, str(error)
    server.behave()
    assert code in allowed, told
    assert "\n" not in told
    check_whole_and_finish(world, registry, package, done=code == 0)


def check_whole_and_finish(
    world: S3World | HubWorld, registry: Any, package: Path, done: bool
) -> None:
    """Old or new, nothing half; and the same again finishes."""
    place = world.opened(registry)
    # SageMaker's approvals come before the alias: what is half is told, until the next command.
    there = S3Registry.aliases(place) if isinstance(place, S3Registry) else place.aliases()
    assert there[ALIAS] in ("1", "5") and (there[ALIAS] == "5" or not done)
    for number in place.versions():
        place.check(place.find(str(number)))
    added = place.put(package)
    assert added.number == "5"
    promote_version(place, added, ALIAS, OPEN, place.evidence(added))
    assert settle(place, ALIAS).versions == ("1", "5")
    assert place.aliases() == {"candidate": "5", ALIAS: "5", BACK: "1"}
    assert sorted(place.versions()) == [1, 2, 3, 4, 5] and sorted(place.entries()) == [1, 2]


def test_an_upload_that_arrives_changed_is_no_version(
    world: S3World, server: Server, package: Path
) -> None:
    registry = world.begun()

    def proxy(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("safetensors"):
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = _Body(bytes([body[0] ^ 1]) + body[1:])
        return well(environ, start, application)

    server.proxy = proxy
    with pytest.raises(BiplineError) as caught:
        registry.put(package)
    server.behave()
    assert "\n" not in str(caught.value) and caught.value.exit_code in (1, 3)
    assert sorted(registry.versions()) == [1, 2, 3, 4]
    assert registry.aliases() == {"candidate": "4"}


class _Body:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, size: int = -1) -> bytes:
        size = len(self._content) if size < 0 else size
        taken, self._content = self._content[:size], self._content[size:]
        return taken

    def readline(self, size: int = -1) -> bytes:
        end = self._content.find(b"\n") + 1 or len(self._content)
        return self.read(end)


# Every so many requests; some 60, 100 and 80 are made.
STEP = {"s3": 9, "sagemaker": 25, "hub": 15}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "sagemaker", "hub"])
def test_killed_at_requests(
    kind: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that gets no answer any more, at every few requests of an upload and a promotion.

    Every other time what it asked last was done all the same.
    """
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    with running_world(kind, tmp_path) as world:
        assert isinstance(world, S3World | HubWorld)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        last, tried = 0, 0
        while tried == 0 or last:
            registry = world.begun()
            version = registry.find("1")
            promote_version(registry, version, ALIAS, OPEN, registry.evidence(version))
            world.server.behave()
            last += STEP[kind]
            die_at(world.server, last, after=tried % 2 == 1)
            with suppress(BiplineError):
                place = world.opened(registry)
                added = place.put(package)
                promote_version(place, added, ALIAS, OPEN, place.evidence(added))
                last = 0  # it came to its end
            world.server.behave()
            check_whole_and_finish(world, registry, package, done=not last)
            tried += 1
        assert tried > 3


def die_at(server: Any, last: int, after: bool) -> None:
    """No answer from so many requests on, the first of them perhaps done."""
    asked = 0

    def dying() -> str | None:
        nonlocal asked
        asked += 1
        if asked < last:
            return None
        return "lost" if after and asked == last else "gone"

    def proxy(environ: dict[str, Any], start: Any, application: Any) -> Iterable[bytes]:
        answer = {None: well, "lost": lost, "gone": failing}[dying()]
        return answer(environ, start, application)

    def fault(method: str, path: str) -> str | int | None:
        ended = dying()
        return 400 if ended == "gone" else ended

    if isinstance(server, Server):
        server.proxy = proxy
    else:
        server.fault = fault
