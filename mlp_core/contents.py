"""How content that a request's inputs have in common travels once: taken out by the driver, put back in the worker.

A thousand branches that inherit one artifact refer to the same bytes; a join's request would hold them a thousand
times.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlp_hookspecs import ArtifactPart, ArtifactRef, ForeachFrame, TaskInput

SMALLEST: Final = 64
"""Shorter content costs less where it stands than a look-up of its hash."""


def take_out(inputs: Sequence[TaskInput]) -> tuple[tuple[TaskInput, ...], dict[str, bytes]]:
    """Take content out of the references that several inputs share.

    Parameters
    ----------
    inputs : sequence of TaskInput
        What a task reads from.

    Returns
    -------
    inputs : tuple of TaskInput
        The same without that content.
    contents : dict of str to bytes
        The content by its hash.
    """
    found: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    for ref in _refs(inputs):
        pieces: tuple[ArtifactRef | ArtifactPart, ...] = (ref, *ref.parts)
        for piece in pieces:
            if piece.data is not None and len(piece.data) >= SMALLEST:
                found[piece.digest] = piece.data
                counts[piece.digest] += 1
    contents = {digest: found[digest] for digest, count in counts.items() if count > 1}
    if not contents:
        return tuple(inputs), {}

    def data(piece: ArtifactRef | ArtifactPart) -> bytes | None:
        return None if piece.digest in contents else piece.data

    return _with_data(inputs, data), contents


def put_back(inputs: Sequence[TaskInput], contents: Mapping[str, bytes]) -> tuple[TaskInput, ...]:
    """Return the inputs that `take_out` was given."""
    if not contents:
        return tuple(inputs)

    def data(piece: ArtifactRef | ArtifactPart) -> bytes | None:
        return piece.data if piece.data is not None else contents.get(piece.digest)

    return _with_data(inputs, data)


def _refs(inputs: Sequence[TaskInput]) -> Iterator[ArtifactRef]:
    """Return all references of inputs, each as often as it occurs."""
    for each in inputs:
        yield from each.artifacts.values()
        for frame in each.frames:
            if frame.item is not None:
                yield frame.item
            if frame.values is not None:
                yield frame.values


def _with_data(
    inputs: Sequence[TaskInput], data: Callable[[ArtifactRef | ArtifactPart], bytes | None]
) -> tuple[TaskInput, ...]:
    """Return inputs whose references have other content."""
    # Branches share most references, by identity on the driver's side.
    known: dict[int, ArtifactRef] = {}

    def changed(ref: ArtifactRef) -> ArtifactRef:
        found = known.get(id(ref))
        if found is None:
            parts = tuple(attrs.evolve(part, data=data(part)) for part in ref.parts)
            found = known[id(ref)] = attrs.evolve(ref, data=data(ref), parts=parts)
        return found

    def frame(given: ForeachFrame) -> ForeachFrame:
        item = None if given.item is None else changed(given.item)
        values = None if given.values is None else changed(given.values)
        return attrs.evolve(given, item=item, values=values)

    return tuple(
        attrs.evolve(
            each,
            artifacts={name: changed(ref) for name, ref in each.artifacts.items()},
            frames=tuple(frame(given) for given in each.frames),
        )
        for each in inputs
    )
