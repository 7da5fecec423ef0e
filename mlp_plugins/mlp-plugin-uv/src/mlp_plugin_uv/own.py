"""How what no index publishes becomes a package that a lock can name: built once, and kept by the hash of its wheel."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from mlp_hookspecs.provisioning import file_lock
from mlp_hookspecs.requirements import normal_name
from mlp_plugin_uv.credentials import masked
from mlp_plugin_uv.fetch import fetch
from mlp_plugin_uv.locks import Pin, make_pin, own_pin
from mlp_plugin_uv.sources import digest_of, sha256_of
from mlp_plugin_uv.tool import NO_DOWNLOADS, UvError, index_arguments, run_uv_under
from mlp_plugin_uv.urls import refuse_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlp_plugin_uv.pylock import Entry
    from mlp_plugin_uv.requirement import Source

_EPOCH: Final = "315532800"
"""1980, the first year that a ZIP file knows: what is built again from the same source is the same file."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
_LONGEST_MESSAGE: Final = 500


def cache_folder() -> Path:
    """Return the folder where this user's own packages are kept on this host."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given and Path(given).is_absolute():
        return Path(given) / "mlp-plugin-uv"
    try:
        return Path.home() / ".cache" / "mlp-plugin-uv"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"mlp-plugin-uv-{os.getuid()}"


@attrs.frozen
class Workshop:
    """Builds packages.

    Attributes
    ----------
    python : str
        The version of the interpreter to build under.
    index : str or None
        The index that the tools which a build needs come from.
    extra_indexes : tuple of str
        Further ones.
    """

    python: str
    index: str | None = None
    extra_indexes: tuple[str, ...] = ()

    def build(self, entry: Entry, sources: Mapping[str, Source]) -> Pin:
        """Build an entry that no index publishes, or find it built.

        Parameters
        ----------
        entry : Entry
            What to build.
        sources : mapping of str to Source
            The local sources that the requirement names.

        Returns
        -------
        Pin
            The lock's own package; its wheel is kept.

        Raises
        ------
        ValueError
            Where it cannot be locked, or its build fails.
        OSError
            Where it cannot be fetched.
        """
        if entry.git:
            return self._build_git(entry)
        if entry.url:
            return self._build_url(entry)
        source = sources.get(entry.path)
        if source is None:
            raise ValueError(
                f"{entry.name} comes from the local path {entry.path!r}, which no file of the project names:"
                " name it in a requirements file, or depend on a published version"
            )
        found = digest_of(Path(entry.path))
        if found != source.digest:
            raise ValueError(f"the local path {entry.path!r} was changed while it was being locked: start again")
        place = Path(entry.path)
        return self._keep(entry, "path", found, lambda folder: self._wheel_of(entry, place, folder))

    def build_sdist(self, archive: Path, folder: Path) -> Path:
        """Build a wheel from an archive of sources; ValueError where that fails."""
        return self._uv_build(archive, folder, archive.name)

    def _build_git(self, entry: Entry) -> Pin:
        """Build a commit."""
        if not _COMMIT.fullmatch(entry.commit):
            raise ValueError(f"{entry.name} comes from {entry.git} at {entry.commit!r}, which is no commit")
        refuse_credentials(entry.name, entry.git)
        part = f"#subdirectory={entry.subdirectory}" if entry.subdirectory else ""
        origin = f"git+{entry.git}@{entry.commit}{part}"

        def make(folder: Path) -> Path:
            checkout = folder / "checkout"
            _checkout(entry, checkout)
            project = (checkout / entry.subdirectory).resolve()
            if not project.is_relative_to(checkout.resolve()):
                raise ValueError(f"{entry.name} comes from {entry.subdirectory!r}, which is outside of its repository")
            return self._uv_build(project, folder / "built", origin)

        return self._keep(entry, "git", origin, make, origin)

    def _build_url(self, entry: Entry) -> Pin:
        """Build, or take, what a URL serves."""
        refuse_credentials(entry.name, entry.url)
        if not entry.hashes:
            raise ValueError(
                f"{entry.name}: what the URL {entry.url} serves may change: add its hash, as '#sha256=...'"
            )
        name = urlsplit(entry.url).path.rpartition("/")[2]

        def make(folder: Path) -> Path:
            fetch(entry.url, folder / name, entry.hashes, self.extra_indexes)
            return self._wheel_of(entry, folder / name, folder)

        return self._keep(entry, "url", f"{name} {' '.join(entry.hashes)}", make)

    def _wheel_of(self, entry: Entry, place: Path, folder: Path) -> Path:
        """Return a wheel as it is, and anything else built."""
        return place if place.suffix == ".whl" else self._uv_build(place, folder / "built", entry.name)

    def _uv_build(self, source: Path, folder: Path, what: str) -> Path:
        """Build a wheel in an isolated environment."""
        arguments = ["build", "--wheel", "--out-dir", str(folder), NO_DOWNLOADS]
        arguments += [*index_arguments(self.index, self.extra_indexes), str(source)]
        try:
            run_uv_under(self.python, arguments, variables={"SOURCE_DATE_EPOCH": _EPOCH})
        except UvError as error:
            raise ValueError(f"{what} cannot be built: {error.last_words}; {error}") from error
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise ValueError(f"{what} cannot be built: its build made {len(wheels)} wheels instead of one")
        return wheels[0]

    def _keep(self, entry: Entry, kind: str, what: str, make: _Make, origin: str = "") -> Pin:
        """Make a wheel, unless it was made before, and return its package."""
        key = hashlib.sha256(f"{kind}\0{what}\0{self.python}".encode()).hexdigest()
        note = cache_folder() / "built" / key
        _private(note.parent)
        with file_lock(note.with_name(f".{key}.lock")):
            kept = _kept(note)
            if kept is None:
                with tempfile.TemporaryDirectory(prefix="mlp-build-") as folder:
                    kept = keep_wheel(make(Path(folder)))
                _write(note, f"{kept.parent.name}/{kept.name}".encode())
        name, version = _name_and_version(kept.name)
        if name != entry.name:
            raise ValueError(f"{entry.name} was asked for, and what was built is {name}")
        return own_pin(make_pin(name, version, entry.marker, [f"sha256:{kept.parent.name}"]), kept.name, origin)


if TYPE_CHECKING:
    from collections.abc import Callable

    _Make = Callable[[Path], Path]


def keep_wheel(wheel: Path) -> Path:
    """Keep a copy of a wheel by its hash, and return the copy's path."""
    folder = cache_folder() / "wheels" / sha256_of(wheel)
    kept = folder / wheel.name
    if kept.is_file() and sha256_of(kept) == folder.name:
        return kept
    _private(folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as copy:
        try:
            with wheel.open("rb") as original:
                shutil.copyfileobj(original, copy)
            copy.flush()
            Path(copy.name).replace(kept)
        except BaseException:
            Path(copy.name).unlink()
            raise
    return kept


def find_wheel(pin: Pin) -> Path | None:
    """Return an own package's wheel, where this host has kept it; one that was damaged counts as not there."""
    digest = pin.hashes[0].partition(":")[2]
    kept = cache_folder() / "wheels" / digest / pin.wheel
    return kept if kept.is_file() and sha256_of(kept) == digest else None


def missing_wheels(pins: Sequence[Pin]) -> str:
    """Return the message for own packages that are not there."""
    names = ", ".join(pin.wheel for pin in pins)
    return (
        f"{names}: built from a source when the lock was made, and not kept on this host; the store that has the lock"
        " has it too, and so has the host where it was locked"
    )


def _kept(note: Path) -> Path | None:
    """Return the wheel that was made before."""
    try:
        wheel = cache_folder() / "wheels" / note.read_text(encoding="utf-8")
        return wheel if sha256_of(wheel) == wheel.parent.name else None
    except OSError:
        return None


def _name_and_version(wheel: str) -> tuple[str, str]:
    """Return what a wheel's name says."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, _, _ = parse_wheel_filename(wheel)
    except InvalidWheelFilename as error:
        raise ValueError(f"{wheel} is no name of a wheel: {error}") from error
    return normal_name(name), str(version)


def _checkout(entry: Entry, folder: Path) -> None:
    """Check a commit out, with its submodules and its history, which some builds take their version from."""
    _git("clone", "--quiet", "--no-checkout", "--", entry.git, str(folder))
    try:
        _git("-C", str(folder), "checkout", "--quiet", entry.commit)
    except ValueError:
        # A commit that no branch leads to has to be asked for by itself.
        _git("-C", str(folder), "fetch", "--quiet", "origin", entry.commit)
        _git("-C", str(folder), "checkout", "--quiet", entry.commit)
    _git("-C", str(folder), "submodule", "--quiet", "update", "--init", "--recursive")


def _git(*arguments: str) -> None:
    """Run git; ValueError with what it says where it fails."""
    environ = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(
            ["git", *arguments],  # noqa: S607 # the user's git, wherever it is
            check=True,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environ,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise ValueError("a requirement comes from a git repository, and git is not installed") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(masked(error.stderr).split())[:_LONGEST_MESSAGE]
        raise ValueError(f"git {arguments[0]} ends with status {error.returncode}: {said}") from None


def _private(folder: Path) -> None:
    """Make a folder that nobody else can use."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as copy:
        copy.write(content)
    Path(copy.name).replace(path)
