"""A reader who has the key loads only what was signed with it: nothing of a run that somebody else wrote or changed."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.client import client_for
from mlp_core.errors import SettingError, StoreUntrusted
from mlp_core.session import Session
from mlp_core.store.records import decode_line

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Project, Ran

KEYS = {"KEY": "a key of the team, 32 bytes long", "OTHER": "a key of somebody else's, as long"}

FLOW = """
from datetime import date

class Flow(FlowSpec):
    @step
    def start(self):
        self.pickled = date(2026, 1, 31)
        self.plain = 3
        self.next(self.middle)

    @step
    def middle(self):
        self.seen = self.pickled
        self.next(self.end)

    @step
    def end(self):
        if MODE == "fails":
            raise RuntimeError("once")
"""


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys, in the environment."""
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


def run(project: Project, key: str | None, mode: str = "works") -> Ran:
    """Run the flow with a key or without."""
    flags = {"storage.signing_key": f"env:{key}"} if key else {}
    return project.run(f"MODE = {mode!r}\n" + FLOW, flags=flags)


def read(project: Project, ran: Ran, name: str = "pickled", key: str | None = "KEY") -> Any:
    """Read an artifact with a key or without."""
    flags = {"storage.signing_key": f"env:{key}"} if key else {}
    session = Session.open(start=project.root, flags={"plugins.safe": True, **flags})
    client = client_for(session)
    client.namespace = None
    return getattr(client.Run(f"Flow/{ran.run_id}").data, name)


def journal(project: Project, run_id: str) -> Path:
    """Return a run's journal."""
    return project.root / ".mlp/flows/Flow" / run_id / "journal"


def test_signed_runs_are_read(new_project: Project) -> None:
    """Who has the key reads everything, and so does who asks for none."""
    ran = run(new_project, "KEY")
    assert ran.status == "succeeded"
    for key in ("KEY", None):
        assert str(read(new_project, ran, key=key)) == "2026-01-31"
        assert read(new_project, ran, "plain", key=key) == 3


@pytest.mark.parametrize("key", [None, "OTHER"])
def test_runs_of_others_are_not_unpickled(new_project: Project, key: str | None) -> None:
    """A run without a signature, or with another key's, shows what it says, and its plain values, but no pickle."""
    ran = run(new_project, key)
    with pytest.raises(StoreUntrusted, match=r"Flow/.* is not signed with the key of storage\.signing_key"):
        read(new_project, ran)
    assert read(new_project, ran, "plain") == 3
    session = new_project.session(storage_signing_key="env:KEY")
    assert session.open_store(create=False).run("Flow", ran.run_id).status == "succeeded"


def test_what_was_signed_for_another_place_is_not_trusted(new_project: Project) -> None:
    """A record that was taken from another run, changed, or moved makes its run untrusted; a tag does not."""
    first, second = run(new_project, "KEY"), run(new_project, "KEY")
    session = new_project.session(storage_signing_key="env:KEY")
    client = client_for(session)
    client.namespace = None
    client.Run(f"Flow/{first.run_id}").add_tag("nice")
    plain = client_for(new_project.session())
    plain.namespace = None
    plain.Run(f"Flow/{first.run_id}").add_tag("unsigned")
    assert str(read(new_project, first)) == "2026-01-31"

    path = journal(new_project, first.run_id)
    mine, others = path.read_bytes().splitlines(), journal(new_project, second.run_id).read_bytes().splitlines()
    at = next(n for n, line in enumerate(mine) if b'"AttemptFinished"' in line)
    bare = mine[at][9:].partition(b',"mac":')[0] + b"}"
    for text in (others[at][9:], mine[at][9:].replace(b'"plain"', b'"plainer"'), bare):
        line = b"%08x %s" % (zlib.crc32(text), text)
        assert decode_line(line) is not None
        path.write_bytes(b"\n".join([*mine[:at], line, *mine[at + 1 :], b""]))
        with pytest.raises(StoreUntrusted):
            read(new_project, first)
    path.write_bytes(b"\n".join([*mine, b""]))
    assert str(read(new_project, first)) == "2026-01-31"


def test_runs_of_others_are_not_resumed(new_project: Project) -> None:
    """To resume is to load: a run is resumed only where it is signed."""
    unsigned, signed = run(new_project, None, "fails"), run(new_project, "KEY", "fails")
    assert (unsigned.status, signed.status) == ("failed", "failed")
    code = "MODE = 'works'\n" + FLOW
    flags = {"storage.signing_key": "env:KEY"}
    session = new_project.session(storage_signing_key="env:KEY")
    store = session.open_store(create=False)
    with pytest.raises(StoreUntrusted):
        new_project.run(code, flags=flags, origin=store.run("Flow", unsigned.run_id))
    resumed = new_project.run(code, flags=flags, origin=store.run("Flow", signed.run_id))
    assert resumed.status == "succeeded"
    assert str(read(new_project, resumed)) == "2026-01-31"


def test_a_deployed_version_is_run_only_where_it_is_signed(new_project: Project) -> None:
    """What a version's record says is run as code: with a key, only if that key signed it."""
    new_project.write(FLOW.replace("MODE", '"works"'), "flow.py")
    signed = {"MLP_STORAGE_SIGNING_KEY": "env:KEY", **KEYS}
    deployed = new_project.command("-m", "mlp_core.cli", "deploy", "flow.py", **signed)
    assert deployed.returncode == 0, deployed.stderr
    assert new_project.command("-m", "mlp_core.cli", "deployments", "run", "Flow", **signed).returncode == 0
    new_project.command("-m", "mlp_core.cli", "deploy", "flow.py")
    refused = new_project.command("-m", "mlp_core.cli", "deployments", "run", "Flow", **signed)
    assert refused.returncode == 1
    assert "version 2 of Flow" in refused.stderr
    assert "is not signed" in refused.stderr
    assert (
        new_project.command("-m", "mlp_core.cli", "deployments", "run", "Flow", "--version", "1", **signed).returncode
        == 0
    )


def test_the_key_is_nowhere(new_project: Project) -> None:
    """Neither the store nor what the settings say of themselves has the key; only where it is."""
    ran = run(new_project, "KEY")
    files = [path for path in new_project.root.rglob("*") if path.is_file()]
    assert not [path for path in files if KEYS["KEY"].encode() in path.read_bytes()]
    assert ran.state.began.settings["storage.signing_key"] == "env:KEY"
    assert json.dumps(new_project.session(storage_signing_key="env:KEY").settings.portable()).count("env:KEY") == 1


def test_a_missing_key_is_told_before_anything_happens(new_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the key that the setting names nothing is run or read: it never means that none is needed."""
    monkeypatch.delenv("KEY")
    with pytest.raises(SettingError, match="the variable KEY that it names is not set"):
        run(new_project, "KEY")
    assert not (new_project.root / ".mlp").exists()


def test_an_orchestrated_run_goes_on_only_where_it_is_signed(new_project: Project) -> None:
    """Each step of an orchestrator reads what the others have stored: it does so only from signed records."""
    new_project.write(FLOW.replace("MODE", '"works"'), "flow.py")
    signed = {"MLP_STORAGE_SIGNING_KEY": "env:KEY", **KEYS}
    assert new_project.command("-m", "mlp_core.cli", "deploy", "flow.py", **signed).returncode == 0
    store = new_project.root / ".mlp"
    (blueprint,) = (store / "blueprints").iterdir()
    place = ("-P", "-m", "mlp_core.orchestrated")

    def step(run_id: str, name: str) -> Any:
        words = ("--store", str(store), "--flow", "Flow", "--run-id", run_id, "--step", name, "--task-id", "0")
        return new_project.command(*place, "step", *words, **signed)

    def begin(**variables: str) -> str:
        words = ("--store", str(store), "--blueprint", blueprint.name)
        return str(json.loads(new_project.command(*place, "begin", *words, **variables).stdout)["run_id"])

    run_id = begin(**signed)
    for name in ("start", "middle", "end"):
        done = step(run_id, name)
        assert done.returncode == 0, done.stderr
    refused = step(begin(), "start")
    assert refused.returncode == 1
    assert "is not signed" in refused.stderr
    changed = begin(**signed)
    assert step(changed, "start").returncode == 0
    segment = store / "flows/Flow" / changed / "segments/task.start.0"
    text = segment.read_bytes()[9:].partition(b',"mac":')[0] + b"}"
    segment.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    refused = step(changed, "middle")
    assert refused.returncode == 1
    assert "is not signed" in refused.stderr
