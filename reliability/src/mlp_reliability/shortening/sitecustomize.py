"""Python imports this when it starts, where the harness put its folder on the path: every write to a file is short.

A system may write less than it was given, whenever it likes; whoever does not go on loses the rest.
"""

from __future__ import annotations

import os
import runpy
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_write = os.write


def _write_half(fd: int, data: Buffer, /) -> int:
    """Write half of what is given, if it goes to a file."""
    view = memoryview(data).cast("B")
    if len(view) > 1 and stat.S_ISREG(os.fstat(fd).st_mode):
        view = view[: len(view) // 2]
    return _write(fd, view)


os.write = _write_half

for _folder in sys.path:  # the one that this folder hides
    if _folder != str(Path(__file__).parent) and Path(_folder, "sitecustomize.py").is_file():
        runpy.run_path(str(Path(_folder, "sitecustomize.py")))
        break
