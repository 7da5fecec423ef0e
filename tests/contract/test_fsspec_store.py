"""The store `fsspec` keeps the contract: in memory, on two real S3 servers, and on a filesystem like a disk."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from mlp_hookspecs.testing import StoreContract
from mlp_reliability import fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_reliability.s3_servers import S3Server

moto, seaweedfs = fixtures.moto, fixtures.seaweedfs  # pytest finds them here
_numbers = itertools.count()


class FsspecContract(StoreContract):
    """The tests of each."""

    plugin = "mlp_core.builtin.fsspec_store"
    name = "fsspec"


class TestMemory(FsspecContract):
    """The memory of this process."""

    across_processes = False

    @pytest.fixture
    def url(self) -> str:
        """A new folder."""
        return f"memory://bucket{next(_numbers)}/prefix"


class DiskFileSystem(LocalFileSystem):
    """A filesystem on which objects are seen while they are written."""

    protocol = "disk"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("disk:"))


class TestDisk(FsspecContract):
    """A filesystem that is no object store."""

    across_processes = False  # other processes do not know the class

    @pytest.fixture
    def url(self, tmp_path: Path) -> Iterator[str]:
        """A new folder."""
        fsspec.register_implementation("disk", DiskFileSystem, clobber=True)
        return f"disk://{tmp_path}/store"


class S3Contract(FsspecContract):
    """The tests of each S3 server."""

    @pytest.fixture
    def settings(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Where the server is; the credentials come from the environment."""
        for name, value in server.environ.items():
            if name != "AWS_ENDPOINT_URL":
                monkeypatch.setenv(name, value)
        return {"storage.options": server.options, "storage.retry_seconds": 20.0}

    @pytest.fixture
    def url(self) -> str:
        """A new folder."""
        return f"s3://bucket/{next(_numbers)}"


@pytest.mark.slow
class TestMoto(S3Contract):
    """The server of moto."""

    @pytest.fixture
    def server(self, moto: S3Server) -> S3Server:
        """The server."""
        return moto


class TestSeaweedFS(S3Contract):
    """SeaweedFS."""

    @pytest.fixture
    def server(self, seaweedfs: S3Server) -> S3Server:
        """The server."""
        return seaweedfs
