"""A file is fetched whole, as what it should be, and with credentials for those alone whom they are for."""

from __future__ import annotations

import hashlib
import http.server
import threading
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_plugin_uv.credentials import find_login
from mlp_plugin_uv.fetch import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = b"content of a wheel" * 100
HASH = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@attrs.define
class Server:
    """A server on loopback that behaves as told."""

    port: int = 0
    failures: list[int] = attrs.Factory(list)
    redirect: str = ""
    missing_bytes: int = 0
    authorizations: list[str | None] = attrs.Factory(list)

    @property
    def url(self) -> str:
        """The URL of a wheel, with a password."""
        return f"http://ada:s3cret@127.0.0.1:{self.port}/x.whl"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server."""
    told = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Behave as told."""

        def do_GET(self) -> None:
            """Fail, redirect, or serve the content, or some of it."""
            told.authorizations.append(self.headers.get("Authorization"))
            status = told.failures.pop(0) if told.failures else 302 if told.redirect else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", told.redirect)
                told.redirect = ""
            body = CONTENT if status == 200 else b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) - told.missing_bytes])

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.port = listener.server_port
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "*")
    try:
        yield told
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def test_file_is_fetched(server: Server, tmp_path: Path) -> None:
    """The file is there, under its name, and nothing beside it; any of the hashes will do."""
    fetch(server.url, tmp_path / "x.whl", ["sha512:00", HASH], ())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.whl", CONTENT)]


def test_passing_failures_are_survived(server: Server, tmp_path: Path) -> None:
    """A busy server is asked again."""
    server.failures = [503, 429]
    fetch(server.url, tmp_path / "x.whl", [HASH], ())
    assert len(server.authorizations) == 3


@pytest.mark.parametrize(
    ("failures", "missing_bytes", "message"),
    [
        ([404], 0, r"^x\.whl cannot be fetched from 127\.0\.0\.1: the server answers 404$"),
        ([401], 0, r"answers 401 \(no credentials, or wrong ones\)$"),
        ([503, 503, 503], 0, "answers 503$"),
        ([], 7, "7 more expected"),
    ],
)
def test_failures_are_told(
    server: Server, tmp_path: Path, failures: list[int], missing_bytes: int, message: str
) -> None:
    """What cannot be fetched, or not whole, is an error in one line without the password, and leaves nothing."""
    server.failures, server.missing_bytes = failures, missing_bytes
    with pytest.raises(OSError, match=message) as caught:
        fetch(server.url, tmp_path / "x.whl", [HASH], ())
    assert "s3cret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_redirect_does_not_take_the_password_along(server: Server, tmp_path: Path) -> None:
    """Where the index sends us to, nobody is told the index's password."""
    server.redirect = server.url.replace("ada:s3cret@", "").replace("127.0.0.1", "localhost")
    fetch(server.url, tmp_path / "x.whl", [HASH], ())
    first, second = server.authorizations
    assert first is not None
    assert second is None


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x.whl", "x.whl", "file:///gone/x.whl"])
def test_strange_urls_are_refused(url: str, tmp_path: Path) -> None:
    """Other schemes, and files that are not there, are errors."""
    with pytest.raises(OSError, match=r"x\.whl cannot be fetched"):
        fetch(url, tmp_path / "x.whl", [HASH], ())


def test_keyring_is_asked_where_uv_may_ask_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ``keyring`` gives credentials if uv is configured for it, and is not asked otherwise."""
    script = tmp_path / "keyring"
    script.write_text('#!/bin/sh\necho "{\\"username\\": \\"ada\\", \\"password\\": \\"s3cret\\"}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert find_login("https://host/x.whl", ()) is None
    monkeypatch.setenv("UV_KEYRING_PROVIDER", "subprocess")
    assert find_login("https://host/x.whl", ()) == ("ada", "s3cret")
    script.write_text("#!/bin/sh\nexit 1\n")
    assert find_login("https://host/x.whl", ()) is None


def test_damaged_netrc_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A netrc file that cannot be read is an error that does not show its content."""
    (tmp_path / "netrc").write_text("machine host login ada password s3cret nonsense\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(OSError, match=r"the netrc file cannot be read: line \d is wrong") as caught:
        find_login("https://host/x.whl", ())
    assert "s3cret" not in str(caught.value)
