"""Which blobs are needed: everything that a record, a frozen flow or a deployment can refer to, whatever is added."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.deploy.records import Version
from mlp_core.errors import StoreDamaged
from mlp_core.runner.blueprint import Blueprint, store_blueprint
from mlp_core.store import Store, layout, records
from mlp_core.store.content import sha256
from mlp_core.store.records import KINDS, AttemptFinished, RunBegan, RunSealed, TagsChanged
from mlp_core.store.references import digests_of, references
from mlp_core.upkeep.references import blueprint_of, hashes_in, run_records
from mlp_hookspecs import (
    ArtifactPart,
    ArtifactRef,
    Attachment,
    CodeRef,
    Failure,
    FlowGraph,
    ForeachFrame,
    RunContext,
    StepOutcome,
    TaskKey,
    Transition,
    frozen_map,
    wire,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@attrs.frozen
class Inner:
    """What a later version may add."""

    ref: ArtifactRef | None = None


@attrs.frozen
class Later(StepOutcome):
    """An outcome as a later version may know it."""

    more: tuple[Inner, ...] = ()
    named: Mapping[str, tuple[ArtifactRef, ...]] = attrs.field(factory=dict, converter=frozen_map)


ROOTS = [*KINDS.values(), Blueprint, Version]
GRAPH = FlowGraph("Flow", "start", "end", ())
BEGAN = RunBegan(RunContext("Flow", "20260101-000000-000000"), 1.0, "host", 1, GRAPH)


def ref(text: str) -> ArtifactRef:
    """Return a reference to a blob that is told from others by its text."""
    return ArtifactRef("json", sha256(text.encode()), len(text), "str")


def made(hint: Any, name: str, around: tuple[Any, ...] = ()) -> Any:  # noqa: PLR0911 # one return a kind of annotation
    """Return a value of a kind with a reference in every place that can hold one, each named by its place."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is ArtifactRef:
        return ref(name)
    if isinstance(hint, type) and attrs.has(hint):
        if hint in around:
            return None
        hints = typing.get_type_hints(hint, vars(sys.modules[hint.__module__]))
        given = {
            field.name: made(hints[field.name], f"{name}.{field.name}", (*around, hint)) for field in attrs.fields(hint)
        }
        return hint(**{key: value for key, value in given.items() if value is not None} | required(hint, given))
    if origin is tuple:
        item = made(arguments[0], f"{name}.0", around)
        return () if item is None else (item,)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        item = made(arguments[1], f"{name}.x", around)
        return {} if item is None else {"x": item}
    if arguments:
        return next((found for a in arguments if (found := made(a, name, around)) is not None), None)
    return None


def required(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return what fills the fields without a default that hold no reference; nothing looks at it."""
    return {
        field.name: "text"
        for field in attrs.fields(kind)
        if field.default is attrs.NOTHING and given[field.name] is None
    }


def names_in(value: object, name: str) -> Iterator[str]:
    """Iterate over the places of all references in a value by brute force: whatever has attributes or items."""
    if isinstance(value, ArtifactRef):
        yield name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from names_in(item, f"{name}.{key}")
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from names_in(item, f"{name}.{position}")
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from names_in(getattr(value, field.name), f"{name}.{field.name}")


@pytest.mark.parametrize("kind", ROOTS, ids=lambda kind: kind.__name__)
def test_every_reference_is_found(kind: Any) -> None:
    """Whatever the annotations of a record, a blueprint or a version allow to refer to a blob is found at its place."""
    value = made(kind, "v")
    expected = set(names_in(value, "v"))
    assert {".".join(("v", *place)) for place, _ in references(value)} == expected
    assert digests_of([value]) == {sha256(name.encode()): len(name) for name in expected}
    if kind in (RunBegan, AttemptFinished, Blueprint, Version):
        assert expected


def test_a_new_field_is_followed() -> None:
    """A field that a later version adds, of whatever shape, needs no change here."""
    value = Later("succeeded", more=(Inner(ref("a")),), named={"n": (ref("b"),)})
    assert {place for place, _ in references(value)} == {("more", "0", "ref"), ("named", "n", "0")}


def test_no_annotation_hides_a_reference() -> None:
    """No field of what is stored is annotated so loosely that a reference could stand in it unseen, except JSON."""
    seen: set[Any] = set()
    waiting: list[Any] = list(ROOTS)
    while waiting:
        hint = waiting.pop()
        arguments = typing.get_args(hint)
        waiting += [argument for argument in arguments if argument is not Ellipsis]
        assert hint is not object
        if isinstance(hint, type) and attrs.has(hint) and hint not in seen:
            seen.add(hint)
            waiting += typing.get_type_hints(hint, vars(sys.modules[hint.__module__])).values()
    # What else has a hash is no blob: a journal, and two kinds of logs.
    hashes = {(kind, field.name) for kind in seen for field in attrs.fields(kind) if "digest" in field.name}
    assert hashes == {
        (ArtifactRef, "digest"),
        (ArtifactPart, "digest"),
        (RunSealed, "digest"),
        (RunSealed, "logs_digest"),
        (AttemptFinished, "log_digest"),
    }


def test_what_travels_in_the_reference_is_no_blob() -> None:
    """Inline content needs no blob, nor does the digest of a list of parts; the parts do."""
    inline = ArtifactRef("json", sha256(b"1"), 1, "int", b"1")
    parts = (ArtifactPart("a", sha256(b"a"), 1, b"a"), ArtifactPart("b", sha256(b"bb"), 2))
    divided = ArtifactRef("table", sha256(b"list"), 3, "t", parts=parts)
    began = attrs.evolve(BEGAN, parameters={"p": inline, "q": divided})
    assert digests_of([began]) == {sha256(b"bb"): 2}


def everything() -> AttemptFinished:
    """Return a record that refers to blobs in every way."""
    outcome = StepOutcome(
        "failed",
        {"x": ref("assigned")},
        transition=Transition(("a",), 2, ref("values"), (ref("item"),)),
        failure=Failure("exception", "no", exception=ref("exception")),
        attachments=(Attachment("card", "c", ref("card")),),
    )
    frames = (ForeachFrame("start", "x", 0, 2, ref("frame item"), ref("frame values")),)
    return AttemptFinished(TaskKey("start"), 0, outcome, frames=frames)


def test_hashes_in_bytes_cover_the_references() -> None:
    """What the bytes of a record mention is at least what the record refers to, also where a line is damaged."""
    record = everything()
    line = records.encode_line(record, 3)
    needed = {bytes.fromhex(digest[7:]) for digest in digests_of([record])}
    assert len(needed) == 7
    assert hashes_in(line) == needed
    assert hashes_in(b"?" + line[1:]) == needed
    assert hashes_in(line.replace(b"AttemptFinished", b"AttemptUnheardOf")) == needed


def test_a_run_is_read_with_its_segments(tmp_path: Path) -> None:
    """The records of a run are those of its journal and those of its segments."""
    with_code = attrs.evolve(BEGAN, code=CodeRef("flow", "Flow", package=ref("package")))
    store = Store.open(FileStore(tmp_path / "store"), create=True)
    writer = store.create_run(lambda run_id: attrs.evolve(with_code, run=RunContext("Flow", run_id)), 1.0)
    run_id = writer.began.run.run_id
    writer.write([everything()])
    store.add_segment("Flow", run_id, "tags.1", TagsChanged(("a",), (), "me", 2.0))
    store.add_segment("Flow", run_id, "task.end.0", attrs.evolve(everything(), key=TaskKey("end"), time=3))
    writer.close()
    found = list(run_records(store.objects, "Flow", run_id))
    assert [type(record).__name__ for record in found] == [
        "RunBegan",
        "AttemptFinished",
        "TagsChanged",
        "AttemptFinished",
    ]
    assert len(digests_of(found)) == 8
    store.close()


def test_blueprints_are_read_or_refused(tmp_path: Path) -> None:
    """A blueprint whose bytes have another hash is damage."""
    store = Store.open(FileStore(tmp_path / "store"), create=True)
    blueprint = Blueprint(GRAPH, (), CodeRef("flow", "Flow", package=ref("package")))
    digest = store_blueprint(store, blueprint)
    assert digests_of([blueprint_of(store.objects, digest)]) == digests_of([blueprint])
    store.objects.replace(layout.blueprint(digest), wire.dumps(blueprint) + b" ", sync=False)
    with pytest.raises(StoreDamaged, match="another digest"):
        blueprint_of(store.objects, digest)
    store.close()


def test_what_cannot_refer_to_anything_has_no_references() -> None:
    """Texts and numbers have none; a list is as good as a tuple."""
    assert not list(references("text"))
    assert not list(references(7))
    assert list(references([ref("a"), None, "text", {"b": ref("b")}])) == [(("0",), ref("a")), (("3", "b"), ref("b"))]
