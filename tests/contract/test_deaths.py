"""A plugin that kills or hangs its process costs at most that command; the next one names it and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from mlp_core.breadcrumbs import Crumb, Trail, take_dead
from mlp_hookspecs import PluginId

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.conftest import Lab

LOAD = """
    from mlp_core.hooks import build_hooks
    hooks, settings = build_hooks()
    print({r.name: r.status for r in hooks.records if r.name.startswith("p-")})
"""

DEATHS = {
    "exit": "import os; os._exit(7)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "kill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


def crumbs(lab: Lab) -> list[str]:
    """Return the names of the files in the runtime folder."""
    folder = lab.runtime / "mlp"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("code", DEATHS.values(), ids=DEATHS)
def test_death_at_import_is_named_by_the_next_command(lab: Lab, code: str) -> None:
    """The command after one that died at a plugin's import names it, leaves it out, and works; so do all later ones."""
    lab.install("p-deadly", code)
    lab.install("p-fine")
    first = lab.run(LOAD)
    assert first.returncode != 0
    assert first.stdout == ""
    for _ in range(2):
        later = lab.run(LOAD)
        assert later.returncode == 0, later.stderr
        assert later.stdout == "{'p-deadly': 'failed', 'p-fine': 'loaded'}\n"
        assert "ended inside plugin p-deadly (mlp-plugin-p-deadly 1.0), while it was imported" in later.stderr
        assert 'hint: leave it out by the setting plugins.deny = ["p-deadly"], or by MLP_PLUGINS_DENY' in later.stderr
        assert "is not loaded: loading it ends the whole process with" in later.stderr


def test_denied_plugin_is_not_tried_again(lab: Lab) -> None:
    """Once the advice is followed, the death is told one last time, and then no more."""
    lab.install("p-deadly", "import os; os._exit(7)")
    assert lab.run(LOAD).returncode == 7
    assert "ended inside plugin p-deadly" in lab.run(LOAD, MLP_PLUGINS_DENY="p-deadly").stderr
    quiet = lab.run(LOAD, MLP_PLUGINS_DENY="p-deadly")
    assert (quiet.stdout, quiet.stderr) == ("{'p-deadly': 'denied'}\n", "")
    assert crumbs(lab) == []


def test_death_that_does_not_repeat_leaves_the_plugin_in_force(lab: Lab) -> None:
    """A plugin whose command was killed from outside is named, tried in a process of its own, and loaded."""
    marker = lab.project / "marker"
    code = f"import os, pathlib\np = pathlib.Path({str(marker)!r})\nif not p.exists():\n    p.touch()\n    os._exit(9)"
    lab.install("p-once", code)
    assert lab.run(LOAD).returncode == 9
    second = lab.run(LOAD)
    assert second.stdout == "{'p-once': 'loaded'}\n"
    assert "ended inside plugin p-once" in second.stderr
    third = lab.run(LOAD)
    assert (third.stdout, third.stderr) == ("{'p-once': 'loaded'}\n", "")


def test_new_version_of_a_deadly_plugin_gets_a_new_chance(lab: Lab) -> None:
    """What died in version 1 is no reason to distrust version 2."""
    lab.install("p-mended", "import os; os._exit(7)")
    lab.run(LOAD)
    lab.uninstall("mlp-plugin-p-mended")
    lab.install("p-mended", "", version="2.0")
    assert lab.run(LOAD).stdout == "{'p-mended': 'loaded'}\n"


@pytest.mark.parametrize("hook", ["mlp_settings", "mlp_backends", "mlp_options"])
def test_death_in_a_declaration(lab: Lab, hook: str) -> None:
    """A plugin that kills the process in a collect hook is found out like one that does so at import."""
    lab.install("p-deadly", f"@hookimpl\ndef {hook}():\n    import os; os._exit(7)\n")
    assert lab.run(LOAD).returncode == 7
    later = lab.run(LOAD)
    assert later.stdout == "{'p-deadly': 'failed'}\n"
    assert f"ended inside plugin p-deadly (mlp-plugin-p-deadly 1.0), in its {hook}" in later.stderr


def test_death_in_a_later_hook_is_named(lab: Lab) -> None:
    """A process that died in a hook that is not called at the start is told of once; the plugin stays in force."""
    lab.install("p-deadly", "@hookimpl\ndef mlp_event(event):\n    import os; os._exit(7)\n")
    emit = """
        from mlp_core.hooks import build_hooks
        from mlp_hookspecs.events import RunStarted
        build_hooks()[0].emit(RunStarted(sequence=1, flow="F", run_id="r", time=0))
    """
    assert lab.run(emit).returncode == 7
    later = lab.run(LOAD)
    assert later.stdout == "{'p-deadly': 'loaded'}\n"
    assert "ended inside plugin p-deadly (mlp-plugin-p-deadly 1.0), in its mlp_event" in later.stderr
    assert "ended inside" not in lab.run(LOAD).stderr


HANGS = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "without letting others run": "import ctypes; ctypes.PyDLL(None).sleep(1000)",
}


@pytest.mark.parametrize("code", HANGS.values(), ids=HANGS)
def test_import_that_never_returns_is_ended(lab: Lab, code: str) -> None:
    """The watchdog ends the process and shows where it hung; the next command leaves the plugin out."""
    lab.install("p-stuck", code)
    first = lab.run(LOAD, MLP_PLUGINS_TIMEOUT="1")
    assert first.returncode == 1
    assert "lab_mlp_plugin_p_stuck.py" in first.stderr
    if "PyDLL" not in code:
        message = "the import of plugin p-stuck (mlp-plugin-p-stuck 1.0) has not returned for 1 s; this process ends"
        assert message in first.stderr
        assert "MLP_PLUGINS_DENY=p-stuck" in first.stderr
    later = lab.run(LOAD, MLP_PLUGINS_TIMEOUT="1")
    assert later.stdout == "{'p-stuck': 'failed'}\n"
    assert "ended inside plugin p-stuck" in later.stderr
    assert "loading it " in later.stderr


def test_hook_that_never_returns_is_ended(lab: Lab) -> None:
    """Collect hooks are watched as the import is."""
    lab.install("p-stuck", "@hookimpl\ndef mlp_settings():\n    while True: pass\n")
    first = lab.run(LOAD, MLP_PLUGINS_TIMEOUT="1")
    assert first.returncode == 1
    assert "plugin p-stuck (mlp-plugin-p-stuck 1.0) has not returned for 1 s" in first.stderr


def test_processes_that_end_well_leave_nothing(lab: Lab) -> None:
    """No file stays behind, neither of the process nor of its forked children."""
    lab.install("p-fine")
    program = """
        import os
        from mlp_core.hooks import build_hooks
        hooks, _ = build_hooks()
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
        print(os.listdir(os.environ["XDG_RUNTIME_DIR"] + "/mlp"))
    """
    done = lab.run(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".crumb") == 2  # both see the parent's file: the child has called no plugin
    assert crumbs(lab) == []


def test_mark_of_a_forked_child_is_its_own(tmp_path: Path) -> None:
    """A child's death in a plugin is found by its process id, while its parent lives and keeps its own mark."""
    trail = Trail(tmp_path)
    crumb = Crumb(PluginId("p", "d", "1"), "mlp_event").encoded()
    before = trail.enter(crumb)
    child = os.fork()
    if not child:
        trail.enter(Crumb(PluginId("p", "d", "1"), "mlp_wrap_step").encoded())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (found,) = take_dead(tmp_path, child)
    assert (found.place, found.pid) == ("mlp_wrap_step", child)
    assert take_dead(tmp_path) == []
    trail.leave(before)
    trail.close()
    assert list(tmp_path.iterdir()) == []


def test_living_process_is_not_blamed(lab: Lab) -> None:
    """A command that is in the middle of a plugin is no dead one, and its file stays."""
    lab.install("p-slow", "import sys, time\nprint('in', flush=True, file=sys.stderr)\ntime.sleep(1000)")
    process = subprocess.Popen(
        [sys.executable, "-c", "from mlp_core.hooks import build_hooks; build_hooks()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == b"in\n"
        assert take_dead(lab.runtime / "mlp") == []
        assert len(crumbs(lab)) == 1
    finally:
        process.kill()
        process.communicate()
    assert [str(crumb) for crumb in take_dead(lab.runtime / "mlp")] == [
        "plugin p-slow (mlp-plugin-p-slow 1.0), while it was imported"
    ]
    assert crumbs(lab) == []


FLOW = """
    from mlp_core import FlowSpec, run, step

    class Dying(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Dying()
"""


def run_flow(lab: Lab, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a flow of two steps in the lab."""
    (lab.project / "flow.py").write_text(textwrap.dedent(FLOW))
    code = f"import sys; from mlp_core.cli import main; sys.exit(main(['run', 'flow.py', *{list(arguments)!r}]))"
    return lab.run(code, **variables)


def test_worker_that_dies_in_a_plugin(lab: Lab) -> None:
    """An attempt whose process a plugin ends has failed by the plugin's fault; the next command names it once."""
    body = "    if step.node.name == 'end':\n        import os; os._exit(4)\n"
    lab.install("p-deadly", f"@hookimpl\ndef mlp_wrap_step(step):\n{body}")
    culprit = "inside plugin p-deadly (mlp-plugin-p-deadly 1.0), in its mlp_wrap_step"
    died = run_flow(lab)
    assert died.returncode == 1
    assert f"end/0 failed: the process exited with status 4 before the step had finished, {culprit}" in died.stderr
    assert "MLP_PLUGINS_DENY=p-deadly leaves it out" in died.stderr
    assert f"ended {culprit}" in lab.run(LOAD).stderr
    assert lab.run(LOAD).stderr == ""
    assert run_flow(lab, MLP_PLUGINS_DENY="p-deadly").returncode == 0


def test_attempt_that_hangs_in_a_plugin(lab: Lab) -> None:
    """A time limit that ends an attempt inside a plugin names the plugin."""
    lab.install("p-stuck", "@hookimpl\ndef mlp_wrap_step(step):\n    while True: pass\n")
    stuck = run_flow(lab, "--with", "timeout:seconds=1,grace=0")
    assert stuck.returncode == 1
    assert "the attempt took longer than 1 s, inside plugin p-stuck (mlp-plugin-p-stuck 1.0)" in stuck.stderr


def test_interrupted_run_blames_nobody(lab: Lab) -> None:
    """A worker that was in a plugin when the user interrupted the run is no plugin's victim."""
    entered = lab.project / "entered"
    body = f"    import pathlib, time; pathlib.Path({str(entered)!r}).touch(); time.sleep(1000)\n"
    lab.install("p-slow", f"@hookimpl\ndef mlp_wrap_step(step):\n{body}")
    program = f"""
        import os, pathlib, signal, sys, threading, time
        from mlp_core.cli import main
        def interrupt():
            while not pathlib.Path({str(entered)!r}).exists():
                time.sleep(0.01)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)
        threading.Thread(target=interrupt, daemon=True).start()
        sys.exit(main(["run", "flow.py", "--isolation", "spawn"]))
    """
    (lab.project / "flow.py").write_text(textwrap.dedent(FLOW))
    assert lab.run(program).returncode == 130
    later = lab.run(LOAD)
    assert (later.stdout, later.stderr) == ("{'p-slow': 'loaded'}\n", "")
