"""Trees of processes: killed whole, ended with their launcher, watched over by a guard."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlp_hookspecs import trees

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and adopts descendants")

FAMILY = """
import os, signal, subprocess, sys, time
from mlp_hookspecs.trees import *

def note(name):
    with open(f"{sys.argv[1]}/.{name}", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{sys.argv[1]}/.{name}", f"{sys.argv[1]}/{name}")

def daemon(name):
    # Twice forked, in a session of its own, deaf to all polite signals: as far from its origin as a process can go.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            note(name)
            time.sleep(600)
        os._exit(0)
    os.wait()
    while not os.path.exists(f"{sys.argv[1]}/{name}"):
        time.sleep(0.01)
"""


def start(code: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a program that leads a process group."""
    return subprocess.Popen([sys.executable, "-c", FAMILY + code, str(folder)], process_group=0)


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def pid_of(folder: Path, name: str) -> int:
    """Return the id that a process has noted."""
    wait_for((folder / name).exists)
    return int((folder / name).read_text())


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, or only its entry in the table is left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("os._exit(250)", 250),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_guard_ends_as_its_child_does(tmp_path: Path, ending: str, status: int) -> None:
    """However the guarded process ends, so does the guard, and what the process has left behind is gone by then."""
    process = start(f"guard(); daemon('left'); note('child'); {ending}", tmp_path)
    assert process.wait() == status
    assert pid_of(tmp_path, "child") != process.pid
    assert is_gone(pid_of(tmp_path, "left"))


def test_guard_passes_requests_to_end_on(tmp_path: Path) -> None:
    """The guarded process gets the signal as if it had been sent to it, and may take its time."""
    code = """
guard()
def end(number, frame):
    time.sleep(0.2)
    note("cleaned")
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
note("ready")
time.sleep(600)
"""
    process = start(code, tmp_path)
    pid_of(tmp_path, "ready")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 5
    assert (tmp_path / "cleaned").exists()


def test_guard_kills_everything_when_its_launcher_dies(tmp_path: Path) -> None:
    """A launcher that is killed takes the worker, its children and its daemons with it."""
    code = """
if os.fork() == 0:
    guard()
    daemon("daemon")
    if os.fork() == 0:
        note("child")
        time.sleep(600)
    note("worker")
    time.sleep(600)
time.sleep(600)
"""
    process = start(code, tmp_path)
    pids = [pid_of(tmp_path, name) for name in ("daemon", "child", "worker")]
    process.kill()
    process.wait()
    for pid in pids:
        wait_for(lambda pid=pid: is_gone(pid), 5)


def test_killing_the_tree_of_a_guard_leaves_nothing(tmp_path: Path) -> None:
    """A guard's daemons are among its descendants, so that killing its tree finds them."""
    process = start("guard(); daemon('daemon'); note('worker'); time.sleep(600)", tmp_path)
    pids = [pid_of(tmp_path, name) for name in ("daemon", "worker")]
    from mlp_hookspecs.trees import descendants, kill_tree

    assert set(pids) == set(descendants(process.pid))
    assert descendants(process.pid, without=pids) == []
    kill_tree(process.pid)
    assert process.wait() == -signal.SIGKILL
    for pid in pids:
        wait_for(lambda pid=pid: is_gone(pid), 5)


def test_killing_orphans_spares_the_known(tmp_path: Path) -> None:
    """A process that adopts orphans kills those, with all below them, and not the children that it knows."""
    code = """
adopt_orphans()
known = os.fork()
if known == 0:
    note("known")
    time.sleep(600)
middle = os.fork()
if middle == 0:
    daemon("orphan")
    os._exit(0)
os.waitpid(middle, 0)
while not os.path.exists(sys.argv[1] + "/known") or not os.path.exists(sys.argv[1] + "/orphan"):
    time.sleep(0.01)
kill_orphans([known])
os.wait()
note("done")
time.sleep(600)
"""
    process = start(code, tmp_path)
    pid_of(tmp_path, "done")
    assert is_gone(pid_of(tmp_path, "orphan"))
    assert not is_gone(pid_of(tmp_path, "known"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_death_with_the_parent(tmp_path: Path) -> None:
    """A process that asked for it is signalled when its parent has gone."""
    code = """
if os.fork() == 0:
    die_with_parent()
    note("child")
    time.sleep(600)
time.sleep(600)
"""
    process = start(code, tmp_path)
    child = pid_of(tmp_path, "child")
    process.kill()
    process.wait()
    wait_for(lambda: is_gone(child), 5)


def test_lifeline(tmp_path: Path) -> None:
    """Where the system has no such signal, the end of a pipe does the same."""
    code = """
import mlp_hookspecs.trees as trees
trees._prctl = lambda: None
guard()
die_with_parent()
note("child")
time.sleep(600)
"""
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY + code, str(tmp_path)],
        process_group=0,
        pass_fds=[read_end],
        env={**os.environ, "MLP_WORKER_LIFELINE": str(read_end)},
    )
    os.close(read_end)
    assert pid_of(tmp_path, "child") == process.pid
    os.close(write_end)
    assert process.wait() == -signal.SIGKILL


def test_guard_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Where launcher, guard and worker are killed at once, what the worker has started is found and ended as well."""
    code = """
if os.fork() == 0:
    note("guard")
    guard()
    daemon("daemon")
    if os.fork() == 0:
        os.setsid()
        note("child")
        time.sleep(600)
    note("worker")
    time.sleep(600)
time.sleep(600)
"""
    process = start(code, tmp_path)
    worker, guardian, *left = [pid_of(tmp_path, name) for name in ("worker", "guard", "daemon", "child")]
    for pid in (process.pid, guardian, worker):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    for pid in left:
        wait_for(lambda pid=pid: is_gone(pid), 10)


def test_nobody_stands_by_for_what_has_ended(tmp_path: Path) -> None:
    """A guard that has come to its end takes with it the process that would have done its work."""
    process = start("guard(); note('child')", tmp_path)
    assert process.wait() == 0
    wait_for(lambda: not running_with(str(tmp_path)))


def test_guard_of_a_launcher_that_has_gone(tmp_path: Path) -> None:
    """A launcher that died before its worker could ask to be told of that is known to be dead by its lifeline."""
    read_end, write_end = os.pipe()
    os.close(write_end)
    code = "guard(int(sys.argv[2])); daemon('daemon'); note('worker'); time.sleep(600)"
    command = [sys.executable, "-c", FAMILY + code, str(tmp_path), str(read_end)]
    process = subprocess.Popen(command, process_group=0, pass_fds=[read_end])
    os.close(read_end)
    process.wait()
    wait_for(lambda: not running_with(str(tmp_path)))


def test_guard_holds_no_file(tmp_path: Path) -> None:
    """Who reads what the worker has open, under whichever number, sees its end though the guard is still there."""
    code = """
import resource
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(2000, most), most) if most > 0 else (2000, most))
os.dup2(int(sys.argv[2]), 1900)
os.close(int(sys.argv[2]))
guard()
os.close(1900)
note("worker")
time.sleep(600)
"""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-c", FAMILY + code, str(tmp_path), str(write_end)]
    process = subprocess.Popen(command, process_group=0, pass_fds=[write_end])
    os.close(write_end)
    try:
        pid_of(tmp_path, "worker")
        os.set_blocking(read_end, False)
        wait_for(lambda: has_ended(read_end), 10)
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait()
        os.close(read_end)


def test_killed_tree_does_not_grow(tmp_path: Path) -> None:
    """A process that starts others, in sessions of their own, for as long as it lives is killed with all of them."""
    from mlp_hookspecs.trees import kill_tree

    code = """
adopt_orphans()
note("worker")
while True:
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    time.sleep(0.001)
"""
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = start(code, folder)
        pid_of(folder, "worker")
        time.sleep(0.1)
        kill_tree(process.pid)
        process.wait()
        wait_for(lambda folder=folder: not running_with(f"{folder}"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.EACCES])
def test_descendants_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where no file can be opened, no descendant is known, and that is no error."""
    from mlp_hookspecs.trees import descendants

    def refused(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", refused)
    found = descendants(os.getppid())
    monkeypatch.undo()
    assert found == []
    assert os.getpid() in descendants(os.getppid())


def test_lifeline_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lifeline is this process's own once it was taken: what it starts inherits neither descriptor nor variable."""
    from mlp_hookspecs.trees import LIFELINE_FD, take_lifeline

    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)  # noqa: FBT003 # the standard library's signature
    monkeypatch.setenv(LIFELINE_FD, str(read_end))
    assert take_lifeline() == read_end
    assert not os.get_inheritable(read_end)
    assert take_lifeline() is None
    for fd in (read_end, write_end):
        os.close(fd)
    for text in (str(read_end), "-1", "none"):
        monkeypatch.setenv(LIFELINE_FD, text)
        assert take_lifeline() is None
        assert LIFELINE_FD not in os.environ


def running_with(argument: str) -> list[int]:
    """Return the processes that have an argument on their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in words and not is_gone(int(entry.name)):
            found.append(int(entry.name))
    return found


def has_ended(fd: int) -> bool:
    """Tell whether a pipe that does not block has no writer any more."""
    try:
        return os.read(fd, 1) == b""
    except BlockingIOError:
        return False


def test_a_process_that_does_not_lead_its_group_yet_is_killed() -> None:
    """One that was forked a moment ago may not have come to that."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    assert os.getpgid(pid) != pid
    trees.kill_tree(pid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
