"""Runs of real flows: a project's folder, flows in it, runs in this process or in one of their own, read back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import psutil
import pytest

from mlp_core.loading import load_flow
from mlp_core.runner import RunOptions, RunResult, SilentProgress, run_flow
from mlp_core.session import Session
from mlp_core.store.logs import read_logs
from mlp_core.store.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlp_hookspecs import StepOutcome, TaskKey

HEADER = """
import os, signal, sys, threading, time
from mlp_core import *
"""

MARK = "MLP_TEST_MARK"
"""An environment variable that a run's processes inherit, whatever becomes of their parents."""


class Recorder(SilentProgress):
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def task_started(self, key: TaskKey, attempt: int) -> None:
        """Remember the start."""
        self.events.append(("started", f"{key.path}/{attempt}"))

    def task_finished(self, key: TaskKey, attempt: int, outcome: StepOutcome, will_retry: bool) -> None:  # noqa: ARG002 # the protocol's signature
        """Remember the end."""
        self.events.append((outcome.status, f"{key.path}/{attempt}"))

    def task_reused(self, key: TaskKey, origin: str) -> None:  # noqa: ARG002 # the protocol's signature
        """Remember the task."""
        self.events.append(("reused", key.path))

    def note(self, text: str) -> None:
        """Remember the remark."""
        self.notes.append(text)


@attrs.frozen
class Ran:
    """A run that has ended, as its store tells it."""

    session: Session
    state: RunState
    result: RunResult | None = None
    events: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """How it ended."""
        return self.state.status

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.state.context.run_id

    @property
    def paths(self) -> list[str]:
        """The tasks, sorted."""
        return sorted(key.path for key in self.state.tasks)

    def key(self, path: str) -> TaskKey:
        """Return the key of a task's path; a step's name alone means its only task."""
        (key,) = [key for key in self.state.tasks if path in (key.path, key.step)]
        return key

    def artifacts(self, path: str = "end") -> Mapping[str, Any]:
        """Return the references that are visible in a task."""
        return self.state.artifacts(self.key(path))

    def value(self, name: str, path: str = "end") -> Any:
        """Return an artifact as it is visible in a task."""
        return self.session.values(self.session.open_store(create=False)).get(self.artifacts(path)[name])

    def outcome(self, path: str) -> StepOutcome:
        """Return how a task ended."""
        outcome = self.state.tasks[self.key(path)].outcome
        assert outcome is not None
        return outcome

    def failure(self, path: str) -> Any:
        """Return why a task's last attempt failed."""
        failure = self.outcome(path).failure
        assert failure is not None
        return failure

    def log(self, path: str = "end", attempt: int = 0, streams: tuple[str, ...] = ("stdout", "stderr")) -> str:
        """Return what an attempt printed."""
        objects = self.session.open_store(create=False).objects
        run = self.state.context
        name = f"{self.key(path).path}/{attempt}"
        chunks = read_logs(objects, run.flow, run.run_id, [name])
        return b"".join(chunk.data for chunk in chunks if chunk.stream in streams).decode()


@attrs.frozen
class Project:
    """A folder with flows, and the store of their runs."""

    root: Path

    def write(self, code: str, file: str = "") -> Path:
        """Write a flow's file; by default under a name of its own, since a process imports a file only once."""
        path = self.root / (file or f"flow_{zlib.crc32(code.encode()):08x}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        main = "" if "__main__" in code else '\nif __name__ == "__main__":\n    Flow()\n'
        path.write_text(HEADER + textwrap.dedent(code) + main)
        return path

    def session(self, **flags: object) -> Session:
        """Open the project; a setting's name has an underscore for its dot."""
        given = {name.replace("_", ".", 1): value for name, value in flags.items()}
        return Session.open(start=self.root, flags={"plugins.safe": True, **given})

    def run(self, code: str | type, *, flags: Mapping[str, object] | None = None, **options: Any) -> Ran:
        """Run a flow in this process, to its end whatever it is; the code's class is called Flow."""
        flow = load_flow(self.write(code), "Flow") if isinstance(code, str) else code
        asked = RunOptions(**options)
        session = Session.open(start=self.root, flags={"plugins.safe": True, **asked.flags(), **(flags or {})})
        recorder = Recorder()
        result = run_flow(flow, session, asked, recorder)
        state = session.open_store(create=False).run(result.flow, result.run_id)
        return Ran(session, state, result, tuple(recorder.events), tuple(recorder.notes))

    def runs(self, flow: str = "Flow") -> list[str]:
        """Return the ids of a flow's runs, newest first."""
        return list(self.session().open_store(create=False).run_ids(flow))

    def read(self, run_id: str | None = None, flow: str = "Flow") -> Ran:
        """Read a run, by default the newest."""
        session = self.session()
        return Ran(session, session.open_store(create=False).run(flow, run_id or self.runs(flow)[0]))

    def start(self, *command: str, mark: str = "", cwd: str = ".", **variables: str) -> subprocess.Popen[str]:
        """Start a command of Python in the project, with pipes; its processes can be found by the mark."""
        environment = {**os.environ, "MLP_NO_PLUGINS": "1", MARK: mark, **variables}
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.root / cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def command(
        self, *command: str, timeout: float = 60, cwd: str = ".", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Python in the project to its end."""
        with self.start(*command, cwd=cwd, **variables) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that have inherited a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


@attrs.frozen
class Processes:
    """What a test needs to look after processes that it leaves to themselves."""

    mark: str

    def wait_until_gone(self, seconds: float) -> None:
        """Fail where a marked process is left after some time; the message names them."""
        deadline = time.monotonic() + seconds
        while left := marked(self.mark):
            assert time.monotonic() < deadline, [(p.pid, p.ppid(), p.cmdline()) for p in left]
            time.sleep(0.05)

    @staticmethod
    def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> Any:
        """Wait until something holds, and return it."""
        return wait_for(condition, what, seconds)

    def count(self) -> int:
        """Return how many marked processes there are."""
        return len(marked(self.mark))


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """The processes of a test, which are killed with it."""
    mark = f"{os.getpid()}-{request.node.nodeid}"
    yield Processes(mark)
    for process in marked(mark):
        os.kill(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A project for the tests of one file, with caches of its own."""
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    yield from _project(folder)


@pytest.fixture
def new_project(tmp_path: Path) -> Iterator[Project]:
    """A project for one test."""
    yield from _project(tmp_path)


def _project(folder: Path) -> Iterator[Project]:
    """Make a project the working folder for a time."""
    root = folder / "project"
    root.mkdir()
    (root / "mlp.toml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.chdir(root)
        before = list(sys.path)
        yield Project(root)
        sys.path[:] = before
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(root)):
                del sys.modules[name]


Isolation = Literal["fork", "spawn", "inline"]


@pytest.fixture(scope="module", params=["fork", "spawn", "inline"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """How tasks are kept apart: every way."""
    way: Isolation = request.param
    return way
