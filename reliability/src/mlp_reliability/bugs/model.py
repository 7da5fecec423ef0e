"""Bugs for the rows that simulate and fault the store in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_reliability.bugs.planted import Planted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


def _commit_without_sync(module: ModuleType) -> None:
    write = module.RunWriter.write
    module.RunWriter.write = lambda self, records, **_: write(self, records, sync=False)


def _acknowledge_before_commit(module: ModuleType) -> None:
    commit = module.Driver._commit

    class Later:
        """Takes records, and writes none."""

        def __init__(self, writer: Any) -> None:
            self.writer = writer
            self.records: list[Any] = []

        def write(self, records: Sequence[Any], **_: object) -> None:
            self.records += records

        def __getattr__(self, name: str) -> Any:
            return getattr(self.writer, name)

    def commit_late(self: Any, decided: Any) -> None:
        writer, self._writer = self._writer, Later(self._writer)
        commit(self, decided)
        self._launch()
        later, self._writer = self._writer, writer
        writer.write(later.records, sync=True)

    module.Driver._commit = commit_late


def _start_joins_early(module: Any) -> None:
    join = module._Join
    module._Join = lambda width: join(max(1, width - 1))


def _join_in_reverse(module: ModuleType) -> None:
    arrive = module.Scheduler._arrive
    module.Scheduler._arrive = lambda *args: [attrs.evolve(t, parents=t.parents[::-1]) for t in arrive(*args)]


def _forget_rounds(module: ModuleType) -> None:
    task = module.Scheduler._task

    def task_of_first_round(self: Any, *args: Any) -> Any:
        made = task(self, *args)
        self._rounds.clear()
        return made

    module.Scheduler._task = task_of_first_round


def _retry_once_more(module: ModuleType) -> None:
    times = module.StepSetup.max_retries.fget
    module.StepSetup.max_retries = property(lambda self: times(self) + 1)


def _retry_at_once(module: ModuleType) -> None:
    module.Driver._delay = lambda self, attempt: self._queue(attempt)


def _ignore_limits(module: ModuleType) -> None:
    module.Admission._is_free = lambda *_: True


def _leak_slots(module: ModuleType) -> None:
    release = module.Admission.release

    def release_most(self: Any, attempt_id: str) -> None:
        release(self, attempt_id)
        if attempt_id.endswith("/1"):
            self._by_step[attempt_id.partition("/")[0]] += 1

    module.Admission.release = release_most


def _forget_timeouts(module: ModuleType) -> None:
    module.Driver._started = lambda *_: None


def _reuse_failures(module: ModuleType) -> None:
    find = module.Reuse.find

    def find_more(self: Any, task: Any) -> Any:
        known = None if self.origin is None else self.origin.tasks.get(task.key)
        if known is not None and known.status == "failed":
            self._reused.add(task.key)
            return task.key.path, known.outcome
        return find(self, task)

    module.Reuse.find = find_more


def _keep_torn_tails(module: Any) -> None:
    parse = module._parse
    module._parse = lambda *args: attrs.evolve(parse(*args), torn=False)


def _overwrite_on_create(module: ModuleType) -> None:
    module.Filesystem.put_new = module.Filesystem.put


def _take_lost_answers_for_others(module: Any) -> None:
    create = module.FsspecStore.create

    def create_or_lose(self: Any, key: str, data: bytes, *, sync: bool) -> bool:
        def put_new(path: str, content: bytes) -> None:
            try:
                files.put_new(path, content)
            except Exception as error:
                conflicts.append(module.failures.is_conflict(error))
                raise

        files = self._here.files
        conflicts: list[bool] = []
        self._here._files = type("Files", (), {"__getattr__": lambda _, n: getattr(files, n), "put_new": None})()
        self._here._files.put_new = put_new
        try:
            return bool(create(self, key, data, sync=sync)) and not any(conflicts)
        finally:
            self._here._files = files

    module.FsspecStore.create = create_or_lose


def _trust_blobs(module: ModuleType) -> None:
    module.Blobs._verify = lambda *_: None


def _write_over_fences(module: ModuleType) -> None:
    flush = module.GrowingWriter.flush

    def flush_anyway(self: Any) -> None:
        objects = self._objects

        class Overwriting:
            """Creates what is there."""

            def create(self, key: str, data: bytes, *, sync: bool) -> bool:
                objects.replace(key, data, sync=sync)
                return True

        self._objects = Overwriting()
        try:
            flush(self)
        finally:
            self._objects = objects

    module.GrowingWriter.flush = flush_anyway


def _clear_beside_live_runs(module: ModuleType) -> None:
    module._Clearing._goes_on = lambda *_: False


def _copy_journals_first(module: ModuleType) -> None:
    copy, copy_blobs = module._RunSync.copy, module._RunSync._copy_blobs

    def copy_journal_first(self: Any) -> Any:
        later: list[Any] = []
        self._copy_blobs = later.append
        done = copy(self)
        for blobs in later:
            copy_blobs(self, blobs)
        return done

    module._RunSync.copy = copy_journal_first


def _never_refresh(module: ModuleType) -> None:
    module._Known.tells = lambda *_: True
    module._Known.status_of = lambda self, _: self.status


def _give_up_at_once(module: Any) -> None:
    module.is_transient = lambda _: False


BUGS: Final[tuple[Planted, ...]] = (
    Planted(
        "commit-without-sync",
        "simulation",
        "an outcome is acknowledged before it is durable",
        "mlp_core.store.store",
        _commit_without_sync,
        100,
    ),
    Planted(
        "acknowledge-before-commit",
        "simulation",
        "what follows from an outcome starts before it is written",
        "mlp_core.runner.driver",
        _acknowledge_before_commit,
        100,
    ),
    Planted(
        "join-early",
        "simulation",
        "a join starts when all branches but one have arrived",
        "mlp_core.scheduler",
        _start_joins_early,
        100,
    ),
    Planted(
        "join-in-reverse",
        "simulation",
        "a join has its inputs in the wrong order",
        "mlp_core.scheduler",
        _join_in_reverse,
        100,
    ),
    Planted(
        "rounds-forgotten",
        "simulation",
        "a step that comes round again has the key that it had before",
        "mlp_core.scheduler",
        _forget_rounds,
        100,
    ),
    Planted(
        "retries-counted-wrong",
        "simulation",
        "a failed step is tried once more than it should be",
        "mlp_core.runner.requests",
        _retry_once_more,
        100,
    ),
    Planted(
        "retry-at-once",
        "simulation",
        "the pause before a retry is left out",
        "mlp_core.runner.driver",
        _retry_at_once,
        100,
    ),
    Planted(
        "limits-ignored",
        "simulation",
        "a step's and a launcher's limits do not hold attempts back",
        "mlp_core.runner.admission",
        _ignore_limits,
        100,
    ),
    Planted(
        "slots-leaked",
        "simulation",
        "a second attempt never gives back its place among its step's",
        "mlp_core.runner.admission",
        _leak_slots,
        300,
    ),
    Planted(
        "timeouts-forgotten",
        "simulation",
        "a worker that hangs is left to hang",
        "mlp_core.runner.driver",
        _forget_timeouts,
        100,
    ),
    Planted(
        "failures-reused",
        "simulation",
        "a resumed run takes over what had failed",
        "mlp_core.runner.reuse",
        _reuse_failures,
        100,
    ),
    Planted(
        "torn-tail-kept",
        "simulation",
        "who takes up a torn journal writes behind the torn line",
        "mlp_core.store.journal",
        _keep_torn_tails,
        300,
    ),
    Planted(
        "create-overwrites",
        "bucket",
        "creation if absent takes the place of what is there",
        "mlp_core.builtin.fsspec_store.filesystems",
        _overwrite_on_create,
        200,
    ),
    Planted(
        "lost-answer-misread",
        "bucket",
        "a creation whose answer was lost counts as somebody else's",
        "mlp_core.builtin.fsspec_store.store",
        _take_lost_answers_for_others,
        300,
    ),
    Planted(
        "no-second-attempt",
        "bucket",
        "a request that failed is not made again",
        "mlp_core.builtin.fsspec_store.failures",
        _give_up_at_once,
        100,
    ),
    Planted(
        "blob-unverified",
        "machine",
        "a blob is believed without a look at its hash",
        "mlp_core.store.blobs",
        _trust_blobs,
        2000,
    ),
    Planted(
        "fence-overwritten",
        "machine",
        "a driver whose run was taken over writes over what its successor wrote",
        "mlp_core.store.growing",
        _write_over_fences,
        2000,
    ),
    Planted(
        "live-runs-ignored",
        "machine",
        "what a run that goes on has written, and not named yet, is cleared away",
        "mlp_core.upkeep.gc",
        _clear_beside_live_runs,
        5000,
    ),
    Planted(
        "journal-copied-first",
        "machine",
        "a run is copied before what it refers to",
        "mlp_core.upkeep.sync",
        _copy_journals_first,
        5000,
    ),
    Planted(
        "index-never-refreshed",
        "machine",
        "a run is listed as it was when it was first seen",
        "mlp_core.store.index",
        _never_refresh,
        2000,
    ),
)
