"""How a deployed flow runs on the machine that triggers it.

What is deployed is a pointer in the target's own part of the store; a trigger starts the version's own command in a
process that outlives the one that started it.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlp_hookspecs import DeployDiff, Deployment, DeployRequest, wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlp_hookspecs.handles import ObjectStore

NAME: Final = "local"

_PREFIX: Final = "active/"
_SUFFIX: Final = ".json"
_PAUSE_SECONDS: Final = 0.02
_ERROR_BYTES: Final = 4000


class LocalTarget:
    """Deployments on this machine.

    Parameters
    ----------
    objects : ObjectStore
        Objects of the target's own.
    """

    def __init__(self, objects: ObjectStore) -> None:
        """Make the target."""
        self._objects = objects

    def plan(self, request: DeployRequest) -> DeployDiff:
        """Tell what a deploy would change."""
        active = self.get(request.name)
        if active is None:
            return DeployDiff("create", (f"{request.name} version {request.version}",))
        if active.version == request.version:
            return DeployDiff("nothing")
        return DeployDiff("update", (f"{request.name} version {active.version} -> {request.version}",))

    def list(self) -> Sequence[Deployment]:
        """Return the active version of each name."""
        names = self._objects.children(_PREFIX)
        found = (self.get(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX))
        return [deployment for deployment in found if deployment is not None]

    def get(self, name: str) -> Deployment | None:
        """Return the active version of a name."""
        try:
            return wire.loads(Deployment, self._objects.read(_key(name)))
        except FileNotFoundError:
            return None

    def activate(self, request: DeployRequest) -> Deployment:
        """Make a version the active one."""
        details = {"command": " ".join(request.run_command)}
        deployment = Deployment(NAME, request.name, request.version, location="this machine", details=details)
        self._objects.replace(_key(request.name), wire.dumps(deployment), sync=True)
        return deployment

    def trigger(self, request: DeployRequest, parameters: Mapping[str, str]) -> str:
        """Start a run, and return its id as soon as it has one.

        Raises
        ------
        ValueError
            Where the run is refused; the message is what its process said.
        """
        arguments = [f"{name}={value}" for name, value in parameters.items()]
        with tempfile.TemporaryDirectory(prefix="mlp-trigger-") as folder, tempfile.TemporaryFile() as errors:
            told = Path(folder) / "run_id"
            process = subprocess.Popen(
                [*request.run_command, "--quiet", "--run-id-file", str(told), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            while process.poll() is None and not _said(told):
                time.sleep(_PAUSE_SECONDS)
            run_id = _said(told)
            if not run_id:
                errors.seek(0)
                said = errors.read()[-_ERROR_BYTES:].decode(errors="replace").strip()
                raise ValueError(f"the run was refused: {said.removeprefix('error: ')}")
        # The process goes on without this one, which therefore does not wait for it.
        process.returncode = 0
        return run_id

    def delete(self, name: str) -> None:
        """Take a name out of service."""
        self._objects.delete(_key(name))


def _key(name: str) -> str:
    """Return the key of a name's active version."""
    return f"{_PREFIX}{name}{_SUFFIX}"


def _said(path: Path) -> str:
    """Return what a file says; empty where it says nothing yet."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
