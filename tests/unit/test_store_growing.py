"""Objects that grow where objects cannot: parts, packs, and the one object that they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import StoreDamaged, StoreFenced, StoreUnavailable
from mlp_core.store import Store, layout
from mlp_core.store import growing as module
from mlp_core.store.growing import PACK, GrowingReader, GrowingWriter, open_growing, read_growing

if TYPE_CHECKING:
    from pathlib import Path

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
