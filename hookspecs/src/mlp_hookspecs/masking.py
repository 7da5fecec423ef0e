"""How secrets are kept out of what is shown and recorded: in each form in which programs print them, they are masked.

The forms of a value are itself, its lines where it has several, and what it becomes in base64 (within longer content
too), in a URL, in JSON, and as Python shows it.
"""

from __future__ import annotations

import binascii
import json
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MASK: Final = b"********"
"""What stands in the place of a secret."""

SHORTEST: Final = 4
"""A value of fewer characters is no secret: masking each ``1`` would leave nothing to be read."""

_MOST_HELD: Final = 2**20
_SHORTEST_LINE: Final = 8
_SHORTEST_BASE64: Final = 8
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_PERCENT: Final = re.compile("%[0-9A-F]{2}")


class Masker:
    """Masks the values that it was given, and no others.

    Parameters
    ----------
    secrets : iterable of str
        The values.

    Examples
    --------
    >>> Masker(["s3cret/key"]).text("GET /?token=s3cret%2Fkey")
    'GET /?token=********'
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        """Work out the forms."""
        self._forms = sorted({form for secret in secrets for form in _forms(secret)})

    def __bool__(self) -> bool:
        """Tell whether there is anything to mask."""
        return bool(self._forms)

    def __repr__(self) -> str:
        """Tell how much it hides, and nothing of it."""
        return f"<Masker of {len(self._forms)} forms>"

    def data(self, data: bytes) -> bytes:
        """Return bytes without the secrets."""
        spans = self._spans(data)
        return _masked(data, spans) if spans else data

    def text(self, text: str) -> str:
        """Return a text without the secrets."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self.data(data)
        return text if masked is data else masked.decode("utf-8", "surrogatepass")

    def ready(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what of a stream can be passed on, masked, and the end of it that may be the beginning of a secret."""
        end = len(data)
        for form in self._forms:
            end = min(end, _begins(form, data, end))
        spans = self._spans(data)
        end = next((start for start, stop in spans if start < end < stop), end)
        return _masked(data[:end], [span for span in spans if span[0] < end]), data[end:]

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        """Return where forms begin and end in data, in order; those that overlap are one."""
        found = []
        # A pass for each form is many times as fast as one pass of a pattern of all of them.
        for form in self._forms:
            position = data.find(form)
            while position >= 0:
                found.append((position, position + len(form)))
                position = data.find(form, position + 1)
        spans: list[tuple[int, int]] = []
        for start, stop in sorted(found):
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
            else:
                spans.append((start, stop))
        return spans


class MaskedStream:
    """Masks a stream that arrives in pieces: a secret that is cut into several is found as well.

    Parameters
    ----------
    masker : Masker
        What to mask.
    """

    def __init__(self, masker: Masker) -> None:
        """Begin at the stream's beginning."""
        self._masker = masker
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take in a piece, and return what can be passed on; only what may be the beginning of a secret is held."""
        passed, self._held = self._masker.ready(self._held + data)
        # Secrets that overlap themselves, such as ----, may go on for ever.
        return passed if len(self._held) <= _MOST_HELD else passed + self.rest()

    def rest(self) -> bytes:
        """Return what is held, now that nothing follows."""
        held, self._held = self._held, b""
        return self._masker.data(held)


def _masked(data: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    """Return data with the mask in the place of spans."""
    stops = [0, *(stop for _, stop in spans)]
    starts = [*(start for start, _ in spans), len(data)]
    return MASK.join(data[stop:start] for stop, start in zip(stops, starts, strict=True))


def _begins(form: bytes, data: bytes, end: int) -> int:
    """Return where the longest end of data begins that is the beginning of a form but not all of it; `end` for none."""
    first = form[:1]
    position = data.find(first, max(0, len(data) - len(form) + 1), end)
    while position >= 0 and not form.startswith(data[position:]):
        position = data.find(first, position + 1, end)
    return end if position < 0 else position


def _forms(secret: str) -> Iterator[bytes]:
    """Yield the forms of a value."""
    for value in {secret, secret.strip()}:
        if len(value) < SHORTEST:
            continue
        raw = value.encode("utf-8", "surrogatepass")
        yield raw
        yield from _base64_forms(raw)
        for text in (
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            repr(value)[1:-1],
            repr(raw)[2:-1],
            *_url_forms(raw),
        ):
            yield text.encode("utf-8", "surrogatepass")
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        yield from (line.encode("utf-8", "surrogatepass") for line in lines if len(line) >= _SHORTEST_LINE)


def _url_forms(raw: bytes) -> Iterator[str]:
    """Yield what a value becomes in the path and in the query of a URL."""
    from urllib.parse import quote, quote_plus

    for text in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        yield text
        yield _PERCENT.sub(lambda escape: escape[0].lower(), text)


def _base64_forms(raw: bytes) -> Iterator[bytes]:
    """Yield what the base64 of any content has in it that has a value in it: three texts, by where the value begins."""
    for before in range(3):
        # Six bits make a character; those at both ends also depend on what is around.
        first, last = -(-8 * before // 6), 8 * (before + len(raw)) // 6
        text = binascii.b2a_base64(bytes(before) + raw, newline=False)[first:last]
        if len(text) >= _SHORTEST_BASE64:
            yield text
            yield text.translate(_URL_SAFE)
