"""What a store is after the worst moment: killed, refused by the disk, or cut off from power at any system call.

A program makes a run in a store, and prints a line for whatever has been acknowledged: a script that uses the store
alone, and a flow. It runs under strace, which kills it, or lets a call fail, at a chosen system call; or which records
the calls, from which a model of the disk tells what a power cut at any of them would have left.
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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import MlpError
from mlp_core.store import Store, read_logs
from mlp_core.store.blobs import Blobs
from mlp_core.store.state import RunState
from mlp_core.store.verified import VerifiedFiles

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
        say("finished", run_id, key.path)
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

FLOW = """
from mlp_core import FlowSpec, step


class Flow(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2]
        self.large = bytes(range(250)) * 100
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.part = bytes([self.input]) * 20_000
        print("printed")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.parts = b"".join(each.part for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("printed")


if __name__ == "__main__":
    Flow()
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

    pid: str
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


@attrs.frozen
class Program:
    """What is run on a store.

    Attributes
    ----------
    command : callable
        Returns the command for a store's folder.
    said : callable
        Returns what its output acknowledges, as words.
    check : callable
        Checks what is promised about its tasks, given the blobs and a run's state.
    is_repeatable : bool
        Whether its calls come in the same order each time. Those of several processes do not, so that strace may hit
        another call than the one that was chosen, on a pipe for example.
    """

    command: Callable[[Path], list[str]]
    said: Callable[[str], Said]
    check: Callable[[Blobs, RunState], None]
    is_repeatable: bool

    def run(self, root: Path, *strace: str) -> subprocess.CompletedProcess[str]:
        """Run it, under strace where options for it are given."""
        command = self.command(root)
        if strace:
            command = ["strace", "-f", *strace, *command]
        (root.parents[1] / "project").mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(root.parents[1] / "cache"),
            "XDG_RUNTIME_DIR": str(root.parents[1]),
            "MLP_NO_PLUGINS": "1",
        }
        return subprocess.run(
            command, cwd=root.parents[1] / "project", env=environment, capture_output=True, text=True, check=False
        )

    def record(self, root: Path, log: Path) -> tuple[list[Call], Said]:
        """Run it to its end, and return its system calls and what it said."""
        options = ["-o", str(log), "-y", "-s", "1000000", "-e", f"trace={CHANGES}", "-e", "signal=none"]
        done = self.run(root, *options)
        assert done.returncode == 0, done.stderr
        return list(read_calls(log)), self.said(done.stdout)


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


def said_by_script(output: str) -> Said:
    """Return the lines that the script printed, as words."""
    return [line.split() for line in output.splitlines()]


def said_by_flow(output: str) -> Said:
    """Return what the lines about a run acknowledge: its beginning, its tasks, and its end."""
    said: Said = []
    run_id = ""
    for line in output.splitlines():
        if began := re.search(r" Flow/(\S+) started", line):
            run_id = began[1]
            said.append(["created", run_id])
        elif done := re.search(r" (\w+/\S+) done in ", line):
            said.append(["finished", run_id, done[1]])
        elif re.search(r" Flow/\S+ succeeded in ", line):
            said.append(["ended", run_id])
    return said


def check_script(blobs: Blobs, state: RunState) -> None:
    """Check that what the script's journal names is there, acknowledged or not."""
    for task in state.tasks.values():
        if task.outcome is not None:
            (number,) = task.key.index
            assert blobs.source(task.outcome.assigned["own"]).buffer() == pattern(number)
            assert bytes(blobs.source(task.outcome.assigned["own"]).part("small").buffer()) == b"small"
            assert blobs.source(task.outcome.assigned["shared"]).buffer() == pattern(9)


def check_flow(blobs: Blobs, state: RunState) -> None:
    """Check that what the flow's journal names is there and intact, and that results are right."""
    for task in state.tasks.values():
        for ref in task.outcome.assigned.values() if task.outcome else ():
            blobs.source(ref).buffer()
        if task.outcome and task.key.step == "join":
            assert bytes([1]) * 20_000 + bytes([2]) * 20_000 in bytes(
                blobs.source(task.outcome.assigned["parts"]).buffer()
            )


def script(planted: str = "") -> Program:
    """Return the script, with a mistake planted in it."""
    return Program(
        lambda root: [sys.executable, "-c", SCRIPT, str(root), planted],
        said_by_script,
        check_script,
        is_repeatable=True,
    )


def flow() -> Program:
    """Return the flow."""
    return Program(
        lambda root: [sys.executable, str(root.parents[1] / "flow.py"), "run", "--store", str(root)],
        said_by_flow,
        check_flow,
        is_repeatable=False,
    )


def check(program: Program, root: Path, said: Said) -> None:
    """Check everything that a store promises: it can be read, and whatever was acknowledged is there and intact."""
    if not said:
        return
    store = Store.open(FileStore(root), create=False)
    blobs = Blobs(store.objects, paranoid=True, verified=VerifiedFiles(None))
    runs = {run_id: store.run("Flow", run_id) for run_id in store.run_ids("Flow") if exists(store, run_id)}
    for state in runs.values():
        assert state.status in ("lost", "succeeded", "failed", "cancelled")
        program.check(blobs, state)
    for word, run_id, *rest in said:
        state = runs[run_id]
        if word == "finished":
            assert {key.path: task.status for key, task in state.tasks.items()}[rest[0]] == "succeeded"
        elif word == "tagged":
            assert state.tags == ("tag",)
        elif word == "ended":
            assert state.status == "succeeded"
            printed = b"".join(chunk.data for chunk in read_logs(store.objects, "Flow", run_id))
            assert printed.count(b"printed") == 3
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


def cut_everywhere(program: Program, calls: Sequence[Call], base: Path, target: Path, seed: int | None) -> int:
    """Cut the power after each call that concerns the store, check what is left, and return how often.

    Without a seed only what was synced is left, else by chance more.
    """
    disk = Disk(base)
    chance = None if seed is None else random.Random(seed)  # noqa: S311 # chance, not a secret
    output = b""
    cuts = 0
    for call in calls:
        is_said = call.pid == calls[0].pid and call.name == "write" and call.text.startswith("1<")
        if is_said:
            output += call.data()
        disk.apply(call)
        if is_said or any(disk.has(path) for path in call.paths()):
            disk.cut(target, chance)
            check(program, target / "new" / "store", program.said(output.decode()))
            shutil.rmtree(target)
            cuts += 1
    return cuts


def points(calls: Sequence[Call], root: Path) -> list[tuple[str, int]]:
    """Return each call of the first process that concerns the store, by its name and its number among those.

    Strace counts in each process anew, so that others may be hit too.
    """
    counts: Counter[str] = Counter()
    found = []
    for call in calls:
        if call.pid == calls[0].pid:
            counts[call.name] += 1
            if any(is_below(root, path) for path in call.paths()):
                found.append((call.name, counts[call.name]))
    return found


Recorded = tuple[Program, list[Call], Path]


@pytest.fixture(scope="module", params=[script, flow], ids=["script", "flow"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A program, its calls when nothing disturbs it, and the folder that it ran in."""
    program: Program = request.param()
    base = tmp_path_factory.mktemp("recorded")
    (base / "flow.py").write_text(FLOW)
    program.run(base / "warm" / "store")  # else compiled modules are written on the way
    calls, said = program.record(base / "new" / "store", base / "log")
    assert [words[0] for words in said][:: len(said) - 1] == ["created", "ended"]
    assert len(said) >= 6
    check(program, base / "new" / "store", said)
    return program, calls, base


def test_a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged(recorded: Recorded, tmp_path: Path) -> None:
    """After each system call, when nothing but what was synced survives, all that had been acknowledged is there."""
    program, calls, base = recorded
    assert cut_everywhere(program, calls, base, tmp_path / "left", None) > 50


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_may_leave_any_part_of_what_was_not_synced(recorded: Recorded, tmp_path: Path, seed: int) -> None:
    """Whichever unsynced names and contents survive, in parts or with zeros behind them, no harm is done."""
    program, calls, base = recorded
    cut_everywhere(program, calls, base, tmp_path / "left", seed)


@pytest.mark.parametrize("planted", ["journal", "folders", "new folders", "folders above", "contents", "blobs"])
def test_the_model_of_the_disk_finds_a_missing_sync(tmp_path: Path, planted: str) -> None:
    """Leaving out any kind of sync is noticed: so the tests above show that none is left out."""
    program = script(planted)
    calls, _ = program.record(tmp_path / "new" / "store", tmp_path / "log")
    with pytest.raises((AssertionError, KeyError, MlpError)):
        cut_everywhere(program, calls, tmp_path, tmp_path / "left", None)


def kill_and_go_on(recorded: Recorded, tmp_path: Path, every: int) -> None:
    """Kill a program at every so manieth call, check what is there, and let it run again on the same store."""
    program, calls, base = recorded
    shutil.copy(base / "flow.py", tmp_path)
    killed = 0
    for name, number in points(calls, base / "new" / "store")[::every]:
        root = tmp_path / "new" / "store"
        options = ("-o", os.devnull, "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={number}")
        done = program.run(root, *options)
        said = program.said(done.stdout)
        killed += done.returncode < 0
        check(program, root, said)
        again = program.run(root)
        assert again.returncode == 0, (name, number, again.stdout, again.stderr)
        check(program, root, [*said, *program.said(again.stdout)])
        shutil.rmtree(root.parent)
    assert killed


def test_a_kill_at_some_calls_leaves_a_store_that_goes_on(recorded: Recorded, tmp_path: Path) -> None:
    """Killed at every fortieth call, the store is intact, and a second run on it succeeds."""
    kill_and_go_on(recorded, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_call_leaves_a_store_that_goes_on(recorded: Recorded, tmp_path: Path) -> None:
    """Killed at any call that concerns the store, it is intact, and a second run on it succeeds."""
    kill_and_go_on(recorded, tmp_path, 1)


def fail_and_go_on(recorded: Recorded, tmp_path: Path, every: int) -> None:
    """Let every so manieth call fail; the program ends with one message, and a second run on the store succeeds."""
    program, calls, base = recorded
    shutil.copy(base / "flow.py", tmp_path)
    failing = {"fsync", "fdatasync", "write", "openat", "mkdir", "rename", "link"}
    chosen = [point for point in points(calls, base / "new" / "store") if point[0] in failing][::every]
    errors = [("ENOSPC", "No space left"), ("EIO", "Input/output error"), ("EROFS", "Read-only file system")]
    for turn, (name, number) in enumerate(chosen):
        root = tmp_path / "new" / "store"
        error, text = errors[turn % len(errors)]
        options = ("-o", os.devnull, "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={number}")
        done = program.run(root, *options)
        said = program.said(done.stdout)
        place = (name, number, error, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, place
        if done.returncode == 0:  # where what failed was only to tidy up, or to print
            said.append(["ended", max(path.name for path in (root / "flows" / "Flow").iterdir())])
        elif program.is_repeatable:
            assert text in done.stdout + done.stderr, place
            assert str(root) in done.stdout + done.stderr, place
        check(program, root, said)
        again = program.run(root)
        assert again.returncode == 0, (*place, again.stdout, again.stderr)
        check(program, root, [*said, *program.said(again.stdout)])
        shutil.rmtree(root.parent)


def test_a_disk_that_fails_at_some_calls_is_reported(recorded: Recorded, tmp_path: Path) -> None:
    """A full, failing or read-only disk at some calls gives one clear error, and loses nothing acknowledged."""
    fail_and_go_on(recorded, tmp_path, 24)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_fails_at_any_call_is_reported(recorded: Recorded, tmp_path: Path) -> None:
    """A full, failing or read-only disk at any call gives one clear error, and loses nothing acknowledged."""
    fail_and_go_on(recorded, tmp_path, 1)
