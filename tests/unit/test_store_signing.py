"""A signed record is accepted at its place, as it was written, with the key it was signed with, and no other way."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.errors import SettingError
from mlp_core.store.records import Note, ObserverFailed, RunEnded, TagsChanged, decode_line, encode_line
from mlp_core.store.signing import SHORTEST_KEY, Signatures, Signer, must_be_signed, signer_for
from mlp_hookspecs import PluginId

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
PLACE = "flows/Flow/20260131-094500-123456/journal"
RECORD = Note("kind", 'some "text" } with ,"mac":" in it', 1.5)


def signed(number: int = 3, place: str = PLACE, key: bytes = KEY) -> bytes:
    """Return a signed line without its newline."""
    return Signer(key).sign(encode_line(RECORD, number), place).removesuffix(b"\n")


def test_a_signed_line_is_still_a_line() -> None:
    """Who knows nothing of signatures reads the record as ever."""
    assert decode_line(signed()) == (3, RECORD)
    assert signed().count(b"\n") == 0


def test_what_was_signed_is_accepted() -> None:
    """The same key accepts the line at its place."""
    assert Signer(KEY).accepts(signed(), PLACE)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (signed(key=KEY[::-1]), PLACE),
        (signed(), PLACE.replace("Flow", "Other")),
        (signed(), PLACE.replace("123456", "123457")),
        (signed(), PLACE.replace("journal", "segments/task.start.0")),
        (encode_line(RECORD, 3).removesuffix(b"\n"), PLACE),
        (signed().replace(b'"n":3', b'"n":4'), PLACE),
        (signed() + b" ", PLACE),
        (signed()[:-2] + b"]}", PLACE),
        (b"", PLACE),
        (b'00000000 ,"mac":"' + b"0" * 64 + b'"}', PLACE),
    ],
    ids=[
        "key",
        "flow",
        "run",
        "object",
        "unsigned",
        "number",
        "longer",
        "brackets",
        "empty",
        "nothing but a signature",
    ],
)
def test_what_was_not_signed_like_this_is_refused(line: bytes, place: str) -> None:
    """Another key, run, object or position, and a line without a signature, are not accepted."""
    assert not Signer(KEY).accepts(line, place)


@given(st.integers(0), st.integers(1, 255))
def test_no_changed_byte_is_accepted(position: int, change: int) -> None:
    """Whatever byte of the record or its signature is changed, the line is refused; the checksum is not signed."""
    line = bytearray(signed())
    place = 9 + position % (len(line) - 9)
    line[place] ^= change
    assert not Signer(KEY).accepts(bytes(line), PLACE)


def test_a_signature_does_not_move_to_another_line() -> None:
    """Of two signed lines no mixture is accepted."""
    first, second = signed(1), signed(2)
    assert not Signer(KEY).accepts(first[:-75] + second[-75:], PLACE)


def test_what_leads_to_content_must_be_signed() -> None:
    """Tags and what observers did wrong may come from whoever has no key; all else, even what is not known, may not."""
    free = (TagsChanged((), (), "user", 1.0), ObserverFailed(PluginId("p", "d", "1"), "e", "m", 1.0))
    assert not any(must_be_signed(record) for record in free)
    assert all(must_be_signed(record) for record in (RECORD, RunEnded("succeeded"), None))


def test_keys_come_from_a_variable_or_a_private_file(tmp_path: Path) -> None:
    """Both kinds of reference lead to the same signatures; none means none."""
    file = tmp_path / "key"
    file.write_text("k" * 32 + "\n")
    file.chmod(0o600)
    for signer in (signer_for("env:KEY", {"KEY": "k" * 32 + "\n"}), signer_for(f"file:{file}")):
        assert signer is not None
        assert signer.accepts(signed(key=b"k" * 32), PLACE)
        assert repr(signer) == "<Signer>"
    assert signer_for(None) is None
    assert signer_for("") is None


def test_a_reference_that_leads_to_no_key_is_refused(tmp_path: Path) -> None:
    """The message says what is wrong, and never shows what may be the key itself."""
    readable = tmp_path / "readable"
    readable.write_text("k" * 32)
    readable.chmod(0o644)
    key = random.Random(1).randbytes(32).hex()  # noqa: S311 # any text will do
    for reference, message in (
        ("env:KEY", "variable KEY .* is not set"),
        (f"file:{tmp_path / 'absent'}", "cannot be read"),
        (f"file:{readable}", "others may use the file"),
        ("env:SHORT", f"fewer than {SHORTEST_KEY} bytes"),
        (key, "neither env:NAME nor file:PATH"),
        ("env:", "neither env:NAME nor file:PATH"),
        ("file:", "neither env:NAME nor file:PATH"),
        (f"other:{tmp_path}", "neither env:NAME nor file:PATH"),
    ):
        with pytest.raises(SettingError, match=message) as caught:
            signer_for(reference, {"SHORT": "k" * (SHORTEST_KEY - 1)})
        assert key not in str(caught.value)


def test_signatures_are_watched_at_their_places() -> None:
    """One record without its signature is enough; those that need none, and a reader without a key, change nothing."""
    assert Signatures(None).watch(PLACE) is None
    watched = Signatures(Signer(KEY))
    look = watched.watch(PLACE)
    assert look is not None
    look(signed(), RECORD)
    look(b"00000000 {}", TagsChanged((), (), "user", 1.0))
    assert watched.are_good
    look(signed(place="elsewhere"), RECORD)
    assert not watched.are_good
    look(signed(), RECORD)
    assert not watched.are_good


def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    """A file that others may read is to be closed to them; for all else the hint tells what a reference looks like."""
    file = tmp_path / "key"
    file.write_text("k" * SHORTEST_KEY)
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(SettingError) as caught:
            signer_for(f"file:{file}")
        assert caught.value.hint == f"chmod 600 {file}"
    file.chmod(0o400)
    assert signer_for(f"file:{file}") is not None
    with pytest.raises(SettingError, match="cannot be read: No such file or directory") as caught:
        signer_for(f"file:{tmp_path / 'absent'}")
    assert "give env:NAME or file:PATH" in caught.value.hint


def test_the_process_has_variables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless others are given, the variables are those of the process."""
    monkeypatch.setenv("SOME_KEY", "k" * 32)
    signer = signer_for("env:SOME_KEY")
    assert signer is not None
    assert signer.accepts(signed(key=b"k" * 32), PLACE)
