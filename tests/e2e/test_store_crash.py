"""What a store is after the worst moment: killed, refused by the disk, or cut off from power at any system call.

A small script makes a run in a store and prints a line for whatever has been acknowledged. It runs under strace, which
kills it, or lets a call fail, at a chosen system call; or which records the calls, from which a model of the disk tells
what a power cut at any of them would have left.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import MlpError
from mlp_core.store import Store, read_logs
from mlp_core.store.blobs import Blobs
from mlp_core.store.verified import VerifiedFiles
from mlp_hookspecs.types import TaskKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

SCRIPT = """
import os, sys, time
from pathlib import Path
from mlp_core.builtin import file_store
from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreError
from mlp_core.store import *
from mlp_hookspecs.types import *

root, planted = Path(sys.argv[1]), sys.argv[2]
real_sync = file_store._sync
if planted == "journal":
    file_store._sync_data = lambda fd, path: None
elif planted == "folders":
    FileStore._sync_folders = lambda self, folders: None
elif planted == "new folders":
    FileStore._sync_folders = lambda self, folders: [
        real_sync(os.open(folder, os.O_RDONLY), folder) for folder in folders]
elif planted == "folders above":
    FileStore._make_folder = lambda self, folder: folder.mkdir(parents=True, exist_ok=True)
elif planted == "contents":
    file_store._sync = lambda fd, path: real_sync(fd, path) if path.is_dir() else None
elif planted == "blobs":
    Blobs.sync = lambda self: None

def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")

def pattern(number):
    return bytes(range(number, 250)) * 100

try:
    store = Store.open(FileStore(root), create=True)
    graph = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
    writer = store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, graph), time.time())
    run_id = writer.began.run.run_id
    say("created", run_id)
    blobs = store.blobs(inline_bytes=100)
    for number in range(3):
        key = TaskKey("start", (number,))
        writer.write([AttemptStarted(key, 0, "local", 1.0)], sync=False)
        target = blobs.target("bytes")
        target.write([pattern(number)])
        target.part("small").write([b"small"])
        shared = blobs.target("bytes")
        shared.write([pattern(9)])
        refs = {"own": target.finish("bytes", sync=False), "shared": shared.finish("bytes", sync=False)}
        blobs.sync()
        writer.log(f"start/{number}/0", "stdout", b"printed", float(number))
        writer.write([AttemptFinished(key, 0, StepOutcome("succeeded", refs), time=2.0)])
        say("finished", run_id, number)
    if store.add_segment("Flow", run_id, "tags-1", TagsChanged(("tag",), (), "me", 3.0)):
        say("tagged", run_id)
    store.objects.replace("pointer", run_id.encode() * 10, sync=True)
    say("pointed", run_id)
    writer.write([RunEnded("succeeded", "", 9.0, 3)])
    writer.close()
    say("ended", run_id)
    store.close()
except StoreError as error:
    sys.stderr.write(f"{type(error).__name__}: {error}")
    sys.exit(3)
"""

CHANGES = (
    "openat,mkdir,mkdirat,write,pwrite64,ftruncate,rename,renameat,renameat2,"
    "link,linkat,unlink,unlinkat,rmdir,fsync,fdatasync"
)

Said = list[list[str]]


def pattern(number: int) -> bytes:
    """Return the content that the script stores under a number."""
    return bytes(range(number, 250)) * 100


@attrs.frozen
class Call:
    """One system call that strace recorded."""

    name: str
    text: str
    result: int

    def paths(self) -> list[str]:
        """Return the paths in the arguments: those of open files, and texts, taken relative to the folder before."""
        found: list[str] = []
        base = ""
        for opened, text in re.findall(r'(?:AT_FDCWD|\d+)<([^>]*)>|("(?:[^"\\]|\\.)*")', self.text):
            if opened:
                base = opened
                if self.name in ("write", "pwrite64", "ftruncate", "fsync", "fdatasync"):
                    return [opened]
            else:
                found.append(os.path.join(base, ast.literal_eval(text)))  # noqa: PTH118 # a text, on another disk
        return found

    def data(self) -> bytes:
        """Return the bytes that were written, as many as the call said."""
        text = re.search(r'"(?:[^"\\]|\\.)*"', self.text)
        assert text is not None
        content: bytes = ast.literal_eval("b" + text[0])
        return content[: self.result]


def run_script(root: Path, *strace: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script on a store, under strace where options for it are given."""
    command = [sys.executable, "-c", SCRIPT, str(root), planted]
    if strace:
        command = ["strace", "-f", *strace, *command]
    environment = {**os.environ, "XDG_CACHE_HOME": str(root.parents[1] / "cache")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def record(root: Path, log: Path, planted: str = "") -> tuple[list[Call], Said]:
    """Run the script to its end and return its system calls and what it said."""
    options = ["-o", str(log), "-y", "-s", "1000000", "-e", f"trace={CHANGES}", "-e", "signal=none"]
    done = run_script(root, *options, planted=planted)
    assert done.returncode == 0, done.stderr
    return list(read_calls(log)), said_in(done.stdout)


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
            yield Call(call[1], call[2], int(call[3]))


def said_in(output: str) -> Said:
    """Return the lines that were printed, as words."""
    return [line.split() for line in output.splitlines()]


def check(root: Path, said: Said) -> None:
    """Check everything that a store promises: it can be read, and whatever was acknowledged is there and intact."""
    if not said:
        return
    store = Store.open(FileStore(root), create=False)
    blobs = Blobs(store.objects, paranoid=True, verified=VerifiedFiles(None))
    runs = {run_id: store.run("Flow", run_id) for run_id in store.run_ids("Flow") if exists(store, run_id)}
    for state in runs.values():
        assert state.status in ("lost", "succeeded")
        for task in state.tasks.values():
            if task.outcome is not None:  # what the journal names is durable, acknowledged or not
                (number,) = task.key.index
                assert blobs.source(task.outcome.assigned["own"]).buffer() == pattern(number)
                assert bytes(blobs.source(task.outcome.assigned["own"]).part("small").buffer()) == b"small"
                assert blobs.source(task.outcome.assigned["shared"]).buffer() == pattern(9)
    for word, run_id, *rest in said:
        state = runs[run_id]
        if word == "finished":
            assert state.tasks[TaskKey("start", (int(rest[0]),))].status == "succeeded"
        elif word == "tagged":
            assert state.tags == ("tag",)
        elif word == "ended":
            assert state.status == "succeeded"
            assert [chunk.data for chunk in read_logs(store.objects, "Flow", run_id)] == [b"printed"] * 3
    pointed = [words[1] for words in said if words[0] == "pointed"]
    if pointed:
        content = store.objects.read("pointer").decode()
        assert content in {run_id * 10 for run_id in runs}
    store.close()


def exists(store: Store, run_id: str) -> bool:
    """Tell whether a run's folder holds a run."""
    return "journal" in store.objects.children(f"flows/Flow/{run_id}/")


def is_below(folder: Path, path: str) -> bool:
    """Tell whether a path is a folder or in it."""
    return Path(path).is_relative_to(folder)


class Disk:
    """What a power cut leaves, as strictly as POSIX allows.

    Content is safe once its file is synced, and a name once its folder is. Of all else any part may be there or not.

    Parameters
    ----------
    base : Path
        The folder, safe and empty, that the store is made in.
    """

    def __init__(self, base: Path) -> None:
        """Make the disk."""
        self.base = base
        self.root = Folder()

    def apply(self, call: Call) -> None:
        """Carry out a call, where it succeeded and concerns this disk."""
        if call.result < 0 or not any(self.has(path) for path in call.paths()):
            return
        path = call.paths()[-1]
        if call.name in ("fsync", "fdatasync"):
            self.node(path).sync()
            return
        if call.name == "openat" and "O_CREAT" not in call.text:
            return
        folder, name = self.parent(path)
        if call.name == "openat":
            folder.now.setdefault(name, File())
        elif call.name in ("mkdir", "mkdirat"):
            folder.now[name] = Folder()
        elif call.name in ("write", "pwrite64"):
            file = folder.now[name]
            assert isinstance(file, File)
            file.now += call.data()  # every file of a store is written from its beginning to its end
        elif call.name in ("rename", "renameat", "renameat2", "link", "linkat"):
            source, old = self.parent(call.paths()[0])
            folder.now[name] = source.now[old]
            if call.name.startswith("rename"):
                del source.now[old]
        else:
            assert call.name in ("unlink", "unlinkat", "rmdir"), call
            del folder.now[name]

    def has(self, path: str) -> bool:
        """Tell whether a path is on this disk: the folder itself, or what the store is in."""
        return path == str(self.base) or is_below(self.base / "new", path)

    def node(self, path: str) -> File | Folder:
        """Return what is at a path."""
        node: File | Folder = self.root
        for name in Path(path).relative_to(self.base).parts:
            assert isinstance(node, Folder)
            node = node.now[name]
        return node

    def parent(self, path: str) -> tuple[Folder, str]:
        """Return the folder that a path is in, and its name there."""
        folder = self.node(str(Path(path).parent))
        assert isinstance(folder, Folder)
        return folder, Path(path).name

    def cut(self, target: Path, chance: random.Random | None) -> None:
        """Write into an empty folder what is left: only what is safe, or by chance more."""
        write_folder(self.root, target, chance)


@attrs.define(eq=False)
class File:
    """A file: its content now, and what of it is safe."""

    now: bytes = b""
    safe: bytes = b""

    def sync(self) -> None:
        """Make the content safe."""
        self.safe = self.now

    def left(self, chance: random.Random | None) -> bytes:
        """Return what a power cut leaves: the safe part, and of the rest some, with zeros behind it."""
        if chance is None:
            return self.safe
        rest = self.now[len(self.safe) :]
        kept = chance.choice([0, len(rest), chance.randint(0, len(rest))])
        return self.safe + rest[:kept] + bytes(chance.choice([0, len(rest) - kept]))


@attrs.define(eq=False)
class Folder:
    """A folder: its names now, and which of them are safe."""

    now: dict[str, File | Folder] = attrs.Factory(dict)
    safe: dict[str, File | Folder] = attrs.Factory(dict)

    def sync(self) -> None:
        """Make the names safe."""
        self.safe = self.now.copy()


def write_folder(folder: Folder, target: Path, chance: random.Random | None) -> None:
    """Write a folder as it is left."""
    target.mkdir(parents=True)
    for name in {**folder.safe, **folder.now}:
        left = folder.safe.get(name)
        if chance is not None:
            left = chance.choice([left, folder.now.get(name)])
        if isinstance(left, Folder):
            write_folder(left, target / name, chance)
        elif left is not None:
            (target / name).write_bytes(left.left(chance))


def cut_everywhere(calls: Sequence[Call], base: Path, target: Path, chance: random.Random | None) -> int:
    """Cut the power after each call that concerns the store, check what is left, and return how often."""
    disk = Disk(base)
    said: Said = []
    cuts = 0
    for call in calls:
        if call.name == "write" and call.text.startswith("1<"):
            said += said_in(call.data().decode())
        disk.apply(call)
        if call.text.startswith("1<") or any(disk.has(path) for path in call.paths()):
            disk.cut(target, chance)
            check(target / "new" / "store", said)
            shutil.rmtree(target)
            cuts += 1
    return cuts


def points(calls: Sequence[Call], root: Path) -> list[tuple[str, int]]:
    """Return each call that concerns the store, by its name and its number among all calls of that name."""
    counts: Counter[str] = Counter()
    found = []
    for call in calls:
        counts[call.name] += 1
        if any(is_below(root, path) for path in call.paths()):
            found.append((call.name, counts[call.name]))
    return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], Path]:
    """The script's calls when nothing disturbs it, and the folder that it ran in."""
    base = tmp_path_factory.mktemp("recorded")
    run_script(base / "warm" / "store")  # else compiled modules are written on the way
    calls, said = record(base / "new" / "store", base / "log")
    assert [words[0] for words in said] == ["created", *["finished"] * 3, "tagged", "pointed", "ended"]
    check(base / "new" / "store", said)
    return calls, base


def test_a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged(
    recorded: tuple[list[Call], Path], tmp_path: Path
) -> None:
    """After each system call, when nothing but what was synced survives, all that had been acknowledged is there."""
    calls, base = recorded
    assert cut_everywhere(calls, base, tmp_path / "left", None) > 100


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_may_leave_any_part_of_what_was_not_synced(
    recorded: tuple[list[Call], Path], tmp_path: Path, seed: int
) -> None:
    """Whichever unsynced names and contents survive, in parts or with zeros behind them, no harm is done."""
    calls, base = recorded
    cut_everywhere(calls, base, tmp_path / "left", random.Random(seed))  # noqa: S311 # chance, not a secret


@pytest.mark.parametrize("planted", ["journal", "folders", "new folders", "folders above", "contents", "blobs"])
def test_the_model_of_the_disk_finds_a_missing_sync(tmp_path: Path, planted: str) -> None:
    """Leaving out any kind of sync is noticed: so the tests above show that none is left out."""
    calls, _ = record(tmp_path / "new" / "store", tmp_path / "log", planted)
    with pytest.raises((AssertionError, KeyError, MlpError)):
        cut_everywhere(calls, tmp_path, tmp_path / "left", None)


def kill_and_go_on(recorded: tuple[list[Call], Path], tmp_path: Path, every: int) -> None:
    """Kill the script at every so manieth call, check what is there, and let it run again on the same store."""
    calls, base = recorded
    chosen = points(calls, base / "new" / "store")[::every]
    assert chosen
    for name, number in chosen:
        root = tmp_path / "new" / "store"
        done = run_script(
            root, "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={number}"
        )
        said = said_in(done.stdout)
        assert done.returncode != 0, (name, number)
        assert not said or said[-1][0] != "ended" or name in ("unlinkat", "rmdir", "openat"), (name, number)
        check(root, said)
        again = run_script(root)
        assert again.returncode == 0, (name, number, again.stderr)
        check(root, [*said, *said_in(again.stdout)])
        shutil.rmtree(root.parent)


def test_a_kill_at_some_calls_leaves_a_store_that_goes_on(recorded: tuple[list[Call], Path], tmp_path: Path) -> None:
    """Killed at every twenty-fifth call, the store is intact, and a second run on it succeeds."""
    kill_and_go_on(recorded, tmp_path, 25)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_call_leaves_a_store_that_goes_on(recorded: tuple[list[Call], Path], tmp_path: Path) -> None:
    """Killed at any call that concerns the store, it is intact, and a second run on it succeeds."""
    kill_and_go_on(recorded, tmp_path, 1)


def fail_and_go_on(recorded: tuple[list[Call], Path], tmp_path: Path, every: int) -> None:
    """Let every so manieth call fail with a full and a failing disk; the script ends with the store's own error."""
    calls, base = recorded
    failing = {"fsync", "fdatasync", "write", "openat", "mkdir", "rename", "link"}
    chosen = [point for point in points(calls, base / "new" / "store") if point[0] in failing][::every]
    for turn, (name, number) in enumerate(chosen):
        root = tmp_path / "new" / "store"
        number_of_error, kind = [("ENOSPC", "StoreFull"), ("EIO", "StoreError"), ("EROFS", "StoreUnavailable")][
            turn % 3
        ]
        done = run_script(
            root, "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:error={number_of_error}:when={number}"
        )
        said = said_in(done.stdout)
        place = (name, number, number_of_error)
        if done.returncode == 0:  # where what failed was only to tidy up
            assert said[-1][0] == "ended", place
        else:
            assert done.returncode == 3, (place, done.stderr)
            assert done.stderr.startswith(kind), (place, done.stderr)
            assert str(root) in done.stderr, (place, done.stderr)
        check(root, said)
        again = run_script(root)
        assert again.returncode == 0, (place, again.stderr)
        check(root, [*said, *said_in(again.stdout)])
        shutil.rmtree(root.parent)


def test_a_disk_that_fails_at_some_calls_is_reported(recorded: tuple[list[Call], Path], tmp_path: Path) -> None:
    """A full, failing or read-only disk at some calls gives one clear error, and loses nothing acknowledged."""
    fail_and_go_on(recorded, tmp_path, 16)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_fails_at_any_call_is_reported(recorded: tuple[list[Call], Path], tmp_path: Path) -> None:
    """A full, failing or read-only disk at any call gives one clear error, and loses nothing acknowledged."""
    fail_and_go_on(recorded, tmp_path, 1)
