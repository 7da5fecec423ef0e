"""Which settings are in force, and where each came from: a flag, a variable, the project's file, or the default."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from mlp_core import setting_tables as tables
from mlp_core.errors import SettingError
from mlp_core.names import shown
from mlp_hookspecs import MlpWarning, Setting, frozen_map

CORE_SETTINGS: Final[tuple[Setting, ...]] = (
    Setting("store", "path", ".mlp", "Folder or URL of the store; a relative folder lies in the project."),
    Setting("storage.durability", "str", "durable", "durable, or fast: nothing is synced, for scratch work only."),
    Setting("storage.shared", "bool", False, "Let the group read and write the store's files: 0660 and 0770."),  # noqa: FBT003 # as below
    Setting("storage.options", "table", None, "Arguments of the fsspec filesystem of a store that is no folder."),
    Setting("storage.retry_seconds", "float", 120.0, "How long one operation on a bucket is tried again."),
    Setting("username", "str", None, "Who runs; by default the system's user."),
    Setting("plugins.allow", "list", (), "Plugins or distributions to load; empty for all that are installed."),
    Setting("plugins.deny", "list", (), "Plugins or distributions that are never loaded."),
    Setting("plugins.strict", "bool", False, "Stop at a plugin that fails, instead of going on without it."),  # noqa: FBT003 # a setting's default
    Setting("plugins.safe", "bool", False, "Load no installed plugin at all."),  # noqa: FBT003 # as above
    Setting("plugins.provider", "list", (), "Whose backend counts where two have one name: kind:name=distribution."),
    Setting("plugins.timeout", "float", 60.0, "Seconds after which a plugin that is still loading ends the command."),
    Setting("formats.prefer", "list", (), "Formats of plugins that may store their types without being named."),
    Setting("storage.verify", "str", "once", "When artifacts are hashed: once on a host for each file, or always."),
    Setting("storage.cache_bytes", "int", 10 * 2**30, "How much of stores elsewhere is kept on this host; 0 for none."),
    Setting("storage.pickle", "str", "allow", "Whether pickled artifacts are loaded: allow, listed or refuse."),
    Setting("storage.pickle_allowed", "list", (), "Classes and functions, or packages, that listed pickles may name."),
    Setting("storage.signing_key", "str", None, "The key that signs runs and is asked for: env:NAME or file:PATH."),
    Setting("run.max_workers", "int", None, "Tasks at once; by default as many as the machine's cores allow."),
    Setting("run.max_num_splits", "int", 10_000, "The largest number of items that a foreach may have."),
    Setting("run.launcher", "str", "local", "The launcher of steps that name none."),
    Setting("run.inline_bytes", "int", 8192, "Artifacts up to this size lie in the journal."),
    Setting("run.log_bytes", "int", 32 * 2**20, "How much of what one attempt prints is kept."),
    Setting("run.lease_seconds", "float", 60.0, "How long a run's driver may be silent before the run counts as lost."),
    Setting("retention.keep", "int", None, "How many of the newest runs of each flow mlp gc keeps."),
    Setting("retention.older_than", "str", None, "Runs that ended less long ago are kept by mlp gc: 30d, 12h."),
    Setting("retention.keep_successful", "int", 0, "How many of the newest runs that succeeded mlp gc keeps, too."),
    Setting("retention.keep_tagged", "list", (), "Runs with one of these tags are kept by mlp gc, too."),
    Setting("environments.platforms", "list", (), "The platforms that locks must hold for; by default this host's."),
    Setting("environments.keep_days", "float", 30.0, "Days without use after which gc removes a host's environment."),
    Setting("package.include", "list", (), "Patterns of files that the code package takes though they are ignored."),
    Setting("package.exclude", "list", (), "Patterns of files that the code package leaves out."),
    Setting("package.max_mb", "int", 100, "The largest code package, in mebibytes."),
)
"""The settings that the core itself reads."""

PREFIX: Final = "MLP_"
"""What the environment variables of settings begin with."""

_ALIASES: Final[Mapping[str, str]] = {"MLP_STRICT_PLUGINS": "plugins.strict", "MLP_NO_PLUGINS": "plugins.safe"}
_LEAST: Final[Mapping[str, int]] = {
    "plugins.timeout": 1,
    "run.inline_bytes": 0,
    "run.max_num_splits": 1,
    "run.max_workers": 1,
    "run.log_bytes": 0,
    "run.lease_seconds": 1,
    "storage.cache_bytes": 0,
    "package.max_mb": 1,
    "retention.keep": 0,
    "retention.keep_successful": 0,
    "storage.retry_seconds": 0,
}
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "storage.durability": ("durable", "fast"),
    "storage.pickle": ("allow", "listed", "refuse"),
}
_GRAMMAR: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_TABLE: Final = re.compile(rb"tool\s*\.\s*[\"']?mlp\b")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes that are no UTF-8: it can neither be recorded nor handed to other processes."""
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})
_EXPECTED: Final[Mapping[str, str]] = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "path": "a path",
    "list": "a list of texts",
    "table": "a table, or a JSON object",
}


@attrs.frozen(eq=False, repr=False)
class Sources:
    """What settings are read from, before anybody knows which there are.

    Attributes
    ----------
    project : pathlib.Path
        The project's folder, absolute.
    file : pathlib.Path or None
        The file with settings, where the project has one.
    table : mapping of str to object
        The file's content, by dotted name.
    environ : mapping of str to str
        Environment variables.
    flags : mapping of str to object
        Values from the command line or the caller, by dotted name.
    """

    project: Path
    file: Path | None = None
    table: Mapping[str, object] = attrs.field(factory=dict, converter=frozen_map)
    environ: Mapping[str, str] = attrs.field(factory=dict, converter=frozen_map)
    flags: Mapping[str, object] = attrs.field(factory=dict, converter=frozen_map)


class Settings(Mapping[str, Any]):
    """Resolved settings by dotted name; immutable.

    Paths are absolute text, lists are tuples of text, tables are frozen mappings of JSON data.

    Attributes
    ----------
    project : pathlib.Path
        The project's folder, absolute.
    """

    __slots__ = ("_declared", "_sources", "_values", "project")

    def __init__(
        self, declared: Sequence[Setting], values: Mapping[str, Any], sources: Mapping[str, str], project: Path
    ) -> None:
        """Make the mapping; `values` and `sources` have an entry for each declared setting."""
        self._declared = {setting.name: setting for setting in declared}
        self._values = dict(values)
        self._sources = dict(sources)
        self.project = project

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def source(self, name: str) -> str:
        """Return where a value came from: ``default``, a flag, a variable or a file; KeyError for an unknown name."""
        return self._sources[name]

    def declared(self, name: str) -> Setting:
        """Return the declaration of a setting; KeyError for an unknown name."""
        return self._declared[name]

    def portable(self) -> dict[str, Any]:
        """Return the values that may travel and be recorded, as JSON data: all but secrets."""
        return {name: tables.portable(value) for name, value in self._values.items() if not self._declared[name].secret}

    def secrets(self) -> tuple[str, ...]:
        """Return the values that are neither shown nor recorded: those of secret settings, and entries of tables."""
        found: list[str] = []
        for name, value in self._values.items():
            if isinstance(value, Mapping):
                found += tables.secret_values(value)
            elif self._declared[name].secret and value is not None:
                found += value if isinstance(value, tuple) else [str(value)]
        return tuple(found)

    def masked(self, text: str) -> str:
        """Return a text without the values that are neither shown nor recorded, such as a plugin's message."""
        secrets = self.secrets()
        if not secrets:
            return text
        from mlp_hookspecs.masking import Masker

        return Masker(secrets).text(text)

    def text(self, name: str) -> str:
        """Return a value for people, secrets masked; KeyError for an unknown name."""
        value = self._values[name]
        if value is None:
            return ""
        if self._declared[name].secret:
            return "********"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, Mapping):
            return ", ".join(f"{key}={text}" for key, text in tables.shown_entries(value))
        return ", ".join(value) if isinstance(value, tuple) else str(value)


def variable_name(name: str) -> str:
    """Return the environment variable of a setting.

    Examples
    --------
    >>> variable_name("run.max_workers")
    'MLP_RUN_MAX_WORKERS'
    """
    return PREFIX + name.upper().replace(".", "_")


def flag_name(name: str) -> str:
    """Return the command-line flag of a setting.

    Examples
    --------
    >>> flag_name("run.max_workers")
    '--run-max-workers'
    """
    return "--" + name.replace(".", "-").replace("_", "-")


def check_declaration(setting: Setting) -> None:
    """Check that a setting is well declared; ValueError says what is wrong."""
    if not _GRAMMAR.fullmatch(setting.name):
        raise ValueError(f"setting name {setting.name!r} is refused; allowed are lower-case words joined by dots")
    if setting.type not in _EXPECTED:
        raise ValueError(f"setting {setting.name} has the type {setting.type!r}; allowed are {', '.join(_EXPECTED)}")
    if setting.default is not None:
        _convert(setting, setting.default, "its default", Path())


def find_sources(
    start: Path, *, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> Sources:
    """Find the project that a folder or file belongs to, and read its settings.

    The project is the nearest ancestor with an ``mlp.toml`` or with a ``pyproject.toml`` that has a ``[tool.mlp]``
    table; else the nearest with a ``pyproject.toml``, a ``.git`` or a ``.mlp``; else `start` itself.

    Parameters
    ----------
    start : pathlib.Path
        A folder, or a file in it.
    environ : mapping of str to str, optional
        Environment variables; by default the process's own.
    flags : mapping of str to object, optional
        Values from the command line or the caller, by dotted name.

    Returns
    -------
    Sources
        What was found.

    Raises
    ------
    SettingError
        Where the file cannot be read.
    """
    start = Path(os.path.abspath(start))  # noqa: PTH100 # resolve() would leave the user's symlinks
    if start.is_file():
        start = start.parent
    given = _Given(os.environ if environ is None else environ, flags or {})
    marked: Path | None = None
    for folder in (start, *start.parents):
        own, project = folder / "mlp.toml", folder / "pyproject.toml"
        if own.is_file():
            return given.with_table(folder, own, _read_toml(own))
        has_project = project.is_file()
        # Most files have no such table: parsing them to find out would cost more than reading them.
        if has_project and _TABLE.search(_read(project)):
            table = _read_toml(project).get("tool", {}).get("mlp")
            if isinstance(table, dict):
                return given.with_table(folder, project, table)
        if marked is None and (has_project or (folder / ".git").exists() or (folder / ".mlp").is_dir()):
            marked = folder
    return Sources(marked or start, environ=given.environ, flags=given.flags)


def load_settings(
    declared: Sequence[Setting],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Read a file and resolve the declared settings; for who knows them all beforehand.

    Parameters
    ----------
    declared : sequence of Setting
        The settings.
    file : pathlib.Path, optional
        A file named ``mlp.toml``, or a ``pyproject.toml`` of which ``[tool.mlp]`` counts.
    environ : mapping of str to str, optional
        Environment variables; by default the process's own.
    flags : mapping of str to object, optional
        Values by dotted name that win over all others.

    Returns
    -------
    Settings
        A value for each declared setting.

    Raises
    ------
    SettingError
        Where a value is refused or the file has an unknown name.
    """
    given = _Given(os.environ if environ is None else environ, flags or {})
    if file is None:
        return resolve_settings(declared, Sources(Path.cwd(), environ=given.environ, flags=given.flags))
    content = _read_toml(file)
    table = content.get("tool", {}).get("mlp", {}) if file.name == "pyproject.toml" else content
    return resolve_settings(declared, given.with_table(Path(os.path.abspath(file)).parent, file, table))  # noqa: PTH100 # as above


def resolve_settings(declared: Sequence[Setting], sources: Sources, *, absent: Collection[str] | None = ()) -> Settings:
    """Choose the value of each setting: the flag, else the variable, else the file, else the default.

    Parameters
    ----------
    declared : sequence of Setting
        The settings.
    sources : Sources
        Where to look.
    absent : collection of str or None
        First words of names in the file that are nobody's mistake: plugins that are installed but not loaded. None
        lets every unknown name pass, for when the plugins are not known yet.

    Returns
    -------
    Settings
        A value for each declared setting.

    Raises
    ------
    SettingError
        Where a value is refused, or the file has a name that is neither declared nor `absent`.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in declared:
        values[setting.name], origins[setting.name] = _choose(setting, sources)
    if absent is not None:
        _refuse_unknown({setting.name: setting for setting in declared}, sources, absent)
    return Settings(declared, values, origins, sources.project)


def restore_settings(declared: Sequence[Setting], given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Rebuild in a worker the settings that a driver had resolved.

    Parameters
    ----------
    declared : sequence of Setting
        The settings that are known here.
    given : mapping of str to JSON
        What `Settings.portable` gave; names that are not declared here are left out.
    environ : mapping of str to str
        Environment variables, for what the driver did not send: secrets.

    Returns
    -------
    Settings
        A value for each declared setting.
    """
    known = {setting.name for setting in declared}
    flags = {name: value for name, value in given.items() if name in known and value is not None}
    settings = resolve_settings(declared, Sources(Path.cwd(), environ=environ, flags=flags), absent=None)
    own = resolve_settings(
        [setting for setting in declared if setting.type == "table"], Sources(Path.cwd(), environ=environ), absent=None
    )
    values = {**settings, **{name: tables.with_secrets(settings[name], own[name]) for name in own}}
    return Settings(
        declared,
        # A value that the driver left at None stays None, whatever this host's variables say.
        {name: None if name in given and given[name] is None else value for name, value in values.items()},
        {name: "driver" if name in given else settings.source(name) for name in settings},
        settings.project,
    )


@attrs.frozen(eq=False, repr=False)
class _Given:
    """What does not come from the project."""

    environ: Mapping[str, str]
    flags: Mapping[str, object]

    def with_table(self, project: Path, file: Path, table: dict[str, Any]) -> Sources:
        """Return the sources of a project with a file."""
        return Sources(project, file, dict(_flat(table, "")), self.environ, self.flags)


def _choose(setting: Setting, sources: Sources) -> tuple[Any, str]:
    """Return the value of a setting and where it came from."""
    name, variable = setting.name, variable_name(setting.name)
    here = Path.cwd()
    if name in sources.flags:
        where = flag_name(name)
        return _checked(setting, sources.flags[name], f"flag {where}", here)
    for candidate in (variable, *(alias for alias, target in _ALIASES.items() if target == name)):
        if candidate in sources.environ:
            return _checked(setting, sources.environ[candidate], f"variable {candidate}", here)
    if setting.type == "table" and name not in sources.table:
        entries = {key: value for key, value in sources.table.items() if key.startswith(f"{name}.")}
        if entries:
            return _checked(setting, tables.nested(entries, name), f"file {sources.file}", sources.project)
    if name in sources.table:
        return _checked(setting, sources.table[name], f"file {sources.file}", sources.project)
    if setting.default is None:
        return None, "default"
    return _checked(setting, setting.default, "by default", sources.project)[0], "default"


def _checked(setting: Setting, value: object, where: str, base: Path) -> tuple[Any, str]:
    """Return a given value, converted, and where it came from; SettingError where it is refused."""
    if setting.secret and where.startswith(("file ", "flag ")):
        raise SettingError(
            f"setting {setting.name} ({where}) is a secret: a file is committed and packed with the code, and a command"
            " line is seen by everybody on the machine",
            hint=f"give it in the environment, by the variable {variable_name(setting.name)}",
        )
    try:
        converted = _convert(setting, value, where, base)
    except ValueError as error:
        raise SettingError(str(error), hint=setting.help) from None
    choices = _CHOICES.get(setting.name)
    if choices is not None and converted not in choices:
        raise SettingError(
            f"setting {setting.name} ({where}) is {shown(converted)}; allowed are {', '.join(choices)}",
            hint=setting.help,
        )
    exposed = tables.secrets(converted) if isinstance(converted, Mapping) and not where.startswith("variable ") else ()
    if exposed:
        # A file is committed, and a flag is seen by everybody on the machine.
        raise SettingError(
            f"setting {setting.name} ({where}) has the entry {shown(exposed[0])}, which looks like a secret",
            hint=f"give it in the environment: by the variable {variable_name(setting.name)}, as JSON, or by those "
            "that the library reads, such as AWS_ACCESS_KEY_ID",
        )
    least = _LEAST.get(setting.name)
    if least is not None and converted < least:
        raise SettingError(f"setting {setting.name} ({where}) is {converted}; it must be at least {least}")
    return converted, where


def _convert(setting: Setting, value: object, where: str, base: Path) -> Any:
    """Return a value as its type asks, from text or as it is; ValueError where it is refused."""
    text = value.strip() if isinstance(value, str) else None
    match setting.type:
        case "str":
            converted: object = value if isinstance(value, str) else None
        case "int" | "float":
            converted = _number(setting.type, value if text is None else text)
        case "bool":
            converted = value if text is None else _truth(text)
            converted = converted if isinstance(converted, bool) else None
        case "path":
            converted = _path(value, base)
        case "table":
            converted = tables.read(value if text is None else text)
        case _:
            converted = _texts(value if text is None else text.split(","))
    if converted is None:
        given = shown(value) if isinstance(value, str) else f"{value!r:.60}"
        if setting.secret or setting.type == "table":  # whose entries may be secrets
            given = "a secret" if setting.secret else "something else"
        raise ValueError(f"setting {setting.name} ({where}) is {given}; it must be {_EXPECTED[setting.type]}")
    for each in converted if isinstance(converted, tuple) else (converted,):
        if isinstance(each, str) and _SURROGATES.search(each):
            given = "a secret" if setting.secret else shown(value if isinstance(value, str) else each)
            raise ValueError(f"setting {setting.name} ({where}) is {given}; it must be text in UTF-8")
    return converted


def _truth(text: str) -> bool | None:
    """Return what a text says; None where it says nothing."""
    word = text.lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _path(value: object, base: Path) -> str | None:
    """Return an absolute path, or a URL as it is; None where the value is neither."""
    if not isinstance(value, str | os.PathLike):
        return None
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        return None
    return path if "://" in path else os.path.abspath(base / Path(path).expanduser())  # noqa: PTH100 # resolve() would leave the user's symlinks


def _texts(value: object) -> tuple[str, ...] | None:
    """Return the texts of a list, without empty ones; None where it is no list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return None
    return tuple(item.strip() for item in value if item.strip())


def _number(kind: str, value: Any) -> float | None:
    """Return a finite number of a kind; None where the value is none."""
    if isinstance(value, bool):
        return None
    try:
        number = int(value) if kind == "int" else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    exact = isinstance(value, str) or number == value
    return number if exact and abs(number) < float("inf") else None


def _refuse_unknown(known: Mapping[str, Setting], sources: Sources, absent: Collection[str]) -> None:
    """Refuse names in the file or flags that nobody declared; warn of variables that nearly are a setting's."""
    for name in (*sources.flags, *sources.table):
        if name in known or name.partition(".")[0] in absent:
            continue
        if any(setting.type == "table" and name.startswith(f"{setting.name}.") for setting in known.values()):
            continue
        where = flag_name(name) if name in sources.flags else sources.file
        raise SettingError(f"unknown setting {shown(name)} in {where}", hint=_near(name, known))
    ours = {*map(variable_name, known), *_ALIASES}
    unknown = [name for name in sources.environ if name.startswith(PREFIX) and name not in ours]
    for name in unknown:
        near = _closest(name, ours, 0.9)
        if near:
            import warnings

            warnings.warn(f"{name} is no setting's variable; did you mean {near}?", MlpWarning, stacklevel=2)


def _near(name: str, known: Collection[str]) -> str:
    """Return the hint for an unknown setting."""
    near = _closest(name.replace("-", "_"), known, 0.6)
    if near:
        return f"did you mean {near}?"
    return "mlp plugins shows which plugins are loaded; a plugin's settings begin with its name"


def _closest(name: str, known: Collection[str], cutoff: float) -> str:
    """Return the known name that is most alike; empty where none is."""
    import difflib

    return next(iter(difflib.get_close_matches(name, sorted(known), 1, cutoff)), "")


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    """Yield dotted names and values of nested tables."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(path: Path) -> bytes:
    """Return a file's content; SettingError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"settings file {path} cannot be read: {error.strerror or error}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    """Return a file's tables; SettingError where it is no TOML."""
    import tomllib

    try:
        return tomllib.loads(_read(path).decode())
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8, or nested too deeply
        raise SettingError(f"settings file {path} is no TOML: {error}") from error
