"""`mlp env` and `Environment`: environments resolved, recreated, compared, named and bundled outside of a run."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core import Environment, MlpError
from mlp_core.cli import main
from mlp_plugin_uv.tool import run_uv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conftest import Project

pytestmark = pytest.mark.timeout(300)

CLI = ("-m", "mlp_core.cli")

FLOW = """
import sys
from mlp_plugin_uv import pypi
import lib.helper

class Flow(FlowSpec):
    @step
    def start(self):
        self.next(self.work)

    @environment(vars={"GREETING": "it's $HOME"})
    @pypi(packages={"six": "1.16.0"})
    @step
    def work(self):
        import six
        self.six = six.__version__
        self.next(self.end)

    @step
    def end(self):
        pass
"""

SHOWN = """
import os, sys, json, six, flow, lib.helper, mlp_core
names = ("GREETING", "MLP_STORE", "PYTHONPYCACHEPREFIX")
print(json.dumps({"six": six.__version__, "flow": flow.__file__, "helper": lib.helper.WHAT, "prefix": sys.prefix,
                  "variables": {name: os.environ[name] for name in names}, "arguments": sys.argv[1:]}))
"""


class Commands:
    """Commands of ``mlp`` in a project, with the plugin."""

    def __init__(self, project: Project, variables: dict[str, str]) -> None:
        self.project = project
        self.variables = variables

    def done(self, *words: str, under: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Carry out a command of Python."""
        return self.project.command(*words, timeout=250, **{**self.variables, **(under or {})})

    def carried_out(self, *words: str, under: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Carry out a command of ``mlp``: a run in a process of its own, what takes no time in this one."""
        if words[0] == "run":
            return self.done(*CLI, *words, under=under)
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in {**self.variables, **(under or {})}.items():
                patch.setenv(name, value)
            status = main(list(words))
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

    def refused(self, *words: str) -> str:
        """Return what a command that is refused prints on standard error."""
        done = self.carried_out(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert "\x1b" not in done.stderr
        return done.stderr

    def say(self, *words: str, status: int = 0, under: Mapping[str, str] | None = None) -> str:
        """Return what a command prints: on standard error where it is refused."""
        done = self.carried_out(*words, under=under)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback (most recent call last)" not in done.stderr
        return done.stderr if status > 1 else done.stdout + done.stderr if status else done.stdout

    def data(self, *words: str, status: int = 0, under: Mapping[str, str] | None = None) -> Any:
        """Return what a command prints as JSON."""
        done = self.carried_out(*words, "--json", under=under)
        assert done.returncode == status, done.stdout + done.stderr
        return json.loads(done.stdout)

    def python(self, code: str, status: int = 0) -> str:
        """Return what a program prints that is run in the project."""
        done = self.done("-c", code)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


def variables() -> dict[str, str]:
    """Return the variables of commands with the plugin."""
    return {"MLP_NO_PLUGINS": "0", "MLP_PLUGINS_ALLOW": "uv", "UV_CACHE_DIR": run_uv(["cache", "dir"]).strip()}


@pytest.fixture(scope="module")
def mlp(project: Project) -> Commands:
    """The commands, in the module's project."""
    return Commands(project, variables())


@pytest.fixture(scope="module")
def run(project: Project, mlp: Commands) -> str:
    """A run with a step in an environment, whose project has gone on since."""
    project.write("WHAT = 'then'", "lib/helper.py")
    project.write("", "lib/__init__.py")
    project.write(FLOW, "flow.py")
    mlp.say("run", "flow.py", "--quiet")
    project.write("WHAT = 'now'", "lib/helper.py")
    return f"Flow/{project.runs()[0]}"


@pytest.fixture(scope="module")
def six(mlp: Commands, run: str) -> str:
    """The run's environment, by its digest; it is called ``tools/six:v1``."""
    return str(mlp.data("env", "alias", f"{run}/work", "tools/six:v1")["environment"])


# ------------------------------------------------------------------------------------------------- resolve


def test_a_flow_is_resolved_as_its_run_resolves_it(mlp: Commands, run: str, six: str) -> None:
    """The command finds what the run has locked; with --upgrade it asks anew."""
    assert run
    (found,) = mlp.data("env", "resolve", "flow.py")
    assert (found["steps"], found["environment"], found["new"]) == (["work"], six, False)
    assert found["packages"]["six"] == "1.16.0"
    assert mlp.data("env", "resolve", "flow.py", "--upgrade")[0]["new"]
    assert "found" in mlp.say("env", "resolve", "flow.py", "--step", "work")


def test_named_packages_have_the_requirement_that_a_step_would_have(mlp: Commands, run: str, six: str) -> None:
    """Packages that are named, or stand in a file, are what a decorator with them asks for: nothing is resolved."""
    assert run
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (named,) = mlp.data("env", "resolve", "--package", "six == 1.16.0")
    assert (named["environment"], named["new"]) == (six, False)
    (fixed,) = mlp.data("env", "resolve", "--package", "six==1.16.0", "--python", version, "--alias", "fixed")
    assert (fixed["new"], fixed["environment"], fixed["alias"]) == (True, six, "fixed")
    (mlp.project.root / "requirements.txt").write_text("six==1.16.0\n")
    (listed,) = mlp.data("env", "resolve", "-r", "requirements.txt")
    assert (listed["environment"], listed["packages"]) == (six, named["packages"])


def test_an_extension_keeps_every_pin(mlp: Commands, run: str, six: str) -> None:
    """What is added to a run's environment changes none of its versions; a contradiction names the pin."""
    assert six
    (more,) = mlp.data("env", "resolve", "--extend", f"{run}/work", "--package", "iniconfig", "--alias", "tools/more")
    assert more["new"]
    changes = mlp.data("env", "diff", "tools/six:v1", "tools/more", status=1)
    assert (list(changes["added"]), changes["removed"], changes["changed"]) == (["iniconfig"], {}, {})
    assert "six==1.16.0" in mlp.say("env", "resolve", "--extend", run, "--package", "six>1.16", status=2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "what is to be resolved?"),
        (("--package", "six=="), "six"),
        (("--package", ""), "--package '' is refused"),
        (("--package", "six", "--package", "six>1"), "given twice"),
        (("--package", "six", "--channel", "forge"), "an environment of pypi has no channels"),
        (("--package", "six==99"), "six==99"),
        (("--package", "six", "--backend", "moon"), "moon"),
        (("--package", "six", "--platform", "../x"), "platform '../x' is refused"),
        (("-r", "none.txt"), "there is no file 'none.txt'"),
        (("-r", "a.txt", "-r", "b.txt"), "-r is given more than once"),
        (("--package", "six", "--index", "https://me:secret@host/index"), "index"),
        (("flow.py", "--package", "six"), "a flow says itself"),
        (("six>=1",), "mlp env resolve --package 'six>=1'"),
        (("flow.py", "--step", "wrok"), "no step 'wrok'"),
        (("flow.py", "--step", "start"), "step start asks for no environment"),
        (("--package", "six", "--alias", "Bad Name"), "environment 'Bad Name' is refused"),
        (("--package", "six", "--extend", "nobody/knows:it"), "there is no environment nobody/knows:it"),
    ],
)
def test_what_cannot_be_resolved_is_refused(mlp: Commands, run: str, words: tuple[str, ...], reason: str) -> None:
    """Status 2 and one message, without a password."""
    assert run
    told = mlp.refused("env", "resolve", *words)
    assert reason in told
    assert "secret" not in told


def test_a_file_that_is_refused_belongs_to_no_step(mlp: Commands, run: str) -> None:
    """The message speaks of the file, not of the step that stands for the command."""
    assert run
    (mlp.project.root / "refused.txt").write_text("six @ https://me:secret@example.org/six.whl\n")
    told = mlp.refused("env", "resolve", "-r", "refused.txt")
    assert "the requirement is refused: refused.txt, line 1" in told
    assert "secret" not in told


# ------------------------------------------------------------------------------------------------- create


def test_a_past_step_is_recreated_with_its_code(mlp: Commands, run: str, tmp_path: Path) -> None:
    """The script starts the step's interpreter with the run's code, not the project's, and the step's variables."""
    folder = tmp_path / "it's here"
    made = mlp.data("env", "create", f"{run}/work", "--into", str(folder))
    script = Path(made["script"])
    assert script == folder / "python"
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    command = [str(script), "-c", SHOWN, "a b", "$x"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    shown = json.loads(done.stdout)
    assert (shown["six"], shown["helper"]) == ("1.16.0", "then")
    assert shown["flow"] == made["flow_file"] == str(folder / "code" / "flow.py")
    assert shown["arguments"] == ["a b", "$x"]
    assert shown["variables"]["GREETING"] == "it's $HOME"
    assert shown["variables"]["MLP_STORE"] == str(mlp.project.root / ".mlp")
    assert Path(shown["prefix"]) == Path(made["python"]).parent.parent
    debugged = [str(script), "-m", "pdb", made["flow_file"]]
    done = subprocess.run(debugged, input="q\n", cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "flow.py(2)<module>()" in done.stdout


def test_a_run_of_a_flow_in_lower_case_is_no_name(mlp: Commands, run: str, six: str, tmp_path: Path) -> None:
    """A pathspec that could be a name means the run, with its code, unless an environment is called like it."""
    assert run
    mlp.project.write(FLOW.replace("class Flow", "class lower").replace("import lib.helper", ""), "lower.py")
    mlp.say("run", "lower.py", "--flow", "lower", "--quiet")
    place = f"lower/{mlp.project.runs('lower')[0]}"
    made = mlp.data("env", "create", place, "--into", str(tmp_path / "work"))
    assert made["environment"] == six
    assert made["flow_file"] == str(tmp_path / "work/code/lower.py")
    other = mlp.data("env", "resolve", "--package", "six==1.15.0", "--alias", place)[0]["environment"]
    made = mlp.data("env", "create", place, "--into", str(tmp_path / "named"))
    assert (made["environment"], "code" in made) == (other, False)


def test_a_folder_with_something_in_it_is_left_alone(mlp: Commands, run: str, tmp_path: Path) -> None:
    """Nothing is written into a folder that is not empty; an empty one is used."""
    (tmp_path / "mine").touch()
    assert "it is not empty" in mlp.say("env", "create", f"{run}/work", "--into", str(tmp_path), status=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "mine").unlink()
    mlp.say("env", "create", f"{run}/work", "--into", str(tmp_path))
    assert (tmp_path / "python").is_file()


def test_a_recreated_step_is_no_part_of_its_project(mlp: Commands, run: str) -> None:
    """A folder that was written below the project is in no later run's code."""
    mlp.say("env", "create", f"{run}/work", "--into", "past/work")
    assert (mlp.project.root / "past/work/code/flow.py").is_file()
    mlp.project.write("class Later(FlowSpec):\n    @step(start=True, end=True)\n    def only(self): pass", "later.py")
    mlp.say("run", "later.py", "--flow", "Later", "--quiet")
    names = mlp.python("from mlp_core import Flow; print(*Flow('Later').latest_run.code.tarball.getnames())").split()
    assert "later.py" in names
    assert [name for name in names if name.startswith("past/")] == []


def test_a_script_says_how_to_get_its_environment_back(mlp: Commands, run: str, tmp_path: Path) -> None:
    """Where the environment was removed from the host, the script names the command that makes it again."""
    made = mlp.data("env", "create", f"{run}/work", "--into", str(tmp_path / "work"))
    assert mlp.data("env", "rm", f"{run}/work", "--host")["removed"] == "host"
    done = subprocess.run([made["script"]], check=False, capture_output=True, text=True)
    assert done.returncode == 127
    assert f"mlp env create {run}/work" in done.stderr
    assert "on this host" in mlp.say("env", "rm", f"{run}/work", "--host", status=2)
    mlp.say("env", "create", f"{run}/work")
    assert subprocess.run([made["script"], "-c", "import six"], check=False).returncode == 0


KERNEL = """
import sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="flow-work", startup_timeout=120)
client.execute_interactive(sys.argv[1], timeout=60, output_hook=lambda said: print(said["content"].get("text", "")))
manager.shutdown_kernel(now=True)
"""


@pytest.mark.slow
def test_a_kernel_runs_in_a_past_steps_environment(mlp: Commands, run: str, tmp_path: Path) -> None:
    """Jupyter starts the kernel, which imports the step's packages and the run's code; every pin is kept."""
    variables = {"JUPYTER_DATA_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    variables |= {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "IPYTHONDIR": str(tmp_path / "ipython")}
    made = mlp.data("env", "create", f"{run}/work", "--kernel=flow-work", under=variables)
    assert made["kernel_folder"] == str(tmp_path / "kernels" / "flow-work")
    assert f"written to {os.path.relpath(made['kernel_folder'], mlp.project.root)}" in mlp.say(
        "env", "create", f"{run}/work", "--kernel=flow-work", under=variables
    )
    changes = mlp.data("env", "diff", f"{run}/work", made["environment"], status=1)
    assert "ipykernel" in changes["added"]
    assert (changes["removed"], changes["changed"]) == ({}, {})
    code = "import six, flow, lib.helper; print('found', six.__version__, lib.helper.WHAT)"
    # Jupyter's client is a dependency of the kernel, so that it is there.
    command = [made["python"], "-c", KERNEL, code]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=200)
    assert "found 1.16.0 then" in done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------- look, name, remove


def test_an_environment_is_shown_with_all_that_is_known(mlp: Commands, run: str, six: str) -> None:
    """By name, digest, prefix and pathspec it is the same: packages, digests, names, runs."""
    ways = ("tools/six:v1", six, six[7:15], run, f"{run}/work", f"{run}/work/0")
    shown = [mlp.data("env", "show", way) for way in ways]
    assert {each["environment"] for each in shown} == {six}
    assert shown[0]["packages"]["six"] == "1.16.0"
    assert "tools/six:v1" in shown[0]["names"]
    assert {"run": run, "steps": ["work"]} in shown[0]["runs"]
    assert shown[0]["requirement"]["asks_for"]["packages"] == {"six": "==1.16.0"}
    text = mlp.say("env", "show", six)
    assert shown[0]["requirement"]["digest"] in text
    assert run in text
    assert six in [each["environment"] for each in mlp.data("env", "list")]
    assert "tools/six:v1" in mlp.say("env", "list")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("tools/sx:v1", "did you mean tools/six?"),
        ("tools/six:v9", "its tags are"),
        ("0123456789", "there is no environment 0123456789"),
        ("Flow/20000101-000000-000000", "there is no run Flow/2000"),
        ("../x", "is refused"),
        ("x\x1b[2J", "is refused"),
        ("{run}/start", "had no environment of its own"),
        ("{run}/nothing", "has no step"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(mlp: Commands, run: str, six: str, what: str, reason: str) -> None:
    """A wrong name ends with status 2 and a hint; nothing that a terminal obeys is printed."""
    assert six
    for command in ("show", "create"):
        assert reason in mlp.refused("env", command, what.replace("{run}", run))


def test_tags_stay_or_move(mlp: Commands, run: str, six: str) -> None:
    """``stable`` moves; ``v1`` stands for one environment for good; both can be removed, the environment only then."""
    (other,) = mlp.data("env", "resolve", "--package", "six==1.17.0", "--alias", "moving:stable")
    digest = other["environment"]
    assert "does not move" in mlp.say("env", "alias", digest, "tools/six:v1", status=2)
    assert mlp.data("env", "alias", run, "moving:stable")["environment"] == six
    assert mlp.data("env", "alias", digest, "moving")["name"] == "moving:latest"
    assert "moving:latest" in mlp.say("env", "rm", digest, status=2)
    assert "is no name any more" in mlp.say("env", "rm", "moving")
    assert mlp.data("env", "rm", digest[7:17]) == {"environment": digest, "removed": "store"}
    assert digest not in [each["environment"] for each in mlp.data("env", "list")]
    assert "goes with it" in mlp.say("env", "rm", run, status=2)


def test_equal_and_different_environments_are_told_apart(mlp: Commands, run: str, six: str) -> None:
    """The exit status is 0 for one environment and 1 for two; changes are listed by package."""
    assert mlp.data("env", "diff", run, six)["equal"]
    mlp.say("env", "resolve", "--package", "six==1.15.0", "--package", "iniconfig", "--alias", "old")
    text = mlp.say("env", "diff", "old", six, status=1)
    assert text.splitlines() == [line for line in text.splitlines() if line[:2] in ("- ", "~ ")]
    assert "~ six 1.15.0 -> 1.16.0" in text
    assert "- iniconfig" in text


def test_a_host_lists_what_it_has_made(mlp: Commands, run: str, six: str) -> None:
    """Made environments are listed with their names and places, and can be removed."""
    mlp.say("env", "create", run)
    (found,) = [each for each in mlp.data("env", "list", "--host") if each["environment"] == six]
    assert Path(found["path"]).is_dir()
    assert "tools/six:v1" in found["names"]
    assert not found["in_use"]
    assert "tools/six:v1" in mlp.say("env", "list", "--host")
    mlp.say("env", "rm", six[7:17], "--host")
    assert not Path(found["path"]).exists()


# ------------------------------------------------------------------------------------------------- bundles, stores


def test_a_bundled_environment_is_made_without_a_network(mlp: Commands, run: str, six: str, tmp_path: Path) -> None:
    """Once its packages are in the store, it is made with an empty cache where there is no network."""
    (stored,) = mlp.data("env", "bundle", "flow.py")
    assert stored["environment"] == six
    assert any(name.startswith("six-1.16.0") for name in stored["files"])
    assert mlp.data("env", "bundle", run) == [stored]
    dead = "http://127.0.0.1:9"
    offline = {"XDG_CACHE_HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "uv"), "UV_INDEX_URL": f"{dead}/simple"}
    offline |= {"HTTP_PROXY": dead, "HTTPS_PROXY": dead, "ALL_PROXY": dead}
    command = [sys.executable, *CLI, "env", "create", six, "--json"]
    if sys.platform == "linux" and os.geteuid() == 0 and shutil.which("unshare"):
        command = ["unshare", "-n", *command]
    environment = {**os.environ, **mlp.variables, **offline}
    done = subprocess.run(
        command, cwd=mlp.project.root, env=environment, check=False, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    python = json.loads(done.stdout)["python"]
    assert python.startswith(str(tmp_path))
    assert subprocess.run([python, "-c", "import six"], check=False).returncode == 0


def test_a_run_that_was_copied_brings_its_environment(mlp: Commands, run: str, six: str, tmp_path: Path) -> None:
    """In a store that has the run but not its lock, the run's environment is found, and kept once it has a name."""
    mlp.say("sync", ".mlp", str(tmp_path / "store"), run)
    shutil.rmtree(tmp_path / "store" / "environments", ignore_errors=True)
    other = {"MLP_STORE": str(tmp_path / "store")}
    assert mlp.data("env", "show", run, under=other)["environment"] == six
    assert mlp.data("env", "list", under=other) == []
    mlp.say("env", "alias", run, "copied", under=other)
    assert mlp.data("env", "show", "copied", under=other)["names"] == ["copied:latest"]


def test_where_records_are_to_be_signed_an_unsigned_run_names_no_environment(mlp: Commands, run: str) -> None:
    """What would install packages of whoever wrote the run is refused."""
    told = mlp.done(*CLI, "env", "create", run, under={"MLP_STORAGE_SIGNING_KEY": "env:KEY", "KEY": "k" * 32})
    assert told.returncode == 1
    assert "not signed" in told.stderr


def test_without_a_store_nothing_is_made(new_project: Project) -> None:
    """Looking something up where there is no store is refused, and makes none."""
    mlp = Commands(new_project, variables())
    for words in (("show", "x"), ("list",), ("create", "x"), ("bundle", "x"), ("alias", "x", "y"), ("rm", "x")):
        assert "there is no store" in mlp.say("env", *words, status=2)
    assert mlp.data("env", "list", "--host") == []
    assert not (new_project.root / ".mlp").exists()


# ------------------------------------------------------------------------------------------------- from Python


def test_environments_from_python(mlp: Commands, run: str, six: str) -> None:
    """A script finds, resolves, extends, names, makes and bundles."""
    code = f"""
import subprocess
from mlp_core import Environment

found = Environment({run!r} + "/work")
assert found == Environment("tools/six:v1") == Environment({six!r}) and len({{found, Environment({six[7:17]!r})}}) == 1
assert (found.backend, found.packages["six"]) == ("pypi", "1.16.0"), found.packages
assert "tools/six:v1" in found.names and found.digest == {six!r} and found.platforms == ()
more = found.extended(packages={{"iniconfig": ""}})
assert more.alias("python/more:v1") == "python/more:v1"
assert {{**more.packages, **found.packages}} == more.packages and "python/more:v1" in more.names
subprocess.run([more.create(), "-c", "import six, iniconfig"], check=True)
assert any(name.startswith("iniconfig-") for name in more.bundle())
assert Environment.resolve(packages={{"six": "1.16.0"}}) == found
print(found, more.python == found.python)
"""
    assert mlp.python(code) == f"Environment('{run}/work') True\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("Environment('nobody')", "NotFound: there is no environment nobody:latest"),
        ("Environment('tools/six:v1').extended(packages={'six': '1.17.0'})", "six==1.16.0, which must stay"),
        ("Environment('tools/six:v1').alias('Bad')", "NameRefused"),
        ("Environment('tools/six:v1').bundle('bad platform')", "NameRefused"),
        ("Environment.resolve(packages={'six': 'x y'})", "UsageError: the requirement is refused"),
        ("Environment.resolve(channels=['x'])", "an environment of pypi has no channels"),
        ("Environment.resolve('moon')", "UnknownBackend"),
    ],
)
def test_errors_from_python_are_ours(
    mlp: Commands, six: str, code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be is told by an exception of the platform's tree."""
    assert six
    for name, value in mlp.variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MlpError) as told:
        exec(code, {"Environment": Environment})  # noqa: S102 # one of the lines above
    assert reason in f"{type(told.value).__name__}: {told.value}"


INSIDE = """
from mlp_plugin_uv import pypi

class Flow(FlowSpec):
    @pypi(packages={"six": "1.16.0"})
    @step
    def start(self):
        found = Environment("tools/six:v1")
        self.packages, self.names = found.packages, found.names
        try:
            found.extended(packages={"iniconfig": "", "attrs": ""})
        except MlpError as error:
            self.error = str(error)
        self.next(self.end)

    @step
    def end(self):
        more = Environment("tools/six:v1").extended(packages={"iniconfig": ""})
        self.extended = more.alias("inside/" + current.run_id)
"""


def test_a_step_uses_environments_of_its_runs_store(mlp: Commands, six: str) -> None:
    """A step finds what its run's store has, extends and names it; in an interpreter without uv it is told so."""
    assert six
    mlp.project.write(INSIDE, "inside.py")
    mlp.say("run", "inside.py", "--quiet")
    code = """
import json
from mlp_core import Flow
data, start = Flow("Flow").latest_run.data, Flow("Flow").latest_run["start"].task.data
print(json.dumps([start.packages, start.names, start.error, data.extended]))
"""
    packages, names, error, extended = json.loads(mlp.python(code))
    assert (packages["six"], "tools/six:v1" in names) == ("1.16.0", True)
    assert "it has no uv, which the plugin needs" in error
    assert "hint: do it where runs are started" in error
    assert mlp.data("env", "show", extended)["packages"].keys() > packages.keys()


def test_a_package_that_is_no_code_is_refused(mlp: Commands, run: str, tmp_path: Path) -> None:
    """A code package whose archive was replaced by another is told as damage, and nothing of it is written."""
    store = tmp_path / "store"
    shutil.copytree(mlp.project.root / ".mlp", store)
    for blob in (store / "blobs").rglob("sha256-*"):
        if tarfile.is_tarfile(blob):
            blob.chmod(0o600)
            with tarfile.open(blob, "w") as archive:
                archive.addfile(tarfile.TarInfo("../escaped"))
    folder = tmp_path / "out" / "work"
    done = mlp.done(*CLI, "env", "create", run, "--into", str(folder), under={"MLP_STORE": str(store)})
    assert done.returncode == 1, done.stdout
    assert not folder.exists()
    assert not folder.parent.exists()
    assert "damaged" in done.stderr or "does not match" in done.stderr
