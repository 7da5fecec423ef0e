"""How ``mlp plugins`` shows what is installed, what it provides, and what went wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlp_core.cli.text import put, put_json, safe_line, table

if TYPE_CHECKING:
    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.plugins import PluginRecord
    from mlp_core.session import Session


def plugins_arguments(parser: Parser) -> None:
    """Add the options of ``mlp plugins``."""
    parser.option("--settings", action="store_true", help="show the settings too: value, and where it comes from")
    parser.option("--json", action="store_true", help="print JSON")


def plugins_command(call: Call) -> int:
    """Show the plugins."""
    session = call.session
    records = session.hooks.records
    commands = {command.name: (plugin.name, command.summary) for plugin, command in session.hooks.commands()}
    if call.args.json:
        put_json(
            {
                "plugins": [_as_data(record) for record in records],
                "commands": [{"name": n, "plugin": p, "summary": s} for n, (p, s) in commands.items()],
                "settings": _settings(session),
            }
        )
        return 0
    rows = [
        (
            record.name,
            record.id.distribution,
            record.id.version,
            record.contract_range or "any",
            record.status,
            ", ".join(record.backends),
            f"{record.load_ms:.1f} ms",
        )
        for record in records
    ]
    put(table(("plugin", "distribution", "version", "contract", "status", "provides", "loaded in"), rows))
    for record in records:
        if record.reason:
            put(f"{safe_line(record.name)} is {record.status}: {safe_line(record.reason)}")
    if commands:
        put("\n" + table(("command", "plugin", "what it does"), [(f"mlp {n}", *rest) for n, rest in commands.items()]))
    if call.args.settings:
        items = [(item["name"], item["value"], item["source"], item["help"]) for item in _settings(session)]
        put("\n" + table(("setting", "value", "from", "help"), items))
    return 0


def _as_data(record: PluginRecord) -> dict[str, Any]:
    """Return a plugin as data."""
    return {
        "name": record.name,
        "distribution": record.id.distribution,
        "version": record.id.version,
        "contract": record.contract_range,
        "status": record.status,
        "reason": record.reason,
        "hooks": list(record.hooks),
        "backends": list(record.backends),
        "load_ms": round(record.load_ms, 3),
    }


def _settings(session: Session) -> list[dict[str, str]]:
    """Return the settings in force, secrets masked."""
    settings = session.settings
    return [
        {"name": n, "value": settings.text(n), "source": settings.source(n), "help": settings.declared(n).help}
        for n in settings
    ]
