"""Bugs for the rows about hostile input and secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mlp_reliability.bugs.planted import Planted

if TYPE_CHECKING:
    from types import ModuleType


def _leave_members_unchecked(module: Any) -> None:
    module._checked_name = lambda entry: module.PurePosixPath(entry.name)


def _ignore_the_list(module: Any) -> None:
    module.ListedUnpickler._has_listed_parent = lambda *_: True
    module._EXACT_ONLY = frozenset()
    module.ListedUnpickler.find_class = module.pickle.Unpickler.find_class


def _load_to_show(module: ModuleType) -> None:
    shown = module.DataArtifact.__repr__

    def repr_with_value(self: Any) -> str:
        try:
            return f"{shown(self)} {self.data!r}"
        except Exception:  # noqa: BLE001 # a value that cannot be loaded is not the bug
            return str(shown(self))

    module.DataArtifact.__repr__ = repr_with_value


def _print_as_it_is(module: Any) -> None:
    module._escape = lambda match: match.group()


def _trust_numbers(module: Any) -> None:
    decode = module.wire.decode
    module.decode_line = lambda line: _decoded(module, decode, line)


def _decoded(module: Any, decode: Any, line: bytes) -> Any:
    """Return what a line says, whatever it says."""
    text = line[9:]
    if line[:9] != b"%08x " % module.zlib.crc32(text):
        return None
    data = module.json.loads(text)
    kind = module.KINDS.get(data["kind"])
    return data["n"], None if kind is None else decode(kind, data["data"])


def _leave_logs_unmasked(module: ModuleType) -> None:
    module.WorkerLoop._hide = lambda *_: None


def _mask_whole_pieces_only(module: ModuleType) -> None:
    module.Masker.ready = lambda self, data: (self.data(data), b"")


def _leave_failures_unmasked(module: ModuleType) -> None:
    module.Hiding.failure = lambda _, failure: failure


def _store_exceptions(module: ModuleType) -> None:
    call = module.Worker._call

    def call_without_hiding(self: Any, request: Any, instance: Any, state: Any, handle: Any) -> Any:
        masker, handle.hiding.masker = handle.hiding.masker, None
        failure = call(self, request, instance, state, handle)
        handle.hiding.masker = masker
        return handle.hiding.failure(failure) if failure is not None else None

    module.Worker._call = call_without_hiding


def _record_secret_settings(module: ModuleType) -> None:
    module.Settings.portable = lambda self: {n: module.tables.portable(v) for n, v in self._values.items()}


def _pack_dotenv(module: Any) -> None:
    module.SUFFIXES = frozenset((*module.SUFFIXES, ""))
    files = module._files

    def files_and_dotenv(root: Any, *arguments: Any) -> Any:
        yield from files(root, *arguments)
        if (root / ".env").is_file():
            yield ".env", (root / ".env").stat().st_size

    module._files = files_and_dotenv


BUGS: Final[tuple[Planted, ...]] = (
    Planted(
        "members-unchecked",
        "hostile",
        "a code package may hold any path",
        "mlp_core.unpack",
        _leave_members_unchecked,
        600,
    ),
    Planted(
        "list-ignored",
        "hostile",
        "listed pickles may name anything",
        "mlp_core.builtin.pickle_format",
        _ignore_the_list,
        300,
    ),
    Planted(
        "loaded-to-be-shown",
        "hostile",
        "the repr of an artifact loads its value",
        "mlp_core.client.tasks",
        _load_to_show,
        300,
    ),
    Planted("controls-printed", "hostile", "names are printed as they are", "mlp_core.cli.text", _print_as_it_is, 300),
    Planted(
        "records-trusted",
        "hostile",
        "a record with the right checksum is taken for one of a driver's",
        "mlp_core.store.records",
        _trust_numbers,
        300,
    ),
    Planted(
        "logs-unmasked", "canaries", "logs are kept as they come", "mlp_hookspecs.process", _leave_logs_unmasked, 10
    ),
    Planted(
        "masked-by-piece",
        "canaries",
        "a secret that arrives in two pieces is not masked",
        "mlp_hookspecs.masking",
        _mask_whole_pieces_only,
        10,
    ),
    Planted(
        "failures-unmasked",
        "canaries",
        "the reason of a failure is recorded as it is",
        "mlp_core.worker.hiding",
        _leave_failures_unmasked,
        10,
    ),
    Planted(
        "exceptions-stored",
        "canaries",
        "an exception with a secret in it is stored",
        "mlp_core.worker.execute",
        _store_exceptions,
        10,
    ),
    Planted(
        "secret-settings-recorded",
        "canaries",
        "secret settings travel and are recorded",
        "mlp_core.settings",
        _record_secret_settings,
        10,
    ),
    Planted(
        "dotenv-packed", "canaries", "a .env file is in the code package", "mlp_core.runner.package", _pack_dotenv, 10
    ),
)
