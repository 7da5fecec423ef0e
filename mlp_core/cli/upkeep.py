"""How ``mlp fsck`` checks a store, ``mlp gc`` clears it of what nobody needs, and ``mlp rm`` deletes runs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.cli.meter import Meter
from mlp_core.cli.text import place, plural, put, put_json, safe_line, size
from mlp_core.environments.host import HostEnvironments, days_ago
from mlp_core.errors import UsageError
from mlp_core.names import tag as checked_tag
from mlp_core.store.faults import GuardedObjects, opened
from mlp_core.store.index import RunIndex
from mlp_core.store.signing import signer_for
from mlp_core.upkeep.arrival import run_name
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.gc import DEFAULT_GRACE, Cleared, clear_store
from mlp_core.upkeep.removal import remove_run
from mlp_core.upkeep.repair import repair
from mlp_core.upkeep.retention import Retention, span

if TYPE_CHECKING:
    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.environments.host import MadeEnvironment
    from mlp_core.upkeep.findings import Finding, Report, Tally

_AFFECTED: Final = 5
_LISTED: Final = 20
_COUNTED: Final = {"damage": "damaged", "exposure": "exposed", "leftover": "left over", "note": "to note"}


def fsck_arguments(parser: Parser) -> None:
    """Add the options of ``mlp fsck``."""
    parser.positional("runs", nargs="*", help="check these runs only, Flow/ID, and what they need")
    parser.option("--repair", action="store_true", help="do what is safe: move damaged objects away, close permissions")
    parser.option("--rebuild-index", action="store_true", help="make this user's index of the runs anew")
    parser.option("--json", action="store_true", help="print JSON")


def fsck_command(call: Call) -> int:
    """Check the store, and print what was found; the exit status tells whether anything is damaged."""
    session = call.session
    objects = GuardedObjects(opened(session.store_url, session.hooks.open_store))
    shared = bool(session.settings["storage.shared"])
    with Meter(sys.stderr) as meter:

        def told(tally: Tally) -> None:
            meter.show(f"{tally.objects} objects, {plural(tally.runs, 'run')}, {size(tally.size)}")

        named = [run_name(text) for text in call.args.runs]
        signer = signer_for(session.settings["storage.signing_key"])
        report = check_store(objects, named, shared=shared, signer=signer, told=told)
    if call.args.repair:
        report = repair(objects, report, shared=shared)
    if call.args.rebuild_index:
        RunIndex.for_store(objects).rebuild()
    objects.close()
    if call.args.json:
        put_json({**attrs.asdict(report), "clean": report.is_clean})
    else:
        _show_report(report, objects.url)
    return 0 if report.is_clean else 1


def gc_arguments(parser: Parser) -> None:
    """Add the options of ``mlp gc``."""
    parser.option("--older-than", metavar="TIME", help="remove runs that ended longer ago: 12h, 30d, 4w")
    parser.option("--keep", type=_count, metavar="N", help="remove runs, but not the newest N of each flow")
    parser.option("--keep-successful", type=_count, metavar="N", help="nor the newest N that succeeded")
    parser.option(
        "--keep-tagged", action="append", default=[], metavar="TAG", help="nor those with this tag; repeatable"
    )
    parser.option("--grace", metavar="TIME", help="keep what is younger, needed or not; by default 24h")
    parser.option("--dry-run", action="store_true", help="remove nothing, and tell what would be removed")
    parser.option("--json", action="store_true", help="print JSON")


def gc_command(call: Call) -> int:
    """Remove what nobody needs, and print what that was."""
    args = call.args
    policy = _policy(call)
    grace = DEFAULT_GRACE if args.grace is None else span(args.grace, "--grace")
    store = call.session.open_store(create=False)
    with Meter(sys.stderr) as meter:

        def told(cleared: Cleared) -> None:
            meter.show(f"{plural(len(cleared.runs), 'run')}, {plural(cleared.blobs, 'blob')}, {size(cleared.size)}")

        cleared = clear_store(store, policy, now=time.time(), grace=grace, dry_run=args.dry_run, told=told)
    store.close()
    unused = _unused_environments(call)
    if args.json:
        environments = [{"digest": each.digest, "path": str(each.path), "used_at": each.used_at} for each in unused]
        put_json({**attrs.asdict(cleared), "host_environments": environments, "dry_run": args.dry_run})
    else:
        _show_cleared(cleared, dry_run=args.dry_run)
        if unused:
            word = "would be removed" if args.dry_run else "removed"
            put(f"{plural(len(unused), 'environment')} of this host {word}")
    return 0


def _unused_environments(call: Call) -> list[MadeEnvironment]:
    """Remove the environments of this host that were not used for long, and return them."""
    days = call.session.settings["environments.keep_days"]
    try:
        return HostEnvironments().remove_unused(days_ago(days), dry_run=call.args.dry_run)
    except OSError as error:
        raise UsageError(
            f"{error.filename or 'an environment of this host'} cannot be removed: {error.strerror or error}",
            hint="look at who owns it; the store has been cleared",
        ) from error


def _policy(call: Call) -> Retention:
    """Return which runs are kept: as the options say, or the settings where there are none."""
    args = call.args
    if args.keep is None and args.older_than is None:
        if args.keep_successful is not None or args.keep_tagged:
            raise UsageError(
                "it is told which runs are to be kept, and not which may go",
                hint="add --older-than 30d, --keep N or both",
            )
        return Retention.of(call.session.settings)
    return Retention(
        keep=args.keep,
        older_than=None if args.older_than is None else span(args.older_than, "--older-than"),
        keep_successful=args.keep_successful or 0,
        keep_tagged=tuple(checked_tag(tag) for tag in args.keep_tagged),
    )


def _show_cleared(cleared: Cleared, *, dry_run: bool) -> None:
    """Print what was removed for people."""
    word = "would be removed" if dry_run else "removed"
    for run in cleared.runs[:_LISTED]:
        put(f"{run} {word}")
    if len(cleared.runs) > _LISTED:
        put(f"... and {len(cleared.runs) - _LISTED} more runs")
    if cleared.kept:
        put(f"no blob was removed: {safe_line(cleared.kept)}")
    counts = [
        plural(len(cleared.runs), "run"),
        plural(cleared.blobs, "blob"),
        plural(cleared.parts, "part"),
        plural(cleared.leftovers, "leftover"),
        plural(cleared.locks, "lock"),
        plural(cleared.answers, "answer"),
        plural(cleared.bundles, "bundle"),
    ]
    put(f"{', '.join(each for each in counts if not each.startswith('0 ')) or 'nothing'} {word}, {size(cleared.size)}")


def rm_arguments(parser: Parser) -> None:
    """Add the options of ``mlp rm``."""
    parser.positional("runs", nargs="+", help="the runs, Flow/ID")
    parser.option("--json", action="store_true", help="print JSON")


def rm_command(call: Call) -> int:
    """Delete runs; what they alone needed goes with the next ``mlp gc``."""
    store = call.session.open_store(create=False)
    runs = [run_name(text) for text in dict.fromkeys(call.args.runs)]
    removed = {}
    for flow, run_id in runs:
        removed[f"{flow}/{run_id}"] = remove_run(store, flow, run_id)
        if not call.args.json:
            put(f"{flow}/{run_id} removed")
    if call.args.json:
        put_json([{"run": run, "size": count} for run, count in removed.items()])
    else:
        put("what only they needed goes with: mlp gc")
    return 0


def _count(text: str) -> int:
    """Read a whole number that is not negative."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


_count.__name__ = "whole number"  # argparse names it so in its message


def _show_report(report: Report, url: str) -> None:
    """Print what was found for people."""
    for finding in report.findings:
        put(_told(finding))
    counts = {word: sum(f.severity == kind for f in report.findings) for kind, word in _COUNTED.items()}
    found = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    if not any(finding.severity in ("damage", "exposure") for finding in report.findings):
        found = ", ".join(("everything is as it was written", *((found,) if found else ())))
    checked = f"{plural(report.objects, 'object')}, {plural(report.runs, 'run')}, {size(report.size)}"
    put(f"{place(url)}: {found} ({checked})")


def _told(finding: Finding) -> str:
    """Return a finding as lines."""
    lines = [f"{finding.severity}: {finding.key}: {finding.problem}"]
    if finding.affects:
        more = len(finding.affects) - _AFFECTED
        lines.append(f"  affects: {', '.join(finding.affects[:_AFFECTED])}" + (f" and {more} more" if more > 0 else ""))
    if finding.repaired:
        lines.append(f"  done: {finding.repaired}")
    if finding.remedy and not finding.is_healed:
        lines.append(f"  to do: {finding.remedy}")
    return "\n".join(safe_line(line) for line in lines)
