"""What writers do, and what becomes of them: runs begin, commit, print, end, are taken over, and cleared away."""

from __future__ import annotations

import time
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from mlp_core.errors import StoreError, StoreFenced
from mlp_core.store import Store, layout
from mlp_core.store.faults import GuardedObjects
from mlp_core.store.records import AttemptStarted, RunEnded, TagsChanged
from mlp_core.upkeep.gc import LEAST_GRACE, clear_store
from mlp_core.upkeep.removal import remove_run
from mlp_core.upkeep.retention import Retention
from mlp_hookspecs import TaskKey
from mlp_reliability.crashing import CannotSync
from mlp_reliability.machine.history import (
    AGE,
    CONTENTS,
    DEATHS,
    INLINE_BYTES,
    VALUES,
    History,
    abandon,
    at_once,
    began,
    step,
)
from mlp_reliability.machine.model import FLOW, ModelRun, WrongError
from mlp_reliability.machine.places import lease_key

_MOST_RUNS: Final = 6
_CHANGING: Final = ("commit", "end", "go_on", "remove", "take_over")


class WritingRules(History):
    """The rules of writers."""

    @precondition(lambda self: len(self._runs) < _MOST_RUNS)
    @step("begin", death=DEATHS)
    def begin(self, death: int | None) -> None:
        """Begin a run."""
        with self._dying(death):
            writer = self._store.create_run(began, time.time() - AGE)
            run_id = writer.began.run.run_id
            if run_id in self._runs:
                raise WrongError(f"two runs have the id {run_id}")
            self._runs[run_id] = ModelRun(run_id, writer)

    @precondition(lambda self: len(self._runs) < _MOST_RUNS - 1 and not self._steps[-1].startswith("begin"))
    @step("begin two at once")
    def begin_two_at_once(self) -> None:
        """Begin two runs at the same moment."""
        now = time.time() - AGE
        writers = at_once(lambda: self._store.create_run(began, now))
        for writer in writers:
            self._runs[writer.began.run.run_id] = ModelRun(writer.began.run.run_id, writer)
        if len({writer.began.run.run_id for writer in writers}) != len(writers):
            raise WrongError("two runs that began at once have one id")

    @precondition(lambda self: self._live())
    @step("commit", draw=st.integers(0, 100), values=st.lists(VALUES, min_size=1, max_size=3), death=DEATHS)
    def commit(self, draw: int, values: list[int], death: int | None) -> None:
        """Commit tasks, as a group."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        keys = [TaskKey("work", (), run.number + offset) for offset in range(len(values))]
        given = [CONTENTS[value] for value in values]
        with self._dying(death):
            run.maybe_tasks.update(zip((key.path for key in keys), given, strict=True))
            self._record(run.writer, keys, self._written(given))
            for key in keys:
                run.tasks[key.path] = run.maybe_tasks.pop(key.path)

    @precondition(lambda self: any(not run.prepared for run in self._live()))
    @step("prepare", draw=st.integers(0, 100), value=VALUES, death=DEATHS)
    def prepare(self, draw: int, value: int, death: int | None) -> None:
        """Write an artifact of a run that goes on; its record comes later."""
        run = self._chosen([run for run in self._live() if not run.prepared], draw)
        with self._dying(death):
            if run is not None:
                (outcome,) = self._written([CONTENTS[value]])
                run.prepared = [(CONTENTS[value], outcome)]

    @precondition(lambda self: any(run.prepared for run in self._live()))
    @step("commit what was prepared", draw=st.integers(0, 100), death=DEATHS)
    def commit_prepared(self, draw: int, death: int | None) -> None:
        """Commit what was written earlier, whatever has been cleared away since."""
        run = self._chosen([run for run in self._live() if run.prepared], draw)
        if run is None or run.writer is None:
            return
        key = TaskKey("work", (), run.number)
        content, outcome = run.prepared.pop()
        with self._dying(death):
            run.maybe_tasks[key.path] = content
            self._record(run.writer, [key], [outcome])
            run.tasks[key.path] = run.maybe_tasks.pop(key.path)

    @precondition(lambda self: self._live())
    @step("print", draw=st.integers(0, 100), death=DEATHS)
    def print_something(self, draw: int, death: int | None) -> None:
        """Keep output, and let readers see it."""
        run = self._chosen(self._live(), draw)
        with self._dying(death):
            if run is not None and run.writer is not None:
                key = TaskKey("work", (), run.number)
                if key.path not in run.started:
                    run.started.add(key.path)
                    run.writer.write([AttemptStarted(key, 0, "local", time.time())], sync=False)
                run.writer.log(f"{key.path}/0", "stdout", b"a line\n", time.time())
                run.writer.flush()

    @precondition(lambda self: self._live())
    @step("end", draw=st.integers(0, 100), status=st.sampled_from(["succeeded", "failed", "cancelled"]), death=DEATHS)
    def end(self, draw: int, status: str, death: int | None) -> None:
        """End a run."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        with self._dying(death):
            run.maybe_statuses.add(status)
            run.writer.write([RunEnded(status, "", time.time(), len(run.tasks))], sync=True)  # type: ignore[arg-type]
            run.status = status
            run.writer.close()
            run.writer = None

    @precondition(lambda self: self._runs)
    @step("tag", draw=st.integers(0, 100), tag=st.sampled_from(["a", "b", "c", "d"]), death=DEATHS)
    def tag(self, draw: int, tag: str, death: int | None) -> None:
        """Tag a run from outside."""
        run = self._chosen(list(self._runs.values()), draw)
        if run is None:
            return
        with self._dying(death):
            run.maybe_tags.add(tag)
            name = f"tags.{self._rng.getrandbits(64):x}"
            self._store.add_segment(FLOW, run.run_id, name, TagsChanged((tag,), (), "machine", time.time()))
            run.tags.add(tag)

    # --------------------------------------------------------------------------------------------- takeover

    @precondition(lambda self: self._live())
    @step("stop past the lease", draw=st.integers(0, 100))
    def stop_past_the_lease(self, draw: int) -> None:
        """Stop a run's driver for longer than its lease; it is not told, and may go on later."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        self._place.age(lease_key(self._raw, FLOW, run.run_id))
        self._stopped.append((run, run.writer))
        run.writer = None

    @precondition(lambda self: any(run.status is None and run.writer is None for run in self._runs.values()))
    @step("take over", draw=st.integers(0, 100), death=DEATHS)
    def take_over(self, draw: int, death: int | None) -> None:
        """Take over a run whose driver is gone."""
        run = self._chosen([run for run in self._runs.values() if run.status is None and run.writer is None], draw)
        if run is None:
            return
        with self._dying(death):
            run.maybe_statuses.add("lost")
            state = self._store.fence(FLOW, run.run_id)
            run.status = state.status

    @precondition(lambda self: any(run.status is None and run.writer is None for run in self._runs.values()))
    @step("take over twice at once", draw=st.integers(0, 100))
    def take_over_twice_at_once(self, draw: int) -> None:
        """Take a run over by two at the same moment: both see one end."""
        run = self._chosen([run for run in self._runs.values() if run.status is None and run.writer is None], draw)
        if run is None:
            return
        ends = {str(state.ended) for state in at_once(lambda: self._store.fence(FLOW, run.run_id))}
        if len(ends) != 1:
            raise WrongError(f"two who took over {run.run_id} saw the ends {sorted(ends)}")
        run.status = self._store.run(FLOW, run.run_id).status

    @precondition(lambda self: self._stopped)
    @step("go on after the lease", value=VALUES)
    def go_on_after_the_lease(self, value: int) -> None:
        """Let a stopped driver go on: where it was taken over, it commits nothing."""
        run, writer = self._stopped.pop()
        key = TaskKey("work", (), run.number)
        try:
            self._record(writer, [key], self._written([CONTENTS[value]]))
        except StoreFenced:
            if run.status is None and not run.maybe_statuses:
                raise
        else:
            if run.status is not None:
                raise WrongError(f"the driver of {run.run_id} committed after it was taken over")
            run.tasks[key.path] = CONTENTS[value]
        abandon(writer)

    @precondition(lambda self: self._live())
    @step("a sync fails", draw=st.integers(0, 100), value=VALUES)
    def fail_to_sync(self, draw: int, value: int) -> None:
        """Let two workers write one artifact, and the sync of the first fail after the second's was committed."""
        run = self._chosen(self._live(), draw)
        if run is None or run.writer is None:
            return
        objects = self._place.open()
        other = Store(GuardedObjects(CannotSync(objects))).blobs(inline_bytes=INLINE_BYTES)
        for content in (CONTENTS[value], self._rng.randbytes(INLINE_BYTES + 1)):
            target = other.target("bytes")
            target.write([content])
            target.finish("bytes", sync=False)
        key = TaskKey("work", (), run.number)
        self._record(run.writer, [key], self._written([CONTENTS[value]]))
        run.tasks[key.path] = CONTENTS[value]
        try:
            other.sync()
        except StoreError:
            pass
        else:
            raise WrongError("a sync that failed was not told")
        if objects is not self._raw:
            objects.close()

    # --------------------------------------------------------------------------------------------- clearing

    @precondition(lambda self: self._steps[-1].startswith(_CHANGING) or any(run.prepared for run in self._live()))
    @step("clear", death=DEATHS)
    def clear(self, death: int | None) -> None:
        """Clear away what nobody needs, after long: all blobs are old, also those that a run is about to name."""
        for info in self._raw.list(layout.BLOBS):
            self._place.age(info.key)
        with self._dying(death):
            clear_store(self._store, Retention(), now=time.time(), grace=LEAST_GRACE)
        blobs = self._store.blobs()
        for run in self._live():
            for content, outcome in run.prepared:
                if bytes(blobs.source(outcome.assigned["x"]).buffer()) != content:
                    raise WrongError(f"what run {run.run_id} is about to name reads wrong after a clearing")

    @precondition(lambda self: any(run.status is not None for run in self._runs.values()))
    @step("remove", draw=st.integers(0, 100), death=DEATHS)
    def remove(self, draw: int, death: int | None) -> None:
        """Remove a run that has ended."""
        ended = [run for run in self._runs.values() if run.status is not None and not self._is_stopped(run)]
        run = self._chosen(ended, draw)
        if run is None:
            return
        del self._runs[run.run_id]
        with self._dying(death):
            remove_run(self._store, FLOW, run.run_id)
            if run.run_id in self._store.run_ids(FLOW):
                raise WrongError(f"run {run.run_id} is still there after it was removed")
