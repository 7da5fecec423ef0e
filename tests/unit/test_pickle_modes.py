"""Which pickles are loaded: all, those that name what is listed, or none."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import pickle
import sys
import textwrap
import uuid
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlp_core.builtin.pickle_format import ListedUnpickler
from mlp_core.errors import ArtifactError, SettingError
from mlp_core.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def call(module: str, name: str) -> bytes:
    """Return a stream that means a call of whatever has a name, without arguments."""
    texts = (pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() for text in (module, name))
    return pickle.PROTO + b"\x05" + b"".join(texts) + pickle.STACK_GLOBAL + pickle.EMPTY_TUPLE + pickle.REDUCE + b"."


def load(stream: bytes, *allowed: str) -> Any:
    """Load a stream in listed mode."""
    return ListedUnpickler(stream, (), allowed).load()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable package that defines a class, a function, and names that are not its own."""
    package = tmp_path / "listed_project"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(
        textwrap.dedent("""
            import os, subprocess
            from os import system
            from pathlib import Path

            class Model:
                class Part:
                    pass

                runner = subprocess.run

            class Renamed:
                pass

            Renamed.__module__ = "somewhere.else"

            def run(command):
                return system(command)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "listed_project.models"
    for name in [name for name in sys.modules if name.startswith("listed_project")]:
        del sys.modules[name]


PLAIN = [
    None,
    {"a": [1, 2.5, "x", b"y", (True, None)], "s": {1, 2}, "f": frozenset({"q"})},
    bytearray(b"abc"),
    range(3),
    slice(1, 2),
    1 + 2j,
    OrderedDict(a=1),
    dt.datetime(2026, 1, 31, tzinfo=dt.UTC),
    dt.timedelta(seconds=3),
    decimal.Decimal("1.5"),
    uuid.UUID(int=7),
    np.float64(1.5),
    np.dtype("int32"),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_data_needs_no_list(value: object) -> None:
    """Data of the standard library and of numpy is loaded whatever is listed."""
    assert load(pickle.dumps(value, protocol=5)) == value


def test_arrays_need_no_list() -> None:
    """Arrays come back, with their buffers in the stream and beside it."""
    array = np.arange(12.0).reshape(3, 4)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
    assert np.array_equal(load(pickle.dumps(array, protocol=5)), array)
    assert np.array_equal(ListedUnpickler(stream, [buffer.raw() for buffer in buffers], ()).load(), array)


DANGEROUS = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("subprocess", "Popen"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("types", "FunctionType"),
    ("cloudpickle.cloudpickle", "_make_function"),
    ("datetime", "sys.modules"),
    ("collections", "abc.sys.exit"),
    ("pathlib", "Path"),
]


@pytest.mark.parametrize(("module", "name"), DANGEROUS, ids=str)
@pytest.mark.parametrize("listed", [(), "package"], ids=["nothing listed", "its package listed"])
def test_what_runs_code_is_refused(module: str, name: str, listed: tuple[str, ...] | str) -> None:
    """What could run something is refused, also where somebody has listed the package that it comes from."""
    allowed = (module, module.partition(".")[0], f"{module}.") if listed else ()
    with pytest.raises(pickle.UnpicklingError, match="does not list"):
        load(call(module, name), *allowed)


def test_an_exact_name_of_the_standard_library_counts() -> None:
    """Whoever lists a function by its full name has asked for it."""
    assert load(call("os", "getpid"), "os.getpid") == os.getpid()
    with pytest.raises(pickle.UnpicklingError):
        load(call("os", "getppid"), "os.getpid")


def test_a_package_means_its_own_classes(project: str) -> None:
    """A listed package or module allows the classes that it defines, nested ones too."""
    for listed in ("listed_project", project, f"{project}.Model"):
        assert type(load(call(project, "Model"), listed)).__name__ == "Model"
        assert type(load(call(project, "Model.Part"), listed)).__name__ == "Part"


@pytest.mark.parametrize(
    "name", ["system", "os.system", "subprocess.Popen", "Path", "Model.runner", "Model.__init__", "run", "Renamed"]
)
def test_a_package_does_not_mean_what_it_imports(project: str, name: str) -> None:
    """What a listed module merely imported, what an attribute leads to, and functions are not allowed with it."""
    with pytest.raises(pickle.UnpicklingError, match="does not list"):
        load(call(project, name), "listed_project")


def test_a_name_that_begins_alike_is_another(project: str) -> None:
    """``listed`` is no parent of ``listed_project``."""
    for listed in ("listed", "listed_project.model", "listed_project.models.Mod", ""):
        with pytest.raises(pickle.UnpicklingError):
            load(call(project, "Model"), listed)


def test_a_name_that_is_refused_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing runs code as well: a module that is not listed stays unimported."""
    (tmp_path / "unlisted_canary.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        load(call("unlisted_canary", "Model"), "listed_project")


def session_with(tmp_path: Path, **flags: object) -> Session:
    """Return a session of an empty project."""
    (tmp_path / "mlp.toml").touch()
    return Session.open(start=tmp_path, flags={"storage." + name: value for name, value in flags.items()})


def test_refused_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    """In refuse mode no pickle is made, and one that is there is not loaded; the message names artifact and format."""
    allowing = session_with(tmp_path)
    values = allowing.values(allowing.open_store(create=True))
    ref = values.put("when", dt.date(2026, 1, 31))
    plain = values.put("count", 3)
    values.sync()
    refusing = session_with(tmp_path, pickle="refuse")
    values = refusing.values(refusing.open_store(create=False))
    assert values.get(plain) == 3
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"'when' of type 'datetime.date', stored as 'pickle'") as found:
            values.get(ref, "when")
        assert "storage.pickle" in found.value.message
        assert "storage.pickle_allowed" in found.value.hint
        with pytest.raises(ArtifactError, match=r"artifact 'when' .* storage.pickle is refuse"):
            values.put("when", dt.date(2026, 1, 31))
        with pytest.raises(ArtifactError, match=r"storage.pickle is refuse"):
            values.put("count", 3, format="pickle")
    assert values.put("count", 3) == plain


def test_listed_pickles_are_read(tmp_path: Path, project: str) -> None:
    """In listed mode what is listed comes back, and for what is not the message names it."""
    module = __import__(project, fromlist=["Model"])
    allowing = session_with(tmp_path)
    values = allowing.values(allowing.open_store(create=True))
    ref = values.put("model", module.Model())
    values.sync()
    listing = session_with(tmp_path, pickle="listed", pickle_allowed=["listed_project.models.Model"])
    assert isinstance(listing.values(listing.open_store(create=False)).get(ref), module.Model)
    other = session_with(tmp_path, pickle="listed", pickle_allowed=["listed_project.other"])
    with pytest.raises(ArtifactError, match=r"artifact 'model' .*'listed_project.models.Model'"):
        other.values(other.open_store(create=False)).get(ref, "model")


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    """A misspelt mode never means the one that loads everything."""
    with pytest.raises(SettingError, match=r"storage.pickle .* allowed are allow, listed, refuse"):
        session_with(tmp_path, pickle="safe")
