"""The row ``bucket``: the store's operations, and whole runs, on a bucket to which the way is bad.

Every operation is compared with a dictionary. Errors come at three rates; a share of the requests is carried out and
said to have failed. The pauses between attempts pass in virtual time, so that thousands of them take none.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mlp_core.builtin.fsspec_store import retrying
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.store import Store
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlp_reliability.faulty import Faults

_RATES: Final = (0.01, 0.1, 0.3)
_RUN_RATE: Final = 0.1
_OPERATIONS_A_RUN: Final = 500
_RETRY_SECONDS: Final = 120.0
_KEYS: Final = tuple(f"{folder}/{name}" for folder in ("a", "a/b", "c/d/e") for name in ("1", "2", "3", "journal"))
_LARGE: Final = (8 << 20) + 12_345
"""More than goes in one piece."""

_CONTENDERS: Final = 4
_HANG_SECONDS: Final = 600

_FLOW: Final = """
from mlp_core import FlowSpec, step


class Bad(FlowSpec):
    @step
    def start(self):
        self.data = bytes(range(256)) * 4000
        self.xs = [1, 2, 3, 4]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        print("item", self.input)
        self.y = self.input * len(self.data)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("sum", sum(self.ys))


if __name__ == "__main__":
    Bad()
"""


class WrongError(Exception):
    """The store did something else than what was asked for."""


class VirtualTime:
    """The functions of `time` that a store waits with; time passes when it sleeps, and only for who does."""

    def __init__(self) -> None:
        """Begin."""
        self._passed = threading.local()

    def monotonic(self) -> float:
        """Return the seconds that this thread has slept."""
        return getattr(self._passed, "seconds", 0.0)

    def sleep(self, seconds: float) -> None:
        """Let seconds pass."""
        self._passed.seconds = self.monotonic() + seconds


def run(n: int, seed: int, folder: Path) -> Result:
    """Do `n` operations at each rate of errors, and a flow run for every few hundred of them."""
    violations: list[str] = []
    details: dict[str, Any] = {}
    for rate in _RATES:
        use = _Use(folder / f"rate-{rate}", rate, seed)
        violations += _within(_HANG_SECONDS, lambda use=use: use.play(n), f"operations at {rate:.0%} errors")  # type: ignore[misc]
        faults = use.faults[0]
        details[f"{rate:.0%}"] = {
            "requests": faults.requests,
            "failed": faults.failed,
            "done but failed": faults.done_but_failed,
        }
    runs = max(1, n // _OPERATIONS_A_RUN)
    for number in range(runs):
        violations += _run_flow(folder / f"run-{number}", seed + number)
    return Result("bucket", n, seed, violations, {**details, f"runs at {_RUN_RATE:.0%} errors": runs})


def _within(seconds: float, work: Callable[[], list[str]], what: str) -> list[str]:
    """Return the violations that some work finds; that it does not end is one."""
    found: list[str] = [f"{what}: it hangs"]

    def do() -> None:
        try:
            found[:] = work()
        except Exception as error:  # noqa: BLE001 # told by the other thread
            found[:] = [f"{what}: {type(error).__name__}: {error}"]

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    return [*found]


@contextmanager
def virtual_pauses() -> Iterator[None]:
    """Let the pauses between attempts take no time."""
    module: Any = retrying
    before = module.time
    module.time = VirtualTime()
    try:
        yield
    finally:
        module.time = before


class _Use:
    """A store at one rate of errors, opened twice for those who compete, and what must be in it."""

    def __init__(self, folder: Path, rate: float, seed: int) -> None:
        """Open the store."""
        self.folder = folder
        self.rate = rate
        self.seed = seed
        self.model: dict[str, bytes] = {}
        self.rng = random.Random(f"{self.seed} {self.rate}")
        self.stores = [self._open(number) for number in range(2)]
        self.faults: list[Faults] = [store._here.files._fs.faults for store in self.stores]

    def _open(self, number: int) -> FsspecStore:
        """Open the store."""
        options = {"rate": self.rate, "seed": self.seed + number}
        return FsspecStore(f"faulty://{self.folder}", options, retry_seconds=_RETRY_SECONDS)

    def play(self, n: int) -> list[str]:
        """Do operations, and return the violations."""
        operations = (
            *(self.create, self.create, self.replace, self.replace, self.adopt, self.read, self.read, self.read_range),
            *(self.info, self.list, self.children, self.delete, self.download, self.compete),
        )
        violations = []
        with virtual_pauses():
            for number in range(n):
                operation = self.large if number % 500 == 499 else self.rng.choice(operations)  # noqa: PLR2004 # a few
                store = self.rng.choice(self.stores)
                key = self.rng.choice(_KEYS)
                try:
                    operation(store, key)
                except (WrongError, OSError) as error:
                    where = f"{self.rate:.0%} errors, operation {number}, {operation.__name__} of {key}"
                    violations.append(f"{where}: {type(error).__name__}: {error}")
                    self.model = self._truth()
            for store in self.stores:
                store.close()
        return violations

    def _truth(self) -> dict[str, bytes]:
        """Return what is in the bucket, by a way without faults."""
        store = FsspecStore(f"faulty://{self.folder}", {}, retry_seconds=0)
        found = {each.key: store.read(each.key) for each in store.list("")}
        store.close()
        return found

    def _data(self) -> bytes:
        """Return new content, unlike all other."""
        return f"{self.rng.random()} ".encode() * self.rng.choice((0, 1, 10, 1000))

    def _expect(self, found: object, expected: object) -> None:
        """Raise WrongError where two things differ."""
        if found != expected:
            raise WrongError(f"{str(found)[:80]}, not {str(expected)[:80]}")

    def create(self, store: FsspecStore, key: str) -> None:
        """Create what may be there."""
        data = self._data() or b"x"
        is_there = key in self.model
        same = self.model.get(key) == data
        self._expect(store.create(key, data, sync=True), not is_there or same)
        self.model.setdefault(key, data)

    def replace(self, store: FsspecStore, key: str) -> None:
        """Replace what may be there."""
        self.model[key] = self._data()
        store.replace(key, self.model[key], sync=True)

    def adopt(self, store: FsspecStore, key: str) -> None:
        """Move a file in."""
        self.model[key] = self._data()
        self._adopt(store, key, self.model[key])

    def _adopt(self, store: FsspecStore, key: str, data: bytes) -> None:
        """Move a file in, at once or in the background."""
        source = store.staging() / "file"
        source.write_bytes(data)
        is_now = self.rng.random() < 0.5  # noqa: PLR2004 # either
        store.adopt(source, key, sync=is_now)
        if not is_now:
            store.sync([key])

    def read(self, store: FsspecStore, key: str) -> None:
        """Read all of it."""
        self._expect(_found(lambda: store.read(key)), self.model.get(key))

    def read_range(self, store: FsspecStore, key: str) -> None:
        """Read a part of it."""
        start, end = self.rng.randrange(100), self.rng.choice((None, 0, 50, 100_000))
        known = self.model.get(key)
        expected = None if known is None else known[start : None if end is None else max(start, end)]
        self._expect(_found(lambda: store.read(key, start, end)), expected)

    def info(self, store: FsspecStore, key: str) -> None:
        """Ask for its size."""
        known = self.model.get(key)
        self._expect(_found(lambda: store.info(key).size), None if known is None else len(known))

    def list(self, store: FsspecStore, key: str) -> None:
        """List what is there."""
        prefix = self.rng.choice(("", "a/", "c/", "none/"))
        expected = {name: len(data) for name, data in self.model.items() if name.startswith(prefix)}
        self._expect({each.key: each.size for each in store.list(prefix)}, expected)
        del key

    def children(self, store: FsspecStore, key: str) -> None:
        """List names."""
        prefix = self.rng.choice(("", "a/", "c/", "none/"))
        names = {name[len(prefix) :].partition("/")[0] for name in self.model if name.startswith(prefix)}
        self._expect(list(store.children(prefix)), sorted(names))
        del key

    def delete(self, store: FsspecStore, key: str) -> None:
        """Remove it."""
        store.delete(key)
        self.model.pop(key, None)

    def download(self, store: FsspecStore, key: str) -> None:
        """Copy it to a file."""
        target = self.folder.parent / f"download-{self.rate}"

        def fetch() -> bytes:
            store.download(key, target)
            return target.read_bytes()

        found = _found(fetch)
        target.unlink(missing_ok=True)
        self._expect(found, self.model.get(key))

    def large(self, store: FsspecStore, key: str) -> None:
        """Move a large file in, and copy it out."""
        self.model[key] = self.rng.randbytes(_LARGE)
        self._adopt(store, key, self.model[key])
        self.download(self.rng.choice(self.stores), key)
        self.delete(store, key)

    def compete(self, store: FsspecStore, key: str) -> None:
        """Create it from several threads of two stores at once: one must win, and be told so."""
        self.delete(store, key)
        data = [f"{number} {self.rng.random()}".encode() for number in range(_CONTENDERS)]
        made: dict[int, bool] = {}

        def create(number: int) -> None:
            made[number] = self.stores[number % 2].create(key, data[number], sync=True)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(_CONTENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for number, is_winner in made.items() if is_winner]
        self.model[key] = store.read(key)
        self._expect([data[number] for number in winners], [self.model[key]])
        self._expect(len(made), _CONTENDERS)


def _found(look: Callable[[], Any]) -> Any:
    """Return what is found; None where there is nothing."""
    try:
        return look()
    except FileNotFoundError:
        return None


def _run_flow(folder: Path, seed: int) -> list[str]:
    """Run a flow on a faulty bucket, and return what is wrong with the run."""
    folder.mkdir(parents=True)
    (folder / "flow.py").write_text(_FLOW)
    url = f"faulty://{folder}/bucket"
    options = {"rate": _RUN_RATE, "seed": seed, "latency_seconds": 0.002}
    environment = {
        **os.environ,
        "MLP_STORE": url,
        "MLP_STORAGE_OPTIONS": json.dumps(options),
        "MLP_USERNAME": "harness",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "mlp_core.cli", "run", "flow.py"]
    what = f"run with seed {seed}"
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_HANG_SECONDS
        )
    except subprocess.TimeoutExpired:
        return [f"{what}: it hangs"]
    if done.returncode != 0:
        return [f"{what}: it ended with {done.returncode}: {done.stderr.strip()[-500:]}"]
    expected = f"sum {256 * 4000 * 10}"
    found = [] if expected in done.stdout + done.stderr else [f"{what}: it printed no {expected!r}"]
    store = Store.open(FsspecStore(url, {}, retry_seconds=0), create=False)
    try:
        (run_id,) = store.run_ids("Bad")
        state = store.run("Bad", run_id)
        statuses = [task.status for task in state.tasks.values()]
        if (state.status, statuses) != ("succeeded", ["succeeded"] * 7):
            found.append(f"{what}: it reads {state.status}, and its tasks {statuses}")
        for task in state.tasks:
            for ref in state.artifacts(task).values():
                store.blobs().source(ref).buffer()
    finally:
        store.close()
    return found
