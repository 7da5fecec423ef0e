"""Which promises an environment keeps: a requirement has one exact answer, and making it twice makes it once."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mlp_hookspecs import BackendKind, EnvironmentLock, EnvironmentSpec, ProvisionedEnvironment, wire
from mlp_hookspecs.testing.contract import BackendContract
from mlp_hookspecs.testing.driver import Driver, child_command

PROVISIONERS = 3
KILLED_AFTER_SECONDS = (0.0, 0.05, 0.2)


class EnvironmentContract(BackendContract):
    """The tests of an environment backend.

    A derived class supplies the fixture `spec`, and `impossible` where there is such a thing.

    Attributes
    ----------
    platforms : tuple of str
        The platforms to lock for.

    Examples
    --------
    >>> import pytest
    >>> from mlp_hookspecs import EnvironmentSpec
    >>> from mlp_hookspecs.testing import EnvironmentContract
    >>> class TestNix(EnvironmentContract):
    ...     plugin = "mlp_plugin_nix"
    ...     name = "nix"
    ...
    ...     @pytest.fixture
    ...     def spec(self):
    ...         return EnvironmentSpec("nix", {"packages": ["numpy"]})
    """

    kind: ClassVar[BackendKind] = "environment"
    platforms: ClassVar[tuple[str, ...]] = ("linux-64",)

    @pytest.fixture
    def spec(self) -> EnvironmentSpec:
        """A small requirement that can be met."""
        raise NotImplementedError

    @pytest.fixture
    def impossible(self) -> EnvironmentSpec | None:
        """A requirement that cannot be met; None where any can."""
        return None

    @pytest.fixture
    def lock(self, driver: Driver, spec: EnvironmentSpec) -> EnvironmentLock:
        """The lock of the requirement."""
        return self._resolve(driver, spec)

    # ------------------------------------------------------------------------------------------ resolving

    def test_lock_is_exact(self, driver: Driver, spec: EnvironmentSpec, lock: EnvironmentLock) -> None:
        """The same requirement gives the same lock, which says what interpreter it has and what platforms it is for."""
        assert lock == self._resolve(driver, spec)
        assert lock.digest == self._resolve(driver, spec).digest
        assert lock.backend == self.name, "the backend that makes a lock is the one that provisions it"
        assert lock.python.split(".")[0].isdigit(), f"{lock.python!r} is no version of Python"
        assert not lock.platforms or set(self.platforms) <= set(lock.platforms)

    def test_lock_travels(self, lock: EnvironmentLock) -> None:
        """A lock is data: it comes back from its wire form with the same digest."""
        assert wire.loads(EnvironmentLock, wire.dumps(lock)).digest == lock.digest

    def test_resolving_does_not_change_the_requirement(self, driver: Driver, spec: EnvironmentSpec) -> None:
        """A requirement is its author's."""
        before = spec.digest
        self._resolve(driver, spec)
        assert spec.digest == before

    def test_impossible_requirement_is_refused(self, driver: Driver, impossible: EnvironmentSpec | None) -> None:
        """A requirement that cannot be met raises ValueError, with a message for the user."""
        if impossible is None:
            pytest.skip("the backend can meet any requirement")
        with pytest.raises(ValueError, match=r"\w") as caught:
            self._resolve(driver, impossible)
        assert len(str(caught.value)) > len("impossible"), "the message must tell the user what cannot be met"

    # ------------------------------------------------------------------------------------------ provisioning

    def test_interpreter_runs(self, driver: Driver, lock: EnvironmentLock, tmp_path: Path) -> None:
        """The interpreter has the lock's version, and the platform's packages where the backend says so."""
        made = self._provision(driver, lock, tmp_path)
        assert Path(made.python).is_absolute()
        self._check(made, lock)

    def test_making_it_twice_makes_it_once(self, driver: Driver, lock: EnvironmentLock, tmp_path: Path) -> None:
        """The second call finds what the first has made, and leaves it untouched."""
        made = self._provision(driver, lock, tmp_path)
        before = _files(tmp_path)
        assert self._provision(driver, lock, tmp_path) == made
        assert _files(tmp_path) == before, "an environment that was there was made again"

    def test_many_may_start_at_once(self, driver: Driver, lock: EnvironmentLock, tmp_path: Path) -> None:
        """Processes that make the same environment at the same moment all get one that works."""
        provisioners = [self._provisioner(driver, lock, tmp_path) for _ in range(PROVISIONERS)]
        try:
            assert [_answer(process) for process in provisioners] == ["ready"] * PROVISIONERS
            for process in provisioners:
                _go(process)
            answers = [_answer(process) for process in provisioners]
        finally:
            for process in provisioners:
                process.kill()
                process.communicate()
        for answer in answers:
            self._check(wire.decode(ProvisionedEnvironment, answer), lock)

    @pytest.mark.parametrize("seconds", KILLED_AFTER_SECONDS)
    def test_half_made_environment_is_mended(
        self, driver: Driver, lock: EnvironmentLock, tmp_path: Path, seconds: float
    ) -> None:
        """An environment whose maker was killed is not taken for a finished one."""
        process = self._provisioner(driver, lock, tmp_path)
        assert _answer(process) == "ready"
        _go(process)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        self._check(self._provision(driver, lock, tmp_path), lock)

    def _resolve(self, driver: Driver, spec: EnvironmentSpec) -> EnvironmentLock:
        """Return a requirement's lock."""
        lock = driver.call("mlp_resolve_environment", spec=spec, platforms=self.platforms)
        assert isinstance(lock, EnvironmentLock), f"resolving was answered with {lock!r}"
        return lock

    def _provision(self, driver: Driver, lock: EnvironmentLock, root: Path) -> ProvisionedEnvironment:
        """Return a lock's environment."""
        made = driver.call("mlp_provision_environment", lock=lock, root=root)
        assert isinstance(made, ProvisionedEnvironment), f"provisioning was answered with {made!r}"
        return made

    def _provisioner(self, driver: Driver, lock: EnvironmentLock, root: Path) -> subprocess.Popen[str]:
        """Start a process that makes the environment once it reads a line."""
        command = child_command(driver.plugin, "provision", lock_data=wire.encode(lock), root=str(root))
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _check(self, made: ProvisionedEnvironment, lock: EnvironmentLock) -> None:
        """Run the interpreter, with nothing of this process's own path."""
        imports = "import attrs, pluggy, mlp_hookspecs" if made.has_platform else "pass"
        code = f"import platform\n{imports}\nprint(platform.python_version())"
        environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [made.python, "-c", code],
            env={**environment, **made.variables},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"the interpreter does not run:\n{done.stderr}"
        version = done.stdout.strip()
        assert f"{version}.".startswith(f"{lock.python}."), f"the interpreter is {version}, the lock says {lock.python}"


def _files(root: Path) -> dict[str, int]:
    """Return the files below a folder, with the numbers that tell a file that was made again."""
    return {str(path): path.lstat().st_ino for path in root.rglob("*")}


def _go(process: subprocess.Popen[str]) -> None:
    """Let a process begin."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen[str]) -> Any:
    """Return the next line that a process says, which is JSON."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process has ended without an answer"
    return json.loads(line)
