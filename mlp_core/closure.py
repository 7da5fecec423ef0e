"""How the platform travels: its pure-Python packages in one folder, for interpreters that do not have them.

What the worker needs beyond these packages (attrs, pluggy, cloudpickle) is part of every environment's requirement.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from mlp_core.errors import PluginError
from mlp_core.folders import made_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlp_hookspecs import PluginId

_OWN: Final = (("mlp-core", "mlp_core"), ("mlp-hookspecs", "mlp_hookspecs"))
_METADATA: Final = ("METADATA", "entry_points.txt")


def ship_platform(plugins: Sequence[PluginId], known: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Return a folder that makes the worker and plugins importable, made if absent.

    Parameters
    ----------
    plugins : sequence of PluginId
        The plugins that the worker needs.
    known : mapping of str to str
        The package that a plugin lies in, by the plugin's name; of others the metadata is read, which takes longer
        than all else here.

    Returns
    -------
    pathlib.Path
        A folder for ``PYTHONPATH``; the same packages give the same folder.

    Raises
    ------
    PluginError
        Where a plugin has compiled modules, which fit one interpreter only.
    """
    packages = [*_OWN, *((p.distribution, known.get(p.name) or _package_of(p)) for p in plugins)]
    folders = {package: _folder_of(package) for _, package in packages}
    manifest = [(package, name, size, time) for package, root in folders.items() for name, size, time in _stat(root)]
    digest = hashlib.sha256(json.dumps([packages, manifest]).encode()).hexdigest()[:32]
    target = made_folder("platform") / digest
    if target.is_dir():
        return target
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(dir=target.parent) as staging:
        made = Path(staging) / "made"
        for distribution, package in packages:
            shutil.copytree(folders[package], made / package, ignore=shutil.ignore_patterns("__pycache__"))
            _copy_metadata(distribution, made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # somebody else made it meanwhile
                raise
    return target


def _package_of(plugin: PluginId) -> str:
    """Return the top-level package of a plugin's entry point."""
    from importlib.metadata import PackageNotFoundError, distribution

    with contextlib.suppress(PackageNotFoundError):
        for point in distribution(plugin.distribution).entry_points:
            if (point.group, point.name) == ("mlp", plugin.name):
                return point.module.partition(".")[0]
    raise PluginError(f"plugin {plugin} has no entry point, so it cannot be shipped")


def _folder_of(package: str) -> Path:
    """Return the folder of an importable package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"the package {package} is no folder, so it cannot be shipped")
    return Path(next(iter(spec.submodule_search_locations)))


def _stat(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of a package's files."""
    start = len(str(root)) + 1
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            if name.endswith((".so", ".pyd")):
                raise PluginError(f"{name} of the package {root.name} is compiled, so it cannot be shipped")
            path = f"{folder}/{name}"  # text: a Path for each file would take most of the time
            info = os.stat(path)  # noqa: PTH116
            yield path[start:], info.st_size, info.st_mtime_ns


def _copy_metadata(distribution: str, made: Path) -> None:
    """Write what importlib.metadata reads of a distribution."""
    from importlib.metadata import distribution as find

    found = find(distribution)
    folder = made / f"{distribution.replace('-', '_')}-{found.version}.dist-info"
    folder.mkdir(exist_ok=True)
    for name in _METADATA:
        text = found.read_text(name)
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
