"""How a command is found, its options are read, and it is carried out."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mlp_core.cli.arguments import Parser, Split, add_settings, given_settings, split, unknown_option
from mlp_core.cli.commands import IN_FLOW_FILE, Entry, actions_overview, find, flow_overview, overview
from mlp_core.cli.importing import importing
from mlp_core.cli.text import put
from mlp_core.errors import FlowError, MlpError, UsageError
from mlp_core.names import closest, shown
from mlp_core.session import Session
from mlp_core.settings import CORE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@attrs.frozen(slots=False, eq=False, repr=False)
class Call:
    """A command line that was read.

    Attributes
    ----------
    args : argparse.Namespace
        The command's arguments and options.
    start : pathlib.Path
        The file or folder whose project it is about.
    flags : mapping of str to str
        Settings that were given, by dotted name.
    flow : type or None
        The flow's class, for commands that take one.
    prog : str
        How the user calls the command's program: ``mlp`` or ``python flow.py``.
    """

    args: argparse.Namespace
    start: Path
    flags: Mapping[str, str]
    flow: type[Any] | None = None
    prog: str = "mlp"
    _opened: list[Session] = attrs.field(factory=list)

    @property
    def session(self) -> Session:
        """The session, opened when it is first asked for."""
        if not self._opened:
            with importing():
                self._opened.append(Session.open(start=self.start, flags=self.flags))
        return self._opened[0]

    def with_flags(self, flags: Mapping[str, object]) -> Session:
        """Return a session in which options of the command count as settings too."""
        return Session.open(start=self.start, flags={**self.flags, **flags}) if flags else self.session

    @property
    def the_flow(self) -> type[Any]:
        """The flow's class, for commands that always have one."""
        if self.flow is None:
            raise TypeError(self.args)
        return self.flow


def carry_out(arguments: Sequence[str]) -> int:
    """Carry out a command line of ``mlp`` and return its exit status."""
    name, rest = _command_first(arguments)
    if name in ("", "help"):
        topic = find(rest[0]) if rest else None
        if topic is None:
            put(overview())
            return 0
        name, rest = topic.name, [*(rest[1:2] if topic.actions else ()), "--help"]
    entry = find(name)
    if entry is None:
        from mlp_core.cli.plugin_commands import carry_out_plugin_command

        return carry_out_plugin_command(name, rest)
    if entry.actions:
        return _carry_out_action(entry, rest)
    return _carry_out(entry, name, rest)


def _carry_out_action(entry: Entry, arguments: Sequence[str]) -> int:
    """Carry out one of a command's actions and return its exit status."""
    name, rest = _command_first(arguments)
    if name == "help":
        name, rest = (rest[0], ["--help"]) if rest else ("", [])
    if not name:
        put(actions_overview(entry))
        return 0
    action = next((action for action in entry.actions if action.name == name), None)
    if action is None:
        known = [action.name for action in entry.actions]
        close = closest(name, known)
        hint = f"did you mean mlp {entry.name} {close}?" if close else f"it has {', '.join(known)}"
        raise UsageError(f"mlp {entry.name} has no command {shown(name)}", hint=hint)
    return _carry_out(action, f"{entry.name} {name}", rest)


def _carry_out(entry: Entry, words: str, rest: Sequence[str]) -> int:
    """Carry out a command of the core whose words were read, and return its exit status."""
    sys.dont_write_bytecode |= entry.leaves_no_trace
    with importing():
        module = importlib.import_module(entry.module)
    prog, name = f"mlp {words}", words.replace(" ", "_")
    parser = Parser(prog + (" FLOW.py" if entry.takes_flow else ""), entry.summary)
    getattr(module, f"{name}_arguments")(parser)
    action: Callable[[Call], int] = getattr(module, f"{name}_command")
    reading = _Reading(parser, rest)
    call = reading.with_flow_file() if entry.takes_flow else reading.plain()
    return _help(parser) if call is None else action(call)


def carry_out_in_flow(flow: type[Any], arguments: Sequence[str]) -> int:
    """Carry out a command line of a flow's own file and return its exit status."""
    file = getattr(sys.modules.get(flow.__module__), "__file__", None)
    prog = f"python {Path(file).name if file else 'FLOW.py'}"
    name, rest = _command_first(arguments)
    if name in ("", "help"):
        put(flow_overview(prog, flow.__name__))
        return 0
    entry = find(name)
    if entry is None or name not in IN_FLOW_FILE:
        close = closest(name, IN_FLOW_FILE)
        hint = f"did you mean {close}?" if close else f"it has {', '.join(IN_FLOW_FILE)}"
        raise UsageError(f"a flow's file has no command {shown(name)}", hint=f"write mlp {name}" if entry else hint)
    sys.dont_write_bytecode |= entry.leaves_no_trace
    with importing():
        module = importlib.import_module("mlp_core.cli.checking" if name == "show" else entry.module)
    prefix = "show_flow" if name == "show" else name
    parser = Parser(f"{prog} {name}", entry.summary)
    getattr(module, f"{prefix}_arguments")(parser)
    call = _Reading(parser, rest).of_flow(flow, Path(file) if file else Path.cwd(), prog)
    return _help(parser) if call is None else int(getattr(module, f"{prefix}_command")(call))


def import_flow(path: Path, name: str | None) -> type[Any]:
    """Import a flow's file; an exception of the user's own is shown with the user's lines.

    Raises
    ------
    FlowError
        Where there is no such file, it cannot be imported, or does not define the flow.
    """
    from mlp_core.cli.report import user_traceback
    from mlp_core.loading import load_flow

    try:
        return load_flow(path, name)
    except (MlpError, KeyboardInterrupt):
        raise
    except BaseException as error:
        message = f"the flow's file cannot be imported: {type(error).__name__}: {error}"
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        hint = f"pip install {missing.replace('_', '-')}" if missing.startswith("mlp_plugin_") else ""
        raise FlowError(f"{message}\n{user_traceback(error)}", file=str(path), hint=hint) from error


class _Reading:
    """Reads the arguments of one command, and learns on the way which options there are."""

    def __init__(self, parser: Parser, arguments: Sequence[str]) -> None:
        self._parser = parser
        self._arguments = arguments
        self._settings = add_settings(parser, CORE_SETTINGS, "settings")
        self._opened: list[Session] = []
        self._opened_for: tuple[Path, dict[str, str]] | None = None

    @property
    def _split(self) -> Split:
        return split(self._arguments, self._parser.flags)

    @property
    def _wants_help(self) -> bool:
        return any(token in ("-h", "--help") for token in self._split.tokens)

    def plain(self) -> Call | None:
        """Read a command that is about no flow; None where help is wanted."""
        here = Path.cwd()
        if self._split.unknown or self._wants_help:
            self._learn_settings(here)
        return None if self._wants_help else self._parsed(here)

    def with_flow_file(self) -> Call | None:
        """Read a command whose first argument is a flow's file; None where help is wanted."""
        found = self._split
        if found.unknown and (not found.positionals or found.unknown[0] < found.positionals[0]):
            self._learn_settings(Path.cwd())
            found = self._split
        if not found.positionals:
            if self._wants_help:
                self._learn_settings(Path.cwd())
                return None
            self._refuse_unknown(found, "")
            raise UsageError("no flow is given", hint=f"give the flow's file: {self._parser.prog}")
        place = found.positionals[0]
        if found.unknown and found.unknown[0] < place:
            hint = f"a flow's parameters come after its file: {self._parser.prog} --alpha 0.1"
            raise unknown_option(_flag(found.tokens[found.unknown[0]]), self._parser.flags, hint)
        path = Path(found.tokens[place])
        prefix = "--flow="
        name = next((token.removeprefix(prefix) for token in found.tokens if token.startswith(prefix)), None)
        self._arguments = [*found.tokens[:place], *found.tokens[place + 1 :]]
        return self.of_flow(import_flow(path, name), path, "mlp")

    def of_flow(self, flow: type[Any], path: Path, prog: str) -> Call | None:
        """Read a command about a flow that was loaded; None where help is wanted."""
        from mlp_core.cli.parameters import add_parameters

        clashes = add_parameters(self._parser, flow)
        if self._split.unknown or self._wants_help:
            self._learn_settings(path)
        if self._wants_help:
            return None
        for token in self._split.tokens:
            if _flag(token) in clashes:
                raise UsageError(
                    f"{_flag(token)} is an option of the command and a parameter of {flow.__name__}",
                    hint=f"give the parameter by --param {clashes[_flag(token)]}=VALUE, or rename it",
                )
        return attrs.evolve(self._parsed(path), flow=flow, prog=prog)

    def _parsed(self, start: Path) -> Call:
        """Read the arguments, now that all options are known."""
        found = self._split
        self._refuse_unknown(found, f"{self._parser.prog} --help lists the options")
        options = [t for n, t in enumerate(found.tokens) if n not in found.positionals and t != "--"]
        args = self._parser.parse_args([*options, *(found.tokens[n] for n in found.positionals)])
        flags = given_settings(found.tokens, self._settings)
        return Call(args, start, flags, opened=self._opened if (start, flags) == self._opened_for else [])

    def _refuse_unknown(self, found: Split, hint: str) -> None:
        """Raise the usage error of the first option that nobody knows."""
        if found.unknown:
            raise unknown_option(_flag(found.tokens[found.unknown[0]]), self._parser.flags, hint)

    def _learn_settings(self, start: Path) -> None:
        """Load the plugins, and learn the flags of their settings."""
        if self._opened:
            return
        flags = given_settings(self._split.tokens, self._settings)
        self._opened_for = (start, flags)
        with importing():  # the plugins
            self._opened.append(Session.open(start=start, flags=flags))
        settings = self._opened[0].settings
        declared = [settings.declared(name) for name in settings]
        self._settings |= add_settings(self._parser, declared, "settings of plugins")


def _command_first(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command's name and the rest; options that stand before the name are moved behind it."""
    parser = Parser("mlp", "")
    parser.option("--with")
    add_settings(parser, CORE_SETTINGS, "settings")
    if not arguments or not arguments[0].startswith("-"):
        return (arguments[0], list(arguments[1:])) if arguments else ("", [])
    found = split(arguments, parser.flags)
    if not found.positionals:
        if found.unknown:
            raise unknown_option(
                _flag(found.tokens[found.unknown[0]]), ["--help", "--version"], "mlp --help lists the commands"
            )
        return "", []
    place = found.positionals[0]
    if found.unknown and found.unknown[0] < place:
        hint = f"options come after the command: mlp {found.tokens[place]} ..."
        raise unknown_option(_flag(found.tokens[found.unknown[0]]), (), hint)
    return found.tokens[place], [*found.tokens[:place], *found.tokens[place + 1 :]]


def _flag(token: str) -> str:
    """Return the option's own part of a token."""
    return token.partition("=")[0]


def _help(parser: Parser) -> int:
    """Print the help."""
    put(parser.format_help().rstrip())
    put("\nA setting can also stand in mlp.toml or in a variable: store = ..., MLP_STORE=...")
    return 0
