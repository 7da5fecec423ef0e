"""Objects that grow where objects cannot: parts, packs, and the one object that they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlp_core.errors import StoreDamaged, StoreFenced, StoreUnavailable
from mlp_core.store import Store, layout
from mlp_core.store import growing as module
from mlp_core.store.growing import PACK, GrowingReader, GrowingWriter, open_growing, read_growing

if TYPE_CHECKING:
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
