"""A hub on 127.0.0.1 that takes commits: what huggingface_hub sends when it uploads.

Beside what :mod:`tests.hub_stand_in` serves: commits on the condition of their parent, branches,
uploads of large files, and who may write. A commit is a folder of links to contents.

Not imitated: Xet, uploads in parts, tags, pull requests, limits on sizes and rates, gated and
private repositories, checks of a card's front matter, and the hub's delay between nodes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.hub_stand_in import LARGE, _blob, _files, _Handler

WRITE = re.compile(
    r"/api/models/([^/]+/[^/]+)/(auth-check/write|refs|branch|preupload|commit)(?:/(.+))?"
)
LARGE_FILES = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
UPLOAD = re.compile(r"/uploads/([0-9a-f]{64})")
TOKEN, READER = "hf_writes", "hf_reads"
Answer = tuple[int, Any]


@dataclass
class WritingHub:
    """Repositories below a folder: commits by their names, branches by theirs."""

    root: Path
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    asked: list[tuple[str, str]] = field(default_factory=list)
    # Bytes that are served in place of a file, by repository and name: a storage that is damaged.
    served: dict[tuple[str, str], bytes] = field(default_factory=dict)
    # Called for every request with its method and path: "lost" answers 400 to what was done, a
    # status is answered at once, None is well behaved.
    fault: Callable[[str, str], str | int | None] | None = None

    def behave(self) -> None:
        """No fault any more, and an empty list."""
        self.fault = None
        self.served.clear()
        self.asked.clear()

    def make(self, name: str) -> None:
        """A repository as its owner makes it."""
        folder = self.root / "empty"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        self.branches[name] = {"main": self.committed(name, folder, "0" * 40, "made")}

    def copy(self, name: str, other: str) -> None:
        """A repository with all that another one has."""
        shutil.copytree(self.root / "commits" / name, self.root / "commits" / other,
                        copy_function=os.link)  # fmt: skip
        self.branches[other] = dict(self.branches[name])

    def folder(self, name: str, revision: str) -> Path | None:
        """The files of a revision."""
        place = self.root / "commits" / name / self.branches[name].get(revision, revision)
        return place if place.is_dir() else None

    def blob(self, content: bytes) -> Path:
        """The file that keeps a content."""
        path = self.root / "blobs" / hashlib.sha256(content).hexdigest()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(content)
        return path

    def committed(self, name: str, folder: Path, parent: str, told: str) -> str:
        """A folder of files as a commit; its name."""
        lines = [f"{n} {_blob(path)}" for n, path in _files(folder).items()]
        sha = hashlib.sha1("\n".join([parent, told, *lines]).encode()).hexdigest()
        place = self.root / "commits" / name / sha
        for n, path in _files(folder).items():
            (place / n).parent.mkdir(parents=True, exist_ok=True)
            if not (place / n).exists():
                os.link(self.blob(path.read_bytes()), place / n)
        return sha

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> Answer:
        """What huggingface_hub sends, line by line; refused where the branch is elsewhere."""
        header = lines[0]["value"]
        with self.lock:
            head = self.branches[name].get(branch)
            if head is None:
                return 404, {"error": "no such branch"}
            if header.get("parentCommit", head) != head:
                return 412, {"error": "A commit has happened since. Please refresh and try again."}
            work = self.root / "work"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(self.root / "commits" / name / head, work)
            for line in lines[1:]:
                if problem := self._change(work, line["key"], line["value"]):
                    return 400, {"error": problem}
            sha = self.committed(name, work, head, header["summary"])
            self.branches[name][branch] = sha
            return 200, {"commitUrl": f"/{name}/commit/{sha}", "commitOid": sha}

    def _change(self, work: Path, key: str, value: dict[str, Any]) -> str | None:
        path = work / value["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if key == "file":
            path.write_bytes(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            blob = self.root / "blobs" / value["oid"]
            if not blob.exists():
                return f"{value['oid']} was not uploaded"
            path.write_bytes(blob.read_bytes())
        elif key == "deletedFile":
            path.unlink()
        else:
            return f"{key} is not imitated"
        return None


@contextmanager
def writing_hub(root: Path) -> Iterator[WritingHub]:
    """A running hub with what leads huggingface_hub to it; a token may write."""
    from huggingface_hub import constants

    hub = WritingHub(root)
    handler = type("Handler", (_WritingHandler,), {"hub": hub, "repositories": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        # The library reads its variables when it is imported.
        patch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub
    server.shutdown()
    thread.join()
    server.server_close()


class _WritingHandler(_Handler):
    hub: WritingHub

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def commit(self, folder: Path) -> str:
        return folder.name

    def _repository(self, kind: str, name: str, revision: str | None) -> Path | None:
        if name not in self.hub.branches:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        folder = self.hub.folder(name, revision or "main")
        if folder is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return folder

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, path))
        fault = self.hub.fault(self.command, path) if self.hub.fault else None
        if isinstance(fault, int):
            self._body()
            self._send(fault, b"")
            return
        self._lost = fault == "lost"
        written = WRITE.fullmatch(path)
        if written:
            self._answer_writing(*written.groups())
        elif path == "/api/validate-yaml":
            self._body()
            self._told(200, {"errors": [], "warnings": []})
        elif batch := LARGE_FILES.fullmatch(path):
            self._answer_batch(batch[1])
        elif upload := UPLOAD.fullmatch(path):
            body = self._body()
            right = hashlib.sha256(body).hexdigest() == upload[1]
            if right:
                self.hub.blob(body)
            self._told(200 if right else 400, {})
        else:
            super()._answer()

    def _answer_file(self, match: re.Match[str]) -> None:
        damaged = self.hub.served.get((match[2], unquote(match[4])))
        folder = self._repository("models", match[2], unquote(match[3])) if damaged else None
        if damaged is None or folder is None:
            super()._answer_file(match)
            return
        tag = f'"{hashlib.sha256((folder / unquote(match[4])).read_bytes()).hexdigest()}"'
        self._send_range(damaged, {"ETag": tag, "X-Repo-Commit": folder.name})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _told(self, status: int, value: Any) -> None:
        if self._lost:
            self._send(400, b"")
            return
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer_writing(self, name: str, what: str, rest: str | None) -> None:
        body, branches = self._body(), self.hub.branches.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if branches is None or token not in (TOKEN, READER):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif token == READER and what != "refs":
            self._told(403, {"error": "this token may only read"})
        elif what == "auth-check/write":
            self._told(200, {})
        elif what == "refs":
            found = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha}
                     for n, sha in branches.items()]  # fmt: skip
            self._told(200, {"branches": found, "tags": [], "converts": []})
        elif what == "branch":
            self._told(*self._branch(name, unquote(str(rest)), body))
        elif what == "preupload":
            folder = self.hub.folder(name, unquote(str(rest)))
            assert folder is not None
            files = [self._mode(folder, each["path"]) for each in json.loads(body)["files"]]
            self._told(200, {"files": files})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            self._told(*self.hub.commit(name, unquote(str(rest)), lines))

    def _mode(self, folder: Path, path: str) -> dict[str, Any]:
        large, there = Path(path).suffix in LARGE, folder / path
        oid = None
        if there.is_file():
            content = there.read_bytes()
            oid = hashlib.sha256(content).hexdigest() if large else _blob(there)
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _branch(self, name: str, branch: str, body: bytes) -> Answer:
        with self.hub.lock:
            branches = self.hub.branches[name]
            if self.command == "DELETE":
                return (200, {}) if branches.pop(branch, None) else (404, {"error": "no branch"})
            if branch in branches:
                return 409, {"error": "Reference already exists"}
            start = json.loads(body or b"{}").get("startingPoint", "main")
            folder = self.hub.folder(name, start)
            if folder is None:
                return 404, {"error": "no such revision"}
            branches[branch] = folder.name
            return 200, {}

    def _answer_batch(self, name: str) -> None:
        host, objects = self.headers["Host"], []
        for each in json.loads(self._body())["objects"]:
            there = (self.hub.root / "blobs" / each["oid"]).exists()
            upload = {"upload": {"href": f"http://{host}/uploads/{each['oid']}"}}
            objects.append({**each, **({} if there else {"actions": upload})})
        self._told(200, {"transfer": "basic", "objects": objects})
