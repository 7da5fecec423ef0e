"""Stores for the tests of what lies on them: one like a bucket, and one of each sort."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.store import Store
from mlp_reliability.counting import CountingBucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what readers remember out of the user's cache; return where it is kept instead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlp"


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[CountingBucket]:
    """The objects of a store that is like a bucket."""
    objects = CountingBucket(tmp_path / "store")
    yield objects
    objects.close()


@pytest.fixture
def bucket_store(bucket: CountingBucket, own_cache: Path) -> Store:
    """A store that is like a bucket."""
    del own_cache
    return Store.open(bucket, create=True)


@pytest.fixture(params=["bucket", "folder"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, own_cache: Path) -> Iterator[Store]:
    """A store of each sort."""
    del own_cache
    root = tmp_path / "store"
    store = Store.open(CountingBucket(root) if request.param == "bucket" else FileStore(root), create=True)
    yield store
    store.close()
