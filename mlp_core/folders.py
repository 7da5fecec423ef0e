"""Where this host keeps what can be made again: environments, the platform's packages, unpacked code."""

from __future__ import annotations

import os
from pathlib import Path

from mlp_core.store.verified import cache_folder, make_private


def made_folder(name: str) -> Path:
    """Return a folder of this user's for things that can be made again.

    Parameters
    ----------
    name : str
        What it holds.

    Returns
    -------
    pathlib.Path
        In the user's cache or, for users without a home, in the system's temporary folder; made if absent, for nobody
        else to read.
    """
    folder = folder_of(name)
    make_private(folder)
    return folder


def folder_of(name: str) -> Path:
    """Return where `made_folder` makes a folder; it is not made."""
    return (cache_folder() or Path(_temporary()) / f"mlp-{os.getuid()}") / name


def _temporary() -> str:
    """Return the system's temporary folder."""
    import tempfile

    return tempfile.gettempdir()
