"""Every refusal in the tables of ``docs/refusals.md`` is as told: the message, the hint, the exit status, no loss."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

import mlp_core
import mlp_hookspecs
from mlp_core.session import Session

PAGE: Final = Path(__file__).parents[2] / "docs/refusals.md"
HEAD: Final = "what is wrong"
MLP: Final = str(Path(sys.executable).with_name("mlp"))
SOURCES: Final = tuple(Path(str(package.__file__)).parents[1] for package in (mlp_core, mlp_hookspecs))
LONG: Final = "a" * 10_000
WORKS_AGAIN: Final = "works again"

FLOW: Final = """\
{imports}from mlp_core import FlowSpec, Parameter, step


class Flow(FlowSpec):
    {declarations}
    @step
    def start(self):
        {start}

    @step
    def middle(self):
        {middle}

    @step
    def end(self):
        pass
"""

Provoke = Callable[[Path], Sequence[str]]


@attrs.frozen
class Refusal:
    """A row of the tables."""

    what: str
    message: str
    hint: str
    status: int


@functools.cache
def rows() -> tuple[Refusal, ...]:
    """Return the rows of all tables of refusals."""
    found: list[Refusal] = []
    is_table = False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0] == HEAD or not line.startswith("|"):
            is_table = cells[0] == HEAD
        elif is_table and not line.startswith("|-"):
            what, text, status = cells
            message, _, hint = text.partition(", hint: ")
            found.append(Refusal(what, message, hint.strip("`"), int(status)))
    return tuple(found)


def flow(start: str = "self.next(self.middle)", middle: str = "self.x = 1", **parts: str) -> str:
    """Return a flow's source; the lines of a step's body stand one below the other."""
    middle = middle if "self.next" in middle else f"{middle}\nself.next(self.end)"
    bodies = {"start": start, "middle": middle}
    texts = {name: body.replace("\n", "\n        ") for name, body in bodies.items()}
    return FLOW.format(**{"imports": "", "declarations": "", **texts, **parts})


PARAMETERS: Final = flow(
    imports="import enum\n",
    declarations=(
        'alpha = Parameter("alpha", type=float, required=True)\n'
        '    mode = Parameter("mode", type=enum.Enum("Mode", "fast slow"), default="fast")\n'
    ),
)
STEPS: Final = """\
from mlp_core import FlowSpec, step

class Flow(FlowSpec):
    @step
    def start(self):
        {start}

    @step
    def {name}(self):
        {train}
{more}
    @step
    def end(self):
        pass
"""
BRANCH: Final = """
    @step
    def b(self):
        self.next(self.end)
"""
FOREACH: Final = """\
from mlp_core import FlowSpec, step


class Flow(FlowSpec):
    @step
    def start(self):
        self.items = {items}
        self.next(self.middle, foreach="items")

    @step
    def middle(self):
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
SWITCH: Final = """\
from mlp_core import FlowSpec, step


class Flow(FlowSpec):
    @step
    def start(self):
        self.mode = "{mode}"
        self.next({{"a": self.a, "b": self.b}}, condition="mode")

    @step
    def a(self):
        self.next(self.end)

    @step
    def b(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def steps(start: str, train: str = "self.next(self.end)", *, name: str = "train", more: str = "") -> str:
    """Return a flow with a step of some name between the first and the last, and more steps after it."""
    return STEPS.format(start=start, train=train, name=name, more=more)


def given(source: str, *options: str, command: str = "run") -> Provoke:
    """Run a flow with some options."""

    def provoke(folder: Path) -> Sequence[str]:
        (folder / "flow.py").write_text(source)
        return [MLP, command, "flow.py", *(["--quiet"] if command in ("run", "resume") else []), *options]

    return provoke


def typed(*words: str) -> Provoke:
    """Carry out a command beside the flow that has run."""
    return lambda _folder: [MLP, *words]


def shell(script: str) -> Provoke:
    """Carry out a shell script in which ``mlp`` is the command."""
    return lambda _folder: ["bash", "-c", script]


def configured(text: str, *words: str) -> Provoke:
    """Run the flow of a project with settings in its file."""

    def provoke(folder: Path) -> Sequence[str]:
        (folder / "mlp.toml").write_text(text)
        return [MLP, "run", "flow.py", *words]

    return provoke


def without_plugins(*words: str, source: str = "") -> Provoke:
    """Carry out a command where no plugin is installed: all but them is linked into a folder of its own."""

    def provoke(folder: Path) -> Sequence[str]:
        (folder / "flow.py").write_text(source or flow())
        site = folder / "site"
        site.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith("mlp_plugin_") and entry.suffix != ".pth":
                (site / entry.name).symlink_to(entry)
        path = os.pathsep.join(map(str, (site, *SOURCES)))
        return ["env", f"PYTHONPATH={path}", sys.executable, "-S", "-m", "mlp_core.cli", *words]

    return provoke


@functools.cache
def namespace_words() -> tuple[str, ...]:
    """Return the command whose mounts nobody else sees; skip the test where that is not allowed."""
    words = ("unshare", "-m" if os.geteuid() == 0 else "-rm")
    try:
        tried = subprocess.run([*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True)
    except FileNotFoundError:
        tried = None
    return words if tried is not None and tried.returncode == 0 else ()


def mounting(script: str, **files: str) -> Provoke:
    """Carry out a shell script that may mount."""

    def provoke(folder: Path) -> Sequence[str]:
        if not namespace_words():
            pytest.skip("mounting is not allowed here")
        for name, content in files.items():
            (folder / f"{name}.py").write_text(content)
        return [*namespace_words(), "bash", "-euc", script]

    return provoke


def filling(source: str, room: int, *, then: str = "resume") -> Provoke:
    """Run a flow on a disk with so many KiB left, after another run; then make room and go on."""
    script = f"""
    mkdir disk
    mount -t tmpfs -o size=8m tmpfs disk
    mlp run flow.py --store disk/store --quiet --run-id-file earlier
    left=$(df -k --output=avail disk | tail -1)
    head -c $(((left - {room}) * 1024)) /dev/zero >disk/filler
    status=0
    mlp run full.py --store disk/store --quiet || status=$?
    echo "kept: $(mlp artifacts Flow/$(cat earlier)/middle/0/x --store disk/store)"
    rm disk/filler
    mlp {then} full.py --store disk/store --quiet && echo "{WORKS_AGAIN}"
    exit $status
    """
    return mounting(script, full=source)


def limited(folder: Path) -> Sequence[str]:
    """Run a flow that stores more than a file may have."""
    given(LARGE)(folder)
    return ["bash", "-c", "ulimit -f 400; mlp run flow.py --quiet"]


def formatted(content: str) -> Provoke:
    """Run beside a store whose version is something else."""

    def provoke(folder: Path) -> Sequence[str]:
        (folder / ".mlp/format.json").write_text(content)
        return [MLP, "run", "flow.py"]

    return provoke


def restored(folder: Path) -> Sequence[str]:
    """Run after the store's version was put back."""
    return formatted('{"format": 2}\n')(folder)


def taken(folder: Path) -> Sequence[str]:
    """Run with a store whose place is taken by a file."""
    (folder / "taken").touch()
    return [MLP, "run", "flow.py", "--store", "taken"]


def left(folder: Path) -> Sequence[str]:
    """Run with a store whose place is free again."""
    (folder / "taken").unlink()
    return [MLP, "run", "flow.py", "--quiet", "--store", "taken"]


def damaged(folder: Path) -> Sequence[str]:
    """Show a run of whose journal a byte has changed."""
    (earlier,) = (folder / ".mlp/flows/Flow").iterdir()
    copy = earlier.with_name("20200131-094500-123456")
    shutil.copytree(earlier, copy)
    first, second, *rest = (copy / "journal").read_bytes().splitlines(keepends=True)
    (copy / "journal").write_bytes(b"".join((first, second.replace(b"start", b"stary", 1), *rest)))
    return [MLP, "show", f"Flow/{copy.name}"]


def made_folder(folder: Path) -> Sequence[str]:
    """Run with a file for the run's id in a folder that is there by now."""
    (folder / "absent").mkdir()
    return [MLP, "run", "flow.py", "--quiet", "--run-id-file", "absent/id"]


def from_python(folder: Path) -> Sequence[str]:
    """Start a run from Python with a tag that no command line could give."""
    (folder / "flow.py").write_text(flow())
    code = "import mlp_core, flow, sys\ntry:\n    mlp_core.run(flow.Flow, tags=['a\\0b'])\n"
    code += "except mlp_core.MlpError as error:\n    print(error)\n    sys.exit(error.exit_status)"
    return [sys.executable, "-c", code]


LARGE: Final = flow(imports="import os\n", middle="self.data = os.urandom(1_000_000)")
MANY: Final = flow(imports="import os\n", middle="for i in range(60):\n    setattr(self, f'a{i}', os.urandom(5000))")
WORDY: Final = flow(middle="for _ in range(8000):\n    print('x' * 99)")
LOCK: Final = flow(imports="import threading\n", start="self.lock = threading.Lock()\nself.next(self.middle)")
CONSTANT: Final = flow(imports="import threading\n", declarations="lock = threading.Lock()\n")
RIGHT: Final = given(flow())
RESUMED: Final = given(flow(), command="resume")

CASES: Final[dict[str, Provoke]] = {
    "a step that does not exist": given(steps("self.next(self.trian)")),
    "a split without a join": given(steps("self.next(self.a, self.b)", name="a", more=BRANCH)),
    "a step that does not call `self.next`": given(steps("self.x = 1")),
    "an assignment to a parameter": given(
        flow(declarations='alpha = Parameter("alpha", default=1)\n', start="self.alpha = 2\nself.next(self.middle)")
    ),
    "several mistakes at once": given(steps("self.next(self.trian)", "self.x = 1")),
    "a file without a flow": given("x = 1\n"),
    "no such file": typed("run", "absent.py"),
    "a file that cannot be imported": given("import absent\n"),
    "a decorator's argument that does not exist, in the file": given(
        flow(imports="from mlp_core import retry\n").replace("    @step", "    @retry(tims=1)\n    @step", 1)
    ),
    "a missing parameter": given(PARAMETERS),
    "a value of the wrong type": given(PARAMETERS, "--alpha", "x"),
    "a value that is not among the allowed ones": given(PARAMETERS, "--alpha", "1", "--mode", "slw"),
    "an unknown parameter": given(PARAMETERS, "--alpha", "1", "--mod", "slow"),
    "a parameter that is given twice": given(PARAMETERS, "--alpha", "1", "--param", "alpha=2"),
    "a value for a constant of the class that cannot be stored": given(CONSTANT),
    "a number that is too small": typed("run", "flow.py", "--max-workers", "0"),
    "a setting's value of the wrong type": typed("run", "flow.py", "--run-inline-bytes", "lots"),
    "a variable's value of the wrong type": shell("MLP_RUN_MAX_WORKERS=many mlp run flow.py"),
    "an unknown setting in the project's file": configured('stroe = "x"\n'),
    "a project's file that is no TOML": configured("= 3\n"),
    "a setting that a launcher refuses": configured('[local]\nisolation = "frok"\n'),
    "a pattern of files that is none": configured('[package]\nexclude = ["!"]\n'),
    "an unknown decorator": typed("run", "flow.py", "--with", "retri"),
    "a decorator of a plugin that is not installed": without_plugins("run", "flow.py", "--with", "card"),
    "an import of a decorator whose plugin is not installed": without_plugins(
        "check", "flow.py", source="from mlp_core import conda\n"
    ),
    "an import of a plugin that is not installed": without_plugins(
        "check", "flow.py", source="from mlp_plugin_uv import pypi\n"
    ),
    "a decorator's argument that does not exist": typed("run", "flow.py", "--with", "retry:tims=1"),
    "a decorator's argument of the wrong type": typed("run", "flow.py", "--with", "retry:times=x"),
    "an unknown launcher": typed("run", "flow.py", "--launcher", "slrum"),
    "a launcher of a plugin that is not installed": without_plugins("run", "flow.py", "--launcher", "ray"),
    "a deploy target of a plugin that is not installed": without_plugins("deploy", "flow.py", "--target", "airflow"),
    "a store of an unknown kind": typed("run", "flow.py", "--store", "tape://reel"),
    "an unknown command": typed("rnu", "flow.py"),
    "a value that cannot be stored": given(LOCK),
    "a name that no artifact can have": given(flow(start="setattr(self, '../x', 1)\nself.next(self.middle)")),
    "a foreach over what has no items": given(FOREACH.format(items=3)),
    "a foreach over too many items": given(FOREACH.format(items="range(1000)"), "--max-num-splits", "10"),
    "a switch without a case for the value": given(SWITCH.format(mode="other")),
    "a store whose place is taken by a file": taken,
    "a store that may only be read": mounting(
        "mount --bind .mlp .mlp; mount -o remount,ro,bind .mlp; mlp list Flow; mlp run flow.py"
    ),
    "a store where nothing can be made": typed("run", "flow.py", "--store", "/proc/nowhere"),
    "a store with credentials in its URL": typed("run", "flow.py", "--store", "s3://name:password@bucket"),
    "a store whose library is not installed": typed("run", "flow.py", "--store", "oci://bucket"),
    "a store in memory, and tasks in processes of their own": typed("run", "flow.py", "--store", "memory://here"),
    "a secret among a store's options": typed("run", "flow.py", "--storage-options", '{"secret": "x"}'),
    "an unknown way with pickles": typed("list", "--storage-pickle", "safe"),
    "a value that only a pickle holds, where none is to be": given(
        flow(middle="self.x = {1}"), "--storage-pickle=refuse"
    ),
    "a run that is to be signed, and is not": typed("resume", "flow.py", "--storage-signing-key", "env:PATH"),
    "a key for signatures that is not there": typed("list", "--storage-signing-key", "env:ABSENT"),
    "a key for signatures in the place of its name": typed("list", "--storage-signing-key", "0123456789abcdef"),
    "an unknown durability": typed("run", "flow.py", "--storage-durability", "quick"),
    "a store on another host": typed("list", "--store", "file://host/path"),
    "a store of a newer format": formatted('{"format": 99}'),
    "a store whose format is not told": formatted("{}"),
    "a disk that is full when the run begins": filling(flow(), 0, then="run"),
    "a disk that gets full by an artifact": filling(LARGE, 300),
    "a disk that gets full by the journal": filling(MANY, 200),
    "a disk that gets full by what a step prints": filling(WORDY, 200),
    "a limit on the size of files": limited,
    "a journal that is damaged": damaged,
    "no store where one is to be read": typed("list", "--store", "absent"),
    "a run that is not there": typed("show", "Flow/20260131-094500-123456"),
    "a flow that is not there": typed("list", "Flwo"),
    "a run to resume that is not there": given(flow().replace("class Flow", "class Other"), command="resume"),
    "a file for the run's id that cannot be written": typed("run", "flow.py", "--run-id-file", "absent/id"),
    "a file for the run's id that holds something else": typed("run", "flow.py", "--run-id-file", "flow.py"),
    "a full disk behind standard output": shell("mlp list >/dev/full"),
    "a working folder that is gone": shell("mkdir gone && cd gone && rmdir ../gone && mlp list"),
    "`..` in a path to a run": typed("show", "Flow/../x"),
    "a slash too many": typed("show", "Flow/20260131-094500-123456/start/0/x/y"),
    "a path as the name of a deployment": typed("deploy", "flow.py", "--name", "../x"),
    "a path as the artifact of `@catch`": typed("run", "flow.py", "--with", "catch:var=../x"),
    "a NUL character": from_python,
    "a NUL character in the project's file": configured('username = "a\\u0000b"\n'),
    "a line break": typed("run", "flow.py", "--tag", "a\nb"),
    "a name of spaces": typed("run", "flow.py", "--namespace", "  "),
    "ten thousand characters": typed("run", "flow.py", "--tag", LONG),
    "ten thousand characters as a path": typed("run", "flow.py", "--store", LONG),
    "a character that turns the text around": typed("artifacts", "Flow/20260131-094500-123456/start/0/\u202ex"),
    "a character without width": typed("tag", "add", "Flow", "a\u200bb"),
    "digits of another script": typed("show", "Flow/\uff12\uff10\uff12\uff160131-094500-123456"),
    "bytes that are no UTF-8": typed("run", "flow.py", "--store", "\udcff"),
    "a step's name that is not ASCII": given(steps("self.next(self.\u00e9tape)", name="\u00e9tape")),
    "a step to resume from that does not exist": given(flow(), "../end", command="resume"),
}

MENDED: Final[dict[str, Provoke]] = {
    "a step that does not exist": RIGHT,
    "a missing parameter": given(PARAMETERS, "--alpha", "1"),
    "an unknown setting in the project's file": configured("", "--quiet"),
    "a project's file that is no TOML": configured("", "--quiet"),
    "a value that cannot be stored": RESUMED,
    "a name that no artifact can have": RESUMED,
    "a foreach over what has no items": given(FOREACH.format(items="[1, 2]"), command="resume"),
    "a foreach over too many items": given(FOREACH.format(items="[1, 2]"), "--max-num-splits", "10", command="resume"),
    "a switch without a case for the value": given(SWITCH.format(mode="b"), command="resume"),
    "a store whose place is taken by a file": left,
    "a store that may only be read": RIGHT,
    "a store of a newer format": restored,
    "a store whose format is not told": restored,
    "a limit on the size of files": given(LARGE, command="resume"),
    "a file for the run's id that cannot be written": made_folder,
    "a full disk behind standard output": typed("list"),
}
"""What works once the cause is gone."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a flow has run."""
    folder = tmp_path_factory.mktemp("refusals") / "project"
    folder.mkdir()
    (folder / "mlp.toml").touch()
    (folder / "flow.py").write_text(flow())
    carry_out([MLP, "run", "flow.py", "--quiet"], folder, check=True)
    return folder


def carry_out(command: Sequence[str], folder: Path, *, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in a project, as a user without variables of the platform's would."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLP_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment["XDG_CACHE_HOME"] = str(folder / ".cache")
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=check,
    )


def runs(folder: Path) -> set[str]:
    """Return the runs of all flows of a project."""
    return {f"{path.parent.name}/{path.name}" for path in folder.glob(".mlp/flows/*/*")}


def value_of_earlier_run(folder: Path, pathspec: str) -> Any:
    """Read what the run had stored that was there before."""
    session = Session.open(start=folder, flags={"plugins.safe": True})
    store = session.open_store(create=False)
    state = store.run(*pathspec.split("/"))
    assert state.status == "succeeded"
    (key,) = [key for key in state.tasks if key.step == "middle"]
    return session.values(store).get(state.artifacts(key)["x"])


def test_every_row_has_a_case() -> None:
    """The page promises nothing that is not tried here, and nothing is tried here that it does not tell."""
    told = [row.what for row in rows()]
    assert sorted(told) == sorted(CASES)
    assert set(MENDED) <= set(CASES)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.what)
def test_refusal_is_as_told(row: Refusal, template: Path, tmp_path: Path) -> None:
    """One message, the hint and the exit status that the page tells; no traceback of ours; nothing lost."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    (earlier,) = runs(folder)
    done = carry_out(CASES[row.what](folder), folder)
    printed = done.stdout + done.stderr
    assert done.returncode == row.status, printed
    for message in re.findall("`(.+?)`", row.message):
        assert re.search(re.escape(message).replace(re.escape("..."), ".*"), printed), printed
    if row.hint:
        hint = re.escape(row.hint).replace(re.escape("..."), ".*")
        assert re.search(f"hint: {hint}$", printed, re.MULTILINE), printed
    assert_readable(done.stderr)
    if row.status == 2:
        assert runs(folder) - {"Flow/20200131-094500-123456"} == {earlier}, "a run was begun"
    if row.what.startswith("a disk that "):
        assert "kept: 1" in done.stdout
        assert WORKS_AGAIN in done.stdout
    if row.what in MENDED:
        again = carry_out(MENDED[row.what](folder), folder)
        assert again.returncode == 0, again.stderr
    assert value_of_earlier_run(folder, earlier) == 1


def assert_readable(text: str) -> None:
    """Check that errors are one, short, safe to print, and without frames of ours."""
    assert len(re.findall("^error: ", text, re.MULTILINE)) <= 1, text
    assert "internal error" not in text
    assert not any(f'File "{source}/mlp_' in text for source in SOURCES), text
    for line in text.splitlines():
        assert line.isprintable()
        assert len(line) < 1000
