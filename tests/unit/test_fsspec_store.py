"""The store `fsspec`: which errors are tried again and which are told, what comes of lost answers, and of secrets."""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import fsspec
import pytest
import s3fs.errors
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from mlp_core.builtin.fsspec_store import filesystems, mlp_open_store, retrying
from mlp_core.builtin.fsspec_store import store as store_module
from mlp_core.builtin.fsspec_store.filesystems import MemoryFilesystem, open_filesystem
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_reliability import fixtures
from mlp_reliability.s3_servers import KEY, SECRET, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlp_reliability.s3_servers import S3Server

moto, seaweedfs = fixtures.moto, fixtures.seaweedfs  # pytest finds them here
_numbers = itertools.count()


def opened(url: str = "", *, retry_seconds: float = 20.0, **options: Any) -> FsspecStore:
    """A store in memory that nobody has used, or another."""
    return FsspecStore(url or f"memory://unit{next(_numbers)}", options, retry_seconds=retry_seconds)


@pytest.fixture
def store() -> Iterator[FsspecStore]:
    """A store in memory."""
    made = opened()
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nobody wait, and tell how long they would have."""
    waited: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", waited.append)
    return waited


@pytest.fixture
def filesystem(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[MemoryFilesystem]], None]:
    """Let stores in memory use another class."""

    def use(kind: type[MemoryFilesystem]) -> None:
        def open_other(url: str, root: str, options: Any) -> MemoryFilesystem:
            return kind(open_filesystem(url, root, options)._fs, root)

        monkeypatch.setattr(store_module, "open_filesystem", open_other)

    return use


# ------------------------------------------------------------------------------------------------------ URLs


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://AKIAKEY:hushhush@bucket/x", "it has credentials"),
        ("s3://hushhush@bucket/x", "it has credentials"),
        ("sftp://me:hushhush@host/x", "it has credentials"),
        ("s3://", "it names no bucket or folder; one looks like s3://bucket/folder"),
        ("s3://bucket/x?signature=hushhush", "it names no bucket or folder"),
        ("s3://bucket/../other", "it names no bucket or folder"),
        ("local:///folder", "a local folder is named by its path"),
        ("oci://bucket", "the library for oci is not installed: pip install ocifs$"),
        ("lakefs://bucket", "the library for lakefs is not installed: pip install lakefs-spec$"),
        ("tape://reel", "neither a plugin nor fsspec knows tape"),
    ],
)
def test_urls_that_are_none(url: str, message: str) -> None:
    """What cannot be a store is refused when it is opened, with the next step and without what may be a secret."""
    with pytest.raises(OSError, match=message) as caught:
        mlp_open_store(url, {})
    assert "hushhush" not in str(caught.value)


def test_missing_library_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without s3fs the message has the extra that brings it."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from mlp_core.builtin.fsspec_store import mlp_open_store\n"
        "try: mlp_open_store('s3://bucket', {})\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "the library for s3 is not installed: pip install 'mlp-core[s3]'" in done.stdout


def test_url_is_the_place_alone() -> None:
    """The URL that is recorded, and how the store is shown, have nothing of its options."""
    made = opened("s3://bucket/a/b/", key="AKIAKEY", token="hushhush", endpoint_url="http://127.0.0.1:1")  # noqa: S106 # none
    assert made.url == "s3://bucket/a/b"
    assert repr(made) == "FsspecStore('s3://bucket/a/b')"
    assert opened("memory://x").url == "memory://x"


def test_opening_starts_and_asks_nothing() -> None:
    """A process that has opened a store, and not used it, can be forked: no thread was started."""
    code = (
        "import threading\n"
        "from mlp_core.builtin.fsspec_store import mlp_open_store\n"
        "store = mlp_open_store('s3://bucket/x', {'storage.options': {'endpoint_url': 'http://127.0.0.1:1'}})\n"
        "store.close()\n"
        "print(threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "1\n"


def test_closing_ends_every_thread(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was used leaves nothing behind that a fork would not survive, and can be used again."""
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)
    before = set(threading.enumerate())
    made = opened("s3://bucket/threads")
    for _ in range(2):
        source = made.staging() / "x"
        source.write_bytes(b"x" * (9 << 20))
        made.adopt(source, "x", sync=False)
        assert made.info("x").size == 9 << 20
        staging = made.staging()
        made.close()
        assert set(threading.enumerate()) == before
        assert not staging.exists()


@pytest.mark.parametrize("key", ["/etc", "a/../b", "a\0"])
def test_keys_that_are_none(store: FsspecStore, key: str) -> None:
    """The last fence: no key leads out of the store."""
    with pytest.raises(OSError, match="no key of this store"):
        store.read(key)


def test_no_locks_and_nothing_that_grows(store: FsspecStore) -> None:
    """What a bucket has not, it says."""
    assert store.local_path("x") is store.open_append("x") is store.lock("x") is None
    assert store.is_locked("x") is False


def test_staging_is_of_this_user(store: FsspecStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for unfinished files that others may write to is not used."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / f"mlp-staging-{os.getuid()}"
    other.mkdir(mode=0o755)
    with pytest.raises(OSError, match="not this user's alone"):
        store.staging()
    other.chmod(0o700)
    assert store.staging().parent == other


# ------------------------------------------------------------------------------------------------------ errors


def s3_error(code: str, status: int) -> Exception:
    """An error of S3 as s3fs raises it."""
    response = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    made: Exception = s3fs.errors.translate_boto_error(botocore.exceptions.ClientError(response, "GetObject"))
    return made


def test_wrong_credentials(seaweedfs: S3Server) -> None:
    """Credentials that the server refuses are told at once, and not shown."""
    made = opened("s3://bucket/x", key=KEY, secret="not" + SECRET, endpoint_url=seaweedfs.endpoint)
    with pytest.raises(PermissionError, match="access denied") as caught:
        made.create("x", b"x", sync=True)
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)
    made.close()


def test_missing_bucket(moto: S3Server) -> None:
    """A bucket that is not there is no empty store: whoever writes, lists or reads a range is told."""
    made = opened("s3://no-such-bucket/x", key=KEY, secret=SECRET, endpoint_url=moto.endpoint)
    for ask in (
        lambda: made.create("x", b"x", sync=True),
        lambda: made.replace("x", b"x", sync=True),
        lambda: list(made.list("")),
        lambda: made.children(""),
    ):
        with pytest.raises(OSError, match="there is no such bucket"):
            ask()
    made.close()


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nobody listens is told, with the address."""
    monkeypatch.setattr(retrying, "_FIRST_ANSWER_SECONDS", 0.3)
    endpoint = f"http://127.0.0.1:{free_port()}"
    made = opened("s3://bucket/x", key=KEY, secret=SECRET, endpoint_url=endpoint)
    with pytest.raises(OSError, match=endpoint):
        made.read("x")
    made.close()


# ------------------------------------------------------------------------------------------------------ faults


class LosingAnswers(MemoryFilesystem):
    """Does what it is asked for, and says that it failed, the first time each."""

    def _lose(self, path: str) -> None:
        seen = self.__dict__.setdefault("seen", set())
        if path not in seen:
            seen.add(path)
            raise ConnectionResetError(errno.ECONNRESET, "the answer was lost")

    def put_new(self, path: str, data: bytes) -> None:
        """Create, and lose the answer, also the one that there is an object."""
        try:
            super().put_new(path, data)
        finally:
            self._lose(path)

    def delete(self, path: str) -> None:
        """Delete, and lose the answer."""
        super().delete(path)
        self._lose(f"{path} deleted")


def test_lost_answers(filesystem: Callable[[type[MemoryFilesystem]], None], quick: list[float]) -> None:
    """A create whose answer was lost finds its own object and says so; an object of another it does not take for it."""
    filesystem(LosingAnswers)
    first = opened("memory://lost")
    assert first.create("x", b"of the first", sync=True) is True
    second = opened("memory://lost")
    assert second.create("x", b"of another", sync=True) is False
    assert second.create("x", b"of the first", sync=True) is True  # it cannot tell: who competes writes who it is
    assert first.read("x") == b"of the first"
    first.delete("x")
    assert first.children("") == []
    assert len(quick) == 3


def test_an_object_that_goes_while_it_is_looked_at(
    filesystem: Callable[[type[MemoryFilesystem]], None], store: FsspecStore
) -> None:
    """A create that found an object which is deleted before it could be read makes its own."""

    class Going(MemoryFilesystem):
        """Deletes what it has just found."""

        def put_new(self, path: str, data: bytes) -> None:
            try:
                super().put_new(path, data)
            except FileExistsError:
                self.delete(path)
                raise

    filesystem(Going)
    store.replace("x", b"old", sync=True)
    assert store.create("x", b"new", sync=True) is True
    assert store.read("x") == b"new"


@pytest.mark.parametrize("heeds", [True, False])
def test_servers_are_asked_by_trying(filesystem: Callable[[type[MemoryFilesystem]], None], *, heeds: bool) -> None:
    """A server that ignores the condition is found out; then a create looks first, and overwrites nothing."""

    class Unknown(MemoryFilesystem):
        """Does not say what it does."""

        @property
        def creates_once(self) -> None:
            return None

        def put_new(self, path: str, data: bytes) -> None:
            if heeds:
                super().put_new(path, data)
            else:
                self.put(path, data)

    filesystem(Unknown)
    for _ in range(2):  # the first asks twice, the second once
        made = opened(f"memory://asked-{heeds}")
        assert made.creates_once is heeds
    assert made.create("x", b"first", sync=True) is True
    assert made.create("x", b"second", sync=True) is False
    assert made.read("x") == b"first"
    assert (made.children(""), [info.key for info in made.list("")]) == (["x"], ["x"])


def test_asking_can_fail(filesystem: Callable[[type[MemoryFilesystem]], None]) -> None:
    """Who may not write is told so when the server is asked."""

    class ReadOnly(MemoryFilesystem):
        """Refuses."""

        creates_once = None

        def put_new(self, path: str, data: bytes) -> None:  # noqa: ARG002 # as the class has it
            raise PermissionError(errno.EACCES, "refused", path)

    filesystem(ReadOnly)
    with pytest.raises(PermissionError, match="refused"):
        _ = opened().creates_once
    with pytest.raises(PermissionError, match="refused"):
        opened().create("x", b"", sync=True)


def test_create_tells_other_failures(filesystem: Callable[[type[MemoryFilesystem]], None]) -> None:
    """A create that failed for another reason than an object raises, and made nothing."""

    class Full(MemoryFilesystem):
        """Is full."""

        def put_new(self, path: str, data: bytes) -> None:  # noqa: ARG002 # as the class has it
            raise OSError(errno.ENOSPC, "full", path)

    filesystem(Full)
    made = opened()
    with pytest.raises(OSError, match="full"):
        made.create("x", b"", sync=True)
    assert made.children("") == []


@pytest.mark.parametrize("seed", range(3))
def test_a_bad_way_changes_nothing(tmp_path: Path, quick: list[float], seed: int) -> None:
    """Whatever fails on the way, or is done and said to have failed: the store does what a dictionary does."""
    made = opened(f"faulty://{tmp_path}/bucket", rate=0.3, seed=seed)
    rng = random.Random(seed)  # noqa: S311 # no secret
    model: dict[str, bytes] = {}
    for number in range(250):
        key = f"{rng.choice('ab')}/{rng.randrange(4)}"
        data = f"{number} ".encode() * rng.choice([1, 5, 100])
        match rng.randrange(7):
            case 0 | 1:
                assert made.create(key, data, sync=True) is (key not in model)
                model.setdefault(key, data)
            case 2:
                made.replace(key, data, sync=False)
                model[key] = data
            case 3:
                made.delete(key)
                model.pop(key, None)
            case 4:
                source = made.staging() / "source"
                source.write_bytes(data)
                made.adopt(source, key, sync=bool(rng.randrange(2)))
                made.sync([key])
                model[key] = data
            case 5:
                with suppress(FileNotFoundError):
                    made.download(key, tmp_path / str(number))
                    assert (tmp_path / str(number)).read_bytes() == model[key]
            case _:
                found = {info.key: info.size for info in made.list("a/")}
                assert found == {name: len(model[name]) for name in model if name.startswith("a/")}
                with suppress(FileNotFoundError):
                    assert made.read(key, 2, 7) == model[key][2:7]
    assert {key: made.read(key) for key in model} == model
    assert len(quick) > 50
    made.close()


# ------------------------------------------------------------------------------------------------------ transfers


@pytest.fixture
def gate(filesystem: Callable[[type[MemoryFilesystem]], None]) -> threading.Event:
    """Let objects come only once the gate is open; one named bad never does."""
    is_open = threading.Event()

    class Gated(MemoryFilesystem):
        """Waits."""

        def put(self, path: str, data: bytes) -> None:
            is_open.wait(20)
            if path.endswith("bad"):
                raise OSError(errno.ENOSPC, "full", path)
            super().put(path, data)

    filesystem(Gated)
    return is_open


def adopt(store: FsspecStore, key: str, data: bytes = b"data") -> Path:
    """Adopt a new file without waiting."""
    source = store.staging() / key.replace("/", "-")
    source.write_bytes(data)
    store.adopt(source, key, sync=False)
    return source


def test_uploads_in_the_background(store: FsspecStore, gate: threading.Event) -> None:
    """An adopt without sync returns before the object is there; whoever asks for it, or below it, waits."""
    source = adopt(store, "a/x")
    assert source.exists()
    seen: dict[str, Any] = {}
    asking = [
        threading.Thread(target=lambda: seen.update(read=store.read("a/x"))),
        threading.Thread(target=lambda: seen.update(children=store.children("a/"))),
        threading.Thread(target=lambda: seen.update(listed=[info.key for info in store.list("")])),
        threading.Thread(target=lambda: seen.update(synced=store.sync(["a/x", "b"]))),
    ]
    for thread in asking:
        thread.start()
    time.sleep(0.05)
    assert seen == {}
    gate.set()
    for thread in asking:
        thread.join()
    assert seen == {"read": b"data", "children": ["x"], "listed": ["a/x"], "synced": None}
    assert not source.exists()


def test_failed_uploads_are_told_once(store: FsspecStore, gate: threading.Event) -> None:
    """The failure of an upload is raised by the sync of its key, which nobody else needs to fear; then it is past."""
    gate.set()
    source = adopt(store, "bad")
    adopt(store, "good")
    with pytest.raises(FileNotFoundError):
        store.read("bad")
    store.sync(["good"])
    with pytest.raises(OSError, match="full"):
        store.sync(["good", "bad"])
    store.sync(["bad"])
    assert not source.exists()
    adopt(store, "bad")
    assert store.create("bad", b"", sync=True) is True  # what is written later, does not fail for what was before
    store.sync(["bad"])


def test_closing_drops_what_has_not_begun(store: FsspecStore, gate: threading.Event) -> None:
    """Uploads that are under way when a store is closed come to their end; the others are dropped."""
    for number in range(10):
        adopt(store, str(number))
    threading.Timer(0.2, gate.set).start()
    url = store.url
    store.close()
    assert len(opened(url).children("")) == store_module._UPLOADS


def test_downloads_are_of_one_object(
    filesystem: Callable[[type[MemoryFilesystem]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that is replaced while it is downloaded comes whole: the old one or the new one, no parts of both."""
    monkeypatch.setattr(store_module, "_RANGE_BYTES", 10)
    replaced = []

    class Replacing(MemoryFilesystem):
        """Replaces an object, once, after its first range was read."""

        def read(self, path: str, start: int, end: int | None) -> bytes:
            data = super().read(path, start, end)
            if start == 10 and not replaced:
                replaced.append(path)
                self.put(path, b"b" * 25)
            return data

    filesystem(Replacing)
    made = opened()
    made.create("x", b"a" * 100, sync=True)
    made.download("x", tmp_path / "x")
    assert replaced
    assert (tmp_path / "x").read_bytes() == b"b" * 25
    made.close()


def test_short_answers_are_no_objects(filesystem: Callable[[type[MemoryFilesystem]], None], tmp_path: Path) -> None:
    """A range that came short is an error, and no file is left."""

    class Short(MemoryFilesystem):
        """Gives less than there is."""

        def read(self, path: str, start: int, end: int | None) -> bytes:
            return super().read(path, start, end)[:-1]

    filesystem(Short)
    made = opened()
    made.create("x", b"data", sync=True)
    with pytest.raises(OSError, match="fewer bytes came"):
        made.download("x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.fixture
def s3(moto: S3Server) -> Iterator[FsspecStore]:
    """A new folder on moto's server, listed seven at a time."""
    made = opened(
        f"s3://bucket/unit{next(_numbers)}",
        key=KEY,
        secret=SECRET,
        endpoint_url=moto.endpoint,
        s3_additional_kwargs={"MaxKeys": 7},
    )
    yield made
    made.close()


def test_long_listings_come_in_pages(s3: FsspecStore, moto: S3Server) -> None:
    """Listings of several pages are whole; what other tools make to have a folder is no object."""
    keys = {f"runs/{number:02d}/x" for number in range(30)}
    for key in keys:
        s3.replace(key, b"", sync=True)
    with moto.filesystem() as plain:
        plain.touch(f"{s3.url}/folder/")
    assert {info.key for info in s3.list("")} == keys
    assert s3.children("runs/") == [f"{number:02d}" for number in range(30)]
    assert s3.children("") == ["folder", "runs"]


@pytest.mark.usefixtures("quick")
def test_pages_are_tried_again_by_themselves(s3: FsspecStore) -> None:
    """A page that fails is asked for again: the listing neither begins anew nor ends early."""
    for number in range(30):
        s3.replace(f"runs/{number:02d}", b"", sync=True)
    files = s3._here.files
    whole = files.objects
    calls = []

    def objects(folder: str, page: str) -> Any:
        calls.append(page)
        if len(calls) % 2:
            raise s3_error("SlowDown", 503)
        return whole(folder, page)

    files.objects = objects  # type: ignore[method-assign] # a fault, planted
    assert len(list(s3.list("runs/"))) == 30
    assert len(calls) == 2 * 5


def parts(store: FsspecStore) -> Any:
    """What a store on S3 uploads parts by."""
    files = store._here.files
    assert isinstance(files, filesystems.PartUploads)
    return files


LARGE = random.Random(1).randbytes(20 << 20)  # noqa: S311 # no secret


@pytest.mark.usefixtures("quick")
def test_parts_are_tried_again_by_themselves(s3: FsspecStore) -> None:
    """A part that fails is sent again, and no other."""
    files = parts(s3)
    whole = files.upload_part
    sent: list[int] = []

    def upload_part(path: str, upload: str, number: int, data: bytes) -> str:
        sent.append(number)
        if sent.count(number) == 1 and number == 2:
            raise s3_error("SlowDown", 503)
        tag: str = whole(path, upload, number, data)
        return tag

    files.upload_part = upload_part
    source = s3.staging() / "large"
    source.write_bytes(LARGE)
    s3.adopt(source, "large", sync=True)
    assert sorted(sent) == [1, 2, 2, 3]
    assert s3.read("large") == LARGE


@pytest.mark.usefixtures("quick")
def test_lost_answer_to_the_end_of_an_upload(s3: FsspecStore) -> None:
    """An upload whose end was carried out and said to have failed is made again, and there in the end."""
    files = parts(s3)
    whole = files.end_upload
    ended = []

    def end_upload(path: str, upload: str, tags: list[str]) -> None:
        ended.append(upload)
        if len(ended) == 2:
            raise s3_error("NoSuchUpload", 404)
        whole(path, upload, tags)
        if len(ended) == 1:
            raise ConnectionResetError(errno.ECONNRESET, "the answer was lost")

    files.end_upload = end_upload
    source = s3.staging() / "large"
    source.write_bytes(LARGE)
    s3.adopt(source, "large", sync=True)
    assert len(ended) == 3, "the end is tried again, fails as the upload is gone, and a new upload ends well"
    assert s3.read("large") == LARGE


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["end_upload", "upload_part"])
@pytest.mark.parametrize(("error", "message"), [(FileNotFoundError("gone"), "no object"), (ValueError("no"), "no")])
def test_uploads_that_fail_leave_no_parts(
    s3: FsspecStore, moto: S3Server, method: str, error: Exception, message: str
) -> None:
    """An upload that is given up leaves neither an object nor parts that somebody would pay for."""
    files = parts(s3)

    def fail(*_: object) -> None:
        raise error

    setattr(files, method, fail)
    source = s3.staging() / "large"
    source.write_bytes(LARGE)
    with pytest.raises(OSError, match=message):
        s3.adopt(source, "large", sync=True)
    assert s3.children("") == []
    assert not source.exists()
    with moto.filesystem() as plain:
        left = plain.call_s3("list_multipart_uploads", Bucket="bucket", Prefix=s3.url.removeprefix("s3://bucket/"))
    assert left.get("Uploads", []) == []


def test_parts_grow_with_the_file() -> None:
    """A file of any size that S3 takes has fewer parts than S3 takes."""
    made = opened("s3://bucket/x", key=KEY, secret=SECRET, endpoint_url="http://127.0.0.1:1")
    files = parts(made)
    for size in (1, 100 << 20, 5 << 40):
        assert size / files.part_size(size) < 10_000
    made.close()


def test_users_options_come_first(moto: S3Server) -> None:
    """What the user says about the connection holds; what is not said is the store's own."""
    options = {"config_kwargs": {"read_timeout": 7}, "endpoint_url": moto.endpoint, "key": KEY, "secret": SECRET}
    made = opened("s3://bucket/options", **options)
    config = made._here.files._fs.connect().meta.config  # type: ignore[attr-defined] # of S3
    assert (config.read_timeout, config.connect_timeout, config.retries["total_max_attempts"]) == (7, 5, 1)
    made.close()


# ------------------------------------------------------------------------------------------------------ others


def test_times_are_read_wherever_they_stand() -> None:
    """Each filesystem calls the time of an object differently."""
    assert filesystems._modified({"mtime": 5}) == 5.0
    assert filesystems._modified({"created": "not a time", "updated": "2026-01-31T00:00:00+00:00"}) == 1769817600.0
    with pytest.raises(OSError, match="does not tell when"):
        filesystems._modified({"name": "x"})


@pytest.mark.parametrize("argument", [{"max_concurrency": 0}, {"config_kwargs": {"no_such_option": 1}}])
def test_a_filesystem_that_cannot_be_opened(argument: dict[str, Any]) -> None:
    """Arguments that a filesystem does not take are told; no thread is left."""
    before = set(threading.enumerate())
    made = opened("s3://bucket/x", **argument)
    with pytest.raises(OSError, match=r"max_concurrency must be|no_such_option"):
        made.read("x")
    made.close()
    assert set(threading.enumerate()) == before


class AsyncFileSystem(AsyncFileSystemWrapper):
    """A filesystem with an event loop."""

    protocol = "unitasync"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(MemoryFileSystem(), **arguments)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("unitasync:").strip("/")


def test_filesystems_with_a_loop_get_one_of_their_own() -> None:
    """Whatever is asynchronous runs in the store's own thread, which ends with it."""
    fsspec.register_implementation("unitasync", AsyncFileSystem, clobber=True)
    before = set(threading.enumerate())
    made = opened("unitasync://loop")
    made.replace("x", b"data", sync=True)
    assert made.read("x", 1, 3) == b"at"
    assert "mlp-store" in {thread.name for thread in set(threading.enumerate()) - before}
    made.close()
    assert set(threading.enumerate()) == before


class StubbornFileSystem(LocalFileSystem):
    """A disk on which nothing gets its name, and nothing can be removed."""

    protocol = "unitdisk"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("unitdisk:"))

    def mv(self, path1: str, path2: str, **_: object) -> None:
        """Refuse."""
        raise OSError(errno.EROFS, f"no {path2} of {path1}")

    def rm_file(self, path: str) -> None:
        """Refuse."""
        raise OSError(errno.EROFS, "no", path)


@pytest.mark.parametrize("size", [1, 9 << 20])
def test_what_cannot_be_published_is_no_object(tmp_path: Path, size: int) -> None:
    """Where objects are seen while they are written, one that never became whole is none."""
    fsspec.register_implementation("unitdisk", StubbornFileSystem, clobber=True)
    made = opened(f"unitdisk://{tmp_path}/store")
    source = made.staging() / "source"
    source.write_bytes(b"x" * size)
    with pytest.raises(OSError, match=r"no .*/x of .*/tmp/"):
        made.adopt(source, "x", sync=True)
    assert (made.children(""), list(made.list(""))) == ([], [])
    made.close()
