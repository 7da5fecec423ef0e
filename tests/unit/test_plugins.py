"""Loading plugins: what is left of a process that died inside one, and what becomes of that plugin afterwards."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
import warnings
from importlib.machinery import BuiltinImporter, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlp_core import plugins
from mlp_core.breadcrumbs import IMPORT, Crumb, runtime_folder
from mlp_core.plugins import LoadingRules, blame_death, forgive_death, load_plugins
from mlp_hookspecs import Failure, PluginId, PluginWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlp_core.plugins import PluginRecord

TAPE = PluginId("tape", "mlp-plugin-tape", "1.0")

COUNTS = """
with open(__file__ + ".imports", "a") as file:
    file.write(".")
"""
"""Code of a plugin that counts how often it is imported."""


@pytest.fixture
def die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """A function that lets a process die inside some place of the plugin ``tape``, and returns its id."""
    folder = tmp_path / "runtime"
    folder.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))

    def end(place: str) -> int:
        code = (
            "import os\n"
            "from mlp_core.breadcrumbs import Crumb, Trail, runtime_folder\n"
            "from mlp_hookspecs import PluginId\n"
            "trail = Trail(runtime_folder())\n"
            f"tape = PluginId({TAPE.name!r}, {TAPE.distribution!r}, {TAPE.version!r})\n"
            f"trail.enter(Crumb(tape, {place!r}).encoded())\n"
            "print(os.getpid(), flush=True)\n"
            "os._exit(9)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        return int(done.stdout)

    return end


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that installs the plugin ``tape`` with some code."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    found = plugins._distributions
    monkeypatch.setattr(plugins, "_distributions", lambda: (pair for pair in found() if str(tmp_path) in pair[0]))

    def add(code: str) -> None:
        info = site / "mlp_plugin_tape-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "tape_of_a_test.py").write_text(code)
        (info / "entry_points.txt").write_text("[mlp]\ntape = tape_of_a_test\n")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlp-plugin-tape\nVersion: 1.0\n")
        monkeypatch.delitem(sys.modules, "tape_of_a_test", raising=False)

    return add


def marks() -> list[str]:
    """Return the names of the files with marks."""
    folder = runtime_folder()
    assert folder is not None
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(("kind", "becomes"), [("killed", "plugin"), ("exit", "plugin"), ("timeout", "timeout")])
def test_a_worker_that_died_inside_a_plugin_is_blamed_on_it(die: Callable[[str], int], kind: str, becomes: str) -> None:
    """The failure names the plugin, the place and how to leave it out; a time limit stays one; the mark stays too."""
    pid = die("mlp_load_artifact")
    failure = blame_death(Failure(kind, "it ended"), pid)  # type: ignore[arg-type] # a kind of failure
    assert failure.kind == becomes
    where = "plugin tape (mlp-plugin-tape 1.0), in its mlp_load_artifact"
    assert failure.message == f"it ended, inside {where}; MLP_PLUGINS_DENY=tape leaves it out"
    assert len(marks()) == 1


def test_other_deaths_are_blamed_on_nobody(die: Callable[[str], int]) -> None:
    """A failure of a process that left no mark stays as it is."""
    pid = die("mlp_load_artifact")
    failure = Failure("killed", "it ended")
    assert blame_death(failure, pid + 1) is failure


def test_a_worker_that_was_ended_on_purpose_leaves_no_mark(die: Callable[[str], int]) -> None:
    """Nobody is told of a death that was wanted, and other marks stay."""
    pid, other = die("mlp_load_artifact"), die("mlp_load_artifact")
    forgive_death(pid)
    (left,) = marks()
    assert left.startswith(f"{other}-")


def imports() -> int:
    """Return how often the plugin was imported, in whatever process."""
    return len(Path(f"{sys.modules['tape_of_a_test'].__file__}.imports").read_text())


def loaded(**rules: object) -> tuple[PluginRecord | None, list[str]]:
    """Load the plugins, and return what became of ``tape``, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PluginWarning)
        records = load_plugins(LoadingRules(**rules)).records  # type: ignore[arg-type] # what a test gives
    told = [str(each.message) for each in caught if each.category is PluginWarning]
    return next((record for record in records if record.name == "tape"), None), told


def test_a_command_tells_of_earlier_deaths_once(die: Callable[[str], int], install: Callable[[str], None]) -> None:
    """The next command warns of process, place and plugin, with the way to leave it out; then it is over."""
    install("")
    pid = die("mlp_load_artifact")
    record, told = loaded()
    assert record is not None
    assert record.status == "loaded"
    where = "plugin tape (mlp-plugin-tape 1.0), in its mlp_load_artifact"
    hint = 'leave it out by the setting plugins.deny = ["tape"], or by MLP_PLUGINS_DENY=tape'
    assert told == [f"an earlier command (process {pid}) ended inside {where}\n  hint: {hint}"]
    assert loaded()[1] == []


def test_a_worker_leaves_deaths_to_its_driver(die: Callable[[str], int], install: Callable[[str], None]) -> None:
    """A worker neither tells of earlier deaths nor removes their marks."""
    install("")
    die(IMPORT)
    assert loaded(worker=True)[1] == []
    assert len(marks()) == 1


def test_a_worker_that_needs_none_does_not_look_for_plugins(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In safe mode a worker has the builtin plugins only, and a command tells which others there are."""
    install("")
    assert loaded(safe=True)[0] is not None
    monkeypatch.setattr(plugins, "_installed", lambda: pytest.fail("it looks"))
    assert loaded(safe=True, worker=True)[0] is None


def test_a_suspect_that_works_by_now_is_loaded(die: Callable[[str], int], install: Callable[[str], None]) -> None:
    """A plugin in whose import a process died is tried in a process of its own, and loaded where that survives."""
    install(COUNTS)
    die(IMPORT)
    record, _ = loaded()
    assert record is not None
    assert (record.status, record.package) == ("loaded", "tape_of_a_test")
    assert imports() == 2


@pytest.mark.parametrize("place", ["mlp_load_artifact", "mlp_wrap_step"])
def test_only_deaths_at_the_start_make_a_suspect(
    die: Callable[[str], int], install: Callable[[str], None], place: str
) -> None:
    """A plugin that died in the middle of its work is loaded without being tried first."""
    install(COUNTS)
    die(place)
    loaded()
    assert imports() == 1


def test_a_suspect_that_raises_tells_why(die: Callable[[str], int], install: Callable[[str], None]) -> None:
    """A plugin that fails in an orderly way by now fails here too, with its own reason."""
    install("raise ImportError('no tape in it')")
    die(IMPORT)
    record, told = loaded()
    assert record is not None
    assert record.status == "failed"
    assert record.reason == "loading it raised ImportError: no tape in it"
    assert "plugin tape (mlp-plugin-tape 1.0) is not loaded" in told[1]


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "loading it ends the whole process with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "loading it ends the whole process with signal 9"),
        ("import time; time.sleep(60)", "loading it takes more than 1.5 s"),
    ],
)
def test_a_suspect_that_ends_the_process_is_left_out(
    die: Callable[[str], int], install: Callable[[str], None], code: str, how: str
) -> None:
    """A plugin that still ends or holds up its process costs that process only, and is not loaded."""
    install(code)
    die(IMPORT)
    record, _ = loaded(timeout=1.5 if "time" in code else 60)
    assert record is not None
    assert (record.status, record.reason) == ("failed", how)


def test_other_versions_are_no_suspects(die: Callable[[str], int], install: Callable[[str], None]) -> None:
    """A death inside one version of a plugin says nothing about another one."""
    install(COUNTS)
    die(IMPORT)
    info = Path(sys.path[0]) / "mlp_plugin_tape-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlp-plugin-tape\nVersion: 1.1\n")
    loaded()
    assert imports() == 1


def test_metadata_that_names_no_plugin_is_passed_over(tmp_path: Path, install: Callable[[str], None]) -> None:
    """Distributions without entry points of ours, and folders without metadata, are no plugins; PKG-INFO counts."""
    install("")
    site = tmp_path / "site"
    (site / "empty-1.0.dist-info").mkdir()
    other = site / "other-1.0.dist-info"
    other.mkdir()
    (other / "entry_points.txt").write_text("some = thing\n[console_scripts]\nother = other:main\n")
    info = site / "mlp_plugin_tape-1.0.dist-info"
    (info / "METADATA").rename(info / "PKG-INFO")
    (info / "PKG-INFO").write_text((info / "PKG-INFO").read_text() + "\nVersion: of the description\n")
    record, told = loaded()
    assert record is not None
    assert (record.id, record.status) == (TAPE, "loaded")
    assert told == []


def test_places_that_are_no_folders_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the path and is not there, or is a file, holds no plugins, and hinders nothing."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "absent"), *sys.path, str(tmp_path / "file")])
    assert load_plugins(LoadingRules(allow=["none"])).records[0].status == "builtin"


def test_installed_plugins_are_found_without_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all distributions are folders on the path, nobody asks importlib.metadata, however modules are found."""
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter, PathFinder])
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: pytest.fail("it is asked"))
    assert load_plugins(LoadingRules(allow=["none"])).records[0].status == "builtin"


@pytest.mark.parametrize("lacking", ["Name", "Version"])
def test_metadata_needs_a_name_and_a_version(install: Callable[[str], None], lacking: str) -> None:
    """A distribution that lacks either is told of, and not loaded."""
    install("")
    file = Path(sys.path[0]) / "mlp_plugin_tape-1.0.dist-info" / "METADATA"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(lacking)))
    record, (told,) = loaded()
    assert record is None
    assert told.endswith("its plugins are not loaded: ValueError: it lacks a name or a version")


def test_loading_takes_its_time_and_leaves_no_mark(die: Callable[[str], int], install: Callable[[str], None]) -> None:
    """What each plugin took is told in milliseconds; builtin ones have hooks; nobody is inside a plugin afterwards."""
    del die  # it makes the folder for marks
    install("import time; time.sleep(0.01)")
    began = time.perf_counter()
    found = load_plugins(LoadingRules())
    spent = 1000 * (time.perf_counter() - began)
    assert all(record.load_ms > 0 for record in found.records)
    assert 10 < sum(record.load_ms for record in found.records) < spent
    assert all(record.hooks for record in found.records if record.status == "builtin")
    unmarked = found.trail.enter(Crumb(TAPE, IMPORT).encoded())
    found.trail.leave(unmarked)
    assert not unmarked.strip(b"\0")


def test_what_a_suspect_prints_while_it_is_tried_is_not_shown(
    die: Callable[[str], int], install: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """The process in which it is tried keeps its words to itself."""
    install("print('noise')")
    die(IMPORT)
    loaded()
    out, err = capfd.readouterr()
    assert (out, err.count("noise")) == ("", 1)
