"""Small objects that may be replaced: their checksum tells a damaged one, and one that lies under another's key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.errors import StoreDamaged
from mlp_core.store.checked import CHECKSUM_BYTES, with_checksum, without_checksum

KEY = "deployments/local/Flow/active"


@given(st.binary(max_size=50))
def test_what_was_stored_is_returned(data: bytes) -> None:
    """Any content comes back, and the checksum adds the bytes that it says."""
    stored = with_checksum(KEY, data)
    assert len(stored) == len(data) + CHECKSUM_BYTES
    assert without_checksum(KEY, stored, "file:///store") == data


@given(st.binary(min_size=1, max_size=50), st.data())
def test_a_changed_byte_is_damage(data: bytes, drawn: st.DataObject) -> None:
    """A change of any one byte is told, with the key and the store."""
    stored = bytearray(with_checksum(KEY, data))
    stored[drawn.draw(st.integers(0, len(stored) - 1))] ^= drawn.draw(st.integers(1, 255))
    with pytest.raises(StoreDamaged, match=r"deployments/local/Flow/active in file:///store is damaged"):
        without_checksum(KEY, bytes(stored), "file:///store")


@pytest.mark.parametrize("stored", [b"", b"{", b"{'no': json}", b"[" * 100_000, with_checksum("other", b"content")])
def test_what_is_something_else_is_damage(stored: bytes) -> None:
    """Nothing, half an object, what only begins like one, and another key's object are refused."""
    with pytest.raises(StoreDamaged):
        without_checksum(KEY, stored, "file:///store")


def test_format_1_had_no_checksum() -> None:
    """A JSON object of a store of format 1 is taken as it is."""
    assert without_checksum(KEY, b'{"version": 3}', "file:///store") == b'{"version": 3}'


def test_deep_nesting_is_damage_and_no_crash() -> None:
    """Something that begins like JSON and is nested more deeply than Python can follow is refused like the rest."""
    with pytest.raises(StoreDamaged):
        without_checksum(KEY, b'{"a":' * 200_000, "file:///store")
