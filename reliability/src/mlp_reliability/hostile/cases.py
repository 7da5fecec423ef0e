"""The kinds of cases: what is hostile in each, through which entry points it is tried, and what may not come of it."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import TYPE_CHECKING, Any, Final

from mlp_reliability.hostile import pickles
from mlp_reliability.hostile.ground import command
from mlp_reliability.hostile.records import changed, with_texts
from mlp_reliability.hostile.texts import chance, text
from mlp_reliability.hostile.watch import control_characters

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from mlp_reliability.hostile.ground import Ground, Said
    from mlp_reliability.hostile.watch import Watch


class Case:
    """One try.

    Parameters
    ----------
    ground : Ground
        The folders.
    watch : Watch
        What watches the process.
    rng : random.Random
        What all choices are drawn from.

    Attributes
    ----------
    violations : list of str
        What was found.
    what : str
        What is being tried.
    """

    def __init__(self, ground: Ground, watch: Watch, rng: random.Random) -> None:
        """Begin."""
        self.ground = ground
        self.watch = watch
        self.rng = rng
        self.violations: list[str] = []
        self.what = ""

    def text(self) -> str:
        """Return a hostile text."""
        return text(self.rng, self.ground.canary)

    def command(self, *words: str, loads: bool = False, is_terminal: bool | None = None) -> Said:
        """Carry out a command, and judge what it did and said."""
        self.what = f"mlp {' '.join(map(ascii, words))[:300]}"
        shown = chance(self.rng, 0.3) if is_terminal is None else is_terminal
        said = command(self.watch, words, is_terminal=shown)
        self.judge(loads=loads)
        if said.status not in (0, 1, 2):
            self.violations.append(f"{self.what} ended with {said.status!r}: {said.err[-300:]!a}")
        for phrase in ("Traceback (most recent call last)", "internal error"):
            if phrase in said.err:
                self.violations.append(f"{self.what} says {phrase}: {said.err[-400:]!a}")
        is_raw = words[0] == "logs" and not shown
        odd = control_characters(said.err + ("" if is_raw else said.out))
        colours = words[0] == "logs"
        if odd and not (colours and odd == ["\x1b"]):
            self.violations.append(f"{self.what} prints {odd!a}")
        return said

    def judge(self, *, loads: bool = False) -> None:
        """Take in what the process did."""
        self.violations += [f"{self.what} {found}" for found in self.watch.found]
        if self.watch.unpickled and not loads:
            self.violations.append(f"{self.what} unpickles {self.watch.unpickled[:3]}")
        for path in self.ground.canary.iterdir():
            if path.name != "secret":
                self.violations.append(f"{self.what} has made {path.name}")
                path.unlink() if path.is_file() else path.rmdir()


def try_names(case: Case) -> None:
    """Give hostile names wherever a name is taken."""
    t, run = case.text, case.ground.runs()[0].name
    paths = (
        t(),
        f"Flow/{t()}",
        f"Flow/{run}/{t()}",
        f"Flow/{run}/start/{t()}",
        f"Flow/{run}/start/0/{t()}",
        f"{t()}/{t()}",
    )
    path = case.rng.choice(paths)
    commands: tuple[Sequence[str], ...] = (
        ("list", t()),
        ("list", "--tag", t()),
        ("list", "--namespace", t()),
        ("list", "--status", t()),
        ("list", "--since", t()),
        ("list", "--limit", t()),
        ("list", "--store", t()),
        ("show", path),
        ("show", path, "--json"),
        ("show", t(), "--flow", t()),
        ("logs", path),
        ("logs", path, "--attempt", t()),
        ("artifacts", path),
        ("tag", path, "--add", t()),
        ("tag", f"Flow/{run}", "--add", t()),
        ("tag", f"Flow/{run}", "--remove", t()),
        ("deployments", "show", t()),
        ("deployments", "list", "--target", t()),
        ("deployments", "delete", t()),
        ("deployments", "rollback", t(), "--version", t()),
        ("deployments", t()),
        ("resume", "flow.py", "--origin-run-id", t(), "--launcher", "nobody"),
        ("resume", "flow.py", t(), "--launcher", "nobody"),
        ("run", "flow.py", "--flow", t()),
        ("run", t()),
        ("check", t()),
        ("check", "flow.py", "--with", t()),
        ("deploy", "flow.py", "--target", t()),
        ("export", path, str(case.ground.play / "made")),
        ("import", t()),
        ("sync", t(), t()),
        ("sync", str(case.ground.store), str(case.ground.play / "other"), t()),
        ("fsck", "--store", t()),
        ("plugins", t()),
        (t(),),
        (t(), t()),
        ("show", t(), t()),
    )
    words = case.rng.choice(commands)
    case.command(*words)
    (case.ground.play / "made").unlink(missing_ok=True)


def try_refused_runs(case: Case) -> None:
    """Give hostile values to a run that is refused for another reason anyway, so that none begins."""
    t = case.text
    options = (
        ("--tag", t()),
        ("--namespace", t()),
        ("--param", f"word={t()}"),
        ("--param", t()),
        ("--alpha", t()),
        (f"--{t()}", t()),
        (f"--word={t()}",),
        ("--run-id-file", t()),
        ("--launcher", t()),
        ("--with", t()),
        ("--max-workers", t()),
        ("--username", t()),
        ("--plugins-provider", t()),
        ("--formats-prefer", t()),
        ("--storage-pickle", t()),
        ("--storage-signing-key", t()),
        ("--storage-options", t()),
        ("--package-include", t()),
    )
    chosen = [word for option in case.rng.sample(options, 2) for word in option]
    # An option that nobody knows ends it before the flow begins.
    case.command(case.rng.choice(("run", "check", "deploy")), "flow.py", *chosen, "--no-such-option")


def try_clients(case: Case) -> None:
    """Give hostile names to the client, and ask its objects for everything but values."""
    from mlp_core.client import client_for
    from mlp_core.errors import MlpError
    from mlp_core.session import Session

    t, run = case.text, case.ground.runs()[0].name
    client = client_for(Session.open(start=case.ground.project))
    client.namespace = case.rng.choice((None, t()))
    kind = case.rng.choice(("Flow", "Run", "Step", "Task", "DataArtifact"))
    spec = case.rng.choice(
        (t(), f"Flow/{t()}", f"Flow/{run}/{t()}", f"Flow/{run}/start/{t()}", f"Flow/{run}/end/0/{t()}")
    )
    case.what = f"{kind}({spec!a})"
    with case.watch.on():
        try:
            found = getattr(client, kind)(spec)
            repr(found)
            list(found) if kind not in ("Task", "DataArtifact") else found.pathspec
        except MlpError as error:
            if control_characters(str(error).replace("\n  hint: ", "")):
                case.violations.append(f"{case.what} raises {str(error)!a}")
    case.judge()


def _look(case: Case, run: str) -> None:
    """Look at a run in every way that loads nothing."""
    readers: tuple[Sequence[str], ...] = (
        ("list",),
        ("list", "--json"),
        ("list", "Flow", "--tag", case.text()),
        ("show", f"Flow/{run}"),
        ("show", f"Flow/{run}", "--json"),
        ("show", f"Flow/{run}/each"),
        ("show", f"Flow/{run}/start/0"),
        ("show", f"Flow/{run}/end/0", "--json"),
        ("logs", f"Flow/{run}"),
        ("logs", f"Flow/{run}/start/0", "--json"),
        ("artifacts", f"Flow/{run}"),
        ("artifacts", f"Flow/{run}/each", "--json"),
        ("tag", f"Flow/{run}"),
        ("fsck",),
        ("fsck", "--json"),
        ("export", f"Flow/{run}", str(case.ground.play / "made")),
        ("sync", str(case.ground.store), str(case.ground.play / "other")),
    )
    for words in case.rng.sample(readers, 3):
        case.command(*words)
    (case.ground.play / "made").unlink(missing_ok=True)
    _client_walk(case, run)


def _client_walk(case: Case, run: str) -> None:
    """Walk through a run by the client, without loading a value."""
    from mlp_core.client import client_for
    from mlp_core.errors import MlpError
    from mlp_core.session import Session

    case.what = f"the client on Flow/{run}"
    client = client_for(Session.open(start=case.ground.project))
    client.namespace = None
    with case.watch.on():
        try:
            found = client.Run(f"Flow/{run}")
            for thing in (found, found.tags, found.created_at, found.finished_at, found.successful, found.code):
                repr(thing)
            for step in found:
                for task in step:
                    for thing in (task, task.metadata, task.artifacts, task.data, task.finished_at, task.stdout):
                        repr(thing)
                    for artifact in task:
                        for thing in (artifact, artifact.sha, artifact.finished_at):
                            repr(thing)
        except MlpError:
            pass
    case.judge()


def try_journals(case: Case) -> None:
    """Change a run's journal, or one of its segments, and look at the run."""
    run = case.rng.choice(case.ground.runs())
    names = [path for path in run.rglob("*") if path.is_file() and path.name != "lock"]
    path = run / "journal" if chance(case.rng, 0.7) else case.rng.choice(names)
    before = path.read_bytes()
    segment = run / "segments" / "tags.0"
    try:
        path.write_bytes(changed(before, case.rng, case.ground.canary) if before else b"x")
        if chance(case.rng, 0.1):
            segment.parent.mkdir(exist_ok=True)
            segment.write_bytes(changed((run / "journal").read_bytes() or b"\n", case.rng, case.ground.canary))
        _look(case, run.name)
    finally:
        segment.unlink(missing_ok=True)
        path.write_bytes(before)


def try_texts(case: Case) -> None:
    """Put hostile texts wherever a run may have any text, and look at the run."""
    run = case.rng.choice(case.ground.runs())
    path = run / "journal"
    before = path.read_bytes()
    try:
        path.write_bytes(with_texts(before, case.rng, case.ground.canary))
        _look(case, run.name)
    finally:
        path.write_bytes(before)


def try_deployments(case: Case) -> None:
    """Change what is stored of deployments, and look at them."""
    found = [path for path in (case.ground.store / "deployments").rglob("*") if path.is_file()]
    path = case.rng.choice(found)
    before = path.read_bytes()
    try:
        path.write_bytes(changed(before, case.rng, case.ground.canary))
        for words in (("deployments", "list"), ("deployments", "show", "Flow"), ("fsck",)):
            case.command(*words)
    finally:
        path.write_bytes(before)


def try_pickles(case: Case) -> None:
    """Put a pickle that would leave a trace into a run, look at the run, and load it where that is refused."""
    run = case.rng.choice(case.ground.runs())
    path = run / "journal"
    before = path.read_bytes()
    stream = pickles.stream(case.rng, case.ground.canary)
    try:
        place = pickles.plant(path, stream, case.rng)
        _look(case, run.name)
        mode = case.rng.choice(("refuse", "listed"))
        words = ["artifacts", f"Flow/{run.name}/{place}", "--storage-pickle", mode]
        if mode == "listed":
            words += [
                "--storage-pickle-allowed",
                case.rng.choice(("os", "builtins", "datetime", "numpy.linalg,mlp_core", "x.y")),
            ]
        case.command(*words, loads=True)
        case.command("resume", "flow.py", "--origin-run-id", run.name, "--launcher", "none")
    finally:
        path.write_bytes(before)


def try_logs(case: Case) -> None:
    """Change what is stored of a run's output."""
    run = case.rng.choice(case.ground.runs())
    path = run / "logs"
    before = path.read_bytes()
    content = bytearray(before)
    for _ in range(case.rng.randrange(1, 20)):
        content[case.rng.randrange(len(content))] = case.rng.randrange(256)
    try:
        path.write_bytes(content * case.rng.choice((1, 1, 3)))
        case.command("logs", f"Flow/{run.name}")
        case.command("logs", f"Flow/{run.name}", "--json")
        case.command("fsck")
    finally:
        path.write_bytes(before)


def try_packages(case: Case) -> None:
    """Unpack archives with hostile members, as code packages and as runs."""
    from mlp_core.errors import MlpError
    from mlp_core.unpack import unpack

    rng = case.rng
    if chance(rng, 0.5):
        content = _archive(case)
        folder = case.ground.play / "unpacked"
        _remove(folder)
        folder.mkdir()
        case.what = "a code package"
        with case.watch.on(), contextlib.suppress(MlpError):
            unpack(content, folder)
        case.judge()
        _remove(folder)
        return
    packed = bytearray((case.ground.play / "archive").read_bytes())
    way = rng.random()
    if way < 0.4:  # noqa: PLR2004 # as likely
        packed = bytearray(_archive(case))
    elif way < 0.8:  # noqa: PLR2004 # as above
        for _ in range(rng.randrange(1, 9)):
            packed[rng.randrange(len(packed))] = rng.randrange(256)
    else:
        del packed[rng.randrange(len(packed)) :]
    path = case.ground.play / "hostile"
    path.write_bytes(packed)
    case.command("import", str(path), "--store", str(case.ground.play / "imported"))
    _remove(case.ground.play / "imported")


def _remove(folder: Any) -> None:
    """Remove a folder."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _archive(case: Case) -> bytes:
    """Return a tar archive with a few odd members."""
    rng = case.rng
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for _ in range(rng.randrange(1, 5)):
            name = rng.choice(("flow.py", "a/b.py", case.text(), case.text(), f"a/{case.text()}"))
            entry = tarfile.TarInfo(name.encode(errors="replace").decode())
            entry.type = rng.choice(
                (tarfile.REGTYPE,) * 4 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
            )
            entry.linkname = rng.choice(("flow.py", "/etc/hostname", str(case.ground.canary), "../../canary/secret"))
            entry.mode = rng.choice((0o644, 0o4777, 0))
            data = b"x" * rng.choice((0, 1, 5000))
            entry.size = len(data) if entry.isreg() else 0
            try:
                archive.addfile(entry, io.BytesIO(data))
            except (ValueError, UnicodeError):
                continue
    content = bytearray(buffer.getvalue())
    for _ in range(rng.choice((0, 0, 1, 3, 10))):
        content[rng.randrange(min(len(content), 3000))] = rng.randrange(256)
    if chance(rng, 0.3):
        _repair_sums(content, rng)
    return bytes(content)


def _repair_sums(content: bytearray, rng: random.Random) -> None:
    """Change the size or the type in a header, and set its checksum right."""
    for start in range(0, len(content) - 512, 512):
        header = content[start : start + 512]
        if header[257:262] != b"ustar":
            continue
        if chance(rng, 0.5):
            header[124:136] = rng.choice(
                (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1\0\0\0\0\0\0\0\0\0\0")
            )
        else:
            header[156] = rng.choice(b"01234567LKxgSV\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content[start : start + 512] = header


KINDS: Final[Mapping[str, tuple[int, Callable[[Case], None]]]] = {
    "names": (25, try_names),
    "parameters": (10, try_refused_runs),
    "client": (8, try_clients),
    "journals": (25, try_journals),
    "texts": (10, try_texts),
    "deployments": (5, try_deployments),
    "pickles": (10, try_pickles),
    "logs": (2, try_logs),
    "archives": (10, try_packages),
}
"""The kinds of cases, with how often each is tried."""
