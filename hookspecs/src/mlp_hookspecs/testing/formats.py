"""Which promises a format keeps: values come back equal, in any process, from bytes that depend on the value alone."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest

from mlp_hookspecs import ArtifactRef, Backend, BackendKind, wire
from mlp_hookspecs.testing.artifacts import MemorySource, MemoryTarget
from mlp_hookspecs.testing.contract import BackendContract
from mlp_hookspecs.testing.driver import Driver, in_child, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TYPE_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class FormatContract(BackendContract):
    """The tests of a format.

    A derived class supplies the fixture `values`, and overrides `is_equal` where ``==`` does not compare the values.

    Attributes
    ----------
    deterministic : bool
        Whether the same value gives the same bytes in every process. Without that, unchanged artifacts are stored anew
        and caches miss.
    holds_everything : bool
        Whether the format takes any value at all; otherwise it must answer None for a value that is not its own.

    Examples
    --------
    >>> import pytest
    >>> from mlp_hookspecs.testing import FormatContract
    >>> class TestNpz(FormatContract):
    ...     plugin = "mlp_plugin_npz.plugin"
    ...     name = "npz"
    ...
    ...     @pytest.fixture
    ...     def values(self):
    ...         import numpy
    ...         return [numpy.arange(6), numpy.zeros((0, 3)), numpy.float32(1.5)]
    ...
    ...     def is_equal(self, one, other):
    ...         return one.dtype == other.dtype and (one == other).all()
    """

    kind: ClassVar[BackendKind] = "format"
    deterministic: ClassVar[bool] = True
    holds_everything: ClassVar[bool] = False

    @pytest.fixture
    def values(self) -> Sequence[Any]:
        """Values that the format holds: an ordinary one, an empty one, extremes."""
        raise NotImplementedError

    def is_equal(self, one: Any, other: Any) -> bool:
        """Tell whether two values are the same."""
        return type(one) is type(other) and bool(one == other)

    def test_types_are_named(self, backend: Backend) -> None:
        """The backend names the types that it encodes by dotted names, so that values find their format."""
        assert backend.types, "a format names the types that it can encode"
        assert [name for name in backend.types if not _TYPE_NAME.fullmatch(name)] == []

    def test_values_come_back(self, driver: Driver, values: Sequence[Any], tmp_path: Path) -> None:
        """A value that was written and read is equal to what it was, and so is the one that was written."""
        assert values, "the fixture must give at least one value"
        for number, value in enumerate(values):
            target = self._persist(driver, value, tmp_path / str(number))
            loaded = self._load(driver, target, tmp_path / str(number), value)
            assert self.is_equal(value, loaded), f"{value!r:.200} came back as {loaded!r:.200}"
            self._persist(driver, value, tmp_path / f"{number}-again")
            again = self._load(driver, target, tmp_path / f"{number}-again", value)
            assert self.is_equal(again, loaded), f"writing {value!r:.200} has changed it"

    def test_values_are_written_alike(self, driver: Driver, values: Sequence[Any], tmp_path: Path) -> None:
        """The same value gives the same bytes, also after it was read back."""
        if not self.deterministic:
            pytest.skip("the format says that it is not deterministic")
        for number, value in enumerate(values):
            first = self._persist(driver, value, tmp_path / f"{number}-first")
            second = self._persist(driver, value, tmp_path / f"{number}-second")
            assert first.content() == second.content(), f"{value!r:.200} was written differently the second time"
            loaded = self._load(driver, first, tmp_path / f"{number}-first", value)
            third = self._persist(driver, loaded, tmp_path / f"{number}-third")
            assert first.content() == third.content(), f"{value!r:.200} was written differently after it was read"

    def test_values_are_read_and_written_in_another_process(
        self, driver: Driver, values: Sequence[Any], tmp_path: Path
    ) -> None:
        """What one process wrote another reads; where the format is deterministic it writes the same bytes again."""
        folders = [(tmp_path / str(number), tmp_path / f"{number}-there") for number in range(len(values))]
        targets = [self._persist(driver, value, here) for value, (here, _) in zip(values, folders, strict=True)]
        refs = [wire.encode(self._ref(target, value)) for target, value in zip(targets, values, strict=True)]
        items = [(str(here), str(there), ref) for (here, there), ref in zip(folders, refs, strict=True)]
        answers = in_child(self.plugin, "rewrite", items=items)
        for value, target, (_, there), answer in zip(values, targets, folders, answers, strict=True):
            assert answer is True, f"another process answered writing {value!r:.200} again with {answer!r}"
            if self.deterministic:
                again = MemoryTarget(there, self.name, metadata=MemorySource(there).metadata())
                assert again.content() == target.content(), f"another process wrote {value!r:.200} differently"

    def test_loaded_values_are_apart(self, driver: Driver, values: Sequence[Any], tmp_path: Path) -> None:
        """Each read gives a value of its own, and reading does not change what is stored."""
        for number, value in enumerate(values):
            folder = tmp_path / str(number)
            target = self._persist(driver, value, folder)
            before = target.content()
            one, other = (self._load(driver, target, folder, value) for _ in range(2))
            assert self.is_equal(one, other)
            assert target.content() == before, f"reading {value!r:.200} has changed the stored bytes"

    def test_other_values_are_left_to_other_formats(self, driver: Driver, tmp_path: Path) -> None:
        """A value that the format cannot hold exactly is answered with None, so that another format is tried."""
        if self.holds_everything:
            pytest.skip("the format says that it takes any value")
        target = MemoryTarget(tmp_path / "foreign", self.name)
        answer = driver.call("mlp_persist_artifact", value=_Foreign(), target=target)
        assert answer is None, f"a foreign value was answered with {answer!r} instead of None"

    def _persist(self, driver: Driver, value: Any, folder: Path) -> MemoryTarget:
        """Write a value."""
        target = MemoryTarget(folder, self.name)
        answer = driver.call("mlp_persist_artifact", value=value, target=target)
        assert answer is True, f"writing {value!r:.200} was answered with {answer!r} instead of True"
        return target

    def _load(self, driver: Driver, target: MemoryTarget, folder: Path, value: Any) -> Any:
        """Read a value."""
        ref, source = self._ref(target, value), MemorySource(folder)
        return driver.call("mlp_load_artifact", ref=ref, source=source, settings=load_settings(driver))

    def _ref(self, target: MemoryTarget, value: Any) -> ArtifactRef:
        """Return the reference of what was written."""
        content = target.content()
        digest = hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        size = sum(map(len, content.values()))
        return ArtifactRef(self.name, f"sha256-{digest}", size, kind, metadata=target.metadata)


class _Foreign:
    """A value that only a format for everything holds."""
