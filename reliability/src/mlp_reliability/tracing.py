"""System calls: recorded, chosen, and made to kill or to fail, all by strace."""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlp_reliability.programs import Place, Program, Said

CHANGES: Final = (
    "openat,mkdir,mkdirat,write,pwrite64,ftruncate,rename,renameat,renameat2,"
    "link,linkat,unlink,unlinkat,rmdir,fsync,fdatasync"
)
"""The calls that change a disk, or may make a file."""

_ON_FILES: Final = frozenset({"write", "pwrite64", "ftruncate", "fsync", "fdatasync"})
_TEXT: Final = r'"(?:[^"\\]|\\.)*"'


@attrs.frozen
class Call:
    """One system call that was recorded.

    Attributes
    ----------
    pid : str
        The thread that made it.
    name : str
        The call.
    text : str
        Its arguments, as strace shows them.
    result : int
        What it returned.
    """

    pid: str
    name: str
    text: str
    result: int

    def paths(self) -> list[str]:
        """Return the paths in the arguments: those of open files, and texts, taken relative to the folder before."""
        found: list[str] = []
        base = ""
        for opened, text in re.findall(rf"(?:AT_FDCWD|\d+)<([^>]*)>|({_TEXT})", self.text):
            if opened:
                base = opened
                if self.name in _ON_FILES:
                    return [opened]
            else:
                found.append(os.path.join(base, ast.literal_eval(text)))  # noqa: PTH118 # a text, on another disk
        return found

    def data(self) -> bytes:
        """Return the bytes that were written, as many as the call said."""
        text = re.search(_TEXT, self.text)
        content: bytes = ast.literal_eval("b" + text[0]) if text else b""
        return content[: self.result]

    def is_printed(self, calls: Sequence[Call]) -> bool:
        """Tell whether it printed something that the first process of a recording has to say."""
        return self.pid == calls[0].pid and self.name == "write" and self.text.startswith("1<")


@attrs.frozen
class Point:
    """A system call to harm: the `number`-th of its name that a process makes.

    Strace counts in each process anew, so that of several processes each that comes so far is hit.
    """

    name: str
    number: int

    def kill(self) -> list[str]:
        """Return the prefix that kills a program there."""
        return self._inject("signal=SIGKILL", is_fast=False)

    def fail(self, error: str) -> list[str]:
        """Return the prefix that lets the call fail there."""
        return self._inject(f"error={error}", is_fast=True)

    def _inject(self, what: str, *, is_fast: bool) -> list[str]:
        """Return a prefix for a command; the fast one, which stops at no other call, cannot send signals."""
        inject = f"inject={self.name}:{what}:when={self.number}"
        fast = ["--seccomp-bpf"] if is_fast else []
        return ["strace", "-f", *fast, "-o", os.devnull, "-e", f"trace={self.name}", "-e", inject]


def is_available() -> bool:
    """Tell whether there is strace."""
    return shutil.which("strace") is not None


def record(program: Program, place: Place) -> tuple[list[Call], Said]:
    """Run a program to its end, and return its system calls and what it said."""
    log = place.base / "strace.log"
    done = program.run(place, *recording(log))
    if done.returncode:
        raise RuntimeError(f"{program.name} does not even run undisturbed: {done.stderr}")
    return list(read_calls(log)), program.said(done.stdout)


def recording(log: Path) -> list[str]:
    """Return the prefix that records a program's calls in a file."""
    options = ["-f", "--seccomp-bpf", "-o", str(log), "-y", "-s", "1000000", "-e", f"trace={CHANGES}"]
    return ["strace", *options, "-e", "signal=none"]


def points(calls: Sequence[Call], root: Path) -> dict[Point, Call]:
    """Return each point at which some process's call concerns a folder, with the first such call."""
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[Point, Call] = {}
    for call in calls:
        counts[call.pid, call.name] += 1
        if any(Path(path).is_relative_to(root) for path in call.paths()):
            found.setdefault(Point(call.name, counts[call.pid, call.name]), call)
    return found


def read_calls(log: Path) -> Iterator[Call]:
    """Iterate over the calls in a log; those that another process interrupted stand where they ended."""
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        pid, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>")
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>", text)
        if resumed:
            text = begun.pop(pid) + text[resumed.end() :]
        call = re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", text, re.DOTALL)
        if call:
            yield Call(pid, call[1], call[2], int(call[3]))
