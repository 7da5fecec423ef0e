"""What a process does while hostile input is tried on it: where it writes, what it starts, what it unpickles."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATHS: Final = {
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
}
_STARTS: Final = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Notes what must not happen; Python itself tells it of everything.

    Parameters
    ----------
    inside : pathlib.Path
        The only folder that may be written to.
    around : pathlib.Path
        The folder around it, of which nothing else may be read either.
    """

    def __init__(self, inside: Path, around: Path) -> None:
        """Begin to listen; there is no way to stop."""
        self.found: list[str] = []
        self.unpickled: list[str] = []
        self._inside, self._around = str(inside.resolve()) + "/", str(around.resolve()) + "/"
        self._is_on = False
        sys.addaudithook(self._hear)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Note what happens."""
        self.found.clear()
        self.unpickled.clear()
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes):
                self._judge(os.fsdecode(path), "writes" if isinstance(flags, int) and flags & _WRITING else "reads")
        elif event in _PATHS:
            for place in _PATHS[event]:
                if isinstance(arguments[place], str | bytes | os.PathLike):
                    self._judge(os.fsdecode(arguments[place]), event)
        elif event in _STARTS:
            self.found.append(f"starts a process: {event} {arguments!r:.200}")
        elif event == "pickle.find_class":
            self.unpickled.append(".".join(map(str, arguments)))

    def _judge(self, path: str, what: str) -> None:
        """Note a path that should not be touched."""
        self._is_on = False
        try:
            # The link itself, not what it leads to.
            real = str(Path(path).parent.resolve() / Path(path).name)
        except ValueError:  # a path with a zero byte leads nowhere
            return
        finally:
            self._is_on = True
        if (real + "/").startswith(self._inside) or real.startswith("/dev/"):
            return
        if what != "reads" or (real.startswith(self._around) and Path(real).is_file()):
            self.found.append(f"{what} {real!r}")


def control_characters(said: str) -> list[str]:
    """Return what in a text a terminal would obey, or would show otherwise than it is."""
    odd = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))} - {"\n", "\t"}
    odd |= {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f", "\u061c", "\u2028"}
    return sorted(odd.union(map(chr, range(0xD800, 0xE000))).intersection(said))
