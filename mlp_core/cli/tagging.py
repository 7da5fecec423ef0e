"""How ``mlp tag`` reads and edits the tags of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlp_core.cli.text import put, put_json, safe_line
from mlp_core.client import client_for
from mlp_core.errors import UsageError
from mlp_core.names import Pathspec

if TYPE_CHECKING:
    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call

_REPLACED = 2


def tag_arguments(parser: Parser) -> None:
    """Add the options of ``mlp tag``."""
    parser.positional("action", choices=("list", "add", "remove", "replace"), help="list, add, remove or replace")
    parser.positional("run", help="the run, Flow/ID; or a flow for its newest run")
    parser.positional("tags", nargs="*", help="the tags; for replace the old one and the new one")
    parser.option("--json", action="store_true", help="print JSON")


def tag_command(call: Call) -> int:
    """Read or edit tags, and print what they are then."""
    action, tags = call.args.action, call.args.tags
    client = client_for(call.session)
    client.namespace = None
    spec = Pathspec.parse(call.args.run)
    if spec.step is not None:
        raise UsageError(f"{spec} is no run: only runs have tags", hint=f"write {spec.flow}/{spec.run_id}")
    run = client.run(str(spec)) if spec.run_id is not None else client.Flow(spec.flow).latest_run
    _check_count(action, tags)
    match action:
        case "add":
            run.add_tags(tags)
        case "remove":
            run.remove_tags(tags)
        case "replace":
            run.replace_tag(*tags)
    user, system = sorted(run.user_tags), sorted(run.system_tags)
    if call.args.json:
        put_json({"run": run.pathspec, "tags": user, "system_tags": system})
        return 0
    put(f"{run.pathspec}: {', '.join(map(safe_line, user)) or 'no tags'}")
    if action == "list":
        put(f"of the system: {', '.join(map(safe_line, system))}")
    return 0


def _check_count(action: str, tags: list[str]) -> None:
    """Refuse too few or too many tags."""
    if action == "list" and tags:
        raise UsageError("mlp tag list takes no tags", hint=f"to add them: mlp tag add RUN {' '.join(tags)}")
    if action in ("add", "remove") and not tags:
        raise UsageError(f"which tags are to be {action.rstrip('e')}ed?", hint=f"mlp tag {action} RUN TAG")
    if action == "replace" and len(tags) != _REPLACED:
        raise UsageError("mlp tag replace takes two tags", hint="mlp tag replace RUN OLD NEW")
