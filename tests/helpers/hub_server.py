"""A server on 127.0.0.1 that speaks the part of the Hugging Face Hub's protocol that is used."""

import base64
import dataclasses
import functools
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_LARGE = 10_000  # bytes; the Hub keeps larger files apart from Git


@dataclasses.dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    revisions: dict[str, str] = dataclasses.field(default_factory=dict)
    token: str = ""  # whoever has no other one sees nothing of it
    gated: bool = False  # seen by all, and read by nobody


class HubServer:
    """Repositories in memory; `requests` are those that were received, as 'METHOD /path'."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.status = 0  # answer of everything, for a Hub that is down
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}"  # another host, without the token
        # It ends as often as it looks whether it shall.
        serve = functools.partial(self._server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def push(self, repo, files, revision="main", **about):
        """Makes a commit of files (bytes by name) the revision; returns the commit."""
        repository = self.repositories.setdefault(repo, Repository())
        content = "".join(f"{name} {_etag(data)}\n" for name, data in sorted(files.items()))
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.revisions |= {revision: commit, commit: commit}
        for name, value in about.items():
            setattr(repository, name, value)
        return commit


def _etag(data):
    if len(data) > _LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if hub.status:
            return self._answer(hub.status)
        if parts[0] == "cdn":
            return self._send_blob(parts[1])
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        repository = hub.repositories.get("/".join(parts[:2]))
        authorization = self.headers.get("Authorization")
        token = (authorization or "").removeprefix("Bearer ")
        if repository is None or repository.token not in ("", token):
            # As the Hub does: who has no token is not told whether it exists.
            return self._answer(401 if authorization is None else 404, "RepoNotFound")
        if token == "wrong":
            return self._answer(401, message="Invalid credentials in Authorization header")
        if repository.gated and not is_api:
            return self._answer(403 if authorization else 401, "GatedRepo")
        # A revision may contain slashes: it is in the path as %2F.
        commit = repository.revisions.get(parts[3] if len(parts) > 3 else "main")
        if commit is None:
            return self._answer(404, "RevisionNotFound")
        files = repository.commits[commit]
        if is_api:
            return self._send_info("/".join(parts[:2]), commit, files)
        name = "/".join(parts[4:])
        if name not in files:
            return self._answer(404, "EntryNotFound", headers={"X-Repo-Commit": commit})
        return self._send_file(commit, files[name])

    do_HEAD = do_GET

    def do_POST(self):
        """What `create_repo` and `upload_folder` send, without Xet."""
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if "Authorization" not in self.headers:
            return self._answer(401)
        if parts[-1] == "validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        if parts[1:] == ["repos", "create"]:
            new = json.loads(body)
            name = f"{new['organization']}/{new['name']}"
            hub.repositories.setdefault(name, Repository())
            return self._send_json({"url": f"{hub.url}/{name}"})
        name = "/".join(parts[2:4])
        if name not in hub.repositories:
            return self._answer(404, "RepoNotFound")
        if parts[4] == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self._send_json({"files": [{"path": path, **modes} for path in paths]})
        entries = [json.loads(line) for line in body.splitlines()]
        files = {
            entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
            for entry in entries
            if entry["key"] == "file"
        }
        commit = hub.push(name, files, revision=parts[5])
        url = f"{hub.url}/{name}/commit/{commit}"
        return self._send_json({"success": True, "commitOid": commit, "commitUrl": url})

    def _send_json(self, content):
        body = json.dumps(content).encode()
        self._answer(200, body=body, headers={"Content-Type": "application/json"})

    def _send_info(self, repo, commit, files):
        siblings = []
        for name, data in files.items():
            sibling = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if len(data) > _LARGE:
                pointer = {"sha256": _etag(data), "size": len(data), "pointerSize": 134}
                sibling["lfs"] = pointer
            siblings.append(sibling)
        about = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []}
        self._send_json({"_id": "0", "private": False, **about})

    def _send_file(self, commit, data):
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"'}
        if len(data) <= _LARGE:
            return self._answer(200, body=data, headers=headers)
        headers |= {"X-Linked-Etag": f'"{_etag(data)}"', "X-Linked-Size": str(len(data))}
        headers |= {"Location": f"{self.server.hub.cdn}/cdn/{_etag(data)}", "ETag": '"pointer"'}
        return self._answer(302, headers=headers)

    def _send_blob(self, etag):
        for repository in self.server.hub.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if _etag(data) == etag:
                        return self._answer(200, body=data, headers={"ETag": f'"{etag}"'})
        return self._answer(404)

    def _answer(self, status, code="", *, message="", body=b"", headers=None):
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": message}.items():
            if value:
                self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
