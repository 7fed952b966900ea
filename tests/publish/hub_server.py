"""A small local server that plays the Hugging Face hub: repositories, LFS uploads and commits, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNER = "tester"


@dataclass
class Repository:
    """Files by path, and the messages of the commits that brought them."""

    is_private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class HubServer:
    """The server with all it was sent."""

    token: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by SHA-256."""
    num_uploads: int = 0
    """LFS objects received."""
    failures: list[int] = field(default_factory=list)
    """Statuses to answer the next commits with."""
    always_fails_with: int = 0
    """Status of every answer; its text repeats the request's token, as a badly made proxy might."""

    def __post_init__(self) -> None:
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, body: bytes) -> None:
        hub, path = self.server_state, self.path.partition("?")[0]
        authorization = self.headers.get("Authorization", "")
        if hub.always_fails_with:
            return self._send(hub.always_fails_with, {"error": f"no: {authorization}"})
        if not path.startswith("/lfs/") and authorization != f"Bearer {hub.token}":
            return self._send(401, {"error": f"unknown token {authorization}"})
        for pattern, act in ROUTES:
            if match := re.fullmatch(pattern, path):
                return self._send(*act(hub, body, *match.groups()))
        return self._send(404, {"error": f"no route {path}"})

    def _send(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


Answer = tuple[int, Any]


def _create(hub: HubServer, body: bytes) -> Answer:
    wanted = json.loads(body)
    repo_id = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
    answer = {"url": f"{hub.url}/{repo_id}", "id": repo_id, "name": repo_id}
    if repo_id in hub.repositories:
        return 409, {"error": "You already created this model repo", **answer}
    is_private = wanted.get("private", False) or wanted.get("visibility") == "private"
    hub.repositories[repo_id] = Repository(is_private=is_private)
    return 200, answer


def _info(hub: HubServer, body: bytes, repo_id: str) -> Answer:
    if repo_id not in hub.repositories:
        return 404, {"error": "not found"}
    return 200, {"id": repo_id, "private": hub.repositories[repo_id].is_private, "sha": "0" * 40, "siblings": []}


def _check_card(hub: HubServer, body: bytes) -> Answer:
    text = json.loads(body)["content"]
    return (200, {"errors": [], "warnings": []}) if text.startswith("---\n") else (400, {"errors": [{"message": "no"}]})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _preupload(hub: HubServer, body: bytes, repo_id: str) -> Answer:
    files = []
    for file in json.loads(body)["files"]:
        is_large = file["path"].endswith(".safetensors")
        known = hub.repositories[repo_id].files.get(file["path"])
        oid = None if known is None else hashlib.sha256(known).hexdigest() if is_large else _git_oid(known)
        mode = "lfs" if is_large else "regular"
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": files}


def _lfs_batch(hub: HubServer, body: bytes, repo_id: str) -> Answer:
    objects = []
    for wanted in json.loads(body)["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.objects:
            entry["actions"] = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}", "header": {}}}
        objects.append(entry)
    return 200, {"transfer": "basic", "objects": objects}


def _lfs_put(hub: HubServer, body: bytes, oid: str) -> Answer:
    assert hashlib.sha256(body).hexdigest() == oid
    hub.objects[oid] = body
    hub.num_uploads += 1
    return 200, {}


def _commit(hub: HubServer, body: bytes, repo_id: str) -> Answer:
    if hub.failures:
        return hub.failures.pop(0), {"error": "out of order"}
    repository = hub.repositories[repo_id]
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            repository.commits.append(value["summary"])
        elif item["key"] == "lfsFile":
            repository.files[value["path"]] = hub.objects[value["oid"]]
        else:
            repository.files[value["path"]] = base64.b64decode(value["content"])
    oid = f"{len(repository.commits):040d}"
    return 200, {"commitUrl": f"{hub.url}/{repo_id}/commit/{oid}", "commitOid": oid}


ROUTES = [
    ("/api/repos/create", _create),
    ("/api/validate-yaml", _check_card),
    (r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", _info),
    (r"/api/models/([^/]+/[^/]+)/preupload/main", _preupload),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _lfs_batch),
    (r"/lfs/([0-9a-f]+)", _lfs_put),
    (r"/api/models/([^/]+/[^/]+)/commit/main", _commit),
]
