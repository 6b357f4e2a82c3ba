"""A simulated Hugging Face hub on this machine: the few answers that creating, committing and downloading need."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

Repos = dict[str, dict[str, bytes]]


class _Hub(BaseHTTPRequestHandler):
    repos: Repos
    calls: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0].strip("/").split("/")
        self.calls.append(f"POST {self.path}")
        if self.headers.get("authorization") != "Bearer may-write":
            return self.answer(401, {"error": "Invalid credentials"})
        if path == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.calls.append(f"private={asked.get('private', asked.get('visibility'))}")
            taken = name in self.repos
            self.repos.setdefault(name, {})
            return self.answer(409 if taken else 200, {"url": f"http://{self.headers['host']}/{name}"})
        if path == ["api", "validate-yaml"]:
            return self.answer(200, {"errors": [], "warnings": []})
        name = "/".join(path[2:4])
        if path[4] == "preupload":
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": one, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for one in files]
            return self.answer(200, {"files": modes})
        if path[4] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['host']}/{name}/commit/{'a' * 40}"
            return self.answer(200, {"commitUrl": url, "commitOid": "a" * 40})
        return self.answer(404, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.calls.append(f"{self.command} {self.path}")
        user, name, _, revision, file = [*self.path.partition("?")[0].strip("/").split("/", 4), *[""] * 5][:5]
        files = self.repos.get(f"{user}/{name}")
        if files is None:
            return self.answer(401, {}, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "a" * 40):
            return self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if file not in files:
            return self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40})
        tag = hashlib.sha1(files[file]).hexdigest()
        return self.answer(200, files[file], {"ETag": f'"{tag}"', "X-Repo-Commit": "a" * 40})

    def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


@contextmanager
def simulated_hub() -> Iterator[tuple[str, Repos, list[str]]]:
    """Its address, what it holds (repository -> file -> content) and what it was asked; a token may write."""
    handler = type("Hub", (_Hub,), {"repos": {}, "calls": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.repos, handler.calls  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
