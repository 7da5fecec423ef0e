"""Parameters: every type from text and from Python values, what is refused and how, defaults, names, and texts back."""

from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlp_core.errors import ParameterError
from mlp_core.parameter_types import inferred_type, to_text, value_type
from mlp_core.parameters import (
    JSONType,
    Parameter,
    ParameterContext,
    info,
    parameters_of,
    problems,
    resolve,
)
from mlp_hookspecs import ParameterInfo


class Color(enum.Enum):
    """Named otherwise than valued."""

    RED = "r"
    BLUE = 2


class Mode(enum.StrEnum):
    """Members that are texts too."""

    FAST = "fast"
    SLOW = "slow"


@attrs.frozen
class Net:
    """An attrs class with a check, a private field and a nested class."""

    layers: list[int]
    mode: Mode = Mode.FAST
    _rate: float = attrs.field(default=0.5, validator=attrs.validators.lt(1))
    when: date | None = None
    parent: Net | None = None
    made: int = attrs.field(init=False, default=3)


@dataclasses.dataclass(frozen=True)
class Point:
    """A dataclass with a field of a type that no parameter has."""

    x: int
    y: float = 0.0
    extra: object = None


LITERAL = Literal["a", 1, None]  # noqa: PYI061 # as users may write it


def flow(**parameters: Parameter) -> type:
    """Return a class with these parameters."""
    return type("Flow", (), parameters)


def read(hint: Any, value: object, **options: Any) -> Any:
    """Return a value as a parameter of the type would have it."""
    return resolve(flow(p=Parameter("p", type=hint, **options)), {"p": value}, from_text=isinstance(value, str))["p"]


@pytest.mark.parametrize(
    ("hint", "given", "value"),
    [
        (str, "a b ", "a b "),
        (str, "", ""),
        (int, " 12 ", 12),
        (int, "-1_000", -1000),
        (float, "1e-3", 0.001),
        (float, 1, 1.0),
        (bool, "True", True),
        (bool, "off", False),
        (bool, False, False),
        (JSONType, '{"a": [1, null]}', {"a": [1, None]}),
        (JSONType, [1, {"b": 2}], [1, {"b": 2}]),
        (Color, "RED", Color.RED),
        (Color, "2", Color.BLUE),
        (Color, 2, Color.BLUE),
        (Color, Color.RED, Color.RED),
        (Mode, "SLOW", Mode.SLOW),
        (Mode, "slow", Mode.SLOW),
        (Mode, Mode.FAST, Mode.FAST),
        (LITERAL, "a", "a"),
        (LITERAL, "1", 1),
        (LITERAL, 1, 1),
        (LITERAL, "null", None),
        (date, "2026-01-31", date(2026, 1, 31)),
        (date, date(2026, 1, 31), date(2026, 1, 31)),
        (datetime, "2026-01-31T09:45:00Z", datetime(2026, 1, 31, 9, 45, tzinfo=UTC)),
        (Path, "data/x.csv", Path("data/x.csv")),
        (Path, Path("x"), Path("x")),
        (list[int], "1, 2,3", [1, 2, 3]),
        (list[int], "[1, 2]", [1, 2]),
        (list[int], "", []),
        (list[int], (1, "2"), [1, 2]),
        (list[str], "a, b", ["a", "b"]),
        (list[Color], "RED,BLUE", [Color.RED, Color.BLUE]),
        (list[list[int]], "[[1], []]", [[1], []]),
        (tuple[float, ...], "1,2", (1.0, 2.0)),
        (list, '["a", 1]', ["a", 1]),
        (dict, '{"a": 1}', {"a": 1}),
        (dict, {"a": object}, {"a": object}),
        (dict[str, float], '{"a": 1}', {"a": 1.0}),
        (dict[int, list[str]], '{"1": ["a"]}', {1: ["a"]}),
        (int | None, "3", 3),
        (int | None, "null", None),
        (str | None, "null", "null"),
        (int | None, None, None),
        (Annotated[int, "of people"], "3", 3),
        (Net, '{"layers": [1], "mode": "slow", "rate": 0.1}', Net([1], Mode.SLOW, 0.1)),
        (Net, {"layers": "1,2", "when": "2026-01-31"}, Net([1, 2], when=date(2026, 1, 31))),
        (Net, {"layers": [], "parent": {"layers": [2]}}, Net([], parent=Net([2]))),
        (Net, Net([1]), Net([1])),
        (Point, '{"x": 1, "extra": [1]}', Point(1, 0.0, [1])),
        (list[Point], '[{"x": 1}]', [Point(1)]),
        (Any, "[1]", [1]),
    ],
)
def test_value(hint: Any, given: object, value: object) -> None:
    """A text or Python value becomes a value of exactly the type."""
    found = read(hint, given)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("hint", "given", "message"),
    [
        (int, "1.5", "'1.5' is not a whole number"),
        (int, 1.5, "1.5 is not a whole number"),
        (int, True, "True is not a whole number"),
        (int, None, "None is not a whole number"),
        (int, "9" * 5000, "9999...' (5000 characters) is not a whole number"),
        (float, "a\nb\x1b[31m", r"'a\nb\x1b[31m' is not a number"),
        (bool, "maybe", "'maybe' is not true or false"),
        (bool, 1, "1 is not true or false"),
        (str, 5, "5 is not text"),
        (str, "\udcff", r"'\udcff' is not text"),
        (Path, "a\0b", r"'a\x00b' is not a path"),
        (Color, "RDE", "'RDE' is not one of RED, BLUE"),
        (Color, 7, "7 is not one of RED, BLUE"),
        (Literal["a", "b"], "c", "'c' is not one of a, b"),
        (Literal[1, 2], True, "True is not one of 1, 2"),
        (date, "31.1.2026", "'31.1.2026' is not a date such as 2026-01-31"),
        (date, datetime(2026, 1, 31, tzinfo=UTC), "is not a date"),
        (datetime, 5, "5 is not a time such as 2026-01-31T09:45:00"),
        (JSONType, "{", "'{' is not JSON"),
        (JSONType, "[" * 100_000, "is not JSON"),
        (JSONType, {1, 2}, "{1, 2} is not JSON"),
        (list[int], "1,x", "item 1: 'x' is not a whole number"),
        (list[int], "[1, 2", "'[1, 2' is not a JSON list, or items separated by ','"),
        (list[int], 5, "5 is not a JSON list"),
        (list[int], b"12", "b'12' is not a JSON list"),
        (list, "1,2", "'1,2' is not a JSON list"),
        (dict, "[1]", "'[1]' is not a JSON object"),
        (dict[str, int], {"a": "x"}, "item a: 'x' is not a whole number"),
        (dict[int, int], {"a": 1}, "key 0: 'a' is not a whole number"),
        (int | None, "x", "'x' is not a whole number"),
        (Net, "{}", "Net: the field 'layers' is missing"),
        (Net, {"layers": [], "mood": "slow"}, "Net: there is no field 'mood', did you mean 'mode'?"),
        (Net, {"layers": [1, "x"]}, "Net: field layers: item 1: 'x' is not a whole number"),
        (Net, {"layers": [], "rate": 2}, "Net: '_rate' must be < 1: 2.0"),
        (Net, "[1]", "'[1]' is not a JSON object with layers, mode, rate, when, parent"),
        (Net, 5, "5 is not a JSON object with"),
    ],
)
def test_refused(hint: Any, given: object, message: str) -> None:
    """A value of another form is refused in one line that names the parameter, the value and what is allowed."""
    with pytest.raises(ParameterError) as caught:
        read(hint, given)
    assert caught.value.message.startswith("parameter 'p': ")
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint
    assert caught.value.exit_status == 2


def test_numpy_numbers() -> None:
    """Numbers of other libraries become Python's."""
    numpy = pytest.importorskip("numpy")
    assert type(read(int, numpy.int64(3))) is int
    assert type(read(float, numpy.float32(0.5))) is float
    assert read(list[float], list(numpy.arange(2))) == [0.0, 1.0]


def test_pydantic() -> None:
    """A pydantic class validates its own values, and says on one line what it refuses."""
    pydantic = pytest.importorskip("pydantic")

    class Config(pydantic.BaseModel):
        rate: float = 0.1
        when: date | None = None

    assert read(Config, '{"rate": 1, "when": "2026-01-31"}') == Config(rate=1, when=date(2026, 1, 31))
    assert to_text(Config(when=date(2026, 1, 31))) == '{"rate": 0.1, "when": "2026-01-31"}'
    with pytest.raises(
        ParameterError, match=r"^parameter 'p': Config: rate: Input should be a valid number[^\n]*\n  h"
    ):
        read(Config, {"rate": "x"})


def test_a_bad_repr_is_survived() -> None:
    """A value that cannot even be shown is refused like any other."""

    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(ParameterError, match="<Bad, whose repr failed: RuntimeError> is not a whole number"):
        read(int, Bad())


@pytest.mark.parametrize(
    ("default", "hint"),
    [
        ("a", str),
        (1, int),
        (True, bool),
        (0.5, float),
        (Path("x"), Path),
        (Color.RED, Color),
        (date(2026, 1, 31), date),
        ([1, 2], list[int]),
        ((1.5,), tuple[float, ...]),
        ([1, "a"], list),
        ([], list),
        ({"a": 1}, dict),
        (Point(1), Point),
    ],
)
def test_type_of_a_default(default: object, hint: Any) -> None:
    """Without a type a parameter has that of its default."""
    assert inferred_type(default) == hint
    parameter = Parameter("p", default=default)
    assert resolve(flow(p=parameter), {}, from_text=True) == {"p": default}
    assert info(parameter).type == value_type(hint).name
    assert read(hint, info(parameter).default) == default


def test_separator() -> None:
    """A separator splits a text into a list, as in Metaflow, and replaces the comma between a list's items."""
    words = Parameter("words", default="a:b", separator=":")
    sizes = Parameter("sizes", type=list[int], separator=";", default=[1, 2])
    assert resolve(flow(w=words, s=sizes), {}, from_text=True) == {"w": ["a", "b"], "s": [1, 2]}
    assert resolve(flow(w=words, s=sizes), {"words": "x: y", "sizes": "3;4"}, from_text=True) == {
        "w": ["x", " y"],
        "s": [3, 4],
    }
    assert resolve(flow(w=words), {"words": ["x"]}, from_text=False) == {"w": ["x"]}
    assert info(words) == ParameterInfo("words", "str", default="a:b")


def test_defaults() -> None:
    """A default may be text; without one the value is None; a required parameter with a default is not required."""
    cls = flow(
        day=Parameter("day", type=date, default="2026-01-31"),
        grid=Parameter("grid", type=JSONType, default='{"a": 1}'),
        none=Parameter("none", type=int),
        kept=Parameter("kept", default=1, required=True),
    )
    assert resolve(cls, {}, from_text=True) == {"day": date(2026, 1, 31), "grid": {"a": 1}, "none": None, "kept": 1}
    assert [info(parameter).required for parameter in parameters_of(cls).values()] == [False] * 4


def test_default_that_is_a_function() -> None:
    """A function is called with its context when the run starts, and what it returns is checked like any value."""
    seen: list[ParameterContext] = []

    def today(context: ParameterContext) -> str:
        seen.append(context)
        context.logger("asked")
        return "2026-01-31"

    lines: list[str] = []
    cls = flow(day=Parameter("the-day", type=date, default=today), none=Parameter("none", default=lambda _: None))
    assert problems(cls) == ()
    assert info(cls.day) == ParameterInfo("the-day", "date")
    assert seen == []
    values = resolve(cls, {}, from_text=True, user_name="ann", logger=lines.append)
    assert values == {"day": date(2026, 1, 31), "none": None}
    assert seen == [ParameterContext("Flow", "ann", "the-day", lines.append)]
    assert lines == ["asked"]
    assert resolve(cls, {"the-day": "2026-02-01"}, from_text=True)["day"] == date(2026, 2, 1)
    assert len(seen) == 1


def test_function_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """What a default raises is told with the parameter's name and kept as the cause; its log goes to stderr."""

    def fail(context: ParameterContext) -> None:
        context.logger("about to fail")
        raise KeyError("x")

    with pytest.raises(ParameterError, match="parameter 'p': its default raised KeyError: 'x'") as caught:
        resolve(flow(p=Parameter("p", default=fail)), {}, from_text=True)
    assert isinstance(caught.value.__cause__, KeyError)
    assert capsys.readouterr().err == "about to fail\n"
    with pytest.raises(ParameterError, match="parameter 'p': 'x' is not a whole number"):
        resolve(flow(p=Parameter("p", type=int, default=lambda _: "x")), {}, from_text=True)


def test_a_default_is_not_shared() -> None:
    """Changing a run's value does not change the default of the next run."""
    cls = flow(p=Parameter("p", default={"a": [1]}))
    resolve(cls, {}, from_text=True)["p"]["a"].append(2)
    assert resolve(cls, {}, from_text=True) == {"p": {"a": [1]}}


def test_names() -> None:
    """Values are given by the parameter's name, in which hyphens and underscores are the same, or by its attribute."""
    cls = flow(rate=Parameter("learning-rate", default=0.1), size=Parameter("size_max", default=1))
    for name in ("learning-rate", "learning_rate", "rate"):
        assert resolve(cls, {name: "0.5"}, from_text=True) == {"rate": 0.5, "size": 1}
    with pytest.raises(ParameterError, match="parameter 'learning-rate' is given twice"):
        resolve(cls, {"learning-rate": "1", "learning_rate": "2"}, from_text=True)


def test_missing_and_unknown() -> None:
    """A missing value and an unknown name are refused; several mistakes come together."""
    cls = flow(alpha=Parameter("alpha", type=float, required=True), beta=Parameter("beta", default=1))
    with pytest.raises(ParameterError, match="parameter 'alpha' is required"):
        resolve(cls, {}, from_text=True)
    with pytest.raises(ParameterError, match=r"Flow has no parameter 'alhpa'\n  hint: did you mean 'alpha'\?"):
        resolve(cls, {"alhpa": "1", "alpha": "1"}, from_text=True)
    with pytest.raises(ParameterError, match=r"Flow has no parameter 'a\\nb'"):
        resolve(cls, {"a\nb": "1", "alpha": "1"}, from_text=True)
    with pytest.raises(ParameterError) as caught:
        resolve(cls, {"beta": "x", "gamma": 1}, from_text=True)
    assert caught.value.message.splitlines() == [
        "3 parameters are refused:",
        "  Flow has no parameter 'gamma' (known are alpha, beta)",
        "  parameter 'alpha' is required (give it: --alpha VALUE, or alpha=... in Python)",
        "  parameter 'beta': 'x' is not a whole number (the type is int)",
    ]
    with pytest.raises(ParameterError, match="5 is no text"):
        resolve(cls, {"alpha": 5}, from_text=True)
    with pytest.raises(ParameterError, match="it has none"):
        resolve(flow(), {"x": 5}, from_text=False)
    with pytest.raises(ParameterError, match="did you mean 'RED'"):
        read(Color, "REDD")


def test_inheritance() -> None:
    """Base classes' parameters come first; a class may redeclare one, or replace it by something else."""

    class Base:
        a = Parameter("a", default=1)
        b = Parameter("b", default=2)

    class Child(Base):
        c = Parameter("c", default=3)
        a = Parameter("a", default=4)
        b = None

    assert list(parameters_of(Child)) == ["a", "c"]
    assert resolve(Child, {}, from_text=True) == {"a": 4, "c": 3}


def test_descriptor() -> None:
    """The class gives the parameter; an instance its own value, or else what the class's __getattr__ has to say."""

    class Plain:
        p = Parameter("p")

    class Lazy:
        p = Parameter("p")

        def __getattr__(self, name: str) -> str:
            return f"value of {name}"

    assert isinstance(Plain.p, Parameter)
    with pytest.raises(AttributeError, match="parameter 'p' has a value only in a run"):
        _ = Plain().p
    assert Lazy().p == "value of p"
    lazy = Lazy()
    lazy.__dict__["p"] = 3
    assert lazy.p == 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": Parameter("a", type=object)}, "parameter 'a': a parameter can't be of type object"),
        ({"a": Parameter("a", type=int | str)}, "parameter 'a': a parameter can't be of type int | str"),
        ({"a": Parameter("a", type=[int])}, "parameter 'a': a parameter can't be of type [<class 'int'>]"),
        ({"a": Parameter("a", default=object())}, "parameter 'a': a parameter can't be of type object"),
        ({"a": Parameter("a", type=int, default="x")}, "the default of parameter 'a': 'x' is not a whole number"),
        ({"a": Parameter("a", type=int, separator=",")}, "parameter 'a' is of type int and has a separator"),
        ({"a": Parameter("a", separator="")}, "parameter 'a' has an empty separator"),
        (
            {"a": Parameter("max-workers")},
            "parameter 'a' has the name 'max-workers', which is an option of the command",
        ),
        ({"a": Parameter("a b")}, "parameter 'a b' is refused"),
        ({"a": Parameter("é")}, r"parameter '\xe9' is refused"),
        (
            {"a": Parameter("x" * 10_000)},
            "parameter 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...' (10000 c",
        ),
        ({"_a": Parameter("a")}, "parameter '_a' is refused"),
        ({"input": Parameter("a")}, "parameter 'input' has a name that every flow defines"),
        ({"a": Parameter("x-y"), "b": Parameter("x_y")}, "parameters 'a' and 'b' have one name, 'x_y'"),
    ],
)
def test_bad_declaration(parameters: dict[str, Parameter], message: str) -> None:
    """A declaration that no value can fit is found before a run."""
    found = problems(flow(**parameters), frozenset({"input"}))
    assert [problem.attribute for problem in found] == [list(parameters)[-1]]
    assert found[0].message.startswith(message)
    assert found[0].hint


def test_names_are_text() -> None:
    """A name that is no text fails where it is written."""
    with pytest.raises(TypeError):
        Parameter(5)  # type: ignore[arg-type]


def test_info() -> None:
    """User interfaces get a readable type, the default and the choices as text, and the help on one line."""
    color = Parameter("color", default=Color.RED, help="the\n  colour ")
    assert info(color) == ParameterInfo("color", "Color", default="RED", help="the colour", choices=("RED", "BLUE"))
    assert info(Parameter("n", type=list[int], required=True)) == ParameterInfo("n", "list[int]", required=True)
    assert info(Parameter("l", type=Literal["a", True])).choices == ("a", "true")
    assert info(Parameter("o", type=dict[str, int] | None)).type == "dict[str, int] | None"
    assert info(Parameter("t", type=tuple[int, ...])).type == "tuple[int, ...]"
    with pytest.raises(ParameterError, match="can't be of type object"):
        info(Parameter("o", type=object))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=8,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NETS = st.builds(
    Net,
    st.lists(st.integers()),
    st.sampled_from(Mode),
    st.floats(max_value=0.9, allow_nan=False),
    st.none() | st.dates(),
)
VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, TEXT),
    (int, st.integers()),
    (float, st.floats(allow_nan=False)),
    (bool, st.booleans()),
    (date, st.dates()),
    (datetime, st.datetimes(timezones=st.none() | st.just(UTC))),
    (Color, st.sampled_from(Color)),
    (Mode, st.sampled_from(Mode)),
    (Literal["a", 1, True], st.sampled_from(["a", 1, True])),
    (Path, st.lists(st.sampled_from(["a", "b c", ".."]), min_size=1).map(lambda parts: Path(*parts))),
    (list[int], st.lists(st.integers())),
    (list[str], st.lists(TEXT)),
    (list[Color], st.lists(st.sampled_from(Color))),
    (tuple[float, ...], st.lists(st.floats(allow_nan=False)).map(tuple)),
    (dict[str, float], st.dictionaries(TEXT, st.floats(allow_nan=False))),
    (dict[int, str], st.dictionaries(st.integers(), TEXT)),
    (int | None, st.none() | st.integers()),
    (Net, NETS),
    (list[Net], st.lists(NETS, max_size=3)),
]


@given(data=st.data())
def test_text_round_trip(data: st.DataObject) -> None:
    """The text of any value gives the value back, from text and through JSON."""
    hint, values = data.draw(st.sampled_from(VALUES))
    value = data.draw(values)
    kind = value_type(hint)
    assert kind.parse(to_text(value)) == value
    assert kind.convert(value) == value


@given(value=JSON)
def test_json_round_trip(value: Any) -> None:
    """Any JSON value but a bare text, which reads as JSON itself, comes back from its text."""
    if not isinstance(value, str):
        assert value_type(JSONType).parse(to_text(value)) == value


@given(hint=st.sampled_from([hint for hint, _ in VALUES] + [JSONType, dict, list, Point]), text=st.text(max_size=20))
def test_any_text_is_read_or_refused(hint: Any, text: str) -> None:
    """No text makes reading a parameter raise anything but ParameterError."""
    try:
        read(hint, text)
    except ParameterError as error:
        refused = error.message
    else:
        refused = ""
    assert refused.isprintable()
