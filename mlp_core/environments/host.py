"""The environments of this host: made once for each lock, held while they are used, removed when nobody needs them.

Beside each environment lies the file that its users hold a shared lock on; its time says when it was used last. An
environment is read-only, and its interpreters keep their bytecode in a folder of its own beside all environments.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import attrs

from mlp_core.folders import folder_of, made_folder
from mlp_hookspecs.provisioning import remove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from mlp_core.hooks import Hooks
    from mlp_hookspecs import EnvironmentLock, ProvisionedEnvironment

BYTECODE_VARIABLE: Final = "PYTHONPYCACHEPREFIX"
"""Where interpreters of read-only environments keep their bytecode."""

_DIGEST: Final = re.compile(r"sha256-[0-9a-f]{64}")
_USERS: Final = ".{}.users"
_PACKAGES: Final = "packages-"
_LEAVINGS: Final = ("building", "leaving", "bytecode", "users")
_BUSY: Final = (errno.ENOTEMPTY, errno.EEXIST)


@attrs.frozen
class MadeEnvironment:
    """An environment that is on this host.

    Attributes
    ----------
    digest : str
        Its lock's identity.
    path : pathlib.Path
        Where it is.
    used_at : float
        When it was used last, in seconds since the epoch.
    is_used : bool
        Whether somebody uses it now.
    """

    digest: str
    path: Path
    used_at: float
    is_used: bool


class HostEnvironments:
    """The environments of this host, and those among them that this process holds until it closes this.

    Parameters
    ----------
    root : pathlib.Path or None
        Their folder; None for the user's.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Hold none yet."""
        self._root = root
        self._held: dict[str, int] = {}

    @property
    def root(self) -> Path:
        """Their folder; made if absent."""
        return made_folder("environments") if self._root is None else self._root

    def has(self, digest: str) -> bool:
        """Tell whether an environment is on this host; nothing is made."""
        root = folder_of("environments") if self._root is None else self._root
        return (root / digest).is_dir()

    def users_file(self, digest: str) -> Path:
        """Return the file that users of an environment hold a lock on, and whose time tells when it was used last."""
        return self.root / _USERS.format(digest)

    def provide(
        self,
        hooks: Hooks,
        lock: EnvironmentLock,
        packages: Callable[[Path], bool],
        *,
        outlives: bool = False,
    ) -> ProvisionedEnvironment:
        """Return the interpreter of a lock, made if it is not there, and hold it.

        Parameters
        ----------
        hooks : Hooks
            Where the lock's backend is.
        lock : EnvironmentLock
            The lock.
        packages : callable
            Puts the files of the lock's bundle into a folder, and tells whether there are any; asked only where the
            environment is not there.
        outlives : bool
            Whether what this process becomes is to hold it too.

        Raises
        ------
        OSError
            Where it cannot be made.
        """
        root = self.root
        self._hold(root, lock.digest, outlives=outlives)
        if (root / lock.digest).exists():
            made = hooks.provision_environment(lock, root)
        else:
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{lock.digest}.{_PACKAGES}") as folder:
                has_packages = packages(Path(folder))
                made = hooks.provision_environment(lock, root, Path(folder) if has_packages else None)
        bytecode = {BYTECODE_VARIABLE: str(root / f".{lock.digest}.bytecode")}
        return attrs.evolve(made, variables={**({} if made.has_platform else bytecode), **made.variables})

    def made(self) -> list[MadeEnvironment]:
        """Return what is on this host, the most recently used first."""
        found = []
        for path in self.root.iterdir():
            if _DIGEST.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # removed since
                    found.append(self._describe(path))
        return sorted(found, key=lambda made: -made.used_at)

    def remove(self, digest: str, before: float = math.inf) -> bool:
        """Remove an environment unless somebody uses it, or has used it since some time; tell whether it is gone."""
        root = self.root
        with self._alone(root, digest) as is_free:
            if not is_free or (root / _USERS.format(digest)).stat().st_mtime >= before:
                return False
            # Renamed first: what is half removed must not pass for an environment.
            leaving = root / f".{digest}.leaving"
            remove(leaving)
            with contextlib.suppress(FileNotFoundError):
                (root / digest).rename(leaving)
            remove(leaving)
            remove(root / f".{digest}.bytecode")
            self._remove_unfinished(root, digest)
            # The lock that builders take stays: one of them may be waiting for it.
            (root / _USERS.format(digest)).unlink(missing_ok=True)
        return True

    def remove_unused(self, before: float, *, dry_run: bool = False) -> list[MadeEnvironment]:
        """Remove what was last used before some time and what was left half made; return the environments of these."""
        old = [made for made in self.made() if made.used_at < before and not made.is_used]
        gone = [made for made in old if dry_run or self.remove(made.digest, before)]
        if not dry_run:
            self._remove_leavings(before)
        return gone

    def close(self) -> None:
        """Hold none any more."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hold none any more."""
        self.close()

    def _hold(self, root: Path, digest: str, *, outlives: bool) -> None:
        """Hold an environment, which may not be there yet."""
        if digest in self._held:
            return
        path = root / _USERS.format(digest)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_same(descriptor, path):
                break
            os.close(descriptor)  # who removed the environment meanwhile has removed this file too
        os.utime(descriptor)
        os.set_inheritable(descriptor, outlives)
        self._held[digest] = descriptor

    @contextlib.contextmanager
    def _alone(self, root: Path, digest: str) -> Iterator[bool]:
        """Hold an environment alone; yield whether that can be, now."""
        descriptor = os.open(root / _USERS.format(digest), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            # Where another one has removed the file since, the users that came after hold another file.
            yield _is_same(descriptor, root / _USERS.format(digest))
        finally:
            os.close(descriptor)

    def _describe(self, path: Path) -> MadeEnvironment:
        """Return what is known of an environment."""
        users = path.with_name(_USERS.format(path.name))
        try:
            used_at = users.stat().st_mtime
        except FileNotFoundError:
            return MadeEnvironment(path.name, path, path.lstat().st_mtime, is_used=False)
        with self._alone(path.parent, path.name) as is_free:
            return MadeEnvironment(path.name, path, used_at, is_used=not is_free)

    def _remove_leavings(self, before: float) -> None:
        """Remove what killed builders and removers have left, of environments that nobody uses."""
        for path in self.root.iterdir():
            digest, _, kind = path.name.removeprefix(".").partition(".")
            is_leaving = kind in _LEAVINGS or kind.startswith(_PACKAGES)
            if not is_leaving or not _DIGEST.fullmatch(digest) or _changed_at(path) >= before:
                continue
            if not (self.root / digest).exists():
                self.remove(digest)
            elif kind not in ("bytecode", "users"):
                with self._alone(self.root, digest) as is_free:
                    if is_free:
                        self._remove_unfinished(self.root, digest)
                        remove(self.root / f".{digest}.leaving")

    def _remove_unfinished(self, root: Path, digest: str) -> None:
        """Remove what killed builders have left of an environment, which is held alone."""
        for path in (root / f".{digest}.building", *root.glob(f".{digest}.{_PACKAGES}*")):
            try:
                remove(path)
            except OSError as error:
                if error.errno not in _BUSY:  # a process that a killed builder had started still writes there
                    raise


def _is_same(descriptor: int, path: Path) -> bool:
    """Tell whether a path is still the file that was opened."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)


def _changed_at(path: Path) -> float:
    """Return when a file or folder was changed; never where it has gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return math.inf


def days_ago(days: float) -> float:
    """Return the time that was so many days ago, in seconds since the epoch."""
    return time.time() - days * 24 * 3600
