"""What the tests of provisioning do in processes of their own: ``python provisioner.py ACTION FOLDER [ARGUMENT]``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_hookspecs.provisioning import LOCK, make_once, remove

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "an environment, 100%"
FILES = 30
NOBODY = 65534

# The half of the files that a tool makes, which a builder starts and hands its lock to.
HELPER = """
echo helper begins >> "$2"
for number in $(seq "$3" "$4"); do echo whole > "$1/$number" || exit; sleep 0.005; done
echo helper ends >> "$2"
"""


def is_whole(target: Path) -> bool:
    """Tell whether an environment is there; like a backend's it looks at one file, which is made first."""
    return (target / "0").is_file()


def build(staging: Path, descriptor: int) -> None:
    """Make the files, some here and some in a process that holds the lock, and note when."""
    log = staging.with_name("log")
    note(log, "builder begins")
    staging.mkdir()
    for number in range(FILES // 2):
        (staging / str(number)).write_text("whole\n")
        time.sleep(0.002)
    start_helper(staging, log, descriptor).wait()
    note(log, "builder ends")


def start_helper(staging: Path, log: Path, descriptor: int) -> subprocess.Popen[bytes]:
    """Start a process that makes files and holds the lock."""
    command = ["sh", "-c", HELPER, "helper", str(staging), str(log), str(FILES // 2), str(FILES - 1)]
    return subprocess.Popen(command, pass_fds=[descriptor])


def note(log: Path, text: str) -> None:
    """Add a line to a log."""
    with log.open("a") as file:
        file.write(text + "\n")


def is_locked(target: Path) -> bool:
    """Tell whether somebody holds the lock of an environment."""
    with target.with_name(LOCK.format(target.name)).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def one(folder: Path) -> None:
    """Make the environment."""
    make_once(folder / NAME, build, is_whole)


def crowd(folder: Path, size: str) -> None:
    """Make the environment in many processes that begin at the same moment."""
    wait, go = os.pipe()
    for _ in range(int(size)):
        if os.fork() == 0:
            os.close(go)
            os.read(wait, 1)
            status = 1
            try:
                one(folder)
                status = 0 if len(list((folder / NAME).iterdir())) == FILES else 3
            finally:
                os._exit(status)
    os.close(go)
    assert {os.wait()[1] for _ in range(int(size))} == {0}, "not everybody has got a whole environment"


def stray(folder: Path) -> None:
    """Fork while the lock is held, as a thread of the process may do at any time, and outlive the making."""
    wait, go = os.pipe()

    def build_and_fork(staging: Path, descriptor: int) -> None:
        build(staging, descriptor)
        if os.fork() == 0:
            os.close(go)
            os.read(wait, 1)  # until the parent ends
            os._exit(0)

    make_once(folder / NAME, build_and_fork, is_whole)
    assert not is_locked(folder / NAME), "a process that was forked meanwhile keeps the lock"


def failing(folder: Path) -> None:
    """Fail while a helper is still writing: the next builder waits for it."""

    def fail(staging: Path, descriptor: int) -> None:
        staging.mkdir()
        helpers.append(start_helper(staging, staging.with_name("log"), descriptor))
        raise RuntimeError("an error of the builder's own")

    helpers: list[subprocess.Popen[bytes]] = []
    with contextlib.suppress(RuntimeError):
        make_once(folder / NAME, fail, is_whole)
    one(folder)
    assert helpers[0].poll() is not None, "the lock was free while a helper was writing"


def read_only(folder: Path) -> None:
    """Make an environment as somebody who is not root, try to write to it, and remove it."""
    target = folder / NAME
    make_once(target, _build_oddly, is_whole)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            assert not path.stat().st_mode & 0o222, f"{path} is left writable"
    attempts: dict[str, Callable[[], object]] = {
        "write a file": lambda: (target / "0").write_text("changed"),
        "add a file": lambda: (target / "inner" / "new").write_text("new"),
        "remove a file": (target / "inner" / "script").unlink,
        "rename a folder": lambda: (target / "inner").rename(target / "outer"),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except PermissionError:
            continue
        raise AssertionError(f"one can {what}")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (target / "inner").iterdir()}
    assert modes == {"script": 0o555, "hidden": 0o000, "closed": 0o500, "odd": 0o4550}
    remove(target)
    assert not target.exists()


def _build_oddly(staging: Path, _: int) -> None:
    """Make files and folders of all modes, and links out of the environment."""
    inner = staging / "inner"
    (inner / "closed").mkdir(parents=True)
    (staging / "0").write_text("whole")
    (inner / "closed" / "file").write_text("deep")
    modes = {"script": 0o777, "hidden": 0o000, "odd": 0o4750}
    for name, mode in modes.items():
        (inner / name).write_text(name)
        (inner / name).chmod(mode)
    (inner / "closed").chmod(0o000)
    (staging / "dangling").symlink_to("nowhere")


def others_links(folder: Path) -> None:
    """Make an environment with a link to a file of somebody else."""

    def link(staging: Path, _: int) -> None:
        staging.mkdir()
        os.link(folder / "cached", staging / "0")
        (staging / "own").write_text("mine")

    make_once(folder / NAME, link, is_whole)
    assert not (folder / NAME / "own").stat().st_mode & 0o222, "what follows on the link is left writable"


def unremovable(folder: Path) -> None:
    """Fail, and leave what cannot be removed."""

    def fail(staging: Path, _: int) -> None:
        (staging / "inner").mkdir(parents=True)
        folder.chmod(0o500)
        raise RuntimeError("an error of the builder's own")

    try:
        make_once(folder / NAME, fail, is_whole)
    except RuntimeError:
        folder.chmod(0o700)
        one(folder)
        return
    raise AssertionError("the builder's error did not come through")


def replace(folder: Path) -> None:
    """Make an environment anew that is read-only and cannot be used any more."""
    one(folder)
    (folder / NAME).chmod(0o700)
    (folder / NAME / "0").unlink()
    (folder / NAME).chmod(0o500)
    one(folder)
    assert len(list((folder / NAME).iterdir())) == FILES


def drop_privileges(folder: Path) -> Path:
    """Be nobody where the tests are root, and return the folder as a path that nobody can follow."""
    import_module("ctypes")  # which provisioning imports later, and may be out of nobody's reach
    os.chdir(folder)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return Path()


AS_ANYBODY = (one, crowd, stray, failing)
AS_NOBODY = (others_links, read_only, replace, unremovable)

if __name__ == "__main__":
    action, place, *arguments = sys.argv[1:]
    folder_of_test = Path(place)
    if action in {function.__name__ for function in AS_NOBODY}:
        folder_of_test = drop_privileges(folder_of_test)
    {function.__name__: function for function in (*AS_ANYBODY, *AS_NOBODY)}[action](folder_of_test, *arguments)  # type: ignore[operator] # each has its own arguments
