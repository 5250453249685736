"""A server on loopback with the part of the Hugging Face Hub's interface that is used here."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

__all__ = ["StubHub", "stub_hub"]


class StubHub(ThreadingHTTPServer):
    """Repositories with commits, in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        """Repository -> commit -> path -> content; the last commit is that of main."""
        self.private: dict[str, bool] = {}
        self.uploads: dict[str, bytes] = {}
        """Large files, by their SHA-256."""
        self.requests: list[str] = []
        self.refuse_commits = False

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit, with the files of the one before where there are no new ones."""
        before = list(self.commits.get(repository, {"": {}}).values())[-1]
        number = len(self.commits.setdefault(repository, {}))
        name = hashlib.sha1(f"{repository} {number}".encode()).hexdigest()
        self.commits[repository][name] = {**before, **files}
        return name

    def found(self, repository: str, revision: str) -> str | None:
        """Return the commit that a revision means."""
        commits = list(self.commits.get(repository, {}))
        if revision == "main":
            return commits[-1] if commits else None
        return revision if revision in commits else None


class Requests(BaseHTTPRequestHandler):
    server: StubHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = unquote(self.path.partition("?")[0]).strip("/")
        if path.startswith("api/models/"):
            return self._info(path.removeprefix("api/models/"))
        parts = path.split("/")
        repository, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        commit = self.server.found(repository, revision)
        if commit is None:
            return self._missing(repository)
        content = self.server.commits[repository][commit].get(file)
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def _info(self, path: str) -> None:
        repository, _, revision = path.partition("/revision/")
        commit = self.server.found(repository, revision or "main")
        if commit is None:
            return self._missing(repository)
        files = [{"rfilename": name} for name in self.server.commits[repository][commit]]
        return self._json({"id": repository, "sha": commit, "siblings": files})

    def _missing(self, repository: str) -> None:
        known = repository in self.server.commits
        code = "RevisionNotFound" if known else "RepoNotFound"
        self._answer(404, b"", {"X-Error-Code": code})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.rpartition("/")[2]] = self._body()
        self._answer(200, b"")

    def do_POST(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self._body()
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            repository = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            # Versions of the library say it in one of two ways.
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.server.private[repository] = private
            self.server.commit(repository, {".gitattributes": b""})
            self._json({"url": f"{self.server.url}/{repository}", "id": repository})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for one in files
            ]
            self._json({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **one,
                    "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}},
                }
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer(404, b"")

    def _commit(self, body: bytes) -> None:
        if self.server.refuse_commits:
            return self._answer(403, b"")
        repository = "/".join(self.path.split("/")[3:5])
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        commit = self.server.commit(repository, files)
        url = f"{self.server.url}/{repository}/commit/{commit}"
        return self._json({"commitOid": commit, "commitUrl": url, "pullRequestUrl": None})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


LARGE = (".safetensors", ".onnx", ".pt2")


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """Run the server inside the block."""
    with StubHub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
