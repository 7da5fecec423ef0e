"""A small correct environment backend, and backends with one mistake each."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
import uuid
from pathlib import Path

import attrs

from mlp_hookspecs import Backend, EnvironmentLock, ProvisionedEnvironment, hookimpl
from mlp_hookspecs.provisioning import make_once
from mlp_hookspecs.testing.environments import DEAD_PROXY

SCRIPT = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


def fetch(name, version):
    """Return the text of a published package: from the cache, or from the index where there is a network."""
    cached = Path(os.environ["TOY_CACHE"], f"{name}-{version}.txt")
    if not cached.exists():
        if os.environ.get("ALL_PROXY") == DEAD_PROXY:
            raise OSError("the index cannot be reached")
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(f"{name} {version}, as it was published")
    return cached.read_text()


def sha256(text):
    """Return the hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


class ToyEnvironment:
    """Environments that are scripts which start this interpreter, beside packages of one text each."""

    @hookimpl
    def mlp_backends(self):
        """Declare it."""
        return [Backend("environment", "toy", "A toy.")]

    @hookimpl
    def mlp_resolve_environment(self, spec, platforms):
        """Lock the version of this interpreter, and the packages with their hashes."""
        if spec.requirement.get("python") == "1.4":
            raise ValueError("there is no Python 1.4 any more; ask for 3.11 or later")
        pins = dict(spec.requirement["packages"])
        if spec.base is not None:
            pins = self.united(pins, dict(spec.base.packages))
        hashes = {name: [version, sha256(fetch(name, version))] for name, version in sorted(pins.items())}
        return EnvironmentLock("toy", json.dumps(hashes), platform.python_version(), tuple(platforms), pins)

    def united(self, pins, base):
        """Add packages to others."""
        return pins | base

    @hookimpl
    def mlp_bundle_environment(self, lock, platform, folder):
        """Write the packages."""
        if not platform:
            return ()
        if platform not in lock.platforms:
            raise ValueError(f"the lock does not hold for {platform}")
        return tuple(self.put(folder, name, version) for name, version in lock.packages.items())

    def put(self, folder, name, version):
        """Write a package into a bundle."""
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / name).write_text(fetch(name, version))
        return f"texts/{name}"

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        """Make a folder with a script and the packages."""
        target = root / lock.digest
        make_once(target, lambda staging, _: self.fill(staging, lock, packages), Path.exists)
        return ProvisionedEnvironment(str(target / "python"))

    def fill(self, folder, lock, packages):
        """Write the script and the packages."""
        folder.mkdir(parents=True)
        for name, (version, expected) in json.loads(lock.content).items():
            text = fetch(name, version) if packages is None else (packages / "texts" / name).read_text()
            self.verify(name, text, expected)
            (folder / name).write_text(text)
        script = folder / "python"
        script.write_text(SCRIPT)
        script.chmod(0o755)

    def verify(self, name, text, expected):
        """Hold a package against the lock."""
        if sha256(text) != expected:
            raise OSError(f"{name} is not what was locked")


class Drifting(ToyEnvironment):
    """Locks something else each time."""

    @hookimpl
    def mlp_resolve_environment(self, spec, platforms):
        return EnvironmentLock("toy", uuid.uuid4().hex, platform.python_version())


class Borrowing(ToyEnvironment):
    """Names another backend in its locks."""

    @hookimpl
    def mlp_resolve_environment(self, spec, platforms):
        return EnvironmentLock("conda", "python", platform.python_version())


class Permissive(ToyEnvironment):
    """Locks what cannot be."""

    @hookimpl
    def mlp_resolve_environment(self, spec, platforms):
        return EnvironmentLock("toy", "python", platform.python_version())


class Wrong(ToyEnvironment):
    """Locks a version that it does not make."""

    @hookimpl
    def mlp_resolve_environment(self, spec, platforms):
        return attrs.evolve(super().mlp_resolve_environment(spec, platforms), python="3.5")


class Rebuilding(ToyEnvironment):
    """Makes it anew each time."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        draft = root / uuid.uuid4().hex
        self.fill(draft, lock, packages)
        return ProvisionedEnvironment(str(draft / "python"))


class Replacing(ToyEnvironment):
    """Makes the files of the same environment anew each time."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        folder = root / lock.digest
        folder.mkdir(exist_ok=True, parents=True)
        draft = folder / f"draft{os.getpid()}"
        draft.write_text(SCRIPT)
        draft.chmod(0o755)
        draft.replace(folder / "python")
        return ProvisionedEnvironment(str(folder / "python"))


class Racing(ToyEnvironment):
    """Cannot bear company."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        folder = root / lock.digest
        if not (folder / "python").exists():
            time.sleep(0.3)
            self.fill(folder, lock, packages)
        return ProvisionedEnvironment(str(folder / "python"))


class Hasty(ToyEnvironment):
    """Takes a folder that is there for one that is finished."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        folder = root / lock.digest
        if not folder.exists():
            folder.mkdir(parents=True)
            time.sleep(0.3)
            (folder / "python").write_text(SCRIPT)
            (folder / "python").chmod(0o755)
        return ProvisionedEnvironment(str(folder / "python"))


class Relative(ToyEnvironment):
    """Names the interpreter by a relative path."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        return ProvisionedEnvironment(os.path.relpath(super().mlp_provision_environment(lock, root, packages).python))


class Boasting(ToyEnvironment):
    """Says that it has the platform's packages."""

    def fill(self, folder, lock, packages):
        super().fill(folder, lock, packages)
        (folder / "python").write_text(SCRIPT.replace('"$@"', '-S -E "$@"'))

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        return ProvisionedEnvironment(super().mlp_provision_environment(lock, root, packages).python, has_platform=True)


class Pathless(ToyEnvironment):
    """Answers with a path."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        return Path(super().mlp_provision_environment(lock, root, packages).python)


class Vague(ToyEnvironment):
    """Tells ranges of versions."""

    @hookimpl
    def mlp_resolve_environment(self, spec, platforms):
        lock = super().mlp_resolve_environment(spec, platforms)
        return attrs.evolve(lock, packages={name: f">={version}" for name, version in lock.packages.items()})


class Upgrading(ToyEnvironment):
    """Takes newer packages when some are added."""

    def united(self, pins, base):
        return pins | {name: f"{version}.1" for name, version in base.items()}


class Forgetful(ToyEnvironment):
    """Leaves out what it was to add to."""

    def united(self, pins, base):
        return pins


class Idle(ToyEnvironment):
    """Adds nothing."""

    def united(self, pins, base):
        return base


class Secretive(ToyEnvironment):
    """Puts more into the bundle than it names."""

    @hookimpl
    def mlp_bundle_environment(self, lock, platform, folder):
        return super().mlp_bundle_environment(lock, platform, folder)[1:]


class Promising(ToyEnvironment):
    """Names more than it puts into the bundle."""

    @hookimpl
    def mlp_bundle_environment(self, lock, platform, folder):
        return (*super().mlp_bundle_environment(lock, platform, folder), "texts/more")


class Linking(ToyEnvironment):
    """Puts links to its cache into the bundle."""

    def put(self, folder, name, version):
        fetch(name, version)
        (folder / name).symlink_to(Path(os.environ["TOY_CACHE"], f"{name}-{version}.txt"))
        return name


class Lavish(ToyEnvironment):
    """Bundles everything where its own packages are asked for."""

    @hookimpl
    def mlp_bundle_environment(self, lock, platform, folder):
        return super().mlp_bundle_environment(lock, platform or lock.platforms[0], folder)


class Boundless(ToyEnvironment):
    """Bundles for any platform."""

    @hookimpl
    def mlp_bundle_environment(self, lock, platform, folder):
        return super().mlp_bundle_environment(lock, platform and lock.platforms[0], folder)


class Homesick(ToyEnvironment):
    """Takes packages from its cache or the index, although there is a bundle."""

    def fill(self, folder, lock, packages):
        super().fill(folder, lock, None)


class Trusting(ToyEnvironment):
    """Takes a bundle as it is."""

    def verify(self, name, text, expected):
        pass


class Open(ToyEnvironment):
    """Leaves a file writable."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        made = super().mlp_provision_environment(lock, root, packages)
        Path(made.python).chmod(0o755)
        return made


class Ajar(ToyEnvironment):
    """Leaves the folder writable."""

    @hookimpl
    def mlp_provision_environment(self, lock, root, packages):
        made = super().mlp_provision_environment(lock, root, packages)
        Path(made.python).parent.chmod(0o755)
        return made


good = ToyEnvironment()
BROKEN = {
    Drifting: "test_lock_is_exact",
    Borrowing: "test_lock_is_exact",
    Permissive: "test_impossible_requirement_is_refused",
    Wrong: "test_interpreter_runs",
    Rebuilding: "test_making_it_twice_makes_it_once",
    Replacing: "test_making_it_twice_makes_it_once",
    Racing: "test_many_may_start_at_once",
    Hasty: "test_half_made_environment_is_mended",
    Relative: "test_interpreter_runs",
    Boasting: "test_interpreter_runs",
    Pathless: "test_interpreter_runs",
    Vague: "test_packages_are_exact",
    Upgrading: "test_addition_keeps_every_pin",
    Forgetful: "test_addition_keeps_every_pin",
    Idle: "test_addition_keeps_every_pin",
    Secretive: "test_bundle_is_what_it_names",
    Promising: "test_bundle_is_what_it_names",
    Linking: "test_bundle_is_what_it_names",
    Lavish: "test_own_packages_are_bundled_alone",
    Boundless: "test_bundle_for_another_platform_is_refused",
    Homesick: "test_bundle_suffices",
    Trusting: "test_changed_bundle_is_refused",
    Open: "test_environment_is_read_only",
    Ajar: "test_environment_is_read_only",
}
globals().update({kind.__name__: kind() for kind in BROKEN})
