"""A hub that is none, or lies: one line that names the host, and nothing outside of downloads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from tests.command import contents
from tests.model.test_resolve_hub import HubProcess

COMMIT = "0123456789abcdef" * 2 + "01234567"
SECRET = "TOPSECRET"
Headers = dict[str, str]


@dataclass
class Liar:
    """What the next answers are: of the API, and of files."""

    port: int = 0
    api: Callable[[str], tuple[int, bytes, Headers]] = lambda path: (404, b"", {})
    file: Callable[[str], tuple[int, bytes, Headers]] = lambda path: (404, b"", {})
    asked: list[str] = field(default_factory=list)


def info(**changes: Any) -> dict[str, Any]:
    siblings = [{"rfilename": n, "size": 5} for n in ("config.json", "model.safetensors")]
    return {"id": "acme/tiny", "sha": COMMIT, "siblings": siblings, "private": False, **changes}


def answers(value: object) -> Callable[[str], tuple[int, bytes, Headers]]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda path: (200, body, {"Content-Type": "application/json"})


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    telling = Liar()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            telling.asked.append(self.path)
            tell = telling.api if self.path.startswith("/api/") else telling.file
            status, body, headers = tell(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            self.close_connection = True

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    telling.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield telling
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def hub(liar: Liar, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A process whose hub is the liar, at an address with a user and a password."""
    endpoint = f"http://user:{SECRET}@127.0.0.1:{liar.port}"
    process = HubProcess(endpoint, tmp_path_factory.mktemp("home"))
    yield process
    process.stop()


def refusal(hub: HubProcess, folder: Path, error: type[BiplineError] = EnvironmentFailure) -> str:
    """The one line; nothing was written."""
    with pytest.raises(error) as caught:
        hub.model("hf:acme/tiny@main", folder / "downloads")
    line = str(caught.value)
    assert "\n" not in line and SECRET not in line and len(line) < 500
    assert not contents(folder), "something was written"
    return line


COMMITS = {
    "a way up": "../../../../evil",
    "an absolute path": "/tmp/evil",
    "a branch": "main",
    "nothing": "",
    "null": None,
    "a number": 5,
    "a list": [COMMIT],
    "39 digits": COMMIT[:39],
    "41 digits": COMMIT + "0",
    "capitals": COMMIT.upper(),
    "a newline": COMMIT + "\n",
    "other digits": "\u0660" * 40,
    "a megabyte": "0" * (1 << 20),
}


@pytest.mark.parametrize("sha", COMMITS.values(), ids=COMMITS)
def test_a_commit_is_40_hex_digits(
    sha: object, liar: Liar, hub: HubProcess, tmp_path: Path
) -> None:
    liar.api = answers(info(sha=sha))
    assert f"127.0.0.1:{liar.port}" in refusal(hub, tmp_path)
    with pytest.raises(EnvironmentFailure, match=r"127\.0\.0\.1"):
        hub.text("hf:acme/tiny", tmp_path / "downloads")


NAMES = [
    "../x.json",
    "/etc/x.json",
    "a\\b.json",
    "",
    ".",
    "a//b",
    "a/../b",
    "a\0b",
    None,
    5,
    "a/./b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_of_a_file_below(
    name: object, liar: Liar, hub: HubProcess, tmp_path: Path
) -> None:
    siblings = [*info()["siblings"], {"rfilename": name, "size": 5}]
    liar.api = answers(info(siblings=siblings))
    assert f"127.0.0.1:{liar.port}" in refusal(hub, tmp_path)


BODIES: dict[str, object] = {
    "a page": b"<!DOCTYPE html><html><body>Sign in to the hotel</body></html>",
    "nothing": b"",
    "half of it": json.dumps(info()).encode()[:40],
    "a list": [1, 2],
    "a number": 7,
    "null": None,
    "deep": b"[" * 100_000,
    "another encoding": json.dumps(info()).encode("utf-16"),
    "zeros": b"\0" * 1000,
    "files that are text": info(siblings="config.json"),
    "files that are numbers": info(siblings=[1, 2]),
    "files without names": info(siblings=[{"size": 1}]),
    "an object of files": info(siblings={"a": 1}),
    "sizes that are text": info(siblings=[{"rfilename": "a.safetensors", "size": "many"}]),
    "a gate that is a list": info(gated=[1], siblings=[{"rfilename": "a.safetensors", "lfs": 3}]),
    "no field at all": {},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_no_answer_of_a_hub(
    body: object, liar: Liar, hub: HubProcess, tmp_path: Path
) -> None:
    liar.api = answers(body)
    assert f"127.0.0.1:{liar.port}" in refusal(hub, tmp_path)


@pytest.mark.parametrize("place", ["/api/elsewhere", "http://127.0.0.1:9/x", "file:///etc/passwd"])
def test_a_redirection_that_leads_nowhere(
    place: str, liar: Liar, hub: HubProcess, tmp_path: Path
) -> None:
    liar.api = lambda path: (302, b"", {"Location": place})
    assert f"127.0.0.1:{liar.port}" in refusal(hub, tmp_path)


@pytest.mark.parametrize("size", [1 << 40, -5])
def test_a_small_file_is_small(size: int, liar: Liar, hub: HubProcess, tmp_path: Path) -> None:
    siblings = [*info()["siblings"], {"rfilename": "tokenizer.json", "size": size}]
    liar.api = answers(info(siblings=siblings))
    assert "tokenizer.json" in refusal(hub, tmp_path, InvalidInput)


def test_too_many_files_are_no_repository(liar: Liar, hub: HubProcess, tmp_path: Path) -> None:
    liar.api = answers(info(siblings=[{"rfilename": f"{n}"} for n in range(100_001)]))
    assert "100001 files" in refusal(hub, tmp_path)
