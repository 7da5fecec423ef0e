"""What the system's errors mean for a store, and how a store that cannot be opened is told."""

from __future__ import annotations

import errno
import os

import pytest

from mlp_core.errors import StoreError, StoreFull, StoreUnavailable
from mlp_core.store.faults import opened, store_error, translated


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, StoreUnavailable),
        (errno.EROFS, StoreUnavailable),
        (errno.EMFILE, StoreError),
        (errno.EIO, StoreError),
    ],
)
def test_each_error_has_a_meaning(number: int, kind: type[StoreError]) -> None:
    """A full store, one that cannot be used, and one that fails are three things; each names the place."""
    error = store_error(OSError(number, os.strerror(number)), "the place")
    assert type(error) is kind
    assert "the place" in error.message
    assert os.strerror(number) in error.message
    assert type(store_error(OSError(number, os.strerror(number), "its own"), "the place")) is kind


def test_absence_passes_where_something_is_read() -> None:
    """Absence stays FileNotFoundError for who reads, and is the store's error for who makes something."""
    with pytest.raises(FileNotFoundError), translated("there"):
        raise FileNotFoundError(errno.ENOENT, "absent")
    with pytest.raises(StoreUnavailable), translated("there", absence_passes=False):
        raise FileNotFoundError(errno.ENOENT, "absent")


@pytest.mark.parametrize("url", ["a\0b", "bad \udc00 name \ud800"])
def test_what_cannot_be_a_place_is_refused(url: str) -> None:
    """A name that no system takes is refused before anything is opened."""
    with pytest.raises(StoreUnavailable, match="no place has such a name"):
        opened(url, lambda _: pytest.fail("it is opened"))


def test_what_cannot_be_opened_is_told_without_credentials() -> None:
    """The reason is told, with the notes that a plugin left; a user's name and password in the URL are not."""

    def refuse(_url: str) -> None:
        error = OSError(errno.ECONNREFUSED, "nobody answers")
        error.add_note("from plugin tape")
        raise error

    with pytest.raises(StoreUnavailable) as caught:
        opened("tape://ada:secret@host/folder", refuse)  # type: ignore[arg-type] # it never returns
    assert "nobody answers" in caught.value.message
    assert "secret" not in str(caught.value)
    assert caught.value.__notes__ == ["from plugin tape"]
