"""What the commands do in a terminal: a view that is drawn again, and logs that cannot command the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Project

FLOW = r"""
class Flow(FlowSpec):
    @step
    def start(self):
        print("\x1b]0;owned\x07\x1b[2Jplain \x1b[31mred")
        print("10%\r100%")
        self.xs = [1, 2, 3]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        time.sleep(0.3)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
DRAWING = re.compile(r"\x1b\[(\d*[AK]|\?25[lh])|\r")


def in_terminal(project: Project, *words: str, columns: int = 100, **variables: str) -> tuple[int, str]:
    """Run a command in a terminal of its own, and return its status and all that the terminal got."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "MLP_NO_PLUGINS": "1", **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlp_core.cli", *words],
        cwd=project.root,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    got = bytearray()
    while True:
        try:
            piece = os.read(mine, 65536)
        except OSError:  # what a terminal says when nobody is left on the other side
            break
        if not piece:
            break
        got += piece
    os.close(mine)
    return process.wait(), got.decode()


@pytest.fixture(scope="module", autouse=True)
def flow(project: Project) -> None:
    """A flow that prints what a terminal would obey."""
    project.write(FLOW, "flow.py")


def test_a_run_is_drawn_while_it_goes_on(project: Project) -> None:
    """The steps are drawn again as they go on; the last lines tell all of them and the end."""
    status, shown = in_terminal(project, "run", "flow.py")
    assert status == 0, shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    plain = COLOUR.sub("", shown)
    assert re.search(r"work\s+━*─*\s+0/3\s+[123] running", plain)
    end = DRAWING.sub("", plain.split("\x1b[?25h")[1])
    assert re.fullmatch(r"Flow/[\d-]+ succeeded in .*\n", end)
    assert re.findall(r"✓\s+(\w+)", plain)[-4:] == ["start", "work", "join", "end"]


def test_logs_cannot_command_the_terminal(project: Project) -> None:
    """Of what a task prints colours come through, and nothing else that a terminal obeys."""
    _, drawn = in_terminal(project, "run", "flow.py")
    _, printed = in_terminal(project, "logs", "Flow/" + project.runs()[0] + "/start")
    for shown in (drawn, printed):
        assert "\x1b]" not in shown
        assert "\x1b[2J" not in shown
        assert "\x07" not in shown
        assert r"\x1b]0;owned\x07\x1b[2Jplain " in shown
        assert "100%" in shown
        assert "10%\r" not in shown
    assert "\x1b[31mred\x1b[0m" in printed


def test_a_terminal_that_cannot_draw_gets_plain_lines(project: Project) -> None:
    """A dumb terminal gets the lines of a pipe; without colours errors are told plainly."""
    status, shown = in_terminal(project, "run", "flow.py", TERM="dumb")
    assert status == 0
    assert "\x1b" not in COLOUR.sub("", shown)
    assert "work/0 started" in shown
    _, refused = in_terminal(project, "run", "nowhere.py", NO_COLOR="1")
    assert refused.startswith("error: there is no file")
    _, coloured = in_terminal(project, "run", "nowhere.py")
    assert "\x1b[1;31merror:\x1b[0m" in coloured


def test_a_narrow_terminal_keeps_its_lines(project: Project) -> None:
    """The view fits forty columns, and the last line is told in full."""
    status, shown = in_terminal(project, "run", "flow.py", columns=40)
    assert status == 0
    end = COLOUR.sub("", shown).split("\x1b[?25h")[1]
    assert re.search(r"succeeded in", end)
