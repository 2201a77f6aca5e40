# SPDX-License-Identifier: Apache-2.0
"""A hub on this machine: as much of the protocol as creating a repository, a commit and a download speak.

Files that end in .safetensors go by LFS, the others inside the commit, as on the real one. `python fake_hub.py` is not
meant: a test starts `serving()` and points HF_ENDPOINT to it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name, files by path; `asked` is every request, `tokens` who asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.private: set[str] = set()
        self.messages: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _said(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        self.server.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        self.server.tokens.add(str(self.headers.get("Authorization")))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body, hub = self._body(), self.server
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != "Bearer secret":
            return self._said({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            hub.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            return self._said({"url": f"{hub.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._said({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            told = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self._said({"files": told})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [{"oid": one["oid"], "size": one["size"], "actions": {"upload": {
                "href": f"{hub.address}/lfs/{one['oid']}"}}} for one in json.loads(body)["objects"]]  # fmt: skip
            return self._said({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self._said({"error": path}, 404)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        hub, files = self.server, self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
        told = {"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        self._said({**told, "hookOutput": ""})

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._said({})

    def do_GET(self) -> None:
        self._body()
        hub, path = self.server, self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\w+)?", path):
            if found[1] in hub.repositories:
                names = [{"rfilename": name} for name in hub.repositories[found[1]]]
                return self._said({"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": names})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path):
            return self._said([_entry(*one) for one in hub.repositories.get(found[1], {}).items()])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            data = hub.repositories.get(found[1], {}).get(found[2])
            if data is not None:
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                return self._said(data, ETag=etag, X_Repo_Commit=COMMIT, X_Linked_ETag=etag)
        return self._said({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """A line of a repository's tree."""
    digest = hashlib.sha256(data).hexdigest()
    whole = {"lfs": {"oid": digest, "size": len(data), "pointerSize": 1}} if name.endswith(".safetensors") else {}
    return {"type": "file", "path": name, "size": len(data), "oid": digest[:40], **whole}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub while inside."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
