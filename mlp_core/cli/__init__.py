"""How the platform is used from a command line: ``mlp COMMAND``, and ``python flow.py COMMAND``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from mlp_core.cli.importing import importing

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run_flow_main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line of ``mlp``.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``mlp``; by default those that the process was started with.

    Returns
    -------
    int
        The exit status: 0; 1 for a failed run; 2 for what was refused; 130 or 143 where it was interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    answer = _quick_answer(arguments)
    if answer:
        return _print(answer)
    with importing():
        from mlp_core.cli.dispatch import carry_out
        from mlp_core.cli.report import guarded

    return guarded(lambda: carry_out(arguments))


def _print(text: str) -> int:
    """Print a text, and return the exit status."""
    if sys.stdout is None:  # the process was started without one
        return 0
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        from mlp_core.cli.report import output_failed

        return output_failed(error)
    return 0


def _quick_answer(arguments: list[str]) -> str:
    """Return what is printed for a command line that needs nothing else; importing the rest would take longer."""
    if arguments in ([], ["-h"], ["--help"], ["help"]):
        from mlp_core.cli.commands import overview

        return overview() + "\n"
    if arguments == ["--version"]:
        from mlp_core.version import CORE_VERSION

        return f"mlp {CORE_VERSION}\n"
    return ""


def run_flow_main(flow: type[Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Carry out the command line of a flow's file, ``python flow.py run ...``, and end the process.

    Parameters
    ----------
    flow : type
        The flow's class.
    argv : sequence of str, optional
        The words after the file; by default those that the process was started with.
    """
    with importing():
        from mlp_core.cli.dispatch import carry_out_in_flow
        from mlp_core.cli.report import guarded

    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(guarded(lambda: carry_out_in_flow(flow, arguments)))
