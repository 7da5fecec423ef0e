"""Objects that grow where objects cannot: parts, packs, and the one object that they become."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreDamaged, StoreFenced, StoreUnavailable
from mlp_core.store import Store, layout
from mlp_core.store import growing as module
from mlp_core.store.growing import PACK, GrowingReader, GrowingWriter, open_growing, read_growing

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_reliability.counting import CountingBucket

KEY = layout.journal("Flow", "19700101-000000-000000")


@pytest.mark.parametrize("parts", [0, 1, PACK - 1, PACK, PACK + 1, 3 * PACK + 5])
def test_parts_read_as_what_was_appended(bucket: CountingBucket, parts: int) -> None:
    """However many parts there are, and whether they are sealed or not, a reader gets what was appended, in order."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    follower = GrowingReader(bucket, KEY)
    expected = b""
    for number in range(parts):
        piece = b"%d," % number
        writer.append(piece, sync=True)
        expected += piece
        if number % 50 == 0:
            assert follower.size() == len(expected)
            assert follower.read() == expected
    assert follower.size() == len(expected)
    if parts:
        assert read_growing(bucket, KEY) == expected
        assert read_growing(bucket, KEY, 3) == expected[3:]
    assert writer.seal()
    assert bucket.read(KEY) == expected
    for reader in (follower, GrowingReader(bucket, KEY)):
        assert reader.size() == len(expected)
        assert reader.read(1, 4) == expected[1:4]
        assert reader.read(2) == expected[2:]
        assert reader.read() == expected
    writer.close()
    assert not list(bucket.staging().iterdir())


def test_nothing_is_there_where_nothing_was_written(bucket: CountingBucket) -> None:
    """An object without a part is absent, also to who looks again."""
    reader = GrowingReader(bucket, KEY)
    assert reader.size() == reader.size() == 0
    assert not reader.exists
    with pytest.raises(FileNotFoundError):
        read_growing(bucket, KEY)


def test_late_readers_need_few_requests(bucket: CountingBucket) -> None:
    """Who comes late reads packs, and who follows asks for the next part alone."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for number in range(10 * PACK + 3):
        writer.append(b"%d," % number, sync=True)
    assert bucket.requests["create"] == 10 * PACK + 3 + 10
    bucket.requests.clear()
    reader = GrowingReader(bucket, KEY)
    reader.size()
    assert bucket.requests["read"] == 10 + 3
    assert bucket.requests["list"] == 1
    bucket.requests.clear()
    assert reader.size() == reader.size()
    assert bucket.requests == {"read": 2}


def test_a_missing_part_is_damage(bucket: CountingBucket) -> None:
    """What comes after a part that is gone is not passed over in silence, in parts and in packs."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for number in range(3 * PACK):
        writer.append(b"%d," % number, sync=True)
    bucket.delete(layout.part(KEY, 0, 5))
    assert len(GrowingReader(bucket, KEY).read()) == len(writer_content(3 * PACK))  # a pack has it
    bucket.delete(layout.part(KEY, 1, 0))
    with pytest.raises(StoreDamaged, match=r"part 5 of .* is missing"):
        GrowingReader(bucket, KEY).read()


def writer_content(parts: int) -> bytes:
    """Return what a test's writer has written."""
    return b"".join(b"%d," % number for number in range(parts))


def test_what_need_not_be_durable_waits(bucket: CountingBucket) -> None:
    """Small records that need no sync do not cost a request each; a flush shows them."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for _ in range(100):
        writer.append(b"x", sync=False)
    assert bucket.requests["create"] == 0
    writer.flush()
    writer.flush()
    assert bucket.requests["create"] == 1
    assert read_growing(bucket, KEY) == b"x" * 100


def test_a_second_writer_is_told_so(bucket: CountingBucket) -> None:
    """Of two who take themselves for the owner, the one that comes second is refused, and then for ever."""
    first = open_growing(bucket, KEY, buffers=True)
    first.append(b"1", sync=True)
    second = open_growing(bucket, KEY, buffers=True)
    second.append(b"2", sync=True)
    with pytest.raises(StoreFenced, match="taken over"):
        first.append(b"3", sync=True)
    with pytest.raises(StoreUnavailable, match="earlier write"):
        first.append(b"4", sync=True)
    assert read_growing(bucket, KEY) == b"12"


def test_much_content_is_kept_in_a_file(bucket: CountingBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of much holds little of it in memory, and reads it all the same."""
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    writer = GrowingWriter(bucket, KEY, buffers=True)
    reader = GrowingReader(bucket, KEY)
    for number in range(40):
        writer.append(b"%02d" % number * 5, sync=True)
        assert reader.size() == 10 * (number + 1)
        assert reader.read(10 * number, 10 * number + 2) == b"%02d" % number
    assert reader.read() == b"".join(b"%02d" % number * 5 for number in range(40))


def test_packs_and_seals_may_fail(bucket: CountingBucket) -> None:
    """What only saves readers time costs nothing where it does not work."""
    guarded = Store.open(bucket, create=True).objects
    writer = GrowingWriter(guarded, KEY, buffers=True)
    for number in range(PACK - 1):
        writer.append(b"%d," % number, sync=True)
    writer._pack()  # of too few: none
    bucket.failing = {"adopt"}
    assert not writer.seal()
    assert read_growing(bucket, KEY) == writer_content(PACK - 1)


@pytest.mark.parametrize("parts", [PACK - 1, PACK, PACK + 1])
def test_who_takes_an_object_up_goes_on_with_its_packs(bucket: CountingBucket, parts: int) -> None:
    """A pack that was begun by another writer is completed only where all of it is known; readers need none."""
    first = open_growing(bucket, KEY, buffers=True)
    for number in range(parts):
        first.append(b"%d," % number, sync=True)
    second = open_growing(bucket, KEY, buffers=True)
    for number in range(parts, 3 * PACK):
        second.append(b"%d," % number, sync=True)
    assert read_growing(bucket, KEY) == writer_content(3 * PACK)
    packs = bucket.children(layout.parts(KEY) + "1/")
    assert list(packs) == [f"{number:08d}" for number in ((0, 1, 2) if parts < PACK else (0, 2))]
    assert bucket.read(layout.part(KEY, 1, 0)) == writer_content(PACK)


def test_a_removed_object_has_no_bytes(bucket: CountingBucket) -> None:
    """Who follows an object that was sealed and then removed is told that it is gone."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    writer.append(b"x", sync=True)
    writer.seal()
    reader = GrowingReader(bucket, KEY)
    assert (reader.size(), reader.exists) == (1, True)
    bucket.delete(KEY)
    assert (reader.size(), reader.exists) == (0, False)


def test_pieces_of_a_sealed_object_are_read_a_block_at_a_time(bucket: CountingBucket) -> None:
    """Many small reads of one object are few requests, whatever their order; none is of other bytes."""
    content = bytes(range(250)) * 10_000
    bucket.create(KEY, content, sync=False)
    reader = GrowingReader(bucket, KEY)
    reader.size()
    bucket.requests.clear()
    for start in range(0, 500_000, 1000):
        assert reader.read(start, start + 7) == content[start : start + 7]
    assert bucket.requests["read"] == 1
    assert reader.read(2_000_000, 2_000_003) == content[2_000_000:2_000_003]
    assert reader.read(1_999_999, 2_000_003) == content[1_999_999:2_000_003]
    assert reader.read(0, 2_400_000) == content[:2_400_000]
    assert reader.read(2_400_000) == content[2_400_000:]
    assert bucket.requests["read"] == 5


def test_an_append_file_is_used_where_there_is_one(tmp_path: Path) -> None:
    """A store whose objects can grow needs no parts."""
    objects = FileStore(tmp_path)
    file = open_growing(objects, KEY, buffers=True)
    file.append(b"12", sync=True)
    file.close()
    assert read_growing(objects, KEY, 1) == b"2"
    assert objects.children("parts/") == []
    objects.close()


def test_parts_are_durable_and_packs_too(bucket: CountingBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is made of an object is made durable at once."""
    asked: list[bool] = []
    for name in ("create", "adopt"):
        real = getattr(bucket, name)

        def spy(*given: object, sync: bool, real: Callable[..., object] = real) -> object:
            asked.append(sync)
            return real(*given, sync=sync)

        monkeypatch.setattr(bucket, name, spy)
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for _ in range(PACK):
        writer.append(b"x", sync=True)
    assert writer.seal() is True
    assert asked == [True] * (PACK + 2)


def test_what_waits_is_sealed_too(bucket: CountingBucket) -> None:
    """Sealing writes out what was not written yet; letting go drops it, with the file that it was gathered in."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    writer.append(b"1", sync=True)
    writer.append(b"2", sync=False)
    assert writer.seal()
    assert bucket.read(KEY) == bucket.read(layout.part(KEY, 0, 0)) + bucket.read(layout.part(KEY, 0, 1)) == b"12"
    other = GrowingWriter(bucket, KEY, buffers=True)
    other.append(b"3", sync=False)
    other.close()
    assert list(bucket.staging().iterdir()) == []
    assert bucket.requests["create"] == 2


def test_whoever_does_not_gather_writes_at_once(bucket: CountingBucket) -> None:
    """Without gathering, what need not be durable is a part of its own all the same."""
    writer = GrowingWriter(bucket, KEY, buffers=False)
    writer.append(b"1", sync=False)
    writer.append(b"2", sync=False)
    assert bucket.requests["create"] == 2


def test_a_last_part_alone_may_be_missing(bucket: CountingBucket) -> None:
    """That the last part is not there is as if it had never been; one before it that is not there is damage."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for number in range(4):
        writer.append(b"%d," % number, sync=True)
    bucket.delete(layout.part(KEY, 0, 3))
    assert GrowingReader(bucket, KEY).read() == writer_content(3)
    bucket.delete(layout.part(KEY, 0, 1))
    with pytest.raises(StoreDamaged, match="part 1 of"):
        GrowingReader(bucket, KEY).size()


@pytest.mark.parametrize("last", [PACK, PACK + 1])
def test_a_part_behind_a_pack_is_read(bucket: CountingBucket, last: int) -> None:
    """Parts whose pack was made are not asked for; the first one behind them is, also where it is the only one."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    for number in range(last):
        writer.append(b"%d," % number, sync=True)
    bucket.requests.clear()
    reader = GrowingReader(bucket, KEY)
    assert reader.read() == writer_content(last)
    assert reader.parts == last
    assert bucket.requests["read"] == 1 + last - PACK


def test_whether_objects_can_grow_is_told_without_making_any(bucket: CountingBucket, tmp_path: Path) -> None:
    """A store is asked by an object that is there in every store; nothing stays open."""
    objects = FileStore(tmp_path / "folder")
    before = len(list(Path("/dev/fd").iterdir()))
    assert module.can_append(objects) is True
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert objects.children("") == [layout.FORMAT]
    assert module.can_append(bucket) is False
    objects.close()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 40])
def test_objects_are_read_in_order(bucket: CountingBucket, tmp_path: Path, count: int) -> None:
    """However many there are, they come one after the other; from afar several are read at once, where there are."""
    for objects, is_far in ((bucket, True), (FileStore(tmp_path / "folder"), False)):
        keys = [f"k{number}" for number in range(count)]
        for key in keys:
            objects.create(key, key.encode(), sync=False)
        readers = set()
        for content in module.read_all(Named(objects, readers), tuple(keys)):  # type: ignore[arg-type] # it needs no more
            assert content == keys.pop(0).encode()
        assert keys == []
        assert any(name.startswith("mlp-read") for name in readers) == (is_far and count > 1)
        assert len(readers) <= 16


class Named:
    """A store that writes down which threads read it."""

    def __init__(self, inner: FileStore, readers: set[str]) -> None:
        """Wrap a store."""
        self.local_path = inner.local_path
        self._inner = inner
        self._readers = readers

    def read(self, key: str) -> bytes:
        """Read, and write down who does."""
        self._readers.add(threading.current_thread().name)
        time.sleep(0.001)
        return self._inner.read(key)


def test_what_was_kept_is_read_at_any_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory or in a file, ranges are what they are in the whole, also empty ones."""
    for limit in (4, 5, 100):
        monkeypatch.setattr(module, "_IN_MEMORY", limit)
        kept = module._Kept()
        kept.add(b"01234")
        assert (kept._file is None) == (limit >= 5)
        kept.add(b"56789")
        assert kept.size == 10
        for start in range(11):
            for end in (*range(11), None):
                assert kept.read(start, end) == b"0123456789"[start:end]


def test_much_is_kept_in_a_file_from_16_mib_on(bucket: CountingBucket) -> None:
    """What a reader holds in memory has a bound."""
    writer = GrowingWriter(bucket, KEY, buffers=True)
    reader = GrowingReader(bucket, KEY)
    for size, is_file in ((16 * 2**20, False), (1, True)):
        writer.append(bytes(size), sync=True)
        reader.size()
        assert (reader._content._file is not None) == is_file


def test_what_a_reader_knows_of_an_object_that_comes_and_goes(tmp_path: Path) -> None:
    """It is there from the first look that finds it until one that does not."""
    with contextlib.closing(FileStore(tmp_path / "store")) as objects:
        reader = GrowingReader(objects, "log")
        assert not reader.exists
        objects.create("log", b"text", sync=False)
        assert (reader.size(), reader.exists) == (4, True)
        objects.delete("log")
        assert (reader.size(), reader.exists) == (0, False)
