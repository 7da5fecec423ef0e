"""The environments of a host: made once, held while they are used, removed when not needed, whoever is killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.environments.host import BYTECODE_VARIABLE, HostEnvironments
from mlp_hookspecs import EnvironmentLock, ProvisionedEnvironment
from mlp_hookspecs.provisioning import make_once

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = EnvironmentLock("toy", "numpy==2.0", "3.12")
FILES = 40


class ToyHooks:
    """The hooks of a backend whose environments are folders of equal files, made slowly enough to be killed there."""

    def __init__(self, pause: float = 0.0) -> None:
        """Count what is made."""
        self.made: list[Path | None] = []
        self._pause = pause

    def provision_environment(
        self, lock: EnvironmentLock, root: Path, packages: Path | None = None
    ) -> ProvisionedEnvironment:
        """Make the folder once."""
        target = root / lock.digest

        def make(staging: Path, _: int) -> None:
            self.made.append(packages)
            staging.mkdir()
            for number in range(FILES):
                (staging / f"{number}").write_text(lock.content)
                time.sleep(self._pause)

        make_once(target, make, is_whole)
        return ProvisionedEnvironment(str(target / "0"), {"TOY": "1"})


def is_whole(target: Path) -> bool:
    """Tell whether a toy environment has all of its files."""
    return len(list(target.iterdir())) == FILES if target.is_dir() else False


def provide(environments: HostEnvironments, lock: EnvironmentLock = LOCK, **options: Any) -> ProvisionedEnvironment:
    """Provide a toy environment."""
    return environments.provide(ToyHooks(), lock, lambda _: False, **options)  # type: ignore[arg-type] # all that is used


def never(_: Path) -> bool:
    """Be asked for packages that are not needed."""
    raise AssertionError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of environments."""
    folder = tmp_path / "environments"
    folder.mkdir()
    return folder


def test_an_environment_is_made_once_and_found_afterwards(root: Path) -> None:
    """The backend gets the bundle's folder where there is one, and nobody asks for files of what is there."""
    hooks = ToyHooks()
    with HostEnvironments(root) as environments:
        made = environments.provide(hooks, LOCK, lambda folder: folder.is_dir())  # type: ignore[arg-type] # a toy
        again = environments.provide(hooks, LOCK, never)  # type: ignore[arg-type] # a toy
        assert environments.has(LOCK.digest)
    assert made == again
    assert made.variables == {"TOY": "1", BYTECODE_VARIABLE: str(root / f".{LOCK.digest}.bytecode")}
    (packages,) = hooks.made
    assert packages is not None
    assert not packages.exists()
    assert sorted(path.name for path in root.iterdir() if "packages" in path.name) == []


def test_what_is_used_stays(root: Path) -> None:
    """Whoever holds an environment keeps it, until the last one lets go."""
    first, second, remover = (HostEnvironments(root) for _ in range(3))
    provide(first)
    provide(second)
    (described,) = remover.made()
    assert described.is_used
    first.close()
    assert not remover.remove(LOCK.digest)
    assert remover.remove_unused(time.time() + 60) == []
    second.close()
    (described,) = remover.made()
    assert not described.is_used
    assert remover.remove(LOCK.digest)
    assert [path.name for path in root.iterdir()] == [f".{LOCK.digest}.lock"]


def test_only_what_was_not_used_for_long_goes(root: Path) -> None:
    """The time of the last use decides; a dry run tells the same and removes nothing."""
    other = EnvironmentLock("toy", "pandas", "3.12")
    with HostEnvironments(root) as environments:
        provide(environments)
        provide(environments, other)
        os.utime(environments.users_file(LOCK.digest), (1, 1))
    hour_ago = time.time() - 3600
    planned = environments.remove_unused(hour_ago, dry_run=True)
    assert environments.has(LOCK.digest)
    assert environments.remove_unused(hour_ago) == planned
    assert [made.digest for made in planned] == [LOCK.digest]
    assert not environments.has(LOCK.digest)
    assert environments.has(other.digest)


def test_what_is_used_in_the_last_moment_stays(root: Path) -> None:
    """Who has used an environment between the look and the removal finds it there."""
    with HostEnvironments(root) as environments:
        provide(environments)
    assert not environments.remove(LOCK.digest, time.time() - 3600)
    assert environments.has(LOCK.digest)


def test_of_two_removers_the_second_lets_a_new_user_be(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has opened the users' file before another removed it holds nothing, and must not remove what came after."""
    with HostEnvironments(root) as environments:
        provide(environments)
    slow, fast, user = HostEnvironments(root), HostEnvironments(root), HostEnvironments(root)
    flock = fcntl.flock
    pending = ["overtake"]

    def overtaken(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX | fcntl.LOCK_NB and pending:
            pending.clear()
            assert fast.remove(LOCK.digest)
            provide(user)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    assert not slow.remove(LOCK.digest)
    assert is_whole(root / LOCK.digest)
    user.close()


@pytest.mark.parametrize("is_there", [True, False])
def test_what_killed_ones_left_goes(root: Path, is_there: bool) -> None:  # a parameter of the test
    """Unfinished folders, folders of packages and half removed ones go, beside an environment that stays or none."""
    if is_there:
        with HostEnvironments(root) as environments:
            provide(environments)
    leavings = [root / f".{LOCK.digest}.{kind}" for kind in ("building", "leaving", "packages-abc")]
    for path in leavings:
        path.mkdir()
        (path / "file").write_text("x")
        (path / "file").chmod(0o400)
        path.chmod(0o500)
        os.utime(path, (1, 1))
    foreign = root / "notes.building"
    foreign.mkdir()
    os.utime(foreign, (1, 1))
    HostEnvironments(root).remove_unused(time.time() - 3600)
    assert [path for path in leavings if path.exists()] == []
    assert HostEnvironments(root).has(LOCK.digest) == is_there
    assert foreign.exists()


def test_what_a_builder_uses_is_no_leaving(root: Path) -> None:
    """The packages of one that is being made stay, however old they are said to be."""
    seen = []

    def packages(folder: Path) -> bool:
        HostEnvironments(root).remove_unused(time.time() + 3600)
        seen.append(folder.is_dir())
        return False

    with HostEnvironments(root) as environments:
        environments.provide(ToyHooks(), LOCK, packages)  # type: ignore[arg-type] # a toy
    assert seen == [True]


HOLDER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_environment_host import HostEnvironments, provide
provide(HostEnvironments(Path(sys.argv[1])), outlives=sys.argv[3] == "outlives")
os.execv(sys.executable, [sys.executable, "-c", "print('ready', flush=True); input()"])
"""


@pytest.mark.parametrize("word", ["outlives", "ends"])
def test_a_hold_survives_exec_where_it_is_to(root: Path, word: str) -> None:
    """What the agent becomes holds the environment, until it ends."""
    command = [sys.executable, "-c", HOLDER, str(root), str(Path(__file__).parent), word]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert HostEnvironments(root).remove(LOCK.digest) == (word == "ends")
        process.communicate("\n")
    assert HostEnvironments(root).remove(LOCK.digest)


USER = """
import random, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_environment_host import LOCK, HostEnvironments, ToyHooks, is_whole
root, chance = Path(sys.argv[1]), random.Random(int(sys.argv[3]))
for _ in range(int(sys.argv[4])):
    with HostEnvironments(root) as environments:
        environments.provide(ToyHooks(0.0005), LOCK, lambda folder: bool((folder / "a").write_text("x")))
        for _ in range(3):
            assert is_whole(root / LOCK.digest), "an environment in use was taken away"
            time.sleep(chance.random() / 500)
"""

REMOVER = """
import random, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_environment_host import LOCK, HostEnvironments
chance, removed = random.Random(int(sys.argv[3])), 0
while Path(sys.argv[1]).is_dir():
    removed += len(HostEnvironments(Path(sys.argv[1])).remove_unused(time.time() + 60))
    time.sleep(chance.random() / 100)
"""


@pytest.fixture
def removers(root: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that remove whatever is not used."""
    processes = [start(REMOVER, root, seed) for seed in (1, 2)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(program: str, root: Path, *arguments: int) -> subprocess.Popen[bytes]:
    """Start a process."""
    words = [str(root), str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE)


def finished(processes: list[subprocess.Popen[bytes]]) -> list[tuple[int, str]]:
    """Wait for processes, and return how each ended and what it said."""
    return [(process.wait(), error.decode()) for process in processes for error in (process.communicate()[1],)]


def test_many_users_and_removers_never_meet_half_an_environment(
    root: Path, removers: list[subprocess.Popen[bytes]]
) -> None:
    """Of twenty users, some killed at any moment, none that lives sees an environment go or unfinished."""
    chance = Random(7)  # noqa: S311 # nothing is kept secret
    users = [start(USER, root, seed, 6) for seed in range(20)]
    for process in chance.sample(users, 6):
        time.sleep(chance.random() / 4)
        process.send_signal(signal.SIGKILL)
    ended = finished(users)
    assert [error for status, error in ended if status not in (0, -signal.SIGKILL)] == []
    assert sum(status == 0 for status, _ in ended) >= 14
    assert [process.poll() for process in removers] == [None, None]
    for process in removers:
        process.kill()
        process.wait()
    HostEnvironments(root).remove_unused(time.time() + 60)
    assert {path.name for path in root.iterdir()} <= {f".{LOCK.digest}.lock"}
