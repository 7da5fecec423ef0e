"""The builtin store on a local folder: atomic, durable where asked, private, safe with forks and dead processes."""

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

from mlp_core.builtin.file_store import FileStore, mlp_backends, mlp_open_store

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    """A store in a folder that is not there yet."""
    opened = FileStore(tmp_path / "store")
    yield opened
    opened.close()


def run_python(code: str, *arguments: object) -> str:
    """Run code in a new process and return what it printed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start code in a new process whose output can be read."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and wait until it is gone."""
    process.kill()
    process.communicate()


def test_create_writes_an_object_once(store: FileStore) -> None:
    """The first create wins; a second one changes nothing and says so."""
    assert store.create("a/b", b"first", sync=True)
    assert not store.create("a/b", b"second", sync=True)
    assert store.read("a/b") == b"first"


def test_create_has_exactly_one_winner_among_processes(tmp_path: Path) -> None:
    """Of processes that create the same keys at once, exactly one wins each, and its content is what stays."""
    code = """
import sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
store = FileStore(Path(sys.argv[1]))
for number in range(100):
    if store.create(f"race/{number}", sys.argv[2].encode(), sync=False):
        print(number)
store.close()
"""
    racers = [start_python(code, tmp_path / "s", name) for name in range(4)]
    won = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(100))
    store = FileStore(tmp_path / "s")
    for name, numbers in enumerate(won):
        assert all(store.read(f"race/{number}") == str(name).encode() for number in numbers)


def test_replace_takes_the_place_of_an_object(store: FileStore) -> None:
    """Replace makes an object and then changes it."""
    store.replace("x", b"one", sync=False)
    store.replace("x", b"two", sync=True)
    assert store.read("x") == b"two"


def test_read_returns_ranges(store: FileStore) -> None:
    """Ranges are half open and end where the object does."""
    store.create("x", b"0123456789", sync=False)
    assert store.read("x", 3) == b"3456789"
    assert store.read("x", 3, 5) == b"34"
    assert store.read("x", 8, 50) == b"89"
    assert store.read("x", 50, 60) == b""


def test_absent_objects_raise_file_not_found(store: FileStore) -> None:
    """Reading, describing and syncing what is not there raises FileNotFoundError; deleting it does nothing."""
    with pytest.raises(FileNotFoundError):
        store.read("x")
    with pytest.raises(FileNotFoundError):
        store.info("x")
    with pytest.raises(FileNotFoundError):
        store.sync(["x"])
    store.delete("x")
    store.create("folder/x", b"", sync=False)
    with pytest.raises(FileNotFoundError):
        store.info("folder")


def test_listing_shows_what_is_stored_and_nothing_else(store: FileStore) -> None:
    """Children are the names one level down, list goes to any depth, and unfinished files are in neither."""
    assert store.children("") == []
    assert list(store.list("a/")) == []
    for key in ("a/1", "a/b/2", "c"):
        store.create(key, b"xy", sync=False)
    (store.staging() / "unfinished").write_bytes(b"")
    assert store.children("") == ["a", "c"]
    assert store.children("a/") == ["1", "b"]
    assert sorted((info.key, info.size) for info in store.list("")) == [("a/1", 2), ("a/b/2", 2), ("c", 2)]
    store.delete("a/b/2")
    assert [info.key for info in store.list("a/")] == ["a/1"]


def test_info_tells_size_and_time(store: FileStore) -> None:
    """Size is in bytes, time in seconds since the epoch."""
    store.create("x", b"123", sync=False)
    info = store.info("x")
    assert (info.key, info.size) == ("x", 3)
    assert abs(info.modified_at - time.time()) < 60


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """Files are 0600 and folders 0700, adopted files too."""
    code = """
import os, sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
os.umask(0)
store = FileStore(Path(sys.argv[1]))
store.create("a/b", b"", sync=True)
store.replace("a/c", b"", sync=True)
store.open_append("a/d").close()
with store.lock("a/e"):
    pass
made = store.staging() / "made"
made.write_bytes(b"")
made.chmod(0o666)
store.adopt(made, "f/g", sync=True)
"""
    run_python(code, tmp_path / "store")
    modes = {path: path.stat().st_mode & 0o777 for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]}
    assert len(modes) == 9
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


def test_adopt_moves_a_file_in(store: FileStore) -> None:
    """The file is gone from where it was and stands in for an earlier object of the key."""
    store.create("x", b"old", sync=True)
    source = store.staging() / "new"
    source.write_bytes(b"new")
    store.adopt(source, "x", sync=False)
    store.sync(["x"])
    assert store.read("x") == b"new"
    assert not source.exists()


def test_append_adds_in_order(store: FileStore) -> None:
    """What is appended stands behind what was there, also after opening anew."""
    for text in (b"one ", b"two "):
        file = store.open_append("log")
        file.append(text, sync=False)
        file.append(text, sync=True)
        file.close()
    assert store.read("log") == b"one one two two "


def test_a_fork_can_neither_append_nor_keep_the_lock(tmp_path: Path) -> None:
    """A forked child is refused, leaves the parent's offset alone, and does not hold the lock when the parent dies."""
    code = """
import os, signal, sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
store = FileStore(Path(sys.argv[1]))
file = store.open_append("log")
file.append(b"parent\\n", sync=True)
lock = store.lock("lock")
assert lock.__enter__()
child = os.fork()
if child == 0:
    try:
        file.append(b"child\\n", sync=True)
        os.write(1, b"appended\\n")
    except OSError as error:
        os.write(1, f"refused {error.errno}\\n".encode())
    store.close()
    signal.pause()
file.append(b"parent again\\n", sync=True)
os.write(1, f"child {child}\\n".encode())
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start_python(code, tmp_path)
    lines = sorted(read_line(process).split() for _ in range(2))
    process.wait()
    child = int(lines[0][1])
    try:
        assert lines == [["child", str(child)], ["refused", str(errno.EPERM)]]
        store = FileStore(tmp_path)
        assert store.read("log") == b"parent\nparent again\n"
        assert not store.is_locked("lock")
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_nothing_is_appended_after_a_failed_sync(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that failed once may have lost what it could not write, so the file refuses everything from then on."""
    file = store.open_append("log")

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output") as caught:
            file.append(b"lost", sync=True)
    assert caught.value.errno == errno.EIO
    assert caught.value.filename.endswith("log")
    with pytest.raises(OSError, match="at an earlier sync, so nothing more is written"):
        file.append(b"more", sync=False)
    file.close()


def test_a_failed_write_leaves_no_object_and_no_unfinished_file(tmp_path: Path) -> None:
    """Where there is no room, create and replace raise, and nothing of what they began stays."""
    code = """
import resource, sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
store = FileStore(Path(sys.argv[1]))
store.replace("kept", b"old", sync=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (store.create, store.replace):
    try:
        write("kept" if write == store.replace else "x", bytes(5000), sync=True)
    except OSError as error:
        print(error.errno)
print(store.children(""), store.read("kept"), list(store.staging().iterdir()))
"""
    printed = run_python(code, tmp_path / "s")
    assert printed.split("\n")[:3] == [str(errno.EFBIG)] * 2 + ["['kept'] b'old' []"]


def test_a_lock_has_one_holder_and_ends_with_its_process(tmp_path: Path) -> None:
    """The second taker is told that it is not free; asking does not disturb; a killed holder's lock is free again."""
    code = """
import sys, time
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
with FileStore(Path(sys.argv[1])).lock("run/lock") as free:
    print(free, flush=True)
    time.sleep(60)
"""
    store = FileStore(tmp_path)
    assert not store.is_locked("run/lock")
    holder = start_python(code, tmp_path)
    assert read_line(holder) == "True"
    assert store.is_locked("run/lock")
    with store.lock("run/lock") as free:
        assert not free
    assert store.is_locked("run/lock")
    kill(holder)
    assert not store.is_locked("run/lock")
    with store.lock("run/lock") as free:
        assert free
        assert store.is_locked("run/lock")  # also for its own process
    assert not store.is_locked("run/lock")


def test_what_dead_processes_left_unfinished_is_removed_later(tmp_path: Path) -> None:
    """A folder of unfinished files goes when its process is dead and it is old; that of a live process stays."""
    code = """
import sys, time
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
store = FileStore(Path(sys.argv[1]))
folder = store.staging()
(folder / "big").write_bytes(b"x")
print(folder, flush=True)
time.sleep(60)
"""
    started = [start_python(code, tmp_path) for _ in range(3)]
    live, dead, recent = (Path(read_line(process)) for process in started)
    kill(started[1])
    kill(started[2])
    for folder in (live, dead):
        os.utime(folder, (0, 0))
    store = FileStore(tmp_path)
    own = store.staging()
    assert {folder.exists() for folder in (live, recent, own)} == {True}
    assert not dead.exists()
    store.close()
    assert not own.exists()
    kill(started[0])


def test_a_process_that_ends_leaves_no_folder_behind(tmp_path: Path) -> None:
    """Where nobody closes the store, the folder goes at the process's end, and a fork's end leaves it to its owner."""
    code = """
import os, sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
store = FileStore(Path(sys.argv[1]))
(store.staging() / "unfinished").write_bytes(b"")
if os.fork() == 0:
    store.staging()  # another one: its own
    sys.exit()
os.wait()
print(len(list(store.staging().parent.iterdir())), (store.staging() / "unfinished").exists())
"""
    assert run_python(code, tmp_path) == "1 True\n"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a\0b"])
def test_keys_that_lead_outside_are_refused(store: FileStore, key: str) -> None:
    """Whatever the core let through, no key leads out of the folder."""
    with pytest.raises(OSError, match="no key of this store"):
        store.read(key)
    with pytest.raises(OSError, match="no key of this store"):
        store.create(key, b"", sync=False)


@pytest.mark.parametrize("name", ["plain", "with space", "per%20cent", "ha#sh?", "ünï"])
def test_a_store_is_opened_again_by_its_url(tmp_path: Path, name: str) -> None:
    """The URL names the folder whatever characters it has; a plain path does too."""
    first = FileStore(tmp_path / name)
    first.create("x", b"1", sync=False)
    assert mlp_open_store(first.url, {}).read("x") == b"1"
    assert mlp_open_store(str(tmp_path / name), {}).read("x") == b"1"
    first.close()


def test_a_url_of_another_host_is_refused() -> None:
    """A file URL with a host is a mistake, and the message shows the right form."""
    with pytest.raises(OSError, match="file:///path"):
        mlp_open_store("file://server/share", {})


def test_the_backend_is_declared() -> None:
    """The plugin provides the store named file."""
    assert [(backend.kind, backend.name) for backend in mlp_backends()] == [("store", "file")]
