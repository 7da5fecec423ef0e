"""Bugs for the rows that kill processes, cut power and damage files."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from mlp_reliability.bugs.planted import Planted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FILES: Final = "mlp_core.builtin.file_store"


def _leave_appends_unsynced(module: Any) -> None:
    module._sync_data = lambda *_: None


def _leave_folders_unsynced(module: Any) -> None:
    module.FileStore._sync_folders = lambda *_: None


def _sync_lowest_folders_only(module: Any) -> None:
    def sync(self: object, folders: Sequence[Path]) -> None:
        del self
        for folder in folders:
            module._sync_folder(folder)

    module.FileStore._sync_folders = sync


def _leave_contents_unsynced(module: Any) -> None:
    real = module._sync

    def sync(fd: int, path: Path) -> None:
        if path.is_dir():
            real(fd, path)

    module._sync = sync


def _leave_blobs_unsynced(module: Any) -> None:
    module.Blobs.sync = lambda _: None


def _leave_format_unsynced(module: Any) -> None:
    real = module.FileStore.create

    def create(self: object, key: str, data: bytes, *, sync: bool) -> Any:
        return real(self, key, data, sync=sync and key != "format.json")

    module.FileStore.create = create


def _rename_before_sync(module: Any) -> None:
    def replace(self: Any, key: str, data: bytes, *, sync: bool) -> None:
        source = self._write_staged(data, sync=False)
        self._move(source, key, sync=sync)
        if sync:
            fd = os.open(self._path(key), os.O_RDONLY)
            module._sync(fd, self._path(key))
            os.close(fd)

    module.FileStore.replace = replace


def _refuse_torn_tails(module: Any) -> None:
    real = module._parse

    def parse(content: bytes, *arguments: Any) -> Any:
        read = real(content, *arguments)
        if read.torn:
            raise module.StoreDamaged("the journal's last line is not finished")
        return read

    module._parse = parse


def _let_workers_live(module: Any) -> None:
    for name in ("_settle", "_kill_group", "kill_all_below", "kill_orphans", "die_with_parent"):
        setattr(module, name, lambda *_, **__: None)


def _take_the_dead_for_alive(module: Any) -> None:
    module.FileStore.is_locked = lambda self, key: self._path(key).exists()


def _mix_up_results(module: Any) -> None:
    real = module.Reuse.find

    def find(self: Any, task: Any) -> Any:
        found = real(self, task)
        if found is None or not task.key.index:
            return found
        others = (known for key, known in self.origin.tasks.items() if key.step == task.key.step)
        outcomes = [known.outcome for known in others if known.outcome and known.outcome.status == "succeeded"]
        return found[0], outcomes[0]

    module.Reuse.find = find


def _ignore_leases(module: Any) -> None:
    module.Lease.check = lambda _: None


def _skip_hashes(module: Any) -> None:
    module.Blobs._verify = lambda _, path, *__: path.stat()


def _write_once(module: Any) -> None:
    module._write_all = lambda fd, data, _: os.write(fd, data)


def _swallow_write_errors(module: Any) -> None:
    real = module._write_all

    def write(*arguments: Any) -> None:
        try:
            real(*arguments)
        except OSError:
            return

    module._write_all = write


def _swallow_sync_errors(module: Any) -> None:
    real = module._sync_data

    def sync(*arguments: Any) -> None:
        try:
            real(*arguments)
        except OSError:
            return

    module._sync_data = sync


def _ignore_other_writers(module: Any) -> None:
    def write(self: Any, data: bytes) -> None:
        if b'"lost"' in data:
            time.sleep(0.5)  # so that they do meet
        module._write_all(self._handle.number, data, self._path)

    module.FileAppend._write = write


def _see_no_damage(module: Any) -> None:
    real = module.check_store

    def check(*arguments: Any, **options: Any) -> Any:
        report = real(*arguments, **options)
        return type(report)((), report.objects, report.size, report.runs)

    module.check_store = check


BUGS: Final[tuple[Planted, ...]] = (
    Planted(
        "appends-not-synced", "powercuts", "the journal and logs are not synced", _FILES, _leave_appends_unsynced, 1
    ),
    Planted("folders-not-synced", "powercuts", "names are not synced", _FILES, _leave_folders_unsynced, 1),
    Planted(
        "upper-folders-not-synced",
        "powercuts",
        "the names of new folders are not synced",
        _FILES,
        _sync_lowest_folders_only,
        1,
    ),
    Planted("contents-not-synced", "powercuts", "files get their names unsynced", _FILES, _leave_contents_unsynced, 1),
    Planted(
        "blobs-not-synced",
        "powercuts",
        "results are acknowledged before their blobs are durable",
        "mlp_core.store.blobs",
        _leave_blobs_unsynced,
        1,
    ),
    Planted("format-not-synced", "powercuts", "a new store is not synced", _FILES, _leave_format_unsynced, 1),
    Planted("rename-before-sync", "powercuts", "a file takes another's place unsynced", _FILES, _rename_before_sync, 1),
    Planted(
        "torn-tail-refused",
        "powercuts",
        "a journal's unfinished end counts as damage",
        "mlp_core.store.journal",
        _refuse_torn_tails,
        1,
    ),
    Planted(
        "workers-live-on",
        "kills",
        "workers outlive their driver",
        "mlp_core.builtin.local.template",
        _let_workers_live,
        24,
    ),
    Planted("dead-counts-as-alive", "kills", "a killed driver counts as alive", _FILES, _take_the_dead_for_alive, 8),
    Planted(
        "results-mixed-up",
        "kills",
        "a resume takes over a sibling's result",
        "mlp_core.runner.reuse",
        _mix_up_results,
        40,
    ),
    Planted(
        "lease-ignored",
        "stops",
        "a driver that was stopped past its lease goes on",
        "mlp_core.store.lease",
        _ignore_leases,
        3,
    ),
    Planted("hashes-not-checked", "damage", "blobs are read unverified", "mlp_core.store.blobs", _skip_hashes, 120),
    Planted("fsck-sees-nothing", "damage", "a check names no damage", "mlp_core.upkeep.fsck", _see_no_damage, 4),
    Planted("short-writes-lost", "faults", "what a short write left over is lost", _FILES, _write_once, 2),
    Planted("write-errors-lost", "faults", "a write that fails counts as done", _FILES, _swallow_write_errors, 40),
    Planted("sync-errors-lost", "faults", "a sync that fails counts as done", _FILES, _swallow_sync_errors, 240),
    Planted(
        "other-writers-ignored", "many", "a run is ended though another has ended it", _FILES, _ignore_other_writers, 1
    ),
)
