"""A Hugging Face Hub on 127.0.0.1 that serves folders: just what `hf_hub_download` and `model_info` ask for."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Repositories = Mapping[tuple[str, str], Path]


class FakeHub:
    """Remember every file that was asked for; `repositories` maps (repo id, revision) to a folder."""

    def __init__(self, repositories: Repositories) -> None:
        self.repositories = dict(repositories)
        self.requests: list[str] = []
        self.url = ""

    @contextmanager
    def serving(self) -> Iterator["FakeHub"]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        if path.startswith("/api/models/"):
            return self._list(request, path)
        if "/resolve/" in path:
            self.requests.append(path)
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if not any(repo == known for known, _ in self.repositories):
            return _refuse(request, "RepoNotFound")
        folder = self.repositories.get((repo, revision))
        if folder is None:
            return _refuse(request, "RevisionNotFound")
        if not (folder / name).is_file():
            return _refuse(request, "EntryNotFound")
        body = (folder / name).read_bytes()
        _send(request, body, with_body=with_body, commit=_commit(repo, revision))
        return None

    def _list(self, request: BaseHTTPRequestHandler, path: str) -> None:
        repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        folder = self.repositories.get((repo, revision))
        if folder is None:
            return _refuse(request, "RevisionNotFound")
        names = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
        body = json.dumps({"id": repo, "siblings": names}).encode()
        _send(request, body, with_body=True, commit=_commit(repo, revision))
        return None


def _commit(repo: str, revision: str) -> str:
    return revision if len(revision) == 40 else sha256(f"{repo}@{revision}".encode()).hexdigest()[:40]


def _refuse(request: BaseHTTPRequestHandler, code: str) -> None:
    request.send_response(404)
    request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()


def _send(request: BaseHTTPRequestHandler, body: bytes, *, with_body: bool, commit: str) -> None:
    request.send_response(200)
    request.send_header("ETag", f'"{sha256(body).hexdigest()}"')
    request.send_header("X-Repo-Commit", commit)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if with_body:
        request.wfile.write(body)
