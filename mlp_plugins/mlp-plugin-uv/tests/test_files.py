"""What files ask for becomes the requirement, by their content; what could not be locked is refused with its line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_hookspecs import EnvironmentSpec, wire
from mlp_plugin_uv import Pypi, PypiBase, Uv, pypi
from mlp_plugin_uv.planning import plan
from mlp_plugin_uv.requirement import Requirement, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mlp_hookspecs import Option

HASH = "sha256:" + 64 * "a"


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    """A flow's file in a project."""
    folder = tmp_path / "project"
    (folder / "flows").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "flows" / "flow.py").write_text("")
    return folder / "flows" / "flow.py"


def asked(flow: Path, *options: Option) -> dict[str, Any]:
    """Return what options of a step in a flow ask for."""
    spec = plan(options, str(flow))
    assert spec is not None
    # As it comes out of a store.
    found: dict[str, Any] = json.loads(wire.dumps(spec))["requirement"]
    assert Requirement.from_data(found).to_data() == found
    return found


def file_asks(flow: Path, text: str, name: str = "requirements.txt") -> dict[str, Any]:
    """Return what a file asks for."""
    (flow.parent / name).write_text(text)
    return asked(flow, Pypi(file=name, python="3.12"))


def test_requirements_file(flow: Path) -> None:
    """Requirements, includes, constraints, hashes and indexes of a requirements file are taken over."""
    (flow.parents[1] / "shared").mkdir()
    (flow.parents[1] / "shared" / "base.in").write_text("-c limits.txt\nclick[x] ; python_version<'4'  # why\n")
    (flow.parents[1] / "shared" / "limits.txt").write_text("numpy<2\n")
    text = f"""# comment
-r ../shared/base.in
--requirement=../shared/base.in
--index-url https://one/index
--extra-index-url acme=https://two/index
six >=1 , <2 \\
    --hash={HASH} \\
    --hash={HASH.replace("a", "b")}
tool @ git+ssh://git@host/tool.git@v1
file @ https://host/file-1.0-py3-none-any.whl#sha256={64 * "c"}
git+https://host/bare@main#egg=bare
"""
    assert file_asks(flow, text) == {
        "python": "3.12",
        "packages": {},
        "requirements": [
            "bare @ git+https://host/bare@main",
            'click[x] ; python_version < "4"',
            f"file @ https://host/file-1.0-py3-none-any.whl#sha256={64 * 'c'}",
            "six<2,>=1",
            "tool @ git+ssh://git@host/tool.git@v1",
        ],
        "constraints": ["numpy<2"],
        "extra_indexes": ["acme=https://two/index"],
        "index": "https://one/index",
        "hashes": {"six": [HASH, HASH.replace("a", "b")]},
    }


def test_same_content_is_the_same_requirement(flow: Path) -> None:
    """Neither a file's name nor its order or comments are part of what it asks for."""
    assert file_asks(flow, "six\nattrs\n") == file_asks(flow, "# x\nattrs\n\nsix # y\n", "other.in")


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("https://ada:s3cret@host/six-1-py3-none-any.whl", "has credentials in the URL https://***@"),
        ("six @ git+https://t0ken@host/six", "UV_INDEX_ACME_PASSWORD"),
        ("six @ https://${TOKEN}@host/six-1.0-py3-none-any.whl", "credentials"),
        ("--index-url https://ada:s3cret@host/index", "credentials"),
        ("six @ https://host/six-1.0-py3-none-any.whl", "may change: add its hash"),
        ("six @ hg+https://host/six", "repositories other than git's"),
        ("https://host/archive/main.zip", "write it as 'name @ https://host/archive/main.zip'"),
        ("--find-links x", "the option --find-links is refused"),
        ("--pre", "the option --pre is refused"),
        ("six --config-settings=x", "neither a requirement nor an option"),
        ("six ==", "is no requirement"),
        ("-r /etc/hostname", "outside of the project"),
        ("-r ../../../x.txt", "outside of the project"),
        ("-r gone.txt", "cannot be read"),
        ("-r requirements.txt", "includes itself"),
        ("-c limits.txt", "refused as a constraint"),
        ("./gone", "is not there"),
        ("-e .", "is no project"),
        ("./flow.py", "neither a project's folder nor a wheel"),
    ],
)
def test_what_cannot_be_locked_is_refused(flow: Path, text: str, culprit: str) -> None:
    """A line that is refused is named with file and number, without its credentials."""
    (flow.parent / "limits.txt").write_text("six @ git+https://host/six\n")
    with pytest.raises(ValueError, match=r"requirements\.txt, line 2") as caught:
        file_asks(flow, f"attrs\n{text}\n")
    assert culprit in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


PROJECT = """
[project]
name = "My_Project"
requires-python = ">=3.12"
dependencies = ["six", "tool>=1", "priv; sys_platform == 'linux'"]
[project.optional-dependencies]
all = ["my-project[viz]"]
viz = ["click"]
[dependency-groups]
test = ["pluggy", {include-group = "base_group"}]
base-group = ["attrs>=23"]
[tool.uv]
constraint-dependencies = ["numpy<2"]
index = [{name = "acme", url = "https://acme/index", explicit = true}, {url = "https://more/index"}]
[tool.uv.sources]
tool = {git = "https://host/tool", tag = "v1", subdirectory = "py"}
priv = {index = "acme"}
"""


def test_pyproject(flow: Path) -> None:
    """A project's dependencies, extras, groups and sources are taken over, and its own name stands for its extras."""
    (flow.parent / "pyproject.toml").write_text(PROJECT)
    found = asked(flow, Pypi(file="pyproject.toml", python="3.12", extras=["all"], groups=["test"]))
    assert found == {
        "python": "3.12",
        "packages": {},
        "requirements": [
            "attrs>=23",
            "click",
            "pluggy",
            'priv ; sys_platform == "linux"',
            "six",
            "tool @ git+https://host/tool@v1#subdirectory=py",
        ],
        "constraints": ["numpy<2"],
        "extra_indexes": ["acme=https://acme/index", "https://more/index"],
    }


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"python": "3.11"}, "requires Python >=3.12, and 3.11 is asked for"),
        ({"python": "3.12", "extras": ["gpu"]}, "no extra 'gpu'; it has all, viz"),
        ({"python": "3.12", "groups": ["gpu"]}, "no dependency group 'gpu'; it has base-group, test"),
    ],
)
def test_what_a_project_does_not_have_is_refused(flow: Path, options: dict[str, Any], culprit: str) -> None:
    """Another Python, an unknown extra and an unknown group are refused with what there is."""
    (flow.parent / "pyproject.toml").write_text(PROJECT)
    with pytest.raises(ValueError, match=r"pyproject|the file") as caught:
        asked(flow, Pypi(file="pyproject.toml", **options))
    assert culprit in str(caught.value)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("[project]\ndynamic = ['dependencies']\n", "computes its dependencies"),
        ("[project]\ndependencies = ['a']\n[tool.uv.sources]\na = {workspace = true}\n", "use @uv"),
        ("[tool.uv]\noverride-dependencies = ['a']\n", "override-dependencies"),
        ("[dependency-groups\n", "is no TOML"),
        ("[dependency-groups]\na = [{include-group = 'a'}]\n", "includes itself"),
    ],
)
def test_project_that_cannot_be_locked_is_refused(flow: Path, text: str, culprit: str) -> None:
    """What this decorator does not know of a project is refused rather than left out."""
    (flow.parent / "pyproject.toml").write_text(text)
    with pytest.raises(ValueError, match=r"pyproject\.toml") as caught:
        asked(flow, Pypi(file="pyproject.toml", groups=["a"] if "groups" in text else []))
    assert culprit in str(caught.value)


def test_script(flow: Path) -> None:
    """The block of metadata in a script, such as the flow itself, is taken over."""
    block = '# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n#   "six<2",\n# ]\n# ///\n'
    flow.write_text(f"#!/usr/bin/env python\n{block}import six\n")
    assert asked(flow, Pypi(file="flow.py", python="3.12"))["requirements"] == ["six<2"]
    flow.write_text("import six\n")
    with pytest.raises(ValueError, match="has no blocks that begin with '# /// script'"):
        asked(flow, Pypi(file="flow.py"))


PYLOCK = f"""
lock-version = "1.0"
created-by = "somebody"
[[packages]]
name = "Six"
version = "1.17.0"
marker = "sys_platform == 'linux'"
index = "https://acme/index"
wheels = [{{url = "https://acme/six-1.17.0-py3-none-any.whl", hashes = {{sha256 = "{64 * "a"}"}}}}]
"""


def test_pylock(flow: Path) -> None:
    """A lock by PEP 751 is taken package for package."""
    entry = {"name": "six", "version": "1.17.0", "marker": "sys_platform == 'linux'", "hashes": [HASH]}
    assert file_asks(flow, PYLOCK, "pylock.toml") == {
        "python": "3.12",
        "packages": {},
        "pylock": [entry],
    }


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("lock-version = '2.0'\n", "known is 1.0"),
        ("lock-version = '1.0'\nextras = ['a']\n", "a choice of extras"),
        ("lock-version = '1.0'\npackages = [1]\n", "no valid lock"),
        (PYLOCK.replace("https://acme/six", "https://ada:s3cret@acme/six"), "credentials"),
    ],
)
def test_strange_pylock_is_refused(flow: Path, text: str, culprit: str) -> None:
    """A lock of an unknown kind, or with credentials, is refused."""
    with pytest.raises(ValueError, match=r"pylock\.x\.toml") as caught:
        file_asks(flow, text, "pylock.x.toml")
    assert culprit in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_local_source_is_told_by_its_content(flow: Path, make_project: Callable[..., Path]) -> None:
    """A change to a local source is another requirement; what was made from the source is no change."""
    folder = make_project(flow.parent / "lib", "lib")
    first = file_asks(flow, "-e ./lib ; sys_platform=='linux'\n")
    ((path, source),) = first["sources"].items()
    assert (path, source["marker"]) == (str(folder), 'sys_platform == "linux"')
    for made in ("__pycache__/x.pyc", ".venv/x.py", "build/x.py", "lib.egg-info/x", "env/pyvenv.cfg", "x.pyc"):
        (folder / made).parent.mkdir(exist_ok=True)
        (folder / made).write_text("")
    assert file_asks(flow, "-e ./lib ; sys_platform=='linux'\n") == first
    (folder / "lib.py").write_text("version = 2\n")
    assert file_asks(flow, "-e ./lib ; sys_platform=='linux'\n") != first


@pytest.mark.parametrize(
    ("name", "culprit"),
    [("gone.txt", "cannot be read"), ("setup.cfg", "it must be a requirements file"), ("../../x.txt", "outside")],
)
def test_strange_file_is_refused(flow: Path, name: str, culprit: str) -> None:
    """A file that is not there, not known or not the project's is refused."""
    with pytest.raises(ValueError, match=culprit):
        asked(flow, Pypi(file=name))


def test_flow_without_a_file_is_told(flow: Path) -> None:
    """A flow that was written in a notebook has no file beside which another could lie."""
    with pytest.raises(ValueError, match="looked for beside the flow's file, and the flow has none"):
        plan([Pypi(file="requirements.txt")], "<ipython-input-1>")
    with pytest.raises(ValueError, match="@uv needs a project"):
        asked(flow, Uv())


@pytest.mark.parametrize(
    "fields",
    [
        {"file": "/etc/hostname"},
        {"file": ""},
        {"extras": "viz"},
        {"groups": ["a b"]},
        {"index": "https://ada:s3cret@host/index"},
        {"index": "host/simple"},
        {"index": "ftp://host/simple"},
        {"extra_indexes": "https://host/index"},
        {"extra_indexes": ["acme=https://ada@host/index"]},
    ],
)
def test_bad_fields_are_refused_where_they_are_written(fields: dict[str, Any]) -> None:
    """A bad argument is refused when the flow is imported, and no password is shown."""
    with pytest.raises(TypeError, match=r"@pypi: .* is refused|@pypi: an index has credentials") as caught:
        pypi(**fields)
    assert "s3cret" not in str(caught.value)


# -------------------------------------------------------------------------------------------- what is united


@pytest.mark.parametrize(
    ("options", "packages"),
    [
        ([PypiBase(packages={"a": "1", "b": "1"})], {"a": "==1", "b": "==1"}),
        ([Pypi(packages={"b": "2"}), PypiBase(packages={"a": "1", "b": "1"})], {"a": "==1", "b": "==2"}),
        ([PypiBase(packages={"b": "1"}), Pypi(packages={"b[x]": ""})], {"b[x]": ""}),
        ([Pypi(packages={"a": "1"}), PypiBase(packages={"b": "1"}, disabled=True)], {"a": "==1"}),
    ],
)
def test_step_and_flow_are_united(flow: Path, options: Sequence[Option], packages: dict[str, str]) -> None:
    """A step's packages are added to its flow's, and the step's version wins."""
    assert asked(flow, *options)["packages"] == packages


def test_step_s_fields_win(flow: Path) -> None:
    """Of every other field the step's holds if it is given."""
    base = PypiBase(python="3.12", index="https://one/index", extra_indexes=["https://two/index"])
    found = asked(flow, base, Pypi(python="3.13"))
    assert (found["python"], found["index"]) == ("3.13", "https://one/index")
    assert asked(flow, base, Pypi(index="https://three/index"))["index"] == "https://three/index"


def test_disabled_step_has_no_environment(flow: Path) -> None:
    """``@pypi(disabled=True)`` and ``@uv(disabled=True)`` keep a step where it is."""
    assert plan([Pypi(disabled=True), PypiBase(packages={"a": ""})], str(flow)) is None
    assert plan([Uv(disabled=True)], str(flow)) is None
    assert plan([PypiBase(disabled=True)], str(flow)) is None


def test_two_whole_environments_contradict(flow: Path) -> None:
    """A project and a file are not united."""
    with pytest.raises(ValueError, match="either @uv or"):
        plan([Uv(), Pypi(file="requirements.txt")], str(flow))


def test_uv_without_a_lock_takes_the_project(flow: Path) -> None:
    """Without a ``uv.lock``, what ``pyproject.toml`` says is resolved."""
    (flow.parents[1] / "pyproject.toml").write_text(PROJECT)
    found = asked(flow, Uv(python="3.12", extras=["viz"]), Pypi(packages={"more": ""}))
    assert "click" in found["requirements"]
    assert found["packages"] == {"more": ""}
    assert "project" not in found


@given(
    st.lists(st.sampled_from(["six", "attrs>=1", "a @ git+https://host/a"]), max_size=3),
    st.dictionaries(st.sampled_from(["/a", "/b/c d"]), st.sampled_from([Source("d"), Source("d", ("x",), "m")])),
    st.booleans(),
)
def test_requirement_reads_back(lines: list[str], sources: dict[str, Source], is_default: bool) -> None:
    """What is written as data is read as the same requirement."""
    one = Requirement("3.12", is_default=is_default, requirements=tuple(lines), sources=sources)
    assert Requirement.from_data(one.to_data()) == one
    assert Requirement.from_data(json.loads(wire.dumps(EnvironmentSpec("pypi", one.to_data())))["requirement"]) == one
