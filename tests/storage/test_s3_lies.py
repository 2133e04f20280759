"""What answers is no S3, or one that lies: exit code 3, the endpoint named, nothing outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bipline.base.errors import BiplineError, EnvironmentFailure
from bipline.storage import s3_client
from bipline.storage.digests import digest_bytes
from bipline.storage.folder import open_folder
from bipline.storage.s3_client import S3Place
from bipline.storage.s3_lease import Lease
from bipline.storage.s3_store import S3Store
from tests.command import contents

PLACE = "s3://bucket/prefix"
SECRET = "TOPSECRET"
PAGE = b"<!DOCTYPE html><html><body>Sign in to the hotel</body></html>"
XML = b'<?xml version="1.0" encoding="UTF-8"?>'
HEAD = {"ETag": '"e"', "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
Answer = tuple[int, bytes, dict[str, str]]


def listing(*keys: str, more: str = "") -> bytes:
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    cut = f"<IsTruncated>true</IsTruncated>{more}" if more else "<IsTruncated>false</IsTruncated>"
    return XML + f"<ListBucketResult>{entries}{cut}</ListBucketResult>".encode()


@dataclass
class Liar:
    """What the next answers are."""

    port: int = 0
    tell: Callable[[str, str], Answer] = lambda method, path: (404, b"", {})
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def serving() -> Iterator[Liar]:
    telling = Liar()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            telling.asked.append(self.path)
            status, body, headers = telling.tell(self.command, self.path)
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(body)),
                "Connection": "close",
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.close_connection = True

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    telling.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield telling
    server.shutdown()
    server.server_close()


@pytest.fixture
def liar(serving: Liar, monkeypatch: pytest.MonkeyPatch) -> Liar:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{serving.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return serving


def refusal(call: Callable[[], object], error: type[BiplineError] = EnvironmentFailure) -> str:
    with pytest.raises(error) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600 and SECRET not in line
    return line


LISTINGS = {
    "a page": PAGE,
    "half": listing("prefix/a")[:60],
    "text": b"hello",
    "json": b'{"Contents": []}',
    "zeros": b"\0" * 100,
    "no key": XML + b"<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>",
    "a way up": listing("prefix/../../evil"),
    "another prefix": listing("elsewhere/config.json"),
    "an absolute path": listing("prefix//etc/passwd"),
    "a backslash": listing("prefix/..\\evil"),
    "a folder": listing("prefix/a/"),
    "the same page again": listing(
        "prefix/a", more="<NextContinuationToken>t</NextContinuationToken>"
    ),
    "another encoding": listing("prefix/a").decode().encode("utf-16"),
    "an entity bomb": XML + b'<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>'
    b"<ListBucketResult><Contents><Key>&b;</Key></Contents></ListBucketResult>",
}


@pytest.mark.parametrize("body", LISTINGS.values(), ids=LISTINGS)
def test_a_listing_that_is_none(body: bytes, liar: Liar) -> None:
    liar.tell = lambda method, path: (200, body, {"Content-Type": "application/xml"})
    assert PLACE in refusal(open_folder(PLACE).names)


@pytest.mark.parametrize("keys", [("prefix/a",), ()])
def test_a_listing_without_an_end(
    keys: tuple[str, ...], liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "MOST_PAGES", 50)
    pages = iter(range(10**6))

    def endless(method: str, path: str) -> Answer:
        number = next(pages)
        token = f"<NextContinuationToken>{number}</NextContinuationToken>"
        return 200, listing(*keys, more=token), {}

    liar.tell = endless
    assert "50 pages of a listing" in refusal(open_folder(PLACE).names)


HEADS: dict[str, dict[str, str]] = {
    "no ETag": {"Content-Length": "5"},
    "no size": {**HEAD, "Content-Length": ""},
    "a size that is text": {**HEAD, "Content-Length": "many"},
    "a negative size": {**HEAD, "Content-Length": "-5"},
    "a terabyte": {**HEAD, "Content-Length": str(1 << 40)},
    "a date that is none": {**HEAD, "Content-Length": "5", "Last-Modified": "yesterday"},
}


@pytest.mark.parametrize("headers", HEADS.values(), ids=HEADS)
def test_an_object_described_as_none_is(headers: dict[str, str], liar: Liar) -> None:
    liar.tell = lambda method, path: (200, b"", headers)
    refusal(lambda: open_folder(PLACE).read("config.json"))


@pytest.mark.parametrize("body", [b"", b"1", b"1234", b"123456", b"1" * 5000, PAGE])
def test_a_body_of_another_length(body: bytes, liar: Liar) -> None:
    def tell(method: str, path: str) -> Answer:
        if method == "HEAD":
            return 200, b"", {**HEAD, "Content-Length": "5"}
        return 200, body, HEAD

    liar.tell = tell
    assert f"{PLACE}/config.json" in refusal(lambda: open_folder(PLACE).read("config.json"))


MANIFESTS = [
    b"", PAGE, b"[]", b"{}", b'{"kind": "x", "files": {}, "digest": "0"}',
    b'{"schema_version": 2, "kind": "x", "files": {"../../evil": {"size": 1, "sha256": "'
    + digest_bytes(b"1").encode() + b'"}}, "info": {}, "digest": "0"}',
]  # fmt: skip


@pytest.mark.parametrize("body", MANIFESTS)
def test_a_stored_manifest_that_is_none(body: bytes, liar: Liar, tmp_path: Path) -> None:
    def tell(method: str, path: str) -> Answer:
        length = {"Content-Length": str(len(body))}
        return 200, b"" if method == "HEAD" else body, {**HEAD, **length}

    liar.tell = tell
    line = refusal(lambda: S3Store(PLACE, tmp_path).find("prune", "0" * 40), BiplineError)
    assert "manifest.json" in line
    assert not contents(tmp_path)


LEASES: list[dict[str, str]] = [
    {"x-amz-meta-seconds": "soon"},
    {"x-amz-meta-holder": "x", "x-amz-meta-seconds": "60", "Date": "yesterday"},
    {"x-amz-meta-holder": "x", "x-amz-meta-seconds": "60", "Last-Modified": ""},
]


@pytest.mark.parametrize("metadata", LEASES)
def test_a_lease_that_makes_no_sense(metadata: dict[str, str], liar: Liar) -> None:
    liar.tell = lambda method, path: (200, b"", {**HEAD, "Content-Length": "5", **metadata})
    lease = Lease(S3Place(PLACE), "x.lock", 60.0)
    assert f"{PLACE}/x.lock" in refusal(lambda: lease.take("before"), BiplineError)


@pytest.mark.parametrize(
    "tell",
    [
        lambda method, path: (302, b"", {"Location": "/elsewhere"}),
        lambda method, path: (307, PAGE, {"Location": f"http://user:{SECRET}@127.0.0.1:9/"}),
        lambda method, path: (407, PAGE, {"Proxy-Authenticate": "Basic"}),
        lambda method, path: (502, PAGE, {}),
        lambda method, path: (511, PAGE, {}),
        lambda method, path: (200, PAGE, {"Content-Type": "text/html"}),
    ],
)
def test_a_proxy_in_between(tell: Callable[[str, str], Answer], liar: Liar) -> None:
    liar.tell = tell
    assert PLACE in refusal(open_folder(PLACE).names)


def test_an_endpoint_is_named_without_its_password(
    liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
    assert "127.0.0.1:9" in refusal(open_folder(PLACE).names)
