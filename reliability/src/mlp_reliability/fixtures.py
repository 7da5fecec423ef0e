"""Fixtures of pytest for whoever tests against a real S3 server: import those that you use into the test's module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_reliability.s3_servers import S3Server, s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """Run SeaweedFS on loopback, with a bucket named bucket."""
    with s3_server("seaweedfs") as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """Run the server of moto on loopback, with a bucket named bucket: less like a real one, and faster to start."""
    with s3_server("moto") as server:
        server.make_bucket("bucket")
        yield server
