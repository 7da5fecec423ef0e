"""How a flow's class is found from a file, and found again in another process."""

from __future__ import annotations

import pickle
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core import FlowSpec, step
from mlp_core.errors import FlowError, UsageError
from mlp_core.loading import IMPORTING, code_ref, load_code, load_flow, module_of, reserved_names
from mlp_core.runner import RunOptions, SilentProgress, run_flow
from mlp_core.session import Session
from mlp_hookspecs import CodeRef

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOW = """
from mlp_core import FlowSpec, step

class Thing:
    pass

class Flow(FlowSpec):
    @step(start=True, end=True)
    def only(self):
        pass
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path) -> Iterator[None]:
    """The modules and the path as they were, after each test."""
    path, loaded = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if name not in loaded:
            if str(tmp_path) in str(getattr(module, "__file__", None)):
                del sys.modules[name]
        elif module is not loaded[name]:
            sys.modules[name] = loaded[name]


def write(path: Path, code: str = FLOW) -> Path:
    """Write a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code))
    return path


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("train.py", "train"),
        ("my-flow.v2.py", "my_flow_v2"),
        ("2024 report.py", "flow_2024_report"),
        ("class.py", "flow_class"),
        ("random.py", "flow_random"),
        ("attr.py", "flow_attr"),
        ("mlp_core.py", "flow_mlp_core"),
        ("pandas.py", "flow_pandas"),
        ("__main__.py", "flow___main__"),
        ("Größe.py", "Größe"),
        ("日本.py", "日本"),
        ("$$$.py", "___"),
    ],
)
def test_odd_file_names(tmp_path: Path, file: str, name: str) -> None:
    """Whatever a file is called, it is imported under a name that no other module has, and found again under it."""
    path = write(tmp_path / file)
    before = dict(sys.modules)
    assert module_of(path) == (name, tmp_path)
    flow = load_flow(path)
    assert flow.__module__ == name
    assert all(sys.modules[other] is module for other, module in before.items())
    again = load_code(code_ref(flow, tmp_path))
    assert again is flow


def test_file_inside_packages(tmp_path: Path) -> None:
    """A file in a package is the package's module, so that its relative imports work, here and in a worker."""
    for folder in ("outer_package", "outer_package/inner"):
        write(tmp_path / folder / "__init__.py", "")
    write(tmp_path / "outer_package/helper.py", "VALUE = 7")
    path = write(tmp_path / "outer_package/inner/the-flow.py", "from ..helper import VALUE" + FLOW)
    assert module_of(path) == ("outer_package.inner.the_flow", tmp_path)
    flow = load_flow(path)
    code = code_ref(flow, tmp_path)
    assert code == CodeRef(
        "outer_package.inner.the_flow", "Flow", file="outer_package/inner/the-flow.py", root=str(tmp_path)
    )
    for name in [name for name in sys.modules if name.startswith("outer_package")]:
        del sys.modules[name]
    sys.path.remove(str(tmp_path))
    assert load_code(code).__name__ == "Flow"
    assert sys.modules["outer_package.helper"].VALUE == 7


def test_package_s_own_file(tmp_path: Path) -> None:
    """A flow in a package's ``__init__.py`` is found again."""
    write(tmp_path / "a_package/__init__.py")
    sys.path.insert(0, str(tmp_path))
    import a_package  # type: ignore[import-not-found]

    code = code_ref(a_package.Flow, tmp_path)
    assert code.file == "a_package/__init__.py"
    del sys.modules["a_package"]
    sys.path.remove(str(tmp_path))
    assert load_code(code).__module__ == "a_package"


def test_code_on_another_host(tmp_path: Path) -> None:
    """Unpacked elsewhere, the same code is found under the same names."""
    flow = load_flow(write(tmp_path / "here/flows/one.py"))
    code = code_ref(flow, tmp_path / "here")
    assert (code.file, code.root) == ("flows/one.py", str(tmp_path / "here"))
    write(tmp_path / "there/flows/one.py", FLOW + "\nPLACE = 'there'")
    del sys.modules["one"]
    found = load_code(code, tmp_path / "there")
    assert (found.__module__, sys.modules["one"].PLACE) == ("one", "there")


def test_file_outside_of_the_project(tmp_path: Path) -> None:
    """A file that does not lie in the project has its own folder for a root."""
    flow = load_flow(write(tmp_path / "elsewhere/one.py"))
    (tmp_path / "project").mkdir()
    code = code_ref(flow, tmp_path / "project")
    assert (code.file, code.root) == ("one.py", str(tmp_path / "elsewhere"))


def test_file_is_imported_once(tmp_path: Path) -> None:
    """Loading a file again gives the same class; another file of the same name takes the name over."""
    path = write(tmp_path / "a/one.py")
    assert load_flow(path) is load_flow(tmp_path / "a" / ".." / "a" / "one.py")
    other = load_flow(write(tmp_path / "b/one.py"))
    assert Path(str(sys.modules["one"].__file__)) == tmp_path / "b/one.py"
    assert other is not load_flow(path)


def test_several_flows(tmp_path: Path) -> None:
    """Of several flows one has to be chosen; imported ones and base classes do not count, unless they are named."""
    write(tmp_path / "library.py", FLOW.replace("Flow(", "Imported("))
    path = write(
        tmp_path / "several.py",
        FLOW + "\nfrom library import Imported\nclass Second(Flow): pass\nclass Third(Imported): pass\n",
    )
    with pytest.raises(FlowError, match="the file defines the flows Second, Third") as caught:
        load_flow(path)
    assert caught.value.hint == "choose one with --flow NAME"
    assert load_flow(path, "Third").__name__ == "Third"
    assert load_flow(path, "Flow").__name__ == "Flow"
    with pytest.raises(FlowError, match="there is no flow 'Imported'"):
        load_flow(path, "Imported")


@pytest.mark.parametrize(
    ("file", "code", "message", "line"),
    [
        ("missing.py", None, "there is no file", 0),
        ("empty.py", "", "the file defines no flow", 0),
        ("only_import.py", "from mlp_core import FlowSpec", "the file defines no flow", 0),
        ("broken.py", "x = 1\nif x\n", "expected ':'", 2),
        ("null.py", "x = '\0'", "null byte", 0),
        ("text.txt", FLOW, "this is no Python file", 0),
    ],
)
def test_refused_files(tmp_path: Path, file: str, code: str | None, message: str, line: int) -> None:
    """What is no flow's file is refused with its place."""
    path = tmp_path / file
    if code is not None:
        path.write_text(code)
    with pytest.raises(FlowError, match=message) as caught:
        load_flow(path)
    assert caught.value.line == line
    assert caught.value.exit_status == 2


def test_errors_of_the_file_pass(tmp_path: Path) -> None:
    """What a file raises when it is imported is the user's, and leaves no half-imported module."""
    with pytest.raises(ZeroDivisionError):
        load_flow(write(tmp_path / "raises.py", "1 / 0"))
    assert "raises" not in sys.modules
    with pytest.raises(FileNotFoundError):
        load_flow(write(tmp_path / "opens.py", "open('/no/such/file')"))


def test_code_that_is_gone(tmp_path: Path) -> None:
    """A file or class that is no longer there is named."""
    with pytest.raises(FlowError, match="the file does not exist"):
        load_code(CodeRef("gone", "Flow", file="gone.py", root=str(tmp_path)))
    write(tmp_path / "renamed.py")
    with pytest.raises(FlowError, match=r"there is no flow 'Old.Flow'"):
        load_code(CodeRef("renamed", "Old.Flow", file="renamed.py", root=str(tmp_path)))


def test_class_without_a_file_travels_by_value() -> None:
    """A class of a notebook's cell, or inside a function, is pickled itself."""
    module: dict[str, Any] = {"__name__": "no_such_module"}
    exec(compile(FLOW, "<cell>", "exec"), module)  # noqa: S102 # as a notebook does

    class Local(FlowSpec):
        @step(start=True, end=True)
        def only(self) -> None:
            pass

    for flow in (module["Flow"], Local):
        code = code_ref(flow, Path("/project"))
        assert code.pickled is not None
        assert (code.file, code.root) == ("", "/project")
        copied = pickle.loads(pickle.dumps(attrs.asdict(code)))
        loaded = load_code(CodeRef(**copied))
        assert loaded.__name__ == flow.__name__
        assert issubclass(loaded, FlowSpec)


def test_class_inside_a_class(tmp_path: Path) -> None:
    """A class at the top level of another is found by its qualified name."""
    path = write(tmp_path / "nested.py", FLOW + "\nclass Outer:\n    class Inner(Flow):\n        pass\n")
    load_flow(path)
    inner = sys.modules["nested"].Outer.Inner
    code = code_ref(inner, tmp_path)
    assert code.qualname == "Outer.Inner"
    assert load_code(code) is inner


def test_run_while_importing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that starts a run wherever it is imported is told where the call belongs."""
    flow = load_flow(write(tmp_path / "loud.py"))
    session = Session.open(start=tmp_path, flags={"plugins.safe": True})
    monkeypatch.setenv(IMPORTING, "1")
    with pytest.raises(UsageError, match="the file that defines Flow starts a run when it is imported") as caught:
        run_flow(flow, session, RunOptions(), SilentProgress())
    assert caught.value.hint == 'put the call under: if __name__ == "__main__":'
    assert not (tmp_path / ".mlp").exists()


def test_reserved_names(tmp_path: Path) -> None:
    """What the base of all flows defines is reserved, and nothing of the flow's own."""
    names = reserved_names(load_flow(write(tmp_path / "names.py")))
    assert {"next", "input", "index", "merge_artifacts", "foreach_stack"} <= names
    assert "only" not in names
    assert not any(name.startswith("__") for name in names)
