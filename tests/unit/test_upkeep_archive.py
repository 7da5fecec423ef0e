"""Runs packed into files and unpacked: the same bytes each time, and nothing but a run that is intact comes in."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest

from mlp_core.builtin.file_store import FileStore
from mlp_core.builtin.fsspec_store.store import FsspecStore
from mlp_core.errors import MlpError, NotFound, StoreDamaged, StoreError, StoreFull, UsageError
from mlp_core.store import AttemptFinished, AttemptStarted, LogChunk, RunBegan, RunEnded, Store, TagsChanged, layout
from mlp_core.store.content import sha256
from mlp_core.store.logs import read_logs
from mlp_core.store.records import encode_line
from mlp_core.upkeep import archive_format as form
from mlp_core.upkeep.archive import Archive, Imported, export_run
from mlp_core.upkeep.archive_format import Manifest, Member, member_header, padding
from mlp_hookspecs.types import FlowGraph, RunContext, StepNode, StepOutcome, TaskKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GRAPH = FlowGraph("Flow", "start", "start", (StepNode("start", "end"),))
KEY = TaskKey("start")
HOSTILE: Final = 300
"""How many archives are tried that somebody has tampered with."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what readers remember out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with runs."""
    opened = Store.open(FileStore(tmp_path / "store"), create=True)
    yield opened
    opened.close()


@pytest.fixture(params=["file", "memory"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Another store, which is empty; one with local files, and one without."""
    objects: Any = (
        FileStore(tmp_path / "other")
        if request.param == "file"
        else FsspecStore(f"memory://{tmp_path.name}", {}, retry_seconds=0)
    )
    opened = Store.open(objects, create=True)
    yield opened
    opened.close()


def add_run(store: Store, now: float, *contents: bytes, ended: bool = True, **details: Any) -> tuple[str, str]:
    """Make a run with some large artifacts, a log, a tag and the log of an orchestrator's task; return its name."""
    blobs = store.blobs(inline_bytes=10)

    def began(run_id: str) -> RunBegan:
        return RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH, **details)

    writer = store.create_run(began, now)
    run_id = writer.began.run.run_id
    assigned = {}
    for number, content in enumerate(contents):
        target = blobs.target("bytes")
        target.write([content])
        assigned[f"x{number}"] = target.finish("builtins.bytes")
    writer.write([AttemptStarted(KEY, 0, "local", 1.0)])
    writer.log("start/0/0", "stdout", b"hello\n" * 1000, 2.0)
    outcome = StepOutcome("succeeded", assigned=assigned, started_at=1.0, finished_at=2.0)
    log = store.add_log_segment("Flow", run_id, "log.start.0.0", [LogChunk("start/0/0", "stderr", 5.0, b"more\n")])
    writer.write([AttemptFinished(KEY, 0, outcome, time=3.0, log_digest=log)])
    if ended:
        writer.write([RunEnded("succeeded", "", 4.0, 1)])
    writer.close()
    store.add_segment("Flow", run_id, "tags.1", TagsChanged(("good",), (), "ada", 5.0))
    return "Flow", run_id


def values(store: Store, run: tuple[str, str]) -> list[bytes]:
    """Return the values of a run's artifacts, verified."""
    blobs = store.blobs()
    return [bytes(blobs.source(ref).buffer()) for _, ref in sorted(store.run(*run).artifacts(KEY).items())]


def import_file(path: Path, store: Store) -> Imported:
    """Unpack a file."""
    with Archive(path) as archive:
        return archive.import_into(store)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return all that lies below a folder, but for empty folders and what is unfinished."""
    return {
        str(path.relative_to(folder)): (stat.S_IFMT(path.lstat().st_mode), path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


# ---------------------------------------------------------------------------------------------- what works


def test_a_run_goes_into_a_file_and_comes_out(store: Store, other: Store, tmp_path: Path) -> None:
    """Artifacts, logs, tags and the run's end are in the other store, where packing it gives the same file again."""
    run = add_run(store, 100.0, b"a" * 100, b"b" * 3_000_000)
    exported = export_run(store, *run, tmp_path / "a.mlprun")
    assert (exported.run, exported.blobs) == ("/".join(run), 2)
    assert exported.size == (tmp_path / "a.mlprun").stat().st_size
    assert stat.S_IMODE((tmp_path / "a.mlprun").stat().st_mode) == 0o600
    imported = import_file(tmp_path / "a.mlprun", other)
    assert imported == Imported("/".join(run), "absent", 2, exported.size)
    assert values(other, run) == [b"a" * 100, b"b" * 3_000_000]
    assert (other.run(*run).status, other.run(*run).tags) == ("succeeded", ("good",))
    assert b"".join(chunk.data for chunk in read_logs(other.objects, *run)) == b"hello\n" * 1000 + b"more\n"
    assert [each.status for each in other.runs()] == ["succeeded"]
    export_run(other, *run, tmp_path / "b.mlprun")
    assert (tmp_path / "a.mlprun").read_bytes() == (tmp_path / "b.mlprun").read_bytes()


def test_unpacking_twice_changes_nothing(store: Store, other: Store, tmp_path: Path) -> None:
    """A run that is there is recognised; a tag that came later is brought over, and one that is there stays."""
    run = add_run(store, 100.0, b"a" * 100)
    export_run(store, *run, tmp_path / "a.mlprun")
    import_file(tmp_path / "a.mlprun", other)
    again = import_file(tmp_path / "a.mlprun", other)
    assert (again.was, again.blobs) == ("same", 0)
    store.add_segment(*run, "tags.2", TagsChanged(("later",), (), "ada", 6.0))
    other.add_segment(*run, "tags.3", TagsChanged(("there",), (), "ada", 7.0))
    export_run(store, *run, tmp_path / "b.mlprun")
    assert import_file(tmp_path / "b.mlprun", other).was == "same"
    assert other.run(*run).tags == ("good", "later", "there")


def test_a_lost_run_is_packed_as_it_is(store: Store, other: Store, tmp_path: Path) -> None:
    """A run whose driver was killed is lost in the other store too, and its end may follow."""
    run = add_run(store, 100.0, b"a" * 100, ended=False)
    journal = store.objects.local_path(layout.journal(*run))
    assert journal is not None
    with journal.open("ab") as file:
        file.write(b"0123abcd {unfinish")
    export_run(store, *run, tmp_path / "a.mlprun")
    import_file(tmp_path / "a.mlprun", other)
    assert other.run(*run).status == "lost"
    store.fence(*run)
    export_run(store, *run, tmp_path / "b.mlprun")
    assert import_file(tmp_path / "b.mlprun", other).was == "behind"
    assert import_file(tmp_path / "a.mlprun", other).was == "ahead"
    assert other.run(*run).ended == store.run(*run).ended


def test_others_can_read_an_archive(store: Store, tmp_path: Path) -> None:
    """An archive is a tar: any tool lists and unpacks it, and the manifest's hashes are those of sha256sum."""
    run = add_run(store, 100.0, b"a" * 100)
    export_run(store, *run, tmp_path / "a.mlprun")
    with tarfile.open(tmp_path / "a.mlprun") as tar:
        members = {member.name: member for member in tar.getmembers()}
        assert list(members)[:2] == ["manifest", "journal"]
        assert all(member.isreg() and member.mtime == 0 and member.uid == 0 for member in members.values())
        manifest = tar.extractfile("manifest")
        assert manifest is not None
        for line in manifest.read().decode().splitlines()[2:]:
            kind, digest, size, *_ = line.split()
            name = {"segment": "segments/1", "blob": f"blobs/{digest}"}.get(kind, kind)
            if kind != "segment":
                content = tar.extractfile(name)
                assert content is not None
                data = content.read()
                assert (sha256(data), len(data)) == (digest, int(size))
    if shutil.which("tar"):
        done = subprocess.run(["tar", "tf", tmp_path / "a.mlprun"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == list(members)


def test_sizes_of_more_than_eight_gibibytes_have_a_header() -> None:
    """The block before a huge content says its size as other tools read it."""
    for size in (0, 1, 8**11 - 1, 8**11, 2**50):
        header = member_header("blobs/x", size)
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        assert (info.name, info.size, info.isreg()) == ("blobs/x", size, True)


# ---------------------------------------------------------------------------------------------- what is refused


def test_what_cannot_be_packed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on, is absent or damaged, a file that is there or cannot be: one error, and no file is left."""
    run = add_run(store, 100.0, b"a" * 100)
    (tmp_path / "there").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out/a.mlprun"
    with pytest.raises(UsageError, match="is there already"):
        export_run(store, *run, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"mine"
    with pytest.raises(NotFound):
        export_run(store, "Flow", "20260131-094500-123456", target)
    with pytest.raises(MlpError, match="cannot be written"):
        export_run(store, *run, tmp_path / "no/such/folder")
    writer = store.create_run(lambda run_id: RunBegan(RunContext("Flow", run_id), 1.0, "host", 1, GRAPH), 200.0)
    with pytest.raises(UsageError, match="still running"):
        export_run(store, "Flow", writer.began.run.run_id, target)
    writer.close()
    for content, reason in ((b"b" * 100, "damaged"), (b"b" * 101, "damaged"), (None, "missing")):
        key = layout.blob(sha256(b"a" * 100))
        store.objects.delete(key)
        if content is not None:
            store.objects.replace(key, content, sync=False)
        with pytest.raises(StoreDamaged, match=reason):
            export_run(store, *run, target)
    store.objects.replace(layout.blob(sha256(b"a" * 100)), b"a" * 100, sync=False)
    for name, limit in (("MAX_LINE", 100), ("MAX_JOURNAL", 100), ("MAX_MANIFEST", 100), ("MAX_MEMBERS", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(form, name, limit)
            with pytest.raises(UsageError, match="too large for an archive"):
                export_run(store, *run, target)
    for key in (layout.logs(*run), layout.segment(*run, "log.start.0.0")):
        content = store.objects.read(key)
        for changed in (content[:-1], content.replace(b"o", b"0"), None):
            store.objects.delete(key)
            if changed is not None:
                store.objects.replace(key, changed, sync=False)
            with pytest.raises(StoreDamaged, match=r"log .*(missing|damaged)"):
                export_run(store, *run, target)
        store.objects.replace(key, content, sync=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_another_run_of_the_name_stays(store: Store, other: Store, tmp_path: Path) -> None:
    """Where another run has the name, it is left as it is, and both places are named."""
    run = add_run(store, 100.0, b"a" * 100)
    assert add_run(other, 100.0, b"b" * 100, command=("another",)) == run
    export_run(store, *run, tmp_path / "a.mlprun")
    with pytest.raises(UsageError, match=rf"a.mlprun.*{other.url}.*another run"):
        import_file(tmp_path / "a.mlprun", other)
    assert values(other, run) == [b"b" * 100]


def test_too_little_room_is_told_beforehand(
    store: Store, other: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that does not fit is refused before anything of it is written."""
    run = add_run(store, 100.0, b"a" * 100)
    export_run(store, *run, tmp_path / "a.mlprun")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 50, 50))
    with pytest.raises(StoreFull, match="no room left to unpack"):
        import_file(tmp_path / "a.mlprun", other)
    assert list(other.runs()) == []


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a pipe, a device or nothing at all is refused, and is not waited for."""
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    for name in ("pipe", "folder", "absent", "empty"):
        with pytest.raises(UsageError, match=str(tmp_path / name)):
            Archive(tmp_path / name)
    with pytest.raises(UsageError, match="it is no file"):
        Archive(Path("/dev/zero"))


@attrs.frozen
class Parts:
    """An archive taken apart: the manifest's text, and the members with what stands before and after each."""

    manifest: bytes
    members: tuple[tuple[str, bytes], ...]
    run: tuple[str, str]

    @classmethod
    def of(cls, path: Path) -> Parts:
        """Take an archive apart."""
        with Archive(path) as archive:
            manifest = archive.manifest
        names = list(manifest.member_names())
        with tarfile.open(path) as tar:
            contents = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr] # a plain file
        return cls(manifest.encode(), tuple(zip(names, contents, strict=True)), (manifest.flow, manifest.run_id))

    def packed(self, *, header: Callable[[str, int], bytes] = member_header) -> bytes:
        """Put the parts together, as they are."""
        members = (("manifest", self.manifest), *self.members)
        blocks = [header(name, len(data)) + data + bytes(padding(len(data))) for name, data in members]
        return b"".join(blocks) + bytes(1024)

    def with_contents(self, **contents: bytes) -> Parts:
        """Exchange contents, and let the manifest vouch for them."""
        members = tuple((name, contents.get(name, data)) for name, data in self.members)
        manifest = self.manifest
        for (_, before), (_, after) in zip(self.members, members, strict=True):
            old = f"{sha256(before)} {len(before)}".encode()
            manifest = manifest.replace(old, f"{sha256(after)} {len(after)}".encode())
        return attrs.evolve(self, manifest=manifest, members=members)

    def with_journal(self, change: Callable[[list[bytes]], list[bytes]]) -> Parts:
        """Change the journal's records, as JSON; their checksums and the manifest are right."""
        lines = dict(self.members)["journal"].splitlines()
        texts = change([line[9:] for line in lines])
        return self.with_contents(journal=b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts))


def tampered_header(**fields: bytes) -> Callable[[str, int], bytes]:
    """Return what makes headers in which some fields are others, with the right checksum, for one member."""
    places = {
        "name": (0, 100),
        "mode": (100, 8),
        "uid": (108, 8),
        "size": (124, 12),
        "mtime": (136, 12),
        "type": (156, 1),
        "link": (157, 100),
        "magic": (257, 8),
        "owner": (265, 32),
        "prefix": (345, 155),
    }
    left = [True]

    def make(name: str, size: int) -> bytes:
        header = bytearray(member_header(name, size))
        if left and name != "manifest":
            left.clear()
            for field, value in fields.items():
                start, length = places[field]
                header[start : start + length] = value.ljust(length, b"\0")[:length]
            header[148:156] = b"        "
            header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header)

    return make


OUTSIDE: Final = (b"../../outside/x", b"/outside/x", b"..\\x", b"a/../../x", b"./journal", b"journal/", b"JOURNAL", b"")
UNICODE: Final = (
    "\uff4aournal",
    "j\u043eurnal",
    "journal\u202e",
    "journal\u200b",
    "journal\x00x",
    "\u2025/journal",
    "journal\n",
)


def bad_headers() -> list[dict[str, bytes]]:
    """Return fields that no header has."""
    choices: list[dict[str, bytes]] = [{"name": name} for name in OUTSIDE]
    choices += [{"name": name.encode()} for name in UNICODE]
    choices += [{"type": kind, "link": b"../../outside/x"} for kind in (b"1", b"2")]
    choices += [{"type": bytes([kind])} for kind in b"3456789xgLKSDNMVX\0"]
    choices += [
        {"size": size} for size in (b"77777777777", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1", b"0x10", b" 10 ")
    ]
    choices += [{"mode": b"0004755"}, {"uid": b"0001750"}, {"mtime": b"77777777777"}, {"owner": b"root"}]
    choices += [{"magic": b"ustar  \0"}, {"magic": b""}, {"prefix": b"../.."}, {"prefix": b"/outside"}]
    return choices


def attack_header(parts: Parts, draw: random.Random) -> bytes:
    """Say something else in the header of a member."""
    return parts.packed(header=tampered_header(**draw.choice(bad_headers())))


def attack_bits(parts: Parts, draw: random.Random) -> bytes:
    """Flip a few bits anywhere."""
    data = bytearray(parts.packed())
    for _ in range(draw.randint(1, 3)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data) if bytes(data) != parts.packed() else b""


def attack_padding(parts: Parts, draw: random.Random) -> bytes:
    """Put something into what fills up a member, or into the end."""
    data = bytearray(parts.packed())
    gaps = [len(data) - 1, len(data) - 1024]
    place = 0
    for content in (parts.manifest, *(content for _, content in parts.members)):
        place += 512 + len(content) + padding(len(content))
        gaps += [place - 1] if padding(len(content)) else []
    data[draw.choice(gaps)] = draw.randrange(1, 256)
    return bytes(data)


def attack_length(parts: Parts, draw: random.Random) -> bytes:
    """Cut the end off, add to it, or take something out of the middle."""
    data = parts.packed()
    place = draw.randrange(len(data))
    return draw.choice(
        [data[:place], data + b"\0" * 512, data + data, data[:place] + data[place + 512 :], data[: len(data) - 1]]
    )


def attack_order(parts: Parts, draw: random.Random) -> bytes:
    """Exchange, leave out or repeat members."""
    members = list(parts.members)
    first, second = draw.sample(range(len(members)), 2)
    match draw.randrange(4):
        case 0:
            members[first], members[second] = members[second], members[first]
        case 1:
            del members[first]
        case 2:
            members.insert(first, members[second])
        case _:
            names = [name for name, _ in members]
            names[first], names[second] = names[second], names[first]
            members = [(name, data) for name, (_, data) in zip(names, members, strict=True)]
    return attrs.evolve(parts, members=tuple(members)).packed()


def bad_manifests(parts: Parts, draw: random.Random) -> list[bytes]:
    """Return texts that are no manifest, or not the only one."""
    text = parts.manifest
    lines = text.splitlines()
    digest = lines[2].split()[1]
    flow = f"/{parts.run[1]}".encode()
    return [
        text.replace(b"\n", b"\r\n"),
        text.replace(b" ", b"  ", 1),
        text.removesuffix(b"\n"),
        text + b"\n",
        b"\xef\xbb\xbf" + text,
        text.upper(),
        text.replace(b"mlp-run 1", b"mlp-run 2"),
        text.replace(b"mlp-run 1", b"mlp-run 01"),
        text.replace(b"mlp-run 1", b"mlp-run 999999999999"),
        text.replace(b"run Flow", b"run ../Flow"),
        text.replace(b"run Flow", b"run Other"),
        text.replace(b"run Flow", "run Fl\uff4fw".encode()),
        text.replace(b"run Flow" + flow, b"run Flow/../../x"),
        text.replace(b"run Flow" + flow, b"run Flow/20260131-094500-123456"),
        b"\n".join([*lines, lines[-1], b""]),
        b"\n".join([*lines[:2], *reversed(lines[2:]), b""]),
        b"\n".join([*lines[:-1], b""]),
        b"\n".join([*lines[:2], *lines[3:], b""]),
        b"\n".join([*lines, b"journal " + digest + b" 0", b""]),
        b"\n".join([*lines[:2], lines[2] + b" name", *lines[3:], b""]),
        b"\n".join([*lines, b"blob " + digest + b" 7", b""]),
        b"\n".join([*lines, b"blob " + digest + b" 9999999999999999", b""]),
        b"\n".join([*lines, b"blob " + digest + b" -5", b""]),
        b"\n".join([*lines, b"blob " + digest + b" 5 name", b""]),
        b"\n".join([*lines, b"blob sha256-../../../../outside 5", b""]),
        b"\n".join([*lines, b"segment " + digest + b" 5 ../../outside", b""]),
        b"\n".join([*lines, b"segment " + digest + b" 5 a..b", b""]),
        b"\n".join([*lines, b"segment " + digest + b" 5", b""]),
        b"\n".join([*lines, b"link " + digest + b" 5", b""]),
        b"\n".join([*lines, *[b"blob sha256-%064x 0" % n for n in range(5000)], b""]),
        b"\0" * len(text),
        draw.randbytes(len(text)),
        b"",
    ]


def attack_manifest(parts: Parts, draw: random.Random) -> bytes:
    """Write a manifest that is none, or not the only one."""
    return attrs.evolve(parts, manifest=draw.choice(bad_manifests(parts, draw))).packed()


def attack_manifest_size(parts: Parts, draw: random.Random) -> bytes:
    """Announce a manifest of another size."""
    size = draw.choice([0, 1, len(parts.manifest) - 1, len(parts.manifest) + 1, 2**26 + 1, 8**11 - 1, 2**60])
    data = parts.packed()
    return member_header("manifest", size) + data[512:]


def bad_journals(lines: list[bytes]) -> list[list[bytes]]:
    """Return records, as JSON, that no driver writes."""
    deep = b"[" * 100_000 + b"]" * 100_000
    first = lines[0]
    return [
        [],
        lines[1:],
        [*lines, lines[-1]],
        [first, first],
        [first.replace(b'"n":0', b'"n":1')],
        [first.replace(b'"Flow"', b'"../x"')],
        [first.replace(b'"Flow"', b'"Other"')],
        [first.replace(b'"data":{', b'"data":{"settings":{"x":' + deep + b"},", 1)],
        [first.replace(b'"data":{', b'"data":' + deep + b',"x":{', 1)],
        [first.replace(b'"time":1.0', b'"time":' + b"9" * 5000)],
        [first.replace(b'"time":1.0', b'"time":"soon"')],
        [first.replace(b'"time":1.0', b'"time":[]')],
        [first.replace(b'"graph":{', b'"graph":[],"x":{', 1)],
        [first.replace(b'"steps":[', b'"steps":[1,', 1)],
        [b"null"],
        [b"[]"],
        [b'{"n":0}'],
        [b'{"n":0,"kind":"RunBegan","data":null}'],
        [b'{"n":0,"kind":["RunBegan"],"data":{}}'],
        [b'{"n":0,"kind":{"RunBegan":1},"data":{}}'],
        [b'{"n":0,"kind":"Unknown","data":{}}'],
        [deep],
        [b"\xff\xfe" * 50],
        [line.replace(b'"size":100,', b'"size":101,') for line in lines],
        [line.replace(b'"size":100,', b'"size":-1,') for line in lines],
        [line.replace(b'"size":100,', b'"size":1e400,') for line in lines],
        [line.replace(b'"digest":"sha256-', b'"digest":"../../sha256-') for line in lines],
        [line.replace(b'"digest":"sha256-', b'"digest":"md5-') for line in lines],
        [line.replace(b'"step":"start"', b'"step":null') for line in lines],
    ]


def bad_segments(parts: Parts) -> list[bytes]:
    """Return segments that nobody writes."""
    began = RunBegan(RunContext(*parts.run), 1.0, "host", 1, GRAPH)
    ended = encode_line(RunEnded("failed"), 0)
    return [b"", b"nonsense\n", encode_line(began, 0), ended, encode_line(RunEnded("failed"), 1), ended * 2]


def records_of(parts: Parts) -> list[bytes]:
    """Return the journal's records as JSON."""
    return [line[9:] for line in dict(parts.members)["journal"].splitlines()]


def attack_records(parts: Parts, draw: random.Random) -> bytes:
    """Write records that no driver writes, with right checksums and a manifest that vouches for them."""
    if draw.randrange(4):
        journal = draw.choice(bad_journals(records_of(parts)))
        return parts.with_journal(lambda _: journal).packed()
    return parts.with_contents(**{"segments/1": draw.choice(bad_segments(parts))}).packed()


def attack_logs(parts: Parts, draw: random.Random) -> bytes:
    """Exchange or leave out a log that a record vouches for, and let the manifest vouch for what is there."""
    name = next(name for name, data in parts.members if name.startswith("segments/") and b"more" in data)
    if draw.randrange(2):
        return parts.with_contents(**{name: draw.choice([b"", b"less\n", draw.randbytes(40)])}).packed()
    lines = [line for line in parts.manifest.splitlines(keepends=True) if b" log.start" not in line]
    members = tuple((other, data) for other, data in parts.members if other != name)
    return attrs.evolve(parts, manifest=b"".join(lines), members=members).packed()


def attack_contents(parts: Parts, draw: random.Random) -> bytes:
    """Exchange a content for another of the same size or of none, for which the manifest does not vouch."""
    place = draw.randrange(len(parts.members))
    name, data = parts.members[place]
    other = draw.choice([bytes(len(data)), draw.randbytes(len(data)), data[::-1], b"", data + b"\0"])
    if other == data:
        other = data[:-1] + bytes([data[-1] ^ 1])
    members = (*parts.members[:place], (name, other), *parts.members[place + 1 :])
    return attrs.evolve(parts, members=members).packed()


def attack_other_formats(parts: Parts, draw: random.Random) -> bytes:
    """Use another format, or a tar as other tools write it."""
    data = parts.packed()
    buffer = io.BytesIO()
    kind = draw.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in (("manifest", parts.manifest), *parts.members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = {"path": "../../outside/x", "size": "5", "GNU.sparse.major": "1"}
            tar.addfile(info, io.BytesIO(content))
    compressed = [BOMB, gzip.compress(data), bz2.compress(data)]
    others = [b"\x28\xb5\x2f\xfd" + data, b"PK\x03\x04" + data, draw.randbytes(draw.randrange(20_000))]
    nothing = [b"", b"\0" * 512, b"\0" * 10_240, data[:512], b"manifest"]
    return draw.choice([buffer.getvalue(), *compressed, *others, *nothing])


BOMB: Final = gzip.compress(bytes(50_000_000), 9)

ATTACKS: Final = (
    attack_header,
    attack_bits,
    attack_padding,
    attack_length,
    attack_order,
    attack_manifest,
    attack_manifest_size,
    attack_records,
    attack_logs,
    attack_contents,
    attack_other_formats,
)


@pytest.fixture
def parts(store: Store, tmp_path: Path) -> Parts:
    """An archive that is intact, taken apart."""
    run = add_run(store, 100.0, b"a" * 100, b"b" * 3000)
    export_run(store, *run, tmp_path / "intact.mlprun")
    taken = Parts.of(tmp_path / "intact.mlprun")
    assert taken.packed() == (tmp_path / "intact.mlprun").read_bytes()
    return taken


def test_hostile_archives_change_nothing(parts: Parts, tmp_path: Path) -> None:
    """Whatever is done to an archive, it is refused with one message; neither the store nor anything else changes."""
    place = tmp_path / "inner/deep"
    place.mkdir(parents=True)
    target = Store.open(FileStore(place / "store"), create=True)
    add_run(target, 500.0, b"kept" * 100)
    (tmp_path / "outside").mkdir()
    before = tree(tmp_path)
    draw = random.Random(20261124)  # noqa: S311 # a test's choice
    seen = set()
    path = tmp_path / "x.mlprun"
    for attack in itertools.islice(itertools.cycle(ATTACKS), HOSTILE):
        path.write_bytes(attack(parts, draw))
        with pytest.raises(UsageError, match=r"x.mlprun") as caught:
            import_file(path, target)
        seen.add((attack.__name__, caught.value.message.partition(": ")[2]))
        path.unlink()
        assert list(target.objects.staging().iterdir()) == []
    target.close()
    assert tree(tmp_path) == before
    assert len(seen) > 60, "too few ways to tamper were tried"


def test_every_listed_attack_is_refused(parts: Parts, tmp_path: Path) -> None:
    """Each header, manifest, journal and segment of the lists is refused, not only those that chance picks."""
    target = Store.open(FileStore(tmp_path / "target"), create=True)
    draw = random.Random(7)  # noqa: S311 # a test's choice
    attacks = [parts.packed(header=tampered_header(**fields)) for fields in bad_headers()]
    attacks += [attrs.evolve(parts, manifest=text).packed() for text in bad_manifests(parts, draw)]
    for journal in bad_journals(records_of(parts)):
        assert journal != records_of(parts), "an attack that changes nothing"
        attacks.append(parts.with_journal(lambda _, journal=journal: journal).packed())  # type: ignore[misc] # mypy infers no default's type
    attacks += [parts.with_contents(**{"segments/1": segment}).packed() for segment in bad_segments(parts)]
    before = tree(tmp_path / "target")
    for attack in attacks:
        (tmp_path / "x.mlprun").write_bytes(attack)
        with pytest.raises(UsageError, match=r"x.mlprun is refused"):
            import_file(tmp_path / "x.mlprun", target)
    assert tree(tmp_path / "target") == before
    target.close()


def test_a_blob_that_grows_while_it_is_packed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the size that was announced is read of a blob, and the archive is not made."""
    run = add_run(store, 100.0, b"a" * 100)
    path = store.objects.local_path(layout.blob(sha256(b"a" * 100)))
    assert path is not None
    info = store.objects.info

    def growing(key: str) -> Any:
        found = info(key)
        if key.startswith(layout.BLOBS):
            path.write_bytes(b"a" * 101)
        return found

    monkeypatch.setattr(store.objects, "info", growing)
    with pytest.raises(StoreDamaged):
        export_run(store, *run, tmp_path / "a.mlprun")


def test_what_is_not_tampered_with_is_taken(parts: Parts, store: Store, tmp_path: Path) -> None:
    """The tools of the attacks make archives that are taken in where they change nothing, so that they can fail."""
    run = parts.run
    target = Store.open(FileStore(tmp_path / "target"), create=True)
    path = tmp_path / "x.mlprun"
    path.write_bytes(parts.with_journal(lambda lines: lines).packed(header=tampered_header()))
    assert import_file(path, target).was == "absent"
    assert values(target, run) == values(store, run)
    target.close()


def test_archives_of_other_versions_say_so(parts: Parts, tmp_path: Path) -> None:
    """A later format is refused as such; a later kind of record is passed over."""
    path = tmp_path / "x.mlprun"
    path.write_bytes(attrs.evolve(parts, manifest=parts.manifest.replace(b"mlp-run 1", b"mlp-run 3")).packed())
    with pytest.raises(UsageError, match=r"has format 3.*\n.*upgrade"):
        Archive(path)
    later = [b'{"n":%d,"kind":"LaterKind","data":{"x":1}}']
    path.write_bytes(parts.with_journal(lambda lines: [*lines, later[0] % len(lines)]).packed())
    with Archive(path) as archive:
        assert archive.copied.has_ended


def test_limits_bound_what_is_read(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records, members and manifests beyond the limits are refused before they are taken apart."""
    path = tmp_path / "x.mlprun"
    path.write_bytes(parts.packed())
    for name, limit in (("MAX_LINE", 100), ("MAX_JOURNAL", 100), ("MAX_MANIFEST", 100), ("MAX_MEMBERS", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(form, name, limit)
            with pytest.raises(UsageError, match=r"x.mlprun is refused"):
                Archive(path)
    members = [Member("journal", sha256(b""), form.MAX_JOURNAL + 1), Member("logs", sha256(b""), 0)]
    with pytest.raises(UsageError, match="too large"):
        Manifest.of("Flow", "20260131-094500-123456", members)


# ---------------------------------------------------------------------------------------------- what fails, and kills

CHILD = """
import sys
from pathlib import Path
from mlp_core.builtin.file_store import FileStore
from mlp_core.store import Store
from mlp_core.upkeep.archive import Archive

store = Store.open(FileStore(Path(sys.argv[2])), create=True)
with Archive(Path(sys.argv[1])) as archive:
    print("opened", flush=True)
    archive.import_into(store, lambda read: print(read, flush=True))
"""


def test_killed_at_any_time_a_run_is_there_whole_or_not(store: Store, tmp_path: Path) -> None:
    """Whenever an unpacking is killed, the run is to be seen only if it is complete, and another try completes it."""
    draw = random.Random(3)  # noqa: S311 # a test's choice
    run = add_run(store, 100.0, *(draw.randbytes(300_000) for _ in range(20)))
    export_run(store, *run, tmp_path / "a.mlprun")
    seen = set()
    for attempt in range(6):
        place = tmp_path / f"target{attempt}"
        command = [sys.executable, "-c", CHILD, str(tmp_path / "a.mlprun"), str(place)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            # Two logs and 20 blobs are unpacked, each with a line; then all is put in.
            for _ in range((1, 10, 23, 23, 23, 24)[attempt]):
                child.stdout.readline()
            time.sleep(draw.random() * 0.02)
            child.send_signal(signal.SIGKILL)
        target = Store.open(FileStore(place), create=False)
        there = [(each.flow, each.run_id) for each in target.runs()]
        seen.add((len(there), len(list(target.objects.list(layout.BLOBS)))))
        for each in there:
            assert values(target, each) == values(store, run)
        assert import_file(tmp_path / "a.mlprun", target).run == "/".join(run)
        assert values(target, run) == values(store, run)
        target.close()
    assert {(0, 0), (1, 20)} <= seen, "the unpacking was always killed at the same place"


def test_a_store_that_fails_keeps_the_run_out(
    store: Store, other: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure while blobs, segments, logs or the journal are put in is told, and the next try completes the run."""
    run = add_run(store, 100.0, b"a" * 100, b"b" * 3000)
    export_run(store, *run, tmp_path / "a.mlprun")
    for name in ("adopt", "sync", "create", "staging"):
        with monkeypatch.context() as patch:
            patch.setattr(other.objects, name, _failing(name))
            with pytest.raises(StoreError, match=f"{name} fails"):
                import_file(tmp_path / "a.mlprun", other)
        assert list(other.runs()) == []
        assert list(other.objects.staging().iterdir()) == []
    import_file(tmp_path / "a.mlprun", other)
    assert values(other, run) == values(store, run)


def _failing(name: str) -> Callable[..., Any]:
    """Return a method that fails."""

    def fail(*_: object, **__: object) -> None:
        raise StoreError(f"{name} fails")

    return fail


def test_a_file_that_changes_while_it_is_read(parts: Parts, store: Store, tmp_path: Path) -> None:
    """What was checked when a file was opened is checked again against what is written."""
    path = tmp_path / "x.mlprun"
    data = parts.packed()
    for changed in (data[:-2000] + b"?" + data[-1999:], data[:-2000], data[:5000], data[:-1024], data + b"?"):
        path.write_bytes(data)
        with Archive(path) as archive:
            path.write_bytes(changed)
            with pytest.raises(UsageError, match="is refused"):
                archive.import_into(store)


def test_writing_fails_like_any_file(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is told with the file's name, and leaves no file."""
    run = add_run(store, 100.0, b"a" * 100)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlp_core.upkeep.archive.os.fsync", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(MlpError, match=r"a.mlprun cannot be written: No space left"):
        export_run(store, *run, tmp_path / "out/a.mlprun")
    assert list((tmp_path / "out").iterdir()) == []
