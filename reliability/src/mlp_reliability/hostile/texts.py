"""Texts that nobody should be harmed by: names that lead elsewhere, words that a shell or terminal would obey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import random
    from pathlib import Path

_FIXED: Final = (
    *(
        "",
        " ",
        ".",
        "..",
        "../x",
        "../../escaped",
        "a/../../../escaped",
        "./x",
        "x/",
        "//x",
        "~",
        "~root",
        "-",
        "--",
        "-rf",
    ),
    *(
        "--help",
        "-n=-1",
        "=",
        "a=b",
        ":",
        "kind:name=x",
        "a.b",
        "a..b",
        ".hidden",
        "con",
        "nul",
        "a\\..\\b",
        "file:///x",
    ),
    *(
        "a\0b",
        "\0",
        "\n",
        "a\nerror: forged",
        "\r",
        "\t",
        "\x1b]0;title\x07",
        "\x1b[2J\x1b[31mred",
        "\x9b31m",
        "\x7f",
        "\x08",
    ),
    *(
        "\u202egnp.exe",
        "\u2066x\u2069",
        "a\u200bb",
        "\ufeffx",
        "\u2028",
        "\u00ad",
        "\ud800",
        "\udcff",
        "é",
        "漢字",
        "🙂",
        "İ",
        "ß",
    ),
    *(
        "'; DROP TABLE runs; --",
        '" OR 1=1 --',
        "%",
        "%s%n%x",
        "{0.__class__}",
        "{{7*7}}",
        "${HOME}",
        "$(touch escaped)",
    ),
    *(
        "`touch escaped`",
        "; touch escaped",
        "| touch escaped",
        "&& touch escaped",
        "<script>alert(1)</script>",
        "&amp;",
    ),
    *("null", "true", "nan", "-inf", "1e999", "0x10", "-0", "00", "9" * 400, "[]", "{}", '"', "\\", "\\x41", "\\u0041"),
    *(
        "__class__",
        "__init__",
        "__reduce__",
        "constructor",
        "self",
        "None",
        "lambda",
        "0",
        "0-0",
        "0~",
        "0@",
        "1-2~3@4",
    ),
    *("20260131-094500-123456", "20260131-094500-12345", "99999999-999999-999999", "A" * 128, "A" * 129, "a" * 300),
    *(
        "Flow/..",
        "Flow/../../escaped",
        "Flow//start",
        "Flow/20260131-094500-123456/start/0/x/y",
        "s3://bucket",
        "x://y",
    ),
)


def chance(rng: random.Random, probability: float) -> bool:
    """Return True as often as a probability says."""
    return rng.random() < probability


def text(rng: random.Random, canary: Path) -> str:
    """Return a hostile text.

    Parameters
    ----------
    rng : random.Random
        Where it is drawn from.
    canary : pathlib.Path
        A folder where nothing may appear; some texts lead there.
    """
    way = rng.random()
    if way < 0.7:  # noqa: PLR2004 # most of the time a known one
        return rng.choice(_FIXED)
    if way < 0.8:  # noqa: PLR2004 # as above
        return rng.choice((str(canary / "absolute"), f"file://{canary}/url", f"../../{canary.name}/relative"))
    if way < 0.9:  # noqa: PLR2004 # as above
        return rng.choice(_FIXED) + rng.choice(_FIXED)
    return "".join(chr(rng.choice((rng.randrange(32), rng.randrange(256), rng.randrange(0x11_0000)))) for _ in range(9))


def value(rng: random.Random, canary: Path) -> Any:
    """Return JSON data that no field expects."""
    numbers = (0, -1, 2**31, 2**63, 2**64, 10**40, -(10**20), 0.5, 1e300, -1e300, float("nan"), float("inf"))
    nested: Any = 0
    if chance(rng, 0.05):
        for _ in range(rng.choice((10, 900, 5000))):
            nested = [nested] if chance(rng, 0.5) else {"a": nested}
    choices: tuple[Any, ...] = (
        *(None, True, False, [], {}, [None], {"": None}, [[]], nested),
        *(rng.choice(numbers), rng.choice(numbers), text(rng, canary), text(rng, canary), [text(rng, canary)]),
    )
    return rng.choice(choices)
