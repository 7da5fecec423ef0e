"""Which promises an environment keeps: a requirement has one exact answer, which is made once, wherever it is asked."""

from __future__ import annotations

import json
import os
import platform
import re
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs
import pytest

from mlp_hookspecs import BackendKind, EnvironmentLock, EnvironmentSpec, ProvisionedEnvironment, wire
from mlp_hookspecs.testing.contract import BackendContract
from mlp_hookspecs.testing.driver import Driver, child_command

PROVISIONERS = 3
KILLED_AFTER_SECONDS = (0.0, 0.05, 0.2)
DEAD_PROXY: Final = "http://127.0.0.1:9"
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

_EXACT: Final = re.compile(r"[\w.!+-]*\d[\w.!+-]*")
_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_SYSTEMS: Final = {"Linux": "linux", "Darwin": "osx"}
_MACHINES: Final = {"x86_64": "64", "amd64": "64"}


def _this_platform() -> str:
    """Return this host's platform as the core names it, such as ``linux-64``."""
    system, machine = platform.system(), platform.machine().lower()
    return f"{_SYSTEMS.get(system, system.lower())}-{_MACHINES.get(machine, machine)}"


class EnvironmentContract(BackendContract):
    """The tests of an environment backend.

    A derived class supplies the fixture `spec`; `impossible` where there is such a thing, and `addition` where
    packages can be added to an environment. Whether bundles are tested depends on the plugin having the hook.

    Attributes
    ----------
    platforms : tuple of str
        The platforms to lock for, this host's first; it is the one that bundles are made for.
    caches : tuple of str
        The environment variables that name the folders of the backend's caches. The kit points them at empty folders
        to prove that a bundle suffices.

    Examples
    --------
    >>> import pytest
    >>> from mlp_hookspecs import EnvironmentSpec
    >>> from mlp_hookspecs.testing import EnvironmentContract
    >>> class TestNix(EnvironmentContract):
    ...     plugin = "mlp_plugin_nix"
    ...     name = "nix"
    ...     caches = ("NIX_CACHE_HOME",)
    ...
    ...     @pytest.fixture
    ...     def spec(self):
    ...         return EnvironmentSpec("nix", {"packages": ["numpy"]})
    ...
    ...     @pytest.fixture
    ...     def addition(self):
    ...         return EnvironmentSpec("nix", {"packages": ["rich"]})
    """

    kind: ClassVar[BackendKind] = "environment"
    platforms: ClassVar[tuple[str, ...]] = (_this_platform(),)
    caches: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    def spec(self) -> EnvironmentSpec:
        """A small requirement that can be met, of published packages."""
        raise NotImplementedError

    @pytest.fixture
    def impossible(self) -> EnvironmentSpec | None:
        """A requirement that cannot be met; None where any can."""
        return None

    @pytest.fixture
    def addition(self) -> EnvironmentSpec | None:
        """A requirement, without a base, of something that `spec` does not bring; None where nothing can be added."""
        return None

    @pytest.fixture
    def lock(self, driver: Driver, spec: EnvironmentSpec) -> EnvironmentLock:
        """The lock of the requirement."""
        return self._resolve(driver, spec)

    @pytest.fixture
    def bundle(self, driver: Driver, lock: EnvironmentLock, tmp_path: Path) -> Path:
        """A folder with the files of the lock for this host; skips the test where there are no bundles."""
        folder = tmp_path / "a bundle, 100%"
        self._bundle(driver, lock, self.platforms[0], folder)
        return folder

    @pytest.fixture
    def island(self, tmp_path: Path) -> dict[str, str]:
        """The environment variables of a process that has no network and whose caches are empty."""
        variables = {name: text for name, text in os.environ.items() if name.upper() != "NO_PROXY"}
        for name in PROXIES:
            variables |= {name: DEAD_PROXY, name.lower(): DEAD_PROXY}
        for name in self.caches:
            variables[name] = str(tmp_path / "empty" / name)
            Path(variables[name]).mkdir(parents=True)
        return variables

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

    def test_packages_are_exact(self, lock: EnvironmentLock) -> None:
        """The packages that a lock tells have exact versions: several only where platforms differ."""
        for name, versions in lock.packages.items():
            assert name.strip(), "a package has no name"
            for version in versions.split(","):
                assert _EXACT.fullmatch(version.strip()), f"{name} has {version!r}, which is no exact version"

    def test_addition_keeps_every_pin(
        self, driver: Driver, lock: EnvironmentLock, addition: EnvironmentSpec | None, tmp_path: Path
    ) -> None:
        """What is added to an environment leaves every package in it at its version; the whole can be made."""
        if addition is None:
            pytest.skip("nothing can be added to the backend's environments")
        assert lock.packages, "a lock that can be added to tells its packages"
        added = self._resolve(driver, attrs.evolve(addition, base=lock))
        changed = {name: added.packages.get(name) for name, version in lock.packages.items()}
        assert changed == dict(lock.packages), "the addition has changed what it was added to"
        assert len(added.packages) > len(lock.packages), "nothing was added"
        assert added.python == lock.python, "the addition has changed the interpreter"
        assert added.digest != lock.digest, "another environment has the same identity"
        self._check(self._provision(driver, added, tmp_path), added)

    # ------------------------------------------------------------------------------------------ bundling

    def test_bundle_is_what_it_names(self, driver: Driver, lock: EnvironmentLock, tmp_path: Path) -> None:
        """The files that bundling names are in the folder, files of their own, and nothing else is."""
        folder = tmp_path / "bundle"
        names = self._bundle(driver, lock, self.platforms[0], folder)
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _is_folder(path)}
        assert sorted(names) == sorted(there)
        for name in names:
            assert (folder / name).is_file(), f"{name} is no file"
            assert not (folder / name).is_symlink(), f"{name} is a link, which cannot be stored"

    def test_own_packages_are_bundled_alone(self, driver: Driver, lock: EnvironmentLock, tmp_path: Path) -> None:
        """Without a platform there are the lock's own packages alone, and none where it says that it has none."""
        names = self._bundle(driver, lock, "", tmp_path / "own")
        assert bool(names) == lock.has_own_packages

    def test_bundle_for_another_platform_is_refused(
        self, driver: Driver, lock: EnvironmentLock, tmp_path: Path
    ) -> None:
        """A platform that the lock does not hold for raises ValueError."""
        if not lock.platforms:
            pytest.skip("the lock holds for any platform")
        with pytest.raises(ValueError, match=r"\w"):
            self._bundle(driver, lock, "plan9-64", tmp_path / "bundle")

    def test_bundle_suffices(
        self, driver: Driver, lock: EnvironmentLock, bundle: Path, island: Mapping[str, str], tmp_path: Path
    ) -> None:
        """With the files of a bundle an environment is made with empty caches and no network."""
        process = self._provisioner(driver, lock, tmp_path / "island", packages=bundle, variables=island)
        self._check(_made(_let_alone(process)), lock)

    def test_changed_bundle_is_refused(
        self, driver: Driver, lock: EnvironmentLock, bundle: Path, island: Mapping[str, str], tmp_path: Path
    ) -> None:
        """Where a byte of a file has changed, making the environment raises OSError."""
        largest = max((path for path in bundle.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
        process = self._provisioner(driver, lock, tmp_path / "island", packages=bundle, variables=island)
        answer = _let_alone(process)
        assert "refused" in answer, f"{largest.name} was changed, and an environment was made from it"

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

    def test_environment_is_read_only(self, driver: Driver, lock: EnvironmentLock, tmp_path: Path) -> None:
        """Nobody may write to the folders and files of an environment that was made: many steps run in it."""
        made = self._provision(driver, lock, tmp_path)
        if not Path(made.python).is_relative_to(tmp_path):
            pytest.skip("the environment was there before")
        folder = tmp_path / Path(made.python).relative_to(tmp_path).parts[0]
        writable = [str(path) for path in (folder, *folder.rglob("*")) if _is_writable(path)]
        assert writable == []

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
            self._check(_made(answer), lock)

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
        made = driver.call("mlp_provision_environment", lock=lock, root=root, packages=None)
        assert isinstance(made, ProvisionedEnvironment), f"provisioning was answered with {made!r}"
        return made

    def _bundle(self, driver: Driver, lock: EnvironmentLock, platform: str, folder: Path) -> tuple[str, ...]:
        """Put a lock's files into a folder, and return their names."""
        if not driver.implements("mlp_bundle_environment"):
            pytest.skip("the backend's environments cannot be bundled")
        folder.mkdir()
        names = driver.call("mlp_bundle_environment", lock=lock, platform=platform, folder=folder)
        assert names is not None, "bundling was answered with None"
        return tuple(names)

    def _provisioner(
        self,
        driver: Driver,
        lock: EnvironmentLock,
        root: Path,
        *,
        packages: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a process that makes the environment once it reads a line."""
        folder = None if packages is None else str(packages)
        arguments = {"lock_data": wire.encode(lock), "root": str(root), "packages": folder}
        command = child_command(driver.plugin, "provision", **arguments)
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)

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


def _is_folder(path: Path) -> bool:
    """Tell whether a path is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _is_writable(path: Path) -> bool:
    """Tell whether a file or folder has left a permission to write; another user's file that is linked is theirs."""
    found = path.lstat()
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and bool(found.st_mode & _WRITE)


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


def _made(answer: Any) -> ProvisionedEnvironment:
    """Return the environment that a process says it has made."""
    assert "refused" not in answer, f"the environment was not made: {answer['refused']}"
    return wire.decode(ProvisionedEnvironment, answer)


def _let_alone(process: subprocess.Popen[str]) -> Any:
    """Let a process begin at once, and return its last answer."""
    try:
        assert _answer(process) == "ready"
        _go(process)
        return _answer(process)
    finally:
        process.kill()
        process.communicate()
