"""Secrets are masked in every form in which programs print them, however the output is cut into pieces."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_hookspecs.masking import MASK, SHORTEST, MaskedStream, Masker

SECRETS = [
    "hunter2hunter2",
    "pa$$ w0rd/+=&?",
    'quo"te\\back\tslash',
    "ünïcode-sécret",
    "0123456789abcdef0123456789abcdef",
    "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA7bq\nd9a8s7d98as7d98a7sd\n-----END KEY-----\n",
    "trailing-newline\n",
]


def forms(secret: str) -> dict[str, str]:
    """Return what programs print of a secret, by how they came to it."""
    raw = secret.encode()
    return {
        "itself": f"token={secret};",
        "json": json.dumps({"token": secret}),
        "json in unicode": json.dumps([secret], ensure_ascii=False),
        "repr": repr((secret, 1)),
        "repr of bytes": repr(raw),
        "path of a url": f"http://host/{quote(secret)}/x",
        "part of a url": f"http://u:{quote(secret, safe='')}@host/",
        "query of a url": f"?a={quote_plus(secret)}&b=1",
        "small escapes": re.sub("%..", lambda escape: escape[0].lower(), quote(secret, safe="")),
        "base64": base64.b64encode(raw).decode(),
        "basic auth": base64.b64encode(b"user:" + raw).decode(),
        "base64 between": base64.b64encode(b"ab" + raw + b"tail").decode(),
        "base64 of a header": base64.urlsafe_b64encode(b"x" + raw + b"yz").decode(),
    }


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_every_form_is_masked(secret: str) -> None:
    """No form of a secret is left, nor a part that would give it away; what is around it stays."""
    masker = Masker([secret])
    for name, text in forms(secret).items():
        masked = masker.text(text)
        assert MASK.decode() in masked, name
        assert not any(line in masked for line in [secret.strip(), *secret.split("\n")] if len(line) >= 8), name
        if name == "itself":
            assert masked == text.replace(secret, MASK.decode())
    assert masker.text("nothing of interest, at all: 12345") == "nothing of interest, at all: 12345"


@pytest.mark.parametrize("lead", ["", "a", "ab", "abc", "abcd"])
@pytest.mark.parametrize("trail", ["", "x", "xy", "xyz"])
def test_base64_of_what_is_around_gives_nothing_away(lead: str, trail: str) -> None:
    """Wherever a secret stands in content that is encoded, at most its first or last character can be told."""
    secret = "correct-horse-battery"  # noqa: S105 # invented here
    masked = Masker([secret]).text(base64.b64encode(f"{lead}{secret}{trail}".encode()).decode())
    left = masked.replace(MASK.decode(), "")
    # What is around, and four characters of base64 at either end, hold no more than two characters of the secret each.
    assert len(left) <= (len(lead) + len(trail)) * 4 / 3 + 8


@given(
    st.lists(st.text(min_size=SHORTEST, max_size=20), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=12)), max_size=12),
    st.integers(0, 2**32),
)
def test_pieces_are_masked_as_the_whole_is(secrets: list[str], parts: list[tuple[int, bytes]], seed: int) -> None:
    """However a stream is cut, the same comes out as of the whole at once, and no secret is in it."""
    whole = b"".join(secrets[number % len(secrets)].encode() + between for number, between in parts)
    masker = Masker(secrets)
    stream, out, position = MaskedStream(masker), [], 0
    chance = random.Random(seed)  # noqa: S311 # chance, not a secret
    while position < len(whole):
        size = chance.randint(1, 9)
        out.append(stream.feed(whole[position : position + size]))
        position += size
    out.append(stream.rest())
    assert b"".join(out) == masker.data(whole)
    for secret in secrets:
        if len(secret.strip()) >= SHORTEST and "*" not in secret:
            assert secret.encode() not in b"".join(out)


def test_only_what_may_be_a_secret_is_held() -> None:
    """A line that a step has printed is passed on at once, so that its log is not late."""
    stream = MaskedStream(Masker(["abcdefgh"]))
    assert stream.feed(b"epoch 1\n") == b"epoch 1\n"
    assert stream.feed(b"value: abc") == b"value: "
    assert stream.feed(b"x") == b"abcx"
    assert stream.feed(b"abcdefg") == b""
    assert stream.feed(b"h!") == MASK + b"!"
    assert stream.feed(b"abcd") == b""
    assert stream.rest() == b"abcd"
    assert stream.rest() == b""


def test_a_secret_within_another_is_masked_with_it() -> None:
    """Of a secret that begins with another one nothing is left, though the other was complete before."""
    stream = MaskedStream(Masker(["abcd", "abcdefgh", "ghij"]))
    assert stream.feed(b"abcd") + stream.feed(b"efgh") + stream.feed(b"ij") + stream.rest() == MASK
    assert Masker(["abcd", "cdef"]).data(b"-abcdef-") == b"-" + MASK + b"-"


@pytest.mark.parametrize("secrets", [[], [""], ["1"], ["abc", " x "]], ids=str)
def test_what_is_too_short_is_no_secret(secrets: list[str]) -> None:
    """Masking each 1 would leave no log to read: very short values are let through, and none costs anything."""
    masker = Masker(secrets)
    assert not masker
    assert masker.text("1 abc x") == "1 abc x"


def test_a_masker_shows_nothing_of_what_it_hides() -> None:
    """Its own repr, as in a traceback with variables, has no secret."""
    assert "hunter2hunter2" not in repr(Masker(["hunter2hunter2"])) + str(
        vars(MaskedStream(Masker(["hunter2hunter2"])))
    )


def test_a_stream_of_near_misses_takes_no_more_than_time_in_proportion() -> None:
    """What nearly is a secret, again and again, does not make the masking slow."""

    def seconds(size: int) -> float:
        stream = MaskedStream(Masker(["a" * 64 + "b"]))
        begun = time.process_time()
        for _ in range(size):
            stream.feed(b"a" * 1000)
        return time.process_time() - begun

    seconds(10)
    assert seconds(400) < 40 * max(seconds(40), 0.001)
