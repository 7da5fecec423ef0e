"""How the files of a lock are gathered: conda packages in a channel's folders, and wheels in one of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_plugin_conda.locks import read_lock
from mlp_plugin_conda.tools import ToolError, run_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlp_hookspecs import EnvironmentLock


def bundle(lock: EnvironmentLock, platform: str, folder: Path) -> Sequence[str]:
    """Put the files of a lock for one platform into a folder, each verified.

    Parameters
    ----------
    lock : EnvironmentLock
        The lock.
    platform : str
        The platform; empty for the packages that only the host which resolved the lock has, of which there are none.
    folder : pathlib.Path
        Where they go: ``linux-64/...``, ``noarch/...`` and ``wheels/...``.

    Returns
    -------
    sequence of str
        The files, relative to the folder.

    Raises
    ------
    ValueError
        Where the lock is damaged, or does not hold for the platform.
    OSError
        Where a file cannot be had, or is not the one that was locked.
    """
    content = read_lock(lock.content)
    if not platform:
        return ()
    if platform not in content.platforms:
        raise ValueError(f"the lock holds for {', '.join(content.platforms)}, not for {platform}")
    packages = content.on(platform)
    files = [{"url": package.url, "sha256": package.sha256, "place": package.place} for package in packages]
    try:
        run_helper("fetch", files=files, folder=str(folder))
    except ToolError as error:
        raise OSError(f"the packages cannot be fetched: {error}") from error
    return tuple(sorted(package.place for package in packages))
