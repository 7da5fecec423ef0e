"""What a store promises, checked: it can be read, and whatever was acknowledged is there and intact."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mlp_core.builtin.file_store import FileStore
from mlp_core.errors import MlpError
from mlp_core.store import Store, read_logs
from mlp_core.store.blobs import Blobs
from mlp_core.store.verified import VerifiedFiles
from mlp_core.upkeep.fsck import check_store
from mlp_reliability.programs import writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlp_core.store import RunState
    from mlp_reliability.programs import Program, Said

Digests = dict[str, dict[str, str]]
"""What tasks assigned: digests by task and name."""

_ENDED: Final = ("lost", "succeeded", "failed", "cancelled")


class Broken(Exception):  # noqa: N818 # it names what is reported
    """A promise was broken."""


@contextmanager
def own_environment(folder: Path) -> Iterator[None]:
    """Let this process read stores without plugins, and with a cache of its own below a folder."""
    own = {"MLP_NO_PLUGINS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def opened(root: Path) -> Iterator[Store]:
    """Open a store to read it."""
    store = Store.open(FileStore(root), create=False)
    try:
        yield store
    finally:
        store.close()


def run_ids(program: Program, root: Path) -> list[str]:
    """Return the ids of a program's runs, newest first; none where there is no store."""
    folder = root / "flows" / program.flow
    names = sorted((entry.name for entry in folder.iterdir()), reverse=True) if folder.is_dir() else []
    return [name for name in names if (folder / name / "journal").exists()]


def states(program: Program, root: Path) -> dict[str, RunState]:
    """Return the runs of a program as they stand; none where there is no store."""
    found = run_ids(program, root)
    if not found:
        return {}
    with opened(root) as store:
        return {run_id: store.run(program.flow, run_id) for run_id in found}


def broken(program: Program, root: Path, said: Said) -> list[str]:
    """Return the promises that a store has broken, given what was acknowledged; nobody works on it any more."""
    if not said and not (root / "format.json").exists():
        return []
    found: list[str] = []
    with noted(found):
        _check(program, root, said)
        found += _checked(root)
    return found


def _checked(root: Path) -> list[str]:
    """Return what the platform's own check takes for damage."""
    store = FileStore(root)
    try:
        findings = check_store(store).findings
    finally:
        store.close()
    return [f"fsck says of {each.key}: {each.problem}" for each in findings if each.severity == "damage"]


@contextmanager
def noted(violations: list[str]) -> Iterator[None]:
    """Note as a violation what a store that is broken makes its readers raise."""
    try:
        yield
    except (Broken, MlpError, OSError, LookupError, ValueError) as error:
        violations.append(f"{type(error).__name__}: {error}")


def digests(program: Program, root: Path, run_id: str) -> Digests:
    """Return what the tasks of a run assigned."""
    with opened(root) as store:
        state = store.run(program.flow, run_id)
    return {
        key.path: {name: ref.digest for name, ref in task.outcome.assigned.items()}
        for key, task in state.tasks.items()
        if task.outcome is not None and task.status == "succeeded"
    }


def unequal(program: Program, root: Path, run_id: str, fresh: Digests) -> list[str]:
    """Return how a run that ended differs from a fresh one."""
    violations: list[str] = []
    with noted(violations):
        with opened(root) as store:
            status = store.run(program.flow, run_id).status
        found = digests(program, root, run_id)
        differing = [task for task in sorted({**found, **fresh}) if found.get(task) != fresh.get(task)]
        if status != "succeeded":
            violations.append(f"run {run_id} is {status}")
        elif differing:
            violations.append(f"run {run_id} differs from a fresh one in {', '.join(differing)}")
    return violations


def _check(program: Program, root: Path, said: Said) -> None:
    """Check everything; raise at the first promise that is broken."""
    with opened(root) as store:
        blobs = Blobs(store.objects, paranoid=True, verified=VerifiedFiles(None))
        runs = {run_id: store.run(program.flow, run_id) for run_id in run_ids(program, root)}
        for run_id, state in runs.items():
            if state.status not in _ENDED:
                raise Broken(f"run {run_id} of a driver that is gone is {state.status}")
            _check_values(program, blobs, state)
        for words in said:
            _check_said(program, store, runs, words)
        pointed = [words[1] for words in said if words[0] == "pointed"]
        pointers = {run_id * times for run_id in runs for times in writer.POINTED}
        if pointed and store.objects.read("pointer").decode() not in pointers:
            raise Broken("the object that was replaced is neither the old nor the new one")


def _check_said(program: Program, store: Store, runs: dict[str, RunState], words: list[str]) -> None:
    """Check one acknowledgement."""
    word, run_id, *rest = words
    if run_id not in runs:
        raise Broken(f"run {run_id} was acknowledged and is gone")
    state = runs[run_id]
    if word == "finished":
        tasks = {key.path: task.status for key, task in state.tasks.items()}
        if tasks.get(rest[0]) != "succeeded":
            raise Broken(f"task {rest[0]} of run {run_id} was acknowledged and is {tasks.get(rest[0], 'gone')}")
    elif word == "tagged" and state.tags != ("tag",):
        raise Broken(f"the tag of run {run_id} was acknowledged, and its tags are {state.tags}")
    elif word == "ended":
        if state.status != "succeeded":
            raise Broken(f"the end of run {run_id} was acknowledged, and it is {state.status}")
        _check_printed(program, store, state)


def _check_printed(program: Program, store: Store, state: RunState) -> None:
    """Check that the output of a run that ended is all there; that of tasks that were taken over lies elsewhere."""
    printed = b"".join(chunk.data for chunk in read_logs(store.objects, program.flow, state.context.run_id))
    expected = sum(task.key.step in program.printing and not task.origin for task in state.tasks.values())
    if printed.count(b"printed") != expected:
        raise Broken(f"run {state.context.run_id} has {printed.count(b'printed')} of {expected} lines of output")


def _check_values(program: Program, blobs: Blobs, state: RunState) -> None:
    """Check that what a journal names is there and right, acknowledged or not."""
    for task in state.tasks.values():
        if task.outcome is None:
            continue
        values = {name: blobs.source(ref) for name, ref in task.outcome.assigned.items()}
        if program.flow == writer.FLOW:
            (number,) = task.key.index
            own = values["own"]
            right = own.buffer() == writer.content(number) and values["shared"].buffer() == writer.content(9)
            if not right or bytes(own.part("small").buffer()) != b"small":
                raise Broken(f"a value of {task.key.path} is wrong")
            continue
        for name, source in values.items():
            content = bytes(source.buffer())
            if name == "parts" and b"".join(bytes([number]) * 20_000 for number in (1, 2, 3)) not in content:
                raise Broken(f"the value {name} of {task.key.path} is wrong")
