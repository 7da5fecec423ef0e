"""How ``mlp sync`` copies runs to another store, and ``mlp export`` and ``mlp import`` pack and unpack one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.cli.listing import moment_of
from mlp_core.cli.meter import Meter
from mlp_core.cli.report import show_error
from mlp_core.cli.text import place, plural, put, put_json, size
from mlp_core.client import client_for
from mlp_core.errors import StoreUnavailable, UsageError
from mlp_core.names import Pathspec, identifier
from mlp_core.store import Store
from mlp_core.store.faults import GuardedObjects, opened
from mlp_core.upkeep.archive import Archive, export_run
from mlp_core.upkeep.arrival import run_name
from mlp_core.upkeep.sync import RunSynced, SyncOptions, Tally, chosen_runs, sync_runs

if TYPE_CHECKING:
    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_hookspecs.handles import ObjectStore

_SUMMARY: Final = {
    "copied": ("copied", "to copy"),
    "updated": ("updated", "to update"),
    "unchanged": ("there already", "there already"),
    "running": ("still running", "still running"),
    "failed": ("not copied", "not to be copied"),
}
"""What is said of how many runs, afterwards and in a dry run."""


def sync_arguments(parser: Parser) -> None:
    """Add the options of ``mlp sync``."""
    parser.positional("source", help="the store with the runs: a folder or URL")
    parser.positional("target", help="the store that they are copied to; it is made where there is none")
    parser.positional("runs", nargs="*", help="copy these runs only, Flow/ID")
    parser.option("--flow", metavar="FLOW", help="copy the runs of this flow only")
    parser.option("--since", metavar="TIME", help="only runs started since: 2026-01-31, or 90m, 12h, 7d ago")
    parser.option("--dry-run", action="store_true", help="copy nothing, and tell what there is to copy")
    parser.option("--verify", action="store_true", help="look for damage in runs that were copied before, and mend it")
    parser.option("--json", action="store_true", help="print JSON")


def sync_command(call: Call) -> int:
    """Copy runs, and print what became of each."""
    args = call.args
    flow = identifier(args.flow, "flow") if args.flow else None
    options = SyncOptions(dry_run=args.dry_run, verify=args.verify)
    named = [run_name(text) for text in args.runs]
    source = Store.open(opened(args.source, call.session.hooks.open_store), create=False)
    runs = chosen_runs(source, named, flow=flow, since=moment_of(args.since, "--since"))
    target = _target(call, source.url, dry_run=args.dry_run)
    meter = Meter(sys.stderr)
    done: list[RunSynced] = []

    def told(tally: Tally) -> None:
        meter.show(f"{tally.runs} of {plural(len(runs), 'run')}, {plural(tally.blobs, 'blob')}, {size(tally.size)}")

    try:
        for synced in sync_runs(source, target, runs, options, told):
            done.append(synced)
            meter.clear()
            _show(synced, options, as_json=args.json)
    finally:
        meter.clear()
        target.close()
        source.close()
    if args.json:
        put_json([_data(synced) for synced in sorted(done, key=lambda each: each.run)])
    else:
        put(_summary(done, options))
    return max((synced.error.exit_status for synced in done if synced.error is not None), default=0)


def _target(call: Call, source: str, *, dry_run: bool) -> ObjectStore:
    """Return the objects of the store to copy to, which is made unless that would be more than a look."""
    objects = opened(call.args.target, call.session.hooks.open_store)
    if objects.url == source:
        raise UsageError(f"both stores are {source}", hint="give the store with the runs, then another one")
    try:
        return Store.open(objects, create=not dry_run).objects
    except StoreUnavailable:
        if not dry_run:
            raise
        return GuardedObjects(objects)


def _show(synced: RunSynced, options: SyncOptions, *, as_json: bool) -> None:
    """Print what became of a run, unless there was nothing to do."""
    if synced.error is not None:
        show_error(synced.error)
    elif as_json or synced.outcome == "unchanged":
        return
    elif synced.outcome == "running":
        put(f"{synced.run} is still running: left for the next time")
    else:
        word = f"would be {synced.outcome}" if options.dry_run else synced.outcome
        put(f"{synced.run} {word} ({plural(synced.blobs, 'blob')}, {size(synced.size)})")


def _summary(done: list[RunSynced], options: SyncOptions) -> str:
    """Return what became of all runs."""
    counts = {outcome: sum(each.outcome == outcome for each in done) for outcome in _SUMMARY}
    parts = [f"{count} {_SUMMARY[outcome][options.dry_run]}" for outcome, count in counts.items() if count]
    blobs, total = sum(each.blobs for each in done), sum(each.size for each in done)
    return f"{plural(len(done), 'run')}: {', '.join(parts) or 'nothing to do'}; {plural(blobs, 'blob')}, {size(total)}"


def _data(synced: RunSynced) -> dict[str, Any]:
    """Return what became of a run as data."""
    data = attrs.asdict(synced, filter=attrs.filters.exclude("error"))
    return data if synced.error is None else {**data, "error": synced.error.message}


def export_arguments(parser: Parser) -> None:
    """Add the options of ``mlp export``."""
    parser.positional("run", help="the run, Flow/ID; or a flow for its newest run")
    parser.positional("file", help="the file to make, such as run.mlprun")
    parser.option("--json", action="store_true", help="print JSON")


def export_command(call: Call) -> int:
    """Pack a run into a file."""
    client = client_for(call.session)
    client.namespace = None
    spec = Pathspec.parse(call.args.run)
    newest = client.Flow(spec.flow).latest_run if spec.run_id is None else None
    flow, run_id = run_name(newest.pathspec if newest is not None else str(spec))
    target = Path(call.args.file)
    with Meter(sys.stderr) as meter:
        exported = export_run(client.store, flow, run_id, target, lambda written: meter.show(size(written)))
    if call.args.json:
        put_json({**attrs.asdict(exported), "file": str(target)})
    else:
        what = f"{plural(exported.blobs, 'blob')}, {size(exported.size)}"
        put(f"{exported.run} exported to {place(call.args.file)} ({what})")
    return 0


def import_arguments(parser: Parser) -> None:
    """Add the options of ``mlp import``."""
    parser.positional("file", help="a file that mlp export has made")
    parser.option("--json", action="store_true", help="print JSON")


def import_command(call: Call) -> int:
    """Unpack a run into the store."""
    with Archive(Path(call.args.file)) as archive, Meter(sys.stderr) as meter:
        store = call.session.open_store(create=True)
        imported = archive.import_into(store, lambda read: meter.show(size(read)))
    if call.args.json:
        put_json({**attrs.asdict(imported), "store": store.url})
        return 0
    what = f"({plural(imported.blobs, 'blob')}, {size(imported.size)})"
    match imported.was:
        case "absent":
            put(f"{imported.run} imported into {place(store.url)} {what}")
        case "behind":
            put(f"{imported.run} in {place(store.url)} updated {what}")
        case _:
            put(f"{imported.run} is in {place(store.url)} already")
    return 0
