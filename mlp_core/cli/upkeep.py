"""How ``mlp fsck`` checks a store, ``mlp gc`` clears it of what nobody needs, and ``mlp rm`` deletes runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import attrs

from mlp_core.cli.meter import Meter
from mlp_core.cli.text import place, plural, put, put_json, safe_line, size
from mlp_core.store.faults import GuardedObjects, opened
from mlp_core.store.index import RunIndex
from mlp_core.upkeep.arrival import run_name
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.repair import repair

if TYPE_CHECKING:
    from mlp_core.cli.arguments import Parser
    from mlp_core.cli.dispatch import Call
    from mlp_core.upkeep.findings import Finding, Report, Tally

_AFFECTED: Final = 5
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

        report = check_store(objects, [run_name(text) for text in call.args.runs], shared=shared, told=told)
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


def _show_report(report: Report, url: str) -> None:
    """Print what was found for people."""
    for finding in report.findings:
        put(_told(finding))
    counts = {word: sum(f.severity == kind for f in report.findings) for kind, word in _COUNTED.items()}
    found = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    checked = f"{plural(report.objects, 'object')}, {plural(report.runs, 'run')}, {size(report.size)}"
    put(f"{place(url)}: {found or 'everything is as it was written'} ({checked})")


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
