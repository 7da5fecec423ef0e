"""Clearing a store beside runs that go on, and the commands that do it."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.cli import main
from mlp_core.environments.catalog import Catalog
from mlp_core.environments.host import HostEnvironments
from mlp_core.store import Store
from mlp_core.upkeep import gc
from mlp_core.upkeep.fsck import check_store
from mlp_core.upkeep.retention import Retention
from mlp_hookspecs import EnvironmentLock, EnvironmentSpec

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Project
    from mlp_core.upkeep.findings import Finding

FLOW = """
class Flow(FlowSpec):
    number = Parameter("number", default=0)

    @step
    def start(self):
        self.shared = b"shared" * 4_000
        self.own = (b"%d" % self.number) * 10_000
        self.next(self.work)

    @step
    def work(self):
        assert self.shared == b"shared" * 4_000
        self.again = b"again" * 4_000
        time.sleep(0.05)
        self.next(self.end)

    @step
    def end(self):
        assert len(self.again) == 20_000
        assert self.own == (b"%d" % self.number) * 10_000
"""


def age(project: Project, seconds: float = 1e7) -> None:
    """Make everything that is stored old."""
    moment = time.time() - seconds
    for path in (project.root / ".mlp/blobs").rglob("sha256-*"):
        os.utime(path, (moment, moment))


class Command(Protocol):
    """Carries out a command of ``mlp``."""

    def __call__(self, *words: str) -> tuple[int, str]:
        """Return its exit status and what it printed."""


@pytest.fixture
def mlp(capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process."""

    def carry_out(*words: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main([words[0], "--no-plugins", *words[1:]])
        out, err = capfd.readouterr()
        return status, out + err

    return carry_out


def blobs(project: Project) -> set[str]:
    """Return the names of all blobs."""
    return {path.name for path in (project.root / ".mlp/blobs").rglob("sha256-*")}


def run_five_at_once(project: Project, file: Path, failed: list[str], goes_on: Callable[[int], bool]) -> None:
    """Start runs while there are to be more, at most 100, and wait for all; take down what those said that failed."""
    running: list[subprocess.Popen[str]] = []
    started = 0
    try:
        while True:
            while len(running) < 5 and started < 100 and goes_on(started):
                running.append(project.start(str(file), "run", "--quiet", "--number", str(started % 4)))
                started += 1
            if not running:
                return
            out, err = running[0].communicate(timeout=100)
            if running.pop(0).returncode:
                failed.append(out + err)
    finally:
        for process in running:
            process.kill()


def test_clearing_beside_runs_breaks_none(new_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """While 20 runs or more write what others had left, clearings and checks that never pause do them no harm.

    No clearing takes what a run needs, and no check takes for damage what is being written or removed.
    What takes an hour otherwise is made to take two seconds, on both sides, so that what was written is soon old.
    """
    monkeypatch.setattr(gc, "LEAST_GRACE", 2.0)
    file = new_project.write("import mlp_core.store.blobs\nmlp_core.store.blobs._NEW_SECONDS = 2.0\n" + FLOW, "flow.py")
    new_project.run(FLOW)
    store = new_project.session().open_store(create=False)
    stop = threading.Event()
    removed: Counter[str] = Counter()

    def clear_always() -> None:
        while not stop.is_set():
            cleared = gc.clear_store(store, Retention(keep=0), now=time.time(), grace=2.0)
            removed.update(rounds=1, runs=len(cleared.runs), blobs=cleared.blobs)

    def check_always() -> None:
        while not stop.is_set():
            damage.extend(f for f in check_store(store.objects).findings if f.severity == "damage")
            removed.update(checks=1)

    failed: list[str] = []
    damage: list[Finding] = []
    with ThreadPoolExecutor(2) as pool:
        upkeep = [pool.submit(clear_always), pool.submit(check_always)]
        try:
            # On a quick machine 20 runs are over before enough has grown old to be cleared away beside them.
            run_five_at_once(new_project, file, failed, lambda started: started < 20 or removed["blobs"] <= 5)
        finally:
            stop.set()
        for each in upkeep:
            each.result(timeout=60)
    assert not failed, failed[0]
    assert removed["rounds"] > 5
    assert removed["runs"] > 5
    assert removed["blobs"] > 5
    assert removed["checks"] > 5
    assert damage == []
    assert check_store(store.objects).is_clean


def test_the_commands_remove_and_tell(new_project: Project, mlp: Command) -> None:
    """A dry run tells what would go and changes nothing; then it goes; a deleted run is not there any more."""
    first, second = (new_project.run(FLOW, parameters={"number": number}) for number in (1, 2))
    age(new_project)
    before = blobs(new_project)
    status, text = mlp("gc", "--keep", "1", "--dry-run", "--json")
    planned = json.loads(text)
    assert (status, planned["runs"], planned["blobs"]) == (0, [f"Flow/{first.run_id}"], 1)
    assert blobs(new_project) == before
    status, text = mlp("gc", "--keep", "1")
    assert (status, f"Flow/{first.run_id} removed" in text) == (0, True)
    assert new_project.runs() == [second.run_id]
    assert len(before - blobs(new_project)) == 1
    assert second.value("shared") == b"shared" * 4_000
    assert mlp("rm", f"Flow/{second.run_id}")[0] == 0
    assert new_project.runs() == []
    assert mlp("rm", f"Flow/{second.run_id}")[0] == 2
    assert mlp("gc")[0] == 0
    assert blobs(new_project) == set()
    assert mlp("fsck")[0] == 0
    assert mlp("list")[1].startswith("no run yet")


def test_the_settings_are_the_policy(new_project: Project, mlp: Command) -> None:
    """Without options the project's settings say which runs are kept; an option that keeps alone is refused."""
    runs = [
        new_project.run(FLOW, parameters={"number": number}, tags=("dear",) if number == 0 else ())
        for number in range(3)
    ]
    (new_project.root / "mlp.toml").write_text('[retention]\nkeep = 1\nkeep_tagged = ["dear"]\n')
    assert mlp("gc")[0] == 0
    assert new_project.runs() == [runs[2].run_id, runs[0].run_id]
    for words in (("--keep-tagged", "x"), ("--keep-successful", "1"), ("--older-than", "x"), ("--keep", "-1")):
        status, text = mlp("gc", *words)
        assert (status, text.startswith("error: ")) == (2, True), words
    assert len(new_project.runs()) == 2


def test_a_run_that_goes_on_is_refused(new_project: Project, mlp: Command) -> None:
    """A run whose driver is there is not deleted; the message tells which process that is."""
    file = new_project.write(FLOW.replace("time.sleep(0.05)", "time.sleep(60)"), "flow.py")
    with new_project.start(str(file), "run", "--quiet") as process:
        while not list((new_project.root / ".mlp").glob("flows/Flow/*/journal")):
            time.sleep(0.05)
        run_id = new_project.runs()[0]
        status, text = mlp("rm", f"Flow/{run_id}")
        assert (status, f"process {process.pid}" in text) == (2, True)
        status, text = mlp("gc", "--grace", "1m")
        assert (status, "--grace 1h" in text) == (2, True)
        process.terminate()
        process.communicate(timeout=30)
    assert mlp("rm", f"Flow/{run_id}")[0] == 0


def test_environments_of_this_host_go_when_they_were_not_used_for_long(
    new_project: Project, mlp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting tells how long; what is used or young stays, and a dry run tells and removes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = new_project
    project.run(FLOW)
    (project.root / "mlp.toml").write_text("[environments]\nkeep_days = 2.5\n")
    environments = HostEnvironments()
    digests = [f"sha256-{digit * 64}" for digit in "abc"]
    for number, digest in enumerate(digests):
        (environments.root / digest).mkdir(mode=0o500)
        environments.users_file(digest).touch()
        moment = time.time() - (number + 1) * 86400
        os.utime(environments.users_file(digest), (moment, moment))
    with environments.users_file(digests[2]).open() as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        assert json.loads(mlp("gc", "--json")[1])["host_environments"] == []
    planned = json.loads(mlp("gc", "--json", "--dry-run")[1])["host_environments"]
    assert [each["digest"] for each in planned] == [digests[2]]
    assert "1 environment of this host would be removed" in mlp("gc", "--dry-run")[1]
    assert environments.has(digests[2])
    assert "1 environment of this host removed" in mlp("gc")[1]
    assert [environments.has(digest) for digest in digests] == [True, True, False]


def test_what_the_store_keeps_of_environments_is_cleared_and_checked(new_project: Project, mlp: Command) -> None:
    """The command counts what went; a damaged object is named, mended, and then all is as it was."""
    project = new_project
    project.run(FLOW)
    store = Store.open(FileStore(project.root / ".mlp"), create=False)
    catalog = Catalog(store)
    locks = [EnvironmentLock("toy", name, "3.12") for name in ("named", "lonely")]
    for lock in locks:
        catalog.keep(EnvironmentSpec("toy", {"packages": lock.content}), lock, ["linux-64"])
    catalog.name("fraud", locks[0].digest)
    for path in (project.root / ".mlp/environments").rglob("*"):
        os.utime(path, (1, 1))
    age(project)
    assert "1 lock, 1 answer removed" in mlp("gc")[1]
    assert [each.lock for each in catalog.locks()] == [locks[0]]
    assert mlp("fsck")[0] == 0
    answer = next((project.root / ".mlp/environments/answers").rglob("linux-64"))
    answer.write_bytes(b"x")
    status, printed = mlp("fsck")
    assert status == 1
    assert f"damage: environments/answers/{answer.parent.name}/linux-64" in printed
    mlp("fsck", "--repair")
    assert not answer.exists()
    assert mlp("fsck")[0] == 0
    store.close()
