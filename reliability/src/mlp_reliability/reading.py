"""Everything that can be read from a store, as a user's script reads it: right, refused with an error, or wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.client import client_for
from mlp_core.deploy import Deployments
from mlp_core.errors import MlpError, NotFound
from mlp_core.session import Session

if TYPE_CHECKING:
    from mlp_core.client import Client
    from mlp_reliability.programs import Place

LISTED: Final = "list"
RUN: Final = "run"


@attrs.frozen
class Refused:
    """What was not read, since an error told why.

    Attributes
    ----------
    error : str
        The error's class and message.
    is_absence : bool
        Whether it said that there is no such thing.
    """

    error: str
    is_absence: bool


Readings = Mapping[str, Any]
"""Values and refusals by a path: what is refused at a path is not read below it."""


def read_everything(place: Place, runs: list[tuple[str, str]]) -> Readings:
    """Read lists, runs, tasks, artifacts, output and deployments from a store.

    Parameters
    ----------
    place : Place
        Where the store is.
    runs : list of (str, str)
        Flows and ids of the runs that a user knows of.

    Returns
    -------
    mapping
        What was read. An exception that is none of the platform's own is raised.
    """
    session = Session.open(start=place.project, flags={"store": str(place.store)})
    client = client_for(session)
    client.namespace = None
    found: dict[str, Any] = {}
    try:
        if _read(found, LISTED, lambda: _listed(client, found)) is not None:
            for flow, run_id in runs:
                _read_run(found, client, f"{flow}/{run_id}")
            _read_deployments(found, Deployments(session))
    finally:
        if "store" in client.__dict__:
            client.store.close()
    return found


def wrong(before: Readings, now: Readings) -> dict[str, str]:
    """Return by its path what is read otherwise than before without an error that tells of damage."""
    if _is_told(now[LISTED]):
        return {}
    refused = tuple(f"{path}/" for path, value in now.items() if _is_told(value))
    differing = {}
    for path, value in before.items():
        seen = now.get(path, "nothing")
        if seen != value and not _is_told(seen) and not path.startswith(refused):
            differing[path] = f"{path} is read as {_shown(seen)}, not {_shown(value)}"
    return differing


def _is_told(value: object) -> bool:
    """Tell whether an error told of damage; that something is absent is no such error."""
    return isinstance(value, Refused) and not value.is_absence


def _shown(value: object) -> str:
    """Return a value, short."""
    text = repr(value)
    return text if len(text) <= 120 else text[:60] + "..." + text[-40:]  # noqa: PLR2004 # the lengths are these


def _read(found: dict[str, Any], path: str, read: Callable[[], Any]) -> Any:
    """Read one thing and note it; return it, or None where it was refused."""
    try:
        value = read()
    except MlpError as error:
        is_absence = isinstance(error, NotFound) and "no blueprint" not in error.message  # which tells what is missing
        found[path] = Refused(f"{type(error).__name__}: {error}", is_absence)
        return None
    found[path] = value
    return value


def _listed(client: Client, found: dict[str, Any]) -> tuple[str, ...]:
    """Return the flows, and note what a list of runs says of each run."""
    for run in client.runs(None):
        said = (run.status, run.tags, run.tasks, run.username, run.origin_run_id, run.started_at, run.finished_at)
        refused = Refused("listed as damaged", is_absence=False)
        found[f"{LISTED}/{run.flow}/{run.run_id}"] = refused if run.status == "damaged" else said
    return tuple(client.store.flows())


def _read_run(found: dict[str, Any], client: Client, pathspec: str) -> None:
    """Read a run with all that is in it."""
    place = f"{RUN}/{pathspec}"
    run = _read(found, place, lambda: client.run(pathspec))
    if run is None:
        return
    found[place] = None
    _read(found, f"{place}/status", lambda: (run.status, run.finished_at, sorted(run.user_tags)))
    _read(found, f"{place}/code", lambda: run.code and run.code.content)
    for step in _read(found, f"{place}/steps", lambda: [each.id for each in run]) or ():
        for task_id in _read(found, f"{place}/tasks of {step}", lambda: [task.id for task in run[step]]) or ():  # noqa: B023 # called at once
            _read_task(found, run[step][task_id], f"{place}/{step}/{task_id}")


def _read_task(found: dict[str, Any], task: Any, place: str) -> None:
    """Read a task with its artifacts and output."""
    _read(found, f"{place}/state", lambda: (task.successful, task.finished_at, task.current_attempt))
    for stream in ("stdout", "stderr"):
        _read(found, f"{place}/{stream}", lambda: getattr(task, stream))  # noqa: B023 # called at once
    for name in _read(found, f"{place}/names", lambda: sorted(artifact.id for artifact in task)) or ():
        _read(found, f"{place}/{name}", lambda: task[name].data)  # noqa: B023 # called at once


def _read_deployments(found: dict[str, Any], deployments: Deployments) -> None:
    """Read what is deployed, and the versions with what they froze."""
    active = _read(found, "deployments", lambda: [each.deployment for each in deployments.active()])
    for each in active or ():
        versions = _read(found, f"deployments/{each.name}", lambda: deployments.versions(each.name, each.target))  # noqa: B023 # called at once
        for version in versions or ():
            path = f"deployments/{each.name}/{version.request.version}"
            _read(found, path, lambda: deployments.blueprint(version))  # noqa: B023 # called at once
