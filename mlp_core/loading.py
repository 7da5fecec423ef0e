"""How a flow's class is found from a file, and found again in another process."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import keyword
import linecache
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_core.errors import FlowError, UsageError
from mlp_core.names import shown
from mlp_core.parameters import parameters_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from mlp_hookspecs import CodeRef

MARK = "__mlp_flow__"
"""The class attribute that tells flow classes from others."""

IMPORTING = "MLP_IMPORTING_FLOW"
"""The environment variable that is set while a worker imports a flow's file."""


def reserved_names(flow: type[Any]) -> frozenset[str]:
    """Return the names that the base of all flows defines, which nothing in a flow may have."""
    base = next((base for base in flow.__mro__ if base.__dict__.get(MARK) is True), object)
    return frozenset(name for name in vars(base) if not name.startswith("__"))


def class_constants(flow: type[Any]) -> dict[str, Any]:
    """Return the class attributes of a flow that are data: constants of every run; private names are left out."""
    return {name: value for name, value in class_data(flow).items() if not name.startswith("_")}


def class_data(flow: type[Any]) -> dict[str, Any]:
    """Return the class attributes of a flow that are data, whatever their names: what no step can assign.

    Python finds a class attribute before it asks for an artifact, so what a step assigned to that name would be lost.
    """
    found: dict[str, Any] = {}
    parameters = parameters_of(flow)
    for base in reversed(flow.__mro__):
        if base is object or base.__module__.partition(".")[0] == "mlp_core":
            continue
        for name, value in vars(base).items():
            is_data = not callable(value) and not hasattr(value, "__get__") and not isinstance(value, type)
            if not name.startswith("__") and is_data and name not in parameters:
                found[name] = value
    return found


def load_flow(path: Path, name: str | None = None) -> type[Any]:
    """Import a flow's file and return its flow class.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    name : str, optional
        The class, where the file defines several.

    Returns
    -------
    type
        The class.

    Raises
    ------
    FlowError
        Where the file is missing, cannot be imported, or does not define exactly one flow (of that name). Without a
        name, a flow from which another in the file inherits does not count.
    """
    if not _is_file(path):
        hint = "give the path of a Python file that defines a flow"
        raise FlowError(f"there is no file {shown(str(path))}", hint=hint)
    module_name, entry = module_of(path)
    module = _import_file(module_name, path.resolve(), entry)
    flows = {
        value.__name__: value
        for value in vars(module).values()
        if isinstance(value, type) and value.__dict__.get(MARK) is not True and getattr(value, MARK, False)
        if value.__module__ == module.__name__
    }
    if name is not None:
        if name not in flows:
            raise FlowError(f"there is no flow {shown(name)}", file=str(path), hint=f"it defines {_listed(flows)}")
        return flows[name]
    bases = {base for flow in flows.values() for base in flow.__mro__[1:]}
    leaves = {name: flow for name, flow in flows.items() if flow not in bases}
    if len(leaves) != 1:
        hint = "choose one with --flow NAME" if flows else "define a class that inherits from FlowSpec"
        raise FlowError(f"the file defines {_listed(leaves)}", file=str(path), hint=hint)
    return next(iter(leaves.values()))


def code_ref(flow: type[Any], root: Path) -> CodeRef:
    """Return where a flow's class can be found by a worker.

    Parameters
    ----------
    flow : type
        The class.
    root : pathlib.Path
        The project's folder.

    Returns
    -------
    CodeRef
        By file where the class has one and stands at its top level; by value otherwise.
    """
    from mlp_hookspecs import CodeRef

    module = sys.modules.get(flow.__module__)
    file = getattr(module, "__file__", None)
    if file is None or "<locals>" in flow.__qualname__ or not Path(file).is_file():
        import cloudpickle

        pickled = cloudpickle.dumps((flow, list(vars(flow)), _cell_sources(flow)))
        return CodeRef(flow.__module__, flow.__qualname__, root=str(root), pickled=pickled)
    path = Path(file).resolve()
    name = flow.__module__
    if name == "__main__":
        spec = getattr(module, "__spec__", None)
        name = spec.name if spec is not None else module_of(path)[0]
    base = root.resolve()
    if not path.is_relative_to(base):
        base = path.parent
    return CodeRef(name, flow.__qualname__, file=str(path.relative_to(base)), root=str(base))


def _cell_sources(flow: type[Any]) -> dict[str, str]:
    """Return the source of a flow's methods that lies in no file, as that of a notebook's cells, by its name."""
    members = [member for base in flow.__mro__ for member in vars(base).values() if inspect.isfunction(member)]
    names = {member.__code__.co_filename for member in members}
    return {
        name: "".join(linecache.getlines(name))
        for name in names
        if name in linecache.cache and not _is_file(Path(name))
    }


def _reorder(flow: type[Any], names: Sequence[str]) -> None:
    """Put a class's attributes back into the order of their definition, which pickling has lost."""
    if list(vars(flow)) != list(names):
        for name in names:
            if not name.startswith("__") and name in vars(flow):
                value = vars(flow)[name]
                delattr(flow, name)
                setattr(flow, name, value)


def load_code(code: CodeRef, root: Path | None = None) -> type[Any]:
    """Return the flow's class in this process.

    Parameters
    ----------
    code : CodeRef
        Where it is.
    root : pathlib.Path, optional
        The folder that stands for the project's own, where the code was unpacked on another host.

    Raises
    ------
    FlowError
        Where the file cannot be imported or no longer has the class.
    """
    if code.pickled is not None:
        import cloudpickle

        value: type[Any]
        value, order, sources = cloudpickle.loads(code.pickled)
        _reorder(value, order)
        for name, text in sources.items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        return value
    path = (root or Path(code.root)) / code.file
    depth = code.module.count(".") + (path.name == "__init__.py" and not code.module.endswith("__init__"))
    module = _import_file(code.module, path, path.parents[min(depth, len(path.parents) - 1)])
    found: Any = module
    for part in code.qualname.split("."):
        if not hasattr(found, part):
            raise FlowError(f"there is no flow {code.qualname!r}", file=str(path))
        found = getattr(found, part)
    flow: type[Any] = found
    return flow


def module_of(path: Path) -> tuple[str, Path]:
    """Return the name under which a file is imported, and the folder that must be on the path for that.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Returns
    -------
    name : str
        Dotted for a file inside a package; otherwise the file's own name, made an identifier that hides no
        installed module.
    entry : pathlib.Path
        The folder.
    """
    path = path.resolve()
    stem = re.sub(r"\W", "_", path.stem)
    parts = [stem]
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    if not stem.isidentifier() or keyword.iskeyword(stem) or (len(parts) == 1 and _is_taken(stem)):
        parts[-1] = f"flow_{stem}"
    return ".".join(parts), folder


def _is_taken(name: str) -> bool:
    """Tell whether a name means a module of the standard library, the platform or an installed distribution.

    A loaded file of the user's does not count: names may not depend on what a process has loaded before.
    """
    if name in sys.stdlib_module_names or name in ("__main__", "mlp_core", "mlp_hookspecs"):
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a loaded module of unknown origin
        return False
    places = (spec.origin, *(spec.submodule_search_locations or ())) if spec is not None else ()
    return any("site-packages" in place or "dist-packages" in place for place in places if place)


def _is_file(path: Path) -> bool:
    """Tell whether there is a file; not where the path is none, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _import_file(name: str, path: Path, entry: Path) -> ModuleType:
    """Import a file under a name, unless that name is already taken by the same file."""
    loaded = sys.modules.get(name)
    if loaded is not None and _same_file(loaded, path):
        return loaded
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FlowError("this is no Python file", file=str(path), hint="its name has to end in .py")
    if "." in name:
        _import_parents(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _run_module(spec.loader.exec_module, module, path)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _run_module(run: Callable[[ModuleType], None], module: ModuleType, path: Path) -> None:
    """Execute a module; a mistake in it is the user's, told with its own line."""
    try:
        run(module)
    except UsageError:
        raise
    except FileNotFoundError as error:
        if error.filename == str(path):
            raise FlowError("the file does not exist", file=str(path)) from None
        raise
    except SyntaxError as error:
        raise FlowError(f"{error.msg}", file=error.filename or str(path), line=error.lineno or 0) from None


def _import_parents(name: str) -> None:
    """Import the packages around a module, where they can be imported by name."""
    parent = name.rpartition(".")[0]
    try:
        importlib.import_module(parent)
    except ModuleNotFoundError as error:
        # A name that no package stands behind, as a test runner makes them: the module can do without.
        if error.name is None or not parent.startswith(error.name):
            raise


def _same_file(module: ModuleType, path: Path) -> bool:
    """Tell whether a module was loaded from a file."""
    file = inspect.getsourcefile(module) if getattr(module, "__file__", None) else None
    return file is not None and Path(file).resolve() == path.resolve()


def _listed(flows: dict[str, type[Any]]) -> str:
    """Return the names of flows for a message."""
    return (
        f"the flows {', '.join(flows)}" if len(flows) > 1 else f"the flow {next(iter(flows))}" if flows else "no flow"
    )
