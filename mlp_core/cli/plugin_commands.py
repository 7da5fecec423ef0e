"""How a subcommand that a plugin provides is carried out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_core.cli.arguments import Parser, add_settings, given_settings, split
from mlp_core.cli.commands import names
from mlp_core.cli.text import put
from mlp_core.errors import UsageError
from mlp_core.names import closest, shown
from mlp_core.session import Session
from mlp_core.settings import CORE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlp_core.settings import Settings
    from mlp_hookspecs.handles import ObjectStore


class Tools:
    """What a plugin's command may use: a `CommandSession`.

    Parameters
    ----------
    session : Session
        The project.
    quiet : bool
        Whether nothing is printed for people.
    """

    def __init__(self, session: Session, *, quiet: bool) -> None:
        """Make the tools; the store is opened when it is first used."""
        self._session = session
        self._quiet = quiet

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._session.settings

    @property
    def objects(self) -> ObjectStore:
        """The store, as objects."""
        return self._session.open_store(create=True).objects

    @property
    def client(self) -> Any:
        """The client: `client.Flow`, `client.Run` and the rest."""
        from mlp_core.client import client_for

        return client_for(self._session)

    @property
    def echo(self) -> Callable[[str], None]:
        """Print a line for people, or nothing under ``--quiet``."""
        return (lambda _line: None) if self._quiet else put


def carry_out_plugin_command(name: str, arguments: Sequence[str]) -> int:
    """Carry out a command that is none of the core's.

    Settings and ``--quiet`` are read here; all other arguments are the command's.

    Raises
    ------
    UsageError
        Where no plugin provides the command; the message names the nearest.
    """
    parser = Parser(f"mlp {name}", "")
    parser.option("-q", "--quiet", action="store_true")
    known = add_settings(parser, CORE_SETTINGS, "settings")
    flags = given_settings(split(arguments, parser.flags).tokens, known)
    session = Session.open(start=Path.cwd(), flags=flags)
    commands = {command.name for _, command in session.hooks.commands()}
    if name not in commands:
        close = closest(name, [*names(), *commands])
        hint = f"did you mean {close}?" if close else "mlp --help lists the commands"
        if name.endswith(".py"):
            hint = f"to run a flow: mlp run {name}"
        raise UsageError(f"unknown command {shown(name)}", hint=hint)
    declared = [session.settings.declared(setting) for setting in session.settings]
    known |= add_settings(parser, declared, "settings of plugins")
    found = split(arguments, parser.flags)
    given = given_settings(found.tokens, known)
    if given != flags:
        session = Session.open(start=Path.cwd(), flags=given)
    quiet = any(token in ("-q", "--quiet") for token in found.tokens)
    own = {*known, "-q", "--quiet"}
    rest = [token for token in found.tokens if token.partition("=")[0] not in own]
    return session.hooks.run_command(name, rest, Tools(session, quiet=quiet))
