"""Which commands there are: their names, where their code is, and what ``mlp --help`` says of them."""

from __future__ import annotations

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """A command, before anything of it is imported.

    Attributes
    ----------
    name : str
        The word after ``mlp``.
    module : str
        The module with its code: functions NAME_arguments and NAME_command.
    summary : str
        One line.
    takes_flow : bool
        Whether its first argument is a flow's file, whose parameters are options then.
    leaves_no_trace : bool
        Whether even the bytecode of what is imported for it stays unwritten.
    actions : tuple of Entry
        Commands of their own that follow the word; their functions are NAME_ACTION_arguments and NAME_ACTION_command.
    """

    name: str
    module: str
    summary: str
    takes_flow: bool = False
    leaves_no_trace: bool = False
    actions: tuple[Entry, ...] = ()


_MAKING: Final = "mlp_core.cli.environment_making"
_ENVIRONMENTS: Final = "mlp_core.cli.environments"

COMMANDS: Final[tuple[tuple[str, tuple[Entry, ...]], ...]] = (
    (
        "Flows",
        (
            Entry("run", "mlp_core.cli.running", "Run a flow.", takes_flow=True),
            Entry("resume", "mlp_core.cli.running", "Run a flow again without what succeeded before.", takes_flow=True),
            Entry("check", "mlp_core.cli.checking", "Find the mistakes in a flow without running it.", takes_flow=True),
            Entry(
                "plan",
                "mlp_core.cli.planning",
                "Tell what a run would resolve, fetch and build, and do nothing.",
                takes_flow=True,
                leaves_no_trace=True,
            ),
            Entry("show", "mlp_core.cli.showing", "Show a flow's steps, or a run, step, task or artifact."),
        ),
    ),
    (
        "Runs",
        (
            Entry("list", "mlp_core.cli.listing", "List runs, newest first."),
            Entry("logs", "mlp_core.cli.logs", "Print what tasks printed, while they run too."),
            Entry("artifacts", "mlp_core.cli.listing", "List what tasks left behind, or print a value."),
            Entry("tag", "mlp_core.cli.tagging", "Read or edit a run's tags."),
        ),
    ),
    (
        "Deployments",
        (
            Entry("deploy", "mlp_core.cli.deploying", "Record a version of a flow and deploy it.", takes_flow=True),
            Entry("deployments", "mlp_core.cli.deploying", "List, show, trigger, roll back or delete deployments."),
        ),
    ),
    (
        "Environments",
        (
            Entry(
                "env",
                _ENVIRONMENTS,
                "Resolve, recreate, compare, name and bundle environments.",
                actions=(
                    Entry("resolve", _MAKING, "Resolve the environments of a flow, or packages, to exact locks."),
                    Entry("create", _MAKING, "Make an environment on this host, for a debugger or a notebook."),
                    Entry("show", _ENVIRONMENTS, "Show what is in an environment, and who uses it."),
                    Entry("list", _ENVIRONMENTS, "List the environments of the store, or those on this host."),
                    Entry("diff", _ENVIRONMENTS, "Tell what two environments have that is not the same."),
                    Entry("alias", _ENVIRONMENTS, "Give an environment a name."),
                    Entry("rm", _ENVIRONMENTS, "Remove a name, or an environment from the store or from this host."),
                    Entry("bundle", _MAKING, "Put the very packages of an environment into the store."),
                ),
            ),
        ),
    ),
    (
        "Store",
        (
            Entry("sync", "mlp_core.cli.moving", "Copy runs from one store to another."),
            Entry("export", "mlp_core.cli.moving", "Pack a run into one file."),
            Entry("import", "mlp_core.cli.moving", "Unpack a run from a file."),
            Entry("rm", "mlp_core.cli.upkeep", "Delete runs."),
            Entry("gc", "mlp_core.cli.upkeep", "Remove what nobody needs, and runs that need not be kept."),
            Entry("fsck", "mlp_core.cli.upkeep", "Check every byte of the store, and mend what can be mended."),
        ),
    ),
    ("Platform", (Entry("plugins", "mlp_core.cli.plugins", "Show the installed plugins and what they provide."),)),
)
"""The commands of the core, under the headings of the help."""

IN_FLOW_FILE: Final = ("run", "resume", "check", "plan", "show", "deploy")
"""The commands that ``python flow.py`` has too."""


def find(name: str) -> Entry | None:
    """Return a command of the core by name."""
    return next((entry for _, entries in COMMANDS for entry in entries if entry.name == name), None)


def names() -> list[str]:
    """Return the names of the core's commands."""
    return [entry.name for _, entries in COMMANDS for entry in entries]


def overview() -> str:
    """Return what ``mlp --help`` prints."""
    lines = ["usage: mlp COMMAND [ARGUMENTS] [OPTIONS]", "", "Run flows, look at what they left, and deploy them."]
    for heading, entries in COMMANDS:
        lines += ["", f"{heading}:", *(f"  {entry.name:<12} {entry.summary}" for entry in entries)]
    lines += [
        "",
        "mlp COMMAND --help tells a command's options, and mlp run FLOW.py --help the flow's parameters too.",
        "Plugins may add commands: mlp plugins lists them. mlp --version tells the version.",
        "",
        "To begin: mlp run FLOW.py",
    ]
    return "\n".join(lines)


def actions_overview(entry: Entry) -> str:
    """Return what the help of a command with actions says."""
    lines = [f"usage: mlp {entry.name} COMMAND [ARGUMENTS] [OPTIONS]", "", entry.summary, "", "commands:"]
    lines += [f"  {action.name:<12} {action.summary}" for action in entry.actions]
    lines += ["", f"mlp {entry.name} COMMAND --help tells a command's options."]
    return "\n".join(lines)


def flow_overview(prog: str, flow: str) -> str:
    """Return what ``python flow.py --help`` prints."""
    lines = [f"usage: {prog} COMMAND [OPTIONS]", "", f"The flow {flow}:", ""]
    for name in IN_FLOW_FILE:
        entry = find(name)
        if entry is not None:
            lines.append(f"  {name:<12} {entry.summary}")
    lines += ["", f"{prog} run --help tells the options and the flow's parameters."]
    return "\n".join(lines)
