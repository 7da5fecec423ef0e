"""What inputs have in common travels once, and comes back as it was."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from mlp_core.contents import SMALLEST, put_back, take_out
from mlp_hookspecs import ArtifactPart, ArtifactRef, ForeachFrame, TaskInput, TaskKey

if TYPE_CHECKING:
    from collections.abc import Sequence


def digest(data: bytes) -> str:
    """Return the hash by which content is called."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


def ref(data: bytes, *, stored: bool = False) -> ArtifactRef:
    """Return a reference that holds its content, or one whose content is stored elsewhere."""
    return ArtifactRef("json", digest(data), len(data), "str", None if stored else data)


def held(inputs: Sequence[TaskInput]) -> list[bytes]:
    """Return the content that stands in inputs' artifacts."""
    return [ref.data for each in inputs for ref in each.artifacts.values() if ref.data is not None]


LARGE, LARGER = b"a" * SMALLEST, b"b" * (SMALLEST + 1)


def test_what_is_shared_is_taken_out_once() -> None:
    """Content of several inputs is told once; what is small, or one's own, stays where it was."""
    inputs = tuple(
        TaskInput(
            TaskKey("work", (n,)),
            {"shared": ref(LARGE), "small": ref(b"1"), "own": ref(LARGER + str(n).encode())},
        )
        for n in range(3)
    )
    taken, contents = take_out(inputs)
    assert contents == {digest(LARGE): LARGE}
    assert held(taken) == [b"1", LARGER + b"0", b"1", LARGER + b"1", b"1", LARGER + b"2"]
    assert put_back(taken, contents) == inputs


def test_nothing_is_shared() -> None:
    """Inputs that have nothing in common are left alone."""
    inputs = (TaskInput(TaskKey("a"), {"x": ref(LARGE)}), TaskInput(TaskKey("b"), {"x": ref(LARGER)}))
    assert take_out(inputs) == (inputs, {})
    assert put_back(inputs, {}) == inputs


def test_items_and_parts_are_shared_too() -> None:
    """An outer foreach's item, and small parts of an artifact, count like an artifact's content."""
    parts = (ArtifactPart("p", digest(LARGE), len(LARGE), LARGE), ArtifactPart("q", digest(b"q"), 1))
    whole = ArtifactRef("folder", digest(b"list"), 9, "str", parts=parts)
    frames = (ForeachFrame("start", "xs", 0, 1, item=ref(LARGER)), ForeachFrame("start", "ys", 0, 1, values=whole))
    inputs = tuple(TaskInput(TaskKey("work", (0, n)), {"whole": whole}, frames) for n in range(2))
    taken, contents = take_out(inputs)
    assert contents == {digest(LARGE): LARGE, digest(LARGER): LARGER}
    assert taken[0].frames[0].item == ref(LARGER, stored=True)
    assert taken[1].artifacts["whole"].parts[0].data is None
    assert put_back(taken, contents) == inputs


CONTENT = st.sampled_from([b"", b"1", LARGE, LARGER, b"c" * 500])
INPUT = st.builds(
    TaskInput,
    st.builds(TaskKey, st.just("work")),
    st.dictionaries(st.sampled_from("abc"), st.builds(ref, CONTENT)),
    st.lists(st.builds(lambda data: ForeachFrame("s", "v", 0, 1, ref(data)), CONTENT), max_size=2).map(tuple),
)


@given(st.lists(INPUT, max_size=5).map(tuple))
def test_inputs_come_back(inputs: tuple[TaskInput, ...]) -> None:
    """Whatever is taken out is put back, and nothing that is large stands in two places."""
    taken, contents = take_out(inputs)
    assert put_back(taken, contents) == inputs
    large = [data for data in held(taken) if len(data) >= SMALLEST]
    assert len(large) == len(set(large))
    assert not set(large) & set(contents.values())
