"""What the kit does with a plugin in a process of its own: ``python -m mlp_hookspecs.testing.child JSON``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_hookspecs import ArtifactRef, EnvironmentLock, wire
from mlp_hookspecs.testing.artifacts import MemorySource, MemoryTarget
from mlp_hookspecs.testing.driver import Driver, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable


def loaded(driver: Driver) -> list[str]:
    """Return what is imported once the plugin is and has said what it declares."""
    if driver.implements("mlp_backends"):
        driver.backends()
    return sorted(sys.modules)


def rewrite(driver: Driver, items: list[tuple[str, str, Any]]) -> list[Any]:
    """Read values and write them again; each item is the folder to read, the folder to write, and the reference."""
    answers = []
    for source, target, data in items:
        ref = wire.decode(ArtifactRef, data)
        place = MemorySource(Path(source))
        value = driver.call("mlp_load_artifact", ref=ref, source=place, settings=load_settings(driver))
        written = driver.call("mlp_persist_artifact", value=value, target=MemoryTarget(Path(target), ref.format))
        answers.append(written if isinstance(written, bool) else repr(written))
    return answers


def create(driver: Driver, url: str, settings: dict[str, Any], keys: list[str], data: str) -> list[bool]:
    """Create objects, beginning when the parent says so."""
    store = driver.call("mlp_open_store", url=url, settings=settings)
    say("ready")
    sys.stdin.readline()
    made = [store.create(key, data.encode(), sync=False) for key in keys]
    store.close()
    return made


def lock(driver: Driver, url: str, settings: dict[str, Any], key: str) -> bool:
    """Take a lock, tell, and keep it until the parent says otherwise or this process is killed."""
    store = driver.call("mlp_open_store", url=url, settings=settings)
    with store.lock(key) as is_free:
        say(is_free)
        sys.stdin.readline()
    store.close()
    return bool(is_free)


def provision(driver: Driver, lock_data: dict[str, Any], root: str, packages: str | None) -> Any:
    """Make an environment, beginning when the parent says so, or tell why it cannot be made."""
    environment = wire.decode(EnvironmentLock, lock_data)
    folder = None if packages is None else Path(packages)
    say("ready")
    sys.stdin.readline()
    try:
        made = driver.call("mlp_provision_environment", lock=environment, root=Path(root), packages=folder)
    except OSError as error:
        return {"refused": str(error)}
    return wire.encode(made)


def launch(driver: Driver, name: str, settings: dict[str, Any], requests: list[Any]) -> None:
    """Launch attempts, tell, and wait to be killed."""
    from mlp_hookspecs import LaunchRequest
    from mlp_hookspecs.testing.sinks import RecordingSink

    launcher = driver.call("mlp_open_launcher", name=name, settings=driver.settings(settings), sink=RecordingSink())
    with launcher:
        batch = [wire.decode(LaunchRequest, request) for request in requests]
        driver.call("mlp_launch_step", requests=batch, launcher=launcher)
        say("launched")
        time.sleep(3600)


def say(answer: object) -> None:
    """Write a line for the parent."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


ACTIONS: dict[str, Callable[..., Any]] = {
    "create": create,
    "launch": launch,
    "loaded": loaded,
    "lock": lock,
    "provision": provision,
    "rewrite": rewrite,
}


def main() -> None:
    """Perform the action that the argument names."""
    task = json.loads(sys.argv[1])
    sys.path[:] = task["path"]
    say(ACTIONS[task["action"]](Driver(task["plugin"]), **task["arguments"]))


if __name__ == "__main__":
    main()
