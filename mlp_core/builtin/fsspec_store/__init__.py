"""The builtin store ``fsspec``: buckets, and whatever else fsspec has a filesystem for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_hookspecs import Backend, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlp_core.builtin.fsspec_store.store import FsspecStore
    from mlp_hookspecs.handles import Settings


@hookimpl
def mlp_backends() -> Sequence[Backend]:
    """Declare the store."""
    return (
        Backend(kind="store", name="fsspec", summary="A bucket (s3, gs, az ...) or any place that fsspec reaches."),
    )


@hookimpl
def mlp_open_store(url: str, settings: Settings) -> FsspecStore:
    """Open the place that a URL names; nothing is asked of it yet."""
    from mlp_core.builtin.fsspec_store.store import FsspecStore

    seconds = settings.get("storage.retry_seconds")
    options = settings.get("storage.options")
    return FsspecStore(url, options or {}, retry_seconds=120.0 if seconds is None else seconds)
