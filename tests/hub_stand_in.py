"""A small hub on 127.0.0.1 for tests: the requests huggingface_hub and datasets really send.

It serves ``ROOT/models/ORG/NAME`` and ``ROOT/datasets/ORG/NAME`` as repositories. The one
branch is ``main``; its commit is made of the content, so a changed file is a new commit and the
old one is gone. Models are listed by owner, two a page. Weights, archives and parquet files are
listed as large files, as on the hub, but served without a redirect. While
``ROOT/out-of-service`` exists every answer is 503.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = {".safetensors", ".bin", ".gz", ".parquet"}
OUT_OF_SERVICE = "out-of-service"
PAGE = 2
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(.*))?"
)
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@contextmanager
def hub_stand_in(root: Path) -> Iterator[str]:
    """Serve the repositories below ``root`` for the length of the block; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(root))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def commit_of(repository: Path) -> str:
    """The commit of a repository folder: 40 hex digits made of its files' names and bytes."""
    sha1 = hashlib.sha1()
    for name, path in _files(repository).items():
        sha1.update(f"{name}\0{_blob(path)}\n".encode())
    return sha1.hexdigest()


def _files(repository: Path) -> dict[str, Path]:
    paths = sorted(path for path in repository.rglob("*") if path.is_file())
    return {path.relative_to(repository).as_posix(): path for path in paths}


def _blob(path: Path) -> str:
    """The name git gives to a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tag(path: Path) -> str:
    """The ETag of a file: sha256 for a large file, git's name for any other."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in LARGE else _blob(path)


def _entry(name: str, path: Path) -> dict[str, Any]:
    """What listings say about a file."""
    size = path.stat().st_size
    entry = {"type": "file", "path": name, "size": size, "oid": _blob(path)}
    if path.suffix in LARGE:
        entry["lfs"] = {"oid": _tag(path), "size": size, "pointerSize": 134}
    return entry


def _listing(repository: Path, below: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders below a folder of the repository ("" for all of it)."""
    entries: dict[str, dict[str, Any]] = {}
    prefix = f"{below}/" if below else ""
    for name, path in _files(repository).items():
        if not name.startswith(prefix):
            continue
        *folders, _ = name.removeprefix(prefix).split("/")
        for depth in range(1, len(folders) + 1 if recursive else min(len(folders), 1) + 1):
            folder = prefix + "/".join(folders[:depth])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
        if recursive or not folders:
            entries[name] = _entry(name, path)
    return list(entries.values())


def _sibling(name: str, path: Path) -> dict[str, Any]:
    """What the description of a repository says about a file."""
    sibling = {"rfilename": name, "size": path.stat().st_size, "blobId": _blob(path)}
    if path.suffix in LARGE:
        sibling["lfs"] = {"sha256": _tag(path), "size": sibling["size"], "pointerSize": 134}
    return sibling


def _info(repository: Path, name: str) -> dict[str, Any]:
    siblings = [_sibling(file, path) for file, path in _files(repository).items()]
    tags = ["text-generation"]
    state: dict[str, Any] = {"private": False, "gated": False, "disabled": False, "tags": tags}
    changed = max(path.stat().st_mtime for path in _files(repository).values())
    state["lastModified"] = f"{datetime.fromtimestamp(changed, UTC):%Y-%m-%dT%H:%M:%S.000Z}"
    return {"id": name, "sha": commit_of(repository), "siblings": siblings, **state}


def _handler(root: Path) -> type[BaseHTTPRequestHandler]:
    """A request handler class for the repositories below ``root``."""

    class Handler(_Handler):
        repositories = root

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: a test's output is its own."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        if (self.repositories / OUT_OF_SERVICE).exists():
            self._send(503, b"")
        elif url.path == "/api/models":
            self._answer_list(parse_qs(url.query))
        elif api := API.fullmatch(url.path):
            self._answer_api(api, parse_qs(url.query), body)
        elif file := FILE.fullmatch(url.path):
            self._answer_file(file)
        else:
            self._send(404, b"")

    def commit(self, folder: Path) -> str:
        """The commit that a folder is."""
        return commit_of(folder)

    def _repository(self, kind: str, name: str, revision: str | None) -> Path | None:
        """The folder of a repository at a revision; says what is wrong and gives None if absent."""
        folder = self.repositories / kind / name
        if not folder.is_dir():
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", commit_of(folder)):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return folder
        return None

    def _answer_list(self, query: dict[str, list[str]]) -> None:
        """A page of an owner's models; the next one is named as the hub names it."""
        [author], [start] = query["author"], query.get("start", ["0"])
        folder = self.repositories / "models" / author
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        page = names[int(start) : int(start) + PAGE]
        infos = [_info(folder / name, f"{author}/{name}") for name in page]
        headers = {"Content-Type": "application/json"}
        if int(start) + PAGE < len(names):
            host, after = self.headers["Host"], int(start) + PAGE
            link = f"http://{host}/api/models?author={author}&full=True&start={after}"
            headers["Link"] = f'<{link}>; rel="next"'
        self._send(200, json.dumps(infos).encode(), headers)

    def _answer_api(self, api: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
        kind, name, request, revision, below = api.groups()
        folder = self._repository(kind, name, unquote(revision) if revision else None)
        if folder is None:
            return
        if request == "tree":
            recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
            self._send_json(_listing(folder, unquote(below).strip("/"), recursive))
        elif request == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            found = _listing(folder, "", recursive=True)
            self._send_json([entry for entry in found if entry["path"] in wanted])
        else:
            self._send_json({**_info(folder, name), "sha": self.commit(folder)})

    def _answer_file(self, match: re.Match[str]) -> None:
        kind = "datasets" if match[1] else "models"
        folder = self._repository(kind, match[2], unquote(match[3]))
        if folder is None:
            return
        commit = {"X-Repo-Commit": self.commit(folder)}
        path = _files(folder).get(unquote(match[4]))
        if path is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            return
        headers = {"ETag": f'"{_tag(path)}"', "Accept-Ranges": "bytes", **commit}
        self._send_range(path.read_bytes(), headers)

    def _send_range(self, data: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self._send(200, data, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first > last:
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}", **headers})
            return
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(206, data[first : last + 1], {**span, **headers})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
