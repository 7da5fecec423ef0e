"""How command lines are taken apart: values, truth values, what is unknown, and settings."""

from __future__ import annotations

import pytest

from mlp_core.cli.arguments import Parser, add_settings, given_settings, split, unknown_option
from mlp_core.errors import UsageError
from mlp_core.settings import CORE_SETTINGS
from mlp_hookspecs import Setting


@pytest.fixture
def parser() -> Parser:
    """A parser with an option of each kind."""
    parser = Parser("mlp try", "Try.")
    parser.option("--alpha")
    parser.option("--tag", action="append", default=[])
    parser.option("--debug", boolean=True)
    parser.option("-q", "--quiet", action="store_true")
    parser.positional("what", nargs="*")
    return parser


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (["--alpha", "1", "x"], ("--alpha=1", "x")),
        (["--alpha=1", "x"], ("--alpha=1", "x")),
        (["--alpha", "-1"], ("--alpha=-1",)),
        (["--alpha", "-x"], ("--alpha=-x",)),
        (["--alpha", "--beta"], ("--alpha=--beta",)),
        (["--alpha", "a b=c"], ("--alpha=a b=c",)),
        (["--debug", "x"], ("--debug=true", "x")),
        (["--debug", "false", "x"], ("--debug=false", "x")),
        (["--debug", "--quiet"], ("--debug=true", "--quiet")),
        (["-q", "x"], ("-q", "x")),
        (["-5", "-.5", "-"], ("-5", "-.5", "-")),
        (["--", "--alpha"], ("--", "--alpha")),
    ],
)
def test_options_are_joined_to_their_values(parser: Parser, words: list[str], tokens: tuple[str, ...]) -> None:
    """The word after an option is its value unless it is a known option; a truth value may be left out."""
    assert split(words, parser.flags).tokens == tokens


def test_positionals_and_unknown_options_are_told(parser: Parser) -> None:
    """What is no option and what is an unknown one are found by their places."""
    found = split(["flow.py", "--beta", "2", "--alpha", "1", "x", "--", "--y"], parser.flags)
    assert [found.tokens[n] for n in found.positionals] == ["flow.py", "2", "x", "--y"]
    assert [found.tokens[n] for n in found.unknown] == ["--beta"]


@pytest.mark.parametrize("words", [["--alpha"], ["--alpha", "--quiet"], ["--alpha", "--"], ["--alpha", "--tag=x"]])
def test_an_option_without_its_value_is_refused(parser: Parser, words: list[str]) -> None:
    """The message names the option and how to write it."""
    with pytest.raises(UsageError, match="--alpha needs a value") as caught:
        split(words, parser.flags)
    assert "--alpha=VALUE" in caught.value.hint


def test_settings_become_flags(parser: Parser) -> None:
    """Each setting has a flag; a flag that the command has keeps its meaning."""
    names = add_settings(parser, [*CORE_SETTINGS, Setting("alpha", "int", None, "Taken.")], "settings")
    assert "--alpha" not in names
    assert names["--plugins-deny"] == "plugins.deny"
    assert names["--no-plugins"] == names["--plugins-safe"] == "plugins.safe"
    found = split(["--plugins-deny", "a,b", "--no-plugins", "x", "--store=s", "--", "--store=t"], parser.flags)
    assert given_settings(found.tokens, names) == {"plugins.deny": "a,b", "plugins.safe": "true", "store": "s"}


def test_help_has_every_option_under_its_heading(parser: Parser) -> None:
    """Arguments come first, then options, then settings; percent signs are harmless."""
    add_settings(parser, [Setting("ray.share", "float", None, "Use 50% of it.")], "settings of plugins")
    add_settings(parser, CORE_SETTINGS, "settings")
    shown = parser.format_help()
    places = [
        shown.index(text)
        for text in ("usage: mlp try", "[WHAT ...]", "options:", "--alpha", "Use 50% of it.", "--store")
    ]
    assert places == sorted(places)
    assert len(shown.split("\n")[0]) < 80


def test_wrong_arguments_raise_ours(parser: Parser) -> None:
    """What argparse refuses becomes a usage error that says where help is."""
    parser.option("--count", type=int)
    with pytest.raises(UsageError, match="invalid int value: 'x'") as caught:
        parser.parse_args(["--count=x"])
    assert "mlp try --help" in caught.value.hint


def test_a_misspelt_option_is_told_the_nearest() -> None:
    """The hint names the option that was meant."""
    assert unknown_option("--alhpa", ["--alpha", "--beta"]).hint == "did you mean --alpha?"
    assert unknown_option("--zzz", ["--alpha"], "see the help").hint == "see the help"
