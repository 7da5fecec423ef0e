"""A small correct environment backend, and backends with one mistake each."""

from __future__ import annotations

import os
import platform
import sys
import time
import uuid
from pathlib import Path

from mlp_hookspecs import Backend, EnvironmentLock, ProvisionedEnvironment, hookimpl

SCRIPT = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


class ToyEnvironment:
    """Environments that are scripts which start this interpreter."""

    @hookimpl
    def mlp_backends(self):
        """Declare it."""
        return [Backend("environment", "toy", "A toy.")]

    @hookimpl
    def mlp_resolve_environment(self, spec, platforms):
        """Lock the version of this interpreter."""
        if spec.requirement.get("python") == "1.4":
            raise ValueError("there is no Python 1.4 any more; ask for 3.11 or later")
        return EnvironmentLock("toy", f"python=={platform.python_version()}", platform.python_version())

    @hookimpl
    def mlp_provision_environment(self, lock, root):
        """Make a folder with a script, under another name first."""
        final = root / lock.digest
        if not final.exists():
            draft = root / uuid.uuid4().hex
            self.fill(draft)
            try:
                draft.rename(final)
            except OSError:
                (draft / "python").unlink()
                draft.rmdir()
        return ProvisionedEnvironment(str(final / "python"))

    def fill(self, folder):
        """Write the script."""
        folder.mkdir(parents=True)
        script = folder / "python"
        script.write_text(SCRIPT)
        script.chmod(0o755)


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
        super().mlp_resolve_environment(spec, platforms)
        return EnvironmentLock("toy", "python==3.5", "3.5")


class Rebuilding(ToyEnvironment):
    """Makes it anew each time."""

    @hookimpl
    def mlp_provision_environment(self, lock, root):
        draft = root / uuid.uuid4().hex
        self.fill(draft)
        return ProvisionedEnvironment(str(draft / "python"))


class Replacing(ToyEnvironment):
    """Makes the files of the same environment anew each time."""

    @hookimpl
    def mlp_provision_environment(self, lock, root):
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
    def mlp_provision_environment(self, lock, root):
        folder = root / lock.digest
        if not (folder / "python").exists():
            time.sleep(0.3)
            self.fill(folder)
        return ProvisionedEnvironment(str(folder / "python"))


class Hasty(ToyEnvironment):
    """Takes a folder that is there for one that is finished."""

    @hookimpl
    def mlp_provision_environment(self, lock, root):
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
    def mlp_provision_environment(self, lock, root):
        return ProvisionedEnvironment(os.path.relpath(super().mlp_provision_environment(lock, root).python))


class Boasting(ToyEnvironment):
    """Says that it has the platform's packages."""

    def fill(self, folder):
        super().fill(folder)
        (folder / "python").write_text(SCRIPT.replace('"$@"', '-S -E "$@"'))

    @hookimpl
    def mlp_provision_environment(self, lock, root):
        return ProvisionedEnvironment(super().mlp_provision_environment(lock, root).python, has_platform=True)


class Pathless(ToyEnvironment):
    """Answers with a path."""

    @hookimpl
    def mlp_provision_environment(self, lock, root):
        return Path(super().mlp_provision_environment(lock, root).python)


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
}
globals().update({kind.__name__: kind() for kind in BROKEN})
