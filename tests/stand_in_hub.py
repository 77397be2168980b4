"""A stand-in for the Hub: a local HTTP server that the real `huggingface_hub` client talks to. It answers the requests
of a push and of a download as the Hub does (without large file storage), and keeps what it received. It is not the
Hub: what the Hub itself checks beyond a token and a card's metadata is not checked here."""

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http
from transformers.utils import hub as transformers_hub


TOKEN = "hf_right"


class Commit(NamedTuple):
    repo_id: str
    message: str
    files: dict[str, bytes]


class StandInHub:
    """`fault` may be set to a function of method and path that returns `"drop"` to cut the connection, or a status."""

    def __init__(self):
        self.commits: list[Commit] = []
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.fault = lambda method, path: None
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer("GET")

    def do_HEAD(self):
        self._answer("HEAD")

    def do_POST(self):
        self._answer("POST")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{method} {path}")
        fault = self.hub.fault(method, path)
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if fault is not None:
            return self._send(fault, {"error": "at fault"})
        if method == "POST":
            if path == "/api/validate-yaml":
                return self._validate(json.loads(body))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, {"error": "Invalid username or password."})
            return self._post(path, body)
        self._get(path)

    def _post(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.hub.repos.setdefault(repo_id, {})
            return self._send(200, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id})
        _, _, _, owner, name, action, *_ = path.split("/")
        repo_id = f"{owner}/{name}"
        if action == "preupload":
            modes = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._send(200, {"files": modes})
        assert action == "commit", path
        lines = [json.loads(line) for line in body.splitlines()]
        [message] = [line["value"]["summary"] for line in lines if line["key"] == "header"]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        self.hub.repos[repo_id].update(files)
        self.hub.commits.append(Commit(repo_id, message, files))
        url = f"{self.hub.url}/{repo_id}/commit/{self._sha(repo_id)}"
        self._send(200, {"commitUrl": url, "commitOid": self._sha(repo_id), "pullRequestUrl": None})

    def _validate(self, asked: dict) -> None:
        """As far as a stand-in can: metadata that are YAML, and a `model-index` with names."""
        data = yaml.safe_load(asked["content"].split("---")[1])
        missing = [entry for entry in data.get("model-index", []) if not entry.get("name")]
        errors = [{"message": "model-index needs a name"}] if missing else []
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _get(self, path: str) -> None:
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            repo_id, action = "/".join(words[2:4]), words[4:5]
            if repo_id not in self.hub.repos:
                return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            files = self.hub.repos[repo_id]
            if action == ["tree"]:
                listed = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                return self._send(200, listed)
            siblings = [{"rfilename": name} for name in files]
            return self._send(
                200, {"id": repo_id, "modelId": repo_id, "sha": self._sha(repo_id), "siblings": siblings}
            )
        repo_id, name = "/".join(words[:2]), "/".join(words[4:])
        content = self.hub.repos.get(repo_id, {}).get(name)
        if content is None:
            code = "EntryNotFound" if repo_id in self.hub.repos else "RepoNotFound"
            return self._send(404, {"error": code}, {"X-Error-Code": code, "X-Repo-Commit": self._sha(repo_id)})
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": self._sha(repo_id)})

    def _sha(self, repo_id: str) -> str:
        return hashlib.sha1(f"{repo_id} {len(self.hub.commits)}".encode()).hexdigest()

    def _send(self, status: int, content, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Impatient:
    """The module `time`, but that nobody sleeps: the client waits longer and longer between its attempts."""

    def __getattr__(self, name):
        return getattr(time, name)

    @staticmethod
    def sleep(seconds):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, as the only Hub that there is; the user is logged in."""
    stand_in = StandInHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hf_api.api, "endpoint", stand_in.url)
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)
    monkeypatch.setattr(_http, "time", _Impatient())
    monkeypatch.setenv("CI", "1")  # no telemetry of TRL's
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield stand_in
    stand_in.close()
