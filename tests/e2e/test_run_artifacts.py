"""What is assigned to a flow's instance, and what later steps and other processes find of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Isolation, Project, Ran

KINDS = """
import collections, dataclasses, datetime, enum, functools
import attrs, numpy


class Color(enum.Enum):
    RED = 1


@attrs.frozen
class Point:
    x: int


@dataclasses.dataclass
class Box:
    points: list


class Boom(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code


class Trap:
    def __init__(self, where):
        self.where = where

    def __setstate__(self, state):
        raise RuntimeError("nobody asked for this")


Pair = collections.namedtuple("Pair", "left right")


def double(x):
    return 2 * x


class Flow(FlowSpec):
    rate = 0.5
    alpha = Parameter("alpha", default=[1, 2])

    @step
    def start(self):
        class Local:
            def answer(self):
                return 42

        offset = 5
        self.plain = [1, None, True, 2.5, "text", {"a": 1}, (1, 2), {3}, b"bytes", 10**400, float("inf")]
        self.of_file = [Point(1), Box([Point(2)]), Color.RED, Pair(1, [2]), Boom(7, "no"), double]
        self.local, self.function, self.partial = Local(), lambda x: x + offset, functools.partial(double, 4)
        self.array = numpy.arange(300_000, dtype="float64")
        self.list = [[], "text"]
        self.buffer = bytearray(b"x" * 50_000)
        self.trap = Trap("start")
        self.gone = self.kept = 1
        self.again = "old"
        self._private = "private"
        self.nan = float("nan")
        self.next(self.read)

    @step
    def read(self):
        self.kinds = [type(value).__name__ for value in self.of_file]
        self.equal = (
            self.of_file[0] == Point(1)
            and self.of_file[1].points == [Point(2)]
            and self.of_file[2] is Color.RED
            and self.of_file[3].right == [2]
            and self.of_file[4].code == 7
            and self.of_file[5] is double
        )
        self.called = self.local.answer(), self.function(1), self.partial()
        self.total = float(self.array.sum())
        self.is_mapped = not self.array.flags.owndata and self.array.flags.writeable
        del self.gone
        del self.again
        self.again = "new"
        self.private = self._private
        self.next(self.change)

    @step
    def change(self):
        self.array[3] = -1
        self.list[0].append("changed")
        self.buffer[:3] = b"abc"
        self.seen = hasattr(self, "gone"), self.again, hasattr(self, "_private")
        self.alpha.append("no artifact of this step")
        self.next(self.end)

    @step
    def end(self):
        self.final = self.array[:5].tolist(), self.list, bytes(self.buffer[:4]), self.alpha
        print(self.kept)
"""


@pytest.fixture(scope="module")
def kinds(project: Project, isolation: Isolation) -> Ran:
    """A run whose artifacts are of all kinds."""
    ran = project.run(KINDS, isolation=isolation)
    assert ran.status == "succeeded", ran.state.ended
    return ran


def test_values_come_back(kinds: Ran) -> None:
    """Values of every builtin type are the same to a later reader."""
    text = [1, None, True, 2.5, "text", {"a": 1}, (1, 2), {3}, b"bytes", 10**400, float("inf")]
    assert kinds.value("plain") == text
    assert kinds.value("nan") != kinds.value("nan")


def test_what_the_file_defines_comes_back(kinds: Ran) -> None:
    """Instances of the flow file's own classes are instances of the same classes in later steps."""
    assert kinds.value("kinds") == ["Point", "Box", "Color", "Pair", "Boom", "function"]
    assert kinds.value("equal") is True


def test_functions_and_local_classes_are_stored(kinds: Ran) -> None:
    """Lambdas with what they close over, local classes' instances and partial functions work in later steps."""
    assert kinds.value("called") == (42, 6, 8)


def test_arrays_are_mapped_and_can_be_written(kinds: Ran) -> None:
    """A large array is mapped from the store rather than copied, and is writable all the same."""
    assert kinds.value("is_mapped") is True
    assert kinds.value("total") == sum(range(300_000))


def test_changes_in_place_persist(kinds: Ran) -> None:
    """A list, a bytes buffer and a mapped array that a step changes in place are changed for the steps after it."""
    assert kinds.value("final") == ([0.0, 1.0, 2.0, -1.0, 4.0], [["changed"], "text"], b"abcx", [1, 2])
    assert kinds.value("array", "read")[3] == 3
    assert kinds.value("list", "read") == [[], "text"]


def test_only_what_changed_is_stored(kinds: Ran) -> None:
    """What a step read and left as it was is passed on by reference."""
    assert set(kinds.outcome("read").assigned) == {"kinds", "equal", "called", "total", "is_mapped", "again", "private"}
    assert set(kinds.outcome("change").assigned) == {"array", "list", "buffer", "seen"}
    assert kinds.artifacts("start")["array"] == kinds.artifacts("read")["array"]


def test_reading_is_lazy(kinds: Ran) -> None:
    """An artifact that cannot be loaded harms nobody who does not read it; what was read is recorded."""
    assert "trap" in kinds.artifacts()
    with pytest.raises(RuntimeError, match="nobody asked for this"):
        kinds.value("trap")
    assert kinds.outcome("end").reads == ("alpha", "array", "buffer", "kept", "list")
    assert kinds.outcome("change").reads == ("-gone", "_private", "again", "alpha", "array", "buffer", "list")


def test_deleting(kinds: Ran) -> None:
    """A deleted artifact is gone for later steps, unless it is assigned again."""
    assert kinds.value("seen") == (False, "new", True)
    assert kinds.outcome("read").removed == ("gone",)
    assert "gone" not in kinds.artifacts()


def test_parameters_and_constants_are_artifacts(kinds: Ran) -> None:
    """Parameters and class attributes are visible in every task, and a step's change to one stays its own."""
    for path in ("start", "change", "end"):
        assert kinds.value("alpha", path) == [1, 2]
        assert kinds.value("rate", path) == 0.5


READER = """
import json, sys
sys.path.insert(0, ".")
from mlp_core.client import Flow
data = Flow("Flow").latest_run.data
print(json.dumps([sorted({type(v).__module__ for v in data.of_file}), data.local.answer(), data.called]))
"""


@pytest.mark.parametrize("command", [("kinds.py", "run"), ("-m", "mlp_core.cli", "run", "kinds.py")])
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_classes_have_one_home(new_project: Project, command: tuple[str, ...], way: str) -> None:
    """However a flow is started, its classes are named by the file's module, and any process can load them."""
    project = new_project
    project.write(KINDS, "kinds.py")
    (project.root / "reader.py").write_text(READER)
    done = project.command(*command, "--quiet", "--isolation", way)
    assert (done.returncode, done.stderr) == (0, "")
    assert project.read().value("equal") is True
    read = project.command("reader.py")
    assert json.loads(read.stdout or read.stderr) == [["builtins", "kinds"], 42, [42, 6, 8]]


def test_blobs_are_shared(new_project: Project) -> None:
    """Equal content is stored once, in one run and over several."""
    code = """
    import numpy
    class Flow(FlowSpec):
        @step
        def start(self):
            self.items = [0, 1, 2]
            self.base = numpy.zeros(100_000)
            self.next(self.work, foreach="items")
        @step
        def work(self):
            self.mine = numpy.ones(50_000)
            self.base.sum()
            self.next(self.join)
        @step
        def join(self, inputs):
            self.best = inputs[1].mine
            self.merge_artifacts(inputs)
            self.next(self.end)
        @step
        def end(self):
            self.base[0]
    """
    first = new_project.run(code)
    assert first.status == "succeeded"
    blobs = {path: path.stat().st_mtime_ns for path in (new_project.root / ".mlp/blobs").glob("*/*")}
    assert len(blobs) == 3  # two arrays, and the code
    second = new_project.run(code)
    assert {path: path.stat().st_mtime_ns for path in (new_project.root / ".mlp/blobs").glob("*/*")} == blobs
    assert second.artifacts()["base"] == first.artifacts("start")["base"]
    assert np.array_equal(second.value("best"), np.ones(50_000))


REFUSALS = """
import numpy

class Stubborn:
    def __reduce__(self):
        raise ValueError("I stay here")

class Flow(FlowSpec):
    kind = Parameter("kind", default="")
    rate = 0.5
    _hidden = 1

    @step
    def start(self):
        self.fine = 1
        assert self._hidden == 1
        exec(self.kind)
        self.next(self.end)

    def method(self):
        return self.fine

    def capture(self):
        return lambda: self.fine

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("self.lock = threading.Lock()", "artifact 'lock' of type _thread.lock cannot be stored: cannot pickle"),
        ("self.lines = (x for x in 'ab')", "artifact 'lines' of type generator cannot be stored"),
        ("self.frame = sys._getframe()", "artifact 'frame' of type frame cannot be stored"),
        ("self.deep = [{'a': threading.Lock()}]", "artifact 'deep' of type list cannot be stored"),
        ("self.stubborn = Stubborn()", "artifact 'stubborn' of type REFUSALS.Stubborn cannot be stored: I stay here"),
        ("self.me = self", "artifact 'me' of type REFUSALS.Flow cannot be stored: a flow's instance"),
        ("self.bound = self.method", "artifact 'bound' of type method cannot be stored: a flow's instance"),
        ("self.late = self.capture()", "artifact 'late' of type function cannot be stored: a flow's instance"),
    ],
)
def test_what_cannot_be_stored_is_named(project: Project, kind: str, message: str) -> None:
    """A value that cannot be stored fails the task with the artifact's name and type, the reason, and a hint."""
    module = project.write(REFUSALS).stem
    ran = project.run(REFUSALS, isolation="inline", parameters={"kind": kind})
    assert ran.status == "failed"
    failure = ran.failure("start")
    assert failure.kind == "artifact"
    assert message.replace("REFUSALS", module) in failure.message
    assert "hint: keep it out of self" in ran.log("start")
    assert "Traceback" not in ran.log("start")
    assert ran.paths == ["start/0"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("self.kind = 'b'", "'kind' is a parameter or class attribute and cannot be assigned"),
        ("self.rate = 1", "'rate' is a parameter or class attribute and cannot be assigned"),
        ("self._hidden = 2", "'_hidden' is a parameter or class attribute and cannot be assigned"),
        ("del self.kind", "'kind' is a parameter or class attribute and cannot be deleted"),
        ("self.next = 1", "'next' belongs to FlowSpec and cannot be an artifact"),
        ("self.input = 1", "'input' belongs to FlowSpec and cannot be an artifact"),
        ("self._mlp = 1", "'_mlp' belongs to FlowSpec and cannot be an artifact"),
        ("del self._mlp", "'_mlp' belongs to FlowSpec and cannot be deleted"),
        ("self.end = 1", "'end' is a step of the flow and cannot be an artifact"),
        ("self.method = 1", "'method' is a method of the flow and cannot be an artifact"),
        ("self.fnie", "step 'start' has no artifact 'fnie'; did you mean 'fine'?"),
        ("del self.nothing", "step 'start' has no artifact 'nothing'"),
        ("self.merge_artifacts([])", "merge_artifacts takes the inputs of a join step"),
    ],
)
def test_refused_names(project: Project, kind: str, message: str) -> None:
    """Names that are taken, and artifacts that are not there, fail the task with a message that says so."""
    ran = project.run(REFUSALS, isolation="inline", parameters={"kind": kind})
    assert ran.status == "failed"
    failure = ran.failure("start")
    assert message in failure.message
    assert "mlp_core/" not in failure.traceback


def test_reads_of_a_step_whose_artifacts_cannot_be_stored(project: Project) -> None:
    """What a step read is recorded also where it failed when its artifacts were to be stored."""
    ran = project.run(REFUSALS, isolation="inline", parameters={"kind": "self.lock = threading.Lock()"})
    assert ran.failure("start").kind == "artifact"
    assert ran.outcome("start").reads == ("kind",)


def test_properties_are_the_class_s(project: Project) -> None:
    """A property of the flow's class keeps its setter and is no artifact, cached or not."""
    code = """
    import functools

    class Flow(FlowSpec):
        @property
        def twice(self):
            return 2 * self.once

        @twice.setter
        def twice(self, value):
            self.once = value / 2

        @property
        def fixed(self):
            return 3

        @functools.cached_property
        def kept(self):
            return threading.Lock()

        @step
        def start(self):
            self.twice = 10
            assert self.kept is self.kept
            try:
                self.fixed = 4
            except AttributeError as error:
                self.error = type(error).__name__
            self.next(self.end)

        @step
        def end(self):
            self.seen = self.once, self.twice, self.fixed
    """
    ran = project.run(code, isolation="inline")
    assert ran.status == "succeeded", ran.state.ended
    assert ran.value("seen") == (5.0, 10.0, 3)
    assert sorted(ran.artifacts()) == ["error", "once", "seen"]


def test_constants_that_cannot_be_stored(project: Project) -> None:
    """A class attribute that cannot be stored is refused before the run begins, by name."""
    from mlp_core.errors import MlpError

    code = """
    class Flow(FlowSpec):
        lock = threading.Lock()
        @step(start=True, end=True)
        def only(self):
            pass
    """
    with pytest.raises(MlpError, match=r"artifact 'lock' of type _thread\.lock cannot be stored") as caught:
        project.run(code)
    assert caught.value.exit_status == 2


def test_formats_by_name(project: Project) -> None:
    """A step may name the format of an artifact; one that cannot hold the value fails the task."""
    code = """
    class Flow(FlowSpec):
        @formats(names={"a": "pickle", "b": "VALUE"})
        @step
        def start(self):
            self.a, self.b = 1, {1: 2}
            self.next(self.end)
        @step
        def end(self):
            pass
    """
    ran = project.run(code.replace("VALUE", "pickle"), isolation="inline")
    assert [ran.artifacts()[name].format for name in "ab"] == ["pickle", "pickle"]
    refused = project.run(code.replace("VALUE", "json"), isolation="inline")
    assert "artifact 'b' of type dict cannot be stored in the format 'json'" in refused.failure("start").message


def test_large_values(project: Project) -> None:
    """Large values of many kinds come back; each lies in a blob rather than in the journal."""
    code = """
    import numpy
    class Flow(FlowSpec):
        @step
        def start(self):
            self.text = "t" * 1_000_000
            self.numbers = list(range(100_000))
            self.arrays = {"c": numpy.ones((500, 500)), "f": numpy.asfortranarray(numpy.ones((500, 300)))}
            self.strided = numpy.arange(200_000)[::2]
            self.objects = numpy.array([{"a": 1}, None], dtype=object)
            self.record = numpy.zeros(5_000, dtype=[("a", "i4"), ("b", "U5")])
            self.next(self.end)
        @step
        def end(self):
            self.sum = len(self.text), sum(self.numbers), self.arrays["f"].sum(), self.strided.sum()
            self.arrays["c"][0, 0] = 5
            self.objects[0]["a"] = 2
    """
    ran = project.run(code)
    assert ran.status == "succeeded", ran.state.ended
    assert ran.value("sum") == (1_000_000, 4999950000, 150_000.0, 9999900000)
    arrays: dict[str, Any] = ran.value("arrays")
    assert (arrays["c"][0, 0], arrays["f"].flags.f_contiguous, arrays["f"].shape) == (5, True, (500, 300))
    assert ran.value("objects")[0] == {"a": 2}
    assert set(ran.outcome("end").assigned) == {"sum", "arrays", "objects"}
    assert {name for name, ref in ran.artifacts().items() if ref.data is None} == {
        "text",
        "numbers",
        "arrays",
        "strided",
        "record",
    }
