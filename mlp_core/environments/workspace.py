"""A folder to work in as a step did: the run's code, and a script that starts the step's interpreter with both."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from mlp_core.errors import StoreDamaged, UsageError
from mlp_core.names import label, shown
from mlp_core.unpack import unpack
from mlp_hookspecs import frozen_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlp_hookspecs import CodeRef

KERNEL_PACKAGE: Final = "ipykernel"
"""What an environment needs so that a notebook can run in it."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS: Final = "mlp"
_SCRIPT: Final = """\
#!/bin/sh
# Starts the interpreter of environment {digest}.
if [ ! -x {python} ]; then
    echo "the environment is not on this host any more; make it again: mlp env create {source}" >&2
    exit 127
fi
touch -c {users}
{exports}
PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONPATH
exec {python} "$@"
"""


@attrs.frozen
class Interpreter:
    """An interpreter and what it is to be started with.

    Attributes
    ----------
    digest : str
        The environment's identity.
    source : str
        What the environment was called by: a name, digest or pathspec.
    python : str
        Path of the interpreter.
    users : str
        The file whose time tells when the environment was used last.
    closure : str
        The folder with the platform's own packages; empty where the environment has them.
    variables : mapping of str to str
        Environment variables.
    """

    digest: str
    source: str
    python: str
    users: str
    closure: str = ""
    variables: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)


def write_workspace(folder: Path, interpreter: Interpreter, code: CodeRef | None, package: bytes | None) -> None:
    """Write the code of a run and the script ``python`` into a folder.

    Parameters
    ----------
    folder : pathlib.Path
        The folder: not there yet, or empty.
    interpreter : Interpreter
        What the script starts.
    code : CodeRef or None
        Which file of the package is the flow's.
    package : bytes or None
        The code package; None where there is no code.

    Raises
    ------
    UsageError
        Where there is something in the folder.
    StoreDamaged
        Where what is stored cannot be code, or is no variable.
    """
    with _replacing(check_workspace(folder)) as draft:
        _fill(draft, folder, interpreter, code, package)


def write_kernel(
    name: str, interpreter: Interpreter, code: CodeRef | None, package: bytes | None, into: Path | None
) -> Path:
    """Write a kernel for Jupyter that runs in an environment; one of ours of the same name is replaced.

    Parameters
    ----------
    name : str
        The kernel's name.
    interpreter : Interpreter
        The interpreter, which has `KERNEL_PACKAGE`.
    code, package
        As in `write_workspace`.
    into : pathlib.Path or None
        The folder that `write_workspace` has written; None for one of the kernel's own.

    Returns
    -------
    pathlib.Path
        The kernel's folder.

    Raises
    ------
    UsageError
        Where there is a kernel of that name which is not ours.
    """
    with _replacing(folder := check_kernel(name)) as draft:
        if into is None:
            _fill(draft, folder, interpreter, code, package)
        script = str((into or folder).absolute() / "python")
        spec = {
            "argv": [script, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": f"{interpreter.source} (mlp)",
            "language": "python",
            "metadata": {_OURS: {"environment": interpreter.digest}, "debugger": True},
        }
        (draft / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
    return folder


def check_workspace(folder: Path) -> Path:
    """Return a folder that a workspace can be written to: absent, or empty; UsageError for any other."""
    return _check_free(folder, "it is not empty: name a folder that is not there yet", lambda _: False)


def check_kernel(name: str) -> Path:
    """Return the folder of a kernel that can be written: absent, empty or ours; UsageError for any other."""
    folder = jupyter_folder() / "kernels" / label(name, "kernel").lower()
    return _check_free(folder, "there is a kernel of that name: give it another by --kernel=NAME", _is_ours)


def kernel_name(source: str) -> str:
    """Return the name of a kernel for an environment that is called like this.

    Examples
    --------
    >>> kernel_name("fraud/scoring:stable")
    'fraud-scoring-stable'
    """
    return re.sub(r"[^a-z0-9_.]+", "-", source.lower()).strip("-.")


def jupyter_folder() -> Path:
    """Return the folder where the user's Jupyter looks for kernels."""
    given = os.environ.get("JUPYTER_DATA_DIR")
    if given:
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library/Jupyter"
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local/share") / "jupyter"


def _fill(draft: Path, folder: Path, interpreter: Interpreter, code: CodeRef | None, package: bytes | None) -> None:
    """Write code and script into a draft of a folder."""
    places = [interpreter.closure] if interpreter.closure else []
    if package is not None:
        (draft / "code").mkdir(mode=0o700)
        unpack(package, draft / "code")
        places += [str(folder.absolute() / "code" / part) for part in _import_folders(code)]
    # Below a project it is no part of the project's code.
    (draft / ".gitignore").write_text("*\n", encoding="utf-8")
    script = draft / "python"
    script.write_text(_script(interpreter, places), encoding="utf-8")
    script.chmod(stat.S_IRWXU)


def _import_folders(code: CodeRef | None) -> list[str]:
    """Return the folders of a code package that its modules are imported from: the flow file's, and the project's."""
    if code is None or not code.file:
        return [""]
    file = Path(code.file)
    if file.is_absolute() or ".." in file.parts:
        raise StoreDamaged(f"the run says that its flow's file is {shown(code.file)}, which lies outside of its code")
    depth = code.module.count(".") + (file.name == "__init__.py" and not code.module.endswith("__init__"))
    home = str(file.parents[min(depth, len(file.parents) - 1)])
    return list(dict.fromkeys("" if part == "." else part for part in (home, "")))


def _script(interpreter: Interpreter, places: list[str]) -> str:
    """Return the script that starts an interpreter."""
    for name, value in interpreter.variables.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise StoreDamaged(f"the environment has the variable {shown(name)}, which cannot be set")
    exports = [f"export {name}={_shell_value(name, value)}" for name, value in sorted(interpreter.variables.items())]
    return _SCRIPT.format(
        digest=interpreter.digest,
        source=interpreter.source,
        python=shlex.quote(interpreter.python),
        users=shlex.quote(interpreter.users),
        exports="\n".join(exports) or ":",
        path=shlex.quote(os.pathsep.join(places)),
    )


def _shell_value(name: str, value: str) -> str:
    """Return a variable's value as a word of the shell; what was put before the path is put before that of the day."""
    before, path = value.removesuffix(os.environ.get("PATH", "")), "PATH"
    if name == path and before not in ("", value):
        return f'{shlex.quote(before)}"$PATH"'
    return shlex.quote(value)


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a draft that takes the place of a folder that was checked."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        draft = Path(staging) / "draft"
        draft.mkdir(mode=0o700)
        yield draft
        if folder.is_dir():
            shutil.rmtree(folder)
        draft.rename(folder)


def _check_free(folder: Path, reason: str, is_ours: Callable[[Path], bool]) -> Path:
    """Return a folder that is absent, empty or ours; UsageError for any other."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is refused: it is no folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_ours(folder):
        raise UsageError(f"{folder} is refused: {reason}")
    return folder


def _is_ours(folder: Path) -> bool:
    """Tell whether a kernel was written by us."""
    try:
        spec: Any = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
        return _OURS in spec["metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
