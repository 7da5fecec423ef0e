"""How a code package becomes a folder again, whatever names its archive contains."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from mlp_core.errors import StoreDamaged
from mlp_core.folders import made_folder
from mlp_core.names import shown
from mlp_core.store.verified import make_private

if TYPE_CHECKING:
    from mlp_core.values import Values
    from mlp_hookspecs import ArtifactRef, CodeRef


_IMPOSSIBLE: Final = frozenset(
    (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
)
"""What a file system says of a name that cannot be, or be twice; all else is not the archive's fault."""


def unpacked(package: ArtifactRef, values: Values) -> Path:
    """Return a folder with the content of a code package, in the user's cache and made if absent.

    The folder is named by the package's digest; its files are read-only, since others use it too.

    Parameters
    ----------
    package : ArtifactRef
        The package.
    values : Values
        Where its bytes are.

    Raises
    ------
    StoreError
        Where the package is missing or damaged.
    """
    target = made_folder("code") / package.digest
    if target.is_dir():
        return target
    content = values.get(package)
    with tempfile.TemporaryDirectory(dir=target.parent) as staging:
        made = Path(staging) / "made"
        made.mkdir(mode=0o700)
        unpack(content, made)
        for path in made.rglob("*"):
            if path.is_file():
                path.chmod(stat.S_IRUSR)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # somebody else made it meanwhile
                raise
    return target


def code_folder(code: CodeRef, values: Values) -> Path | None:
    """Return where a flow's code package is unpacked, on hosts that do not have its file; None on those that do.

    Code without a root is that of a deployed version: it runs from its package everywhere.
    """
    return None if code.package is None or is_here(code) else unpacked(code.package, values)


def is_here(code: CodeRef) -> bool:
    """Tell whether this host has a flow's file, in the project that it was run from."""
    return bool(code.root) and (Path(code.root) / code.file).is_file()


def unpack(content: bytes, folder: Path) -> None:
    """Write the files of a code package below a folder.

    Parameters
    ----------
    content : bytes
        A tar archive.
    folder : pathlib.Path
        An empty folder.

    Raises
    ------
    StoreDamaged
        Where it is no archive, or holds anything but plain files below the folder.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for entry in archive:
                path = folder / _checked_name(entry)
                make_private(path.parent)
                source = archive.extractfile(entry)
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(source.read() if source is not None else b"")
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise
        raise StoreDamaged(f"the code package is damaged: {error}") from error
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise StoreDamaged(f"the code package is damaged: {type(error).__name__}: {error}") from error


def _checked_name(entry: tarfile.TarInfo) -> PurePosixPath:
    """Return an entry's name; StoreDamaged where it is no plain file below the folder."""
    name = PurePosixPath(entry.name)
    # One with holes can say that it is of any size.
    is_plain = entry.isreg() and not entry.issparse()
    if not is_plain or name.is_absolute() or ".." in name.parts or not name.parts or "\0" in entry.name:
        raise StoreDamaged(f"the code package holds {shown(entry.name)}, which is no plain file below its folder")
    return name
