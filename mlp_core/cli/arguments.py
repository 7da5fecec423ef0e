"""How a command line is read: known options first, then those that plugins and the flow itself add."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from mlp_core.cli.text import safe_line
from mlp_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SECTIONS: Final = ("arguments", "parameters", "options", "settings of plugins", "settings")
"""The headings of a command's help, in their order."""

_HELP_COLUMN = 30
_BOOLEAN_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0", "t", "f", "y", "n"})
_SETTING_PREFIX = "setting:"
_SAFE_FLAG = "--no-plugins"


class Flag(NamedTuple):
    """What follows an option: a value or nothing; a truth value may be left out."""

    takes_value: bool
    is_boolean: bool = False


class Parser(argparse.ArgumentParser):
    """A parser that knows its own options by name, and whose errors are ours.

    Parameters
    ----------
    prog : str
        The words before the options.
    description : str
        What the command does, for its help.

    Attributes
    ----------
    flags : dict of str to Flag
        Every option, as it is written.
    """

    def __init__(self, prog: str, description: str) -> None:
        """Make a parser without options."""
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            add_help=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=_HELP_COLUMN),
        )
        self.flags: dict[str, Flag] = {}
        self._words: list[str] = []
        self._sections = {title: self.add_argument_group(title) for title in SECTIONS}
        self.option("-h", "--help", action="store_true", help="show this help")

    def option(self, *names: str, section: str = "options", boolean: bool = False, **details: Any) -> None:
        """Add an option.

        Parameters
        ----------
        *names : str
            How it is written.
        section : str
            The heading it stands under in the help.
        boolean : bool
            Whether its value is true or false and may be left out.
        **details
            As for `argparse.ArgumentParser.add_argument`.
        """
        # What may have a value has it after `=`: the next word is something else.
        takes_value = details.get("action", "store") in ("store", "append") and details.get("nargs") != "?"
        for name in names:
            self.flags[name] = Flag(takes_value, boolean)
        self._sections[section].add_argument(*names, **details)

    def positional(self, name: str, **details: Any) -> None:
        """Add an argument that is given by its place; `details` as for `option`."""
        word = details.get("metavar", name.upper())
        many = details.get("nargs")
        self._words.append(f"[{word}]" if many == "?" else f"[{word} ...]" if many == "*" else word)
        details.setdefault("metavar", word)
        self._sections["arguments"].add_argument(name, **details)

    def format_usage(self) -> str:
        """Return the first line of the help; the options follow in their own paragraphs."""
        return f"usage: {' '.join([self.prog, *self._words])} [OPTIONS]\n"

    def format_help(self) -> str:
        """Return the help."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for section in self._sections.values():
            formatter.start_section(section.title)
            formatter.add_arguments(section._group_actions)  # noqa: SLF001 # argparse's own way to print a part
            formatter.end_section()
        return f"{self.format_usage()}\n{formatter.format_help()}"

    def error(self, message: str) -> NoReturn:
        """Raise the usage error that argparse found."""
        raise UsageError(message, hint=f"{self.prog} --help tells how it is used")


class Split(NamedTuple):
    """A command line taken apart.

    Attributes
    ----------
    tokens : tuple of str
        The arguments, each option joined to its value by ``=``.
    positionals : tuple of int
        Which of them are no options.
    unknown : tuple of int
        Which of them are options that nobody knows.
    """

    tokens: tuple[str, ...]
    positionals: tuple[int, ...]
    unknown: tuple[int, ...]


def split(arguments: Sequence[str], flags: Mapping[str, Flag]) -> Split:
    """Take a command line apart, as far as its options are known.

    The argument after an option with a value is its value, even where it begins with a hyphen (``--alpha -1``), unless
    it is itself a known option. After ``--`` nothing is an option. An unknown option is left alone; what follows it
    counts as an argument of its own.

    Parameters
    ----------
    arguments : sequence of str
        The words.
    flags : mapping of str to Flag
        The known options.

    Returns
    -------
    Split
        The parts.
    """
    tokens: list[str] = []
    positionals: list[int] = []
    unknown: list[int] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            positionals += range(len(tokens) + 1, len(tokens) + 1 + len(rest))
            tokens += [word, *rest]
            break
        flag_name, equals, _ = word.partition("=")
        flag = flags.get(flag_name)
        if not _is_option(word):
            positionals.append(len(tokens))
        elif flag is None:
            unknown.append(len(tokens))
        elif not equals:
            word = _joined(word, flag, rest, flags)
        tokens.append(word)
    return Split(tuple(tokens), tuple(positionals), tuple(unknown))


def given_settings(tokens: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the settings among the tokens of a split, by dotted name.

    Parameters
    ----------
    tokens : iterable of str
        Options joined to their values.
    names : mapping of str to str
        Dotted name by flag.
    """
    found = {}
    for token in tokens:
        if token == "--":  # noqa: S105 # the end of the options, no password
            break
        flag, _, value = token.partition("=")
        if flag in names:
            found[names[flag]] = value
    return found


def add_settings(parser: Parser, declared: Iterable[Any], section: str) -> dict[str, str]:
    """Add the flags of settings to a parser.

    Parameters
    ----------
    parser : Parser
        The parser; an option that it has keeps its meaning.
    declared : iterable of Setting
        The settings.
    section : str
        The heading they stand under in the help.

    Returns
    -------
    dict of str to str
        The setting's dotted name by flag.
    """
    from mlp_core.settings import flag_name

    names = {}
    for setting in declared:
        spellings = [flag_name(setting.name), *([_SAFE_FLAG] if setting.name == "plugins.safe" else [])]
        if spellings[0] in parser.flags:
            continue
        names.update(dict.fromkeys(spellings, setting.name))
        is_boolean = setting.type == "bool"
        parser.option(
            *spellings,
            section=section,
            boolean=is_boolean,
            metavar="BOOL" if is_boolean else _metavar(setting.type),
            dest=_SETTING_PREFIX + setting.name,
            help=escaped(setting.help),
        )
    return names


def unknown_option(flag: str, known: Iterable[str], where: str = "") -> UsageError:
    """Return the error for an option that nobody knows."""
    from difflib import get_close_matches

    close = get_close_matches(flag, sorted(known), 1, 0.6)
    hint = f"did you mean {close[0]}?" if close else where
    return UsageError(f"unknown option {safe_line(flag)}", hint=hint)


def escaped(text: str) -> str:
    """Return a text for the help, where argparse would read its percent signs."""
    return text.replace("%", "%%")


def is_boolean_word(text: str) -> bool:
    """Tell whether a word is a truth value."""
    return text.lower() in _BOOLEAN_WORDS


def _is_option(word: str) -> bool:
    """Tell whether a word looks like an option; a lone hyphen and negative numbers do not."""
    return len(word) > 1 and word[0] == "-" and not word[1].isdigit() and word[1] != "."


def _joined(word: str, flag: Flag, rest: list[str], flags: Mapping[str, Flag]) -> str:
    """Return an option joined to its value, which is taken from the words that follow."""
    if not flag.takes_value:
        return word
    if flag.is_boolean:
        return f"{word}={rest.pop(0)}" if rest and is_boolean_word(rest[0]) else f"{word}=true"
    if not rest or rest[0] == "--" or rest[0].partition("=")[0] in flags:
        raise UsageError(f"option {word} needs a value", hint=f"write {word} VALUE, or {word}=VALUE")
    return f"{word}={rest.pop(0)}"


def _metavar(kind: str) -> str:
    """Return how the help shows a setting's value."""
    return {"int": "N", "float": "N", "path": "PATH", "list": "A,B,...", "table": "JSON"}.get(kind, "TEXT")
