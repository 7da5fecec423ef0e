"""Secrets stay where they are used: no store, log, command line or file has their values, in whatever form."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import psutil
import pytest

if TYPE_CHECKING:
    from conftest import Project

PASSWORD = 'canary-7f3a/"quoted"+pass&word'  # noqa: S105 # invented here
TOKEN = "canary-setting-91c2d8e4f0"  # noqa: S105 # as above

VAULT = """
import os
from mlp_hookspecs import *
from mlp_hookspecs import hookimpl

@hookimpl
def mlp_backends():
    return (Backend("secret", "vault", "A vault for tests."),)

@hookimpl
def mlp_settings():
    return (Setting("vault.token", "str", None, "A token.", secret=True),)

@hookimpl
def mlp_plan_step(step, options):
    return StepPlan(secrets=("vault://db",))

@hookimpl
def mlp_fetch_secret(reference):
    with open(os.environ["VAULT_FILE"]) as file:
        return {"DB_PASSWORD": file.read()}

class Profile:
    def __init__(self, step):
        self.step = step

    def __enter__(self):
        pass

    def __exit__(self, *exception):
        self.step.attach("report", "environment", repr(dict(os.environ)).encode())

@hookimpl
def mlp_event(event, settings):
    raise ValueError("the webhook refused " + settings["vault.token"])

@hookimpl
def mlp_wrap_step(step):
    return Wrap(0, "profile", Profile(step))
"""

FLOW = """
import base64, json, logging, os, subprocess, sys, time
from urllib.parse import quote
from mlp_core import FlowSpec, catch, step


class Flow(FlowSpec):
    @step
    def start(self):
        password, token = os.environ["DB_PASSWORD"], os.environ["MLP_VAULT_TOKEN"]
        self.length = len(password)
        for secret in (password, token):
            print("plain", secret)
            print("json", json.dumps({"secret": secret}), file=sys.stderr)
            print("url", quote(secret, safe=""))
            print("base64", base64.b64encode(f"user:{secret}".encode()).decode())
            print("repr", repr(secret))
            for place in range(1, len(secret)):
                os.write(1, secret[:place].encode())
                os.write(2, b"between\\n")
                os.write(1, secret[place:].encode() + b"\\n")
        logging.warning("connecting with %s", password)
        subprocess.run(["printenv", "DB_PASSWORD", "MLP_VAULT_TOKEN"], check=True)
        print("visible")
        self.next(self.guarded)

    @catch(var="failure")
    @step
    def guarded(self):
        error = RuntimeError("no connection to db:" + os.environ["DB_PASSWORD"])
        error.request = {"headers": os.environ["DB_PASSWORD"] * 1000}
        raise error
        self.next(self.end)

    @step
    def end(self):
        print("caught", self.failure)
        sys.stdout.write(os.environ["DB_PASSWORD"][:9])
        sys.stdout.flush()
        time.sleep(0.3)
        raise ValueError({"password": os.environ["DB_PASSWORD"], "token": os.environ["MLP_VAULT_TOKEN"]})


if __name__ == "__main__":
    Flow()
"""


def forms(secret: str) -> list[bytes]:
    """Return what may not be found anywhere."""
    around = (base64.b64encode(b"\0" * n + secret.encode())[4:-4] for n in range(3))
    texts = (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""), quote(secret))
    return [text.encode() for text in texts] + list(around)


FORMS = [*forms(PASSWORD), *forms(TOKEN)]


def found_in(folder: Path) -> list[str]:
    """Return the files below a folder that have a secret, in their names or content."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if any(form in path.read_bytes() + str(path).encode() for form in FORMS)]


class Watch:
    """Looks at the command lines of all processes while something runs."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.leaks: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.005):
            for pid in psutil.pids():
                try:
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                self.seen.add(line.replace(b"\0", b" ").decode(errors="replace"))
        self.leaks = [line for line in self.seen if any(form in line.encode() for form in FORMS)]


@pytest.fixture
def vault(new_project: Project, tmp_path: Path) -> dict[str, str]:
    """The variables with which a command finds a plugin that has a secret, whose value is in no folder of a run."""
    site = tmp_path / "site"
    info = site / "mlp_plugin_vault-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "throwaway_vault.py").write_text(textwrap.dedent(VAULT))
    (info / "entry_points.txt").write_text("[mlp]\nvault = throwaway_vault\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlp-plugin-vault\nVersion: 1.0\n")
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault" / "file").write_text(PASSWORD)
    (new_project.root / "flow.py").write_text(FLOW)
    (new_project.root / ".env").write_text(f"DB_PASSWORD={PASSWORD}\n")
    return {
        "PYTHONPATH": str(site),
        "MLP_NO_PLUGINS": "0",
        "MLP_PLUGINS_ALLOW": "vault",
        "MLP_VAULT_TOKEN": TOKEN,
        "VAULT_FILE": str(tmp_path / "vault" / "file"),
    }


@pytest.mark.parametrize("isolation", ["fork", "spawn", "inline"])
def test_no_trace_of_a_secret(new_project: Project, tmp_path: Path, vault: dict[str, str], isolation: str) -> None:
    """A run that prints, raises and attaches its secrets leaves no trace of them."""
    with Watch() as watch:
        ran = new_project.command("-m", "mlp_core.cli", "run", "flow.py", f"--isolation={isolation}", **vault)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 1, said
    assert "visible" in said
    assert "ValueError: {'password': '********', 'token': '********'}" in said
    assert "caught" in said
    if isolation != "inline":  # there the step's child processes print to the terminal itself
        assert said.count("********") > 2 * len(PASSWORD)
        assert not [form for form in FORMS if form in said.encode()]
    assert watch.seen
    assert watch.leaks == []
    (new_project.root / ".env").unlink()
    assert [name for name in found_in(tmp_path) if "/vault/" not in name] == []
    shown = new_project.command("-m", "mlp_core.cli", "show", "Flow", **vault)
    assert "ValueError: {'password': '********'" in shown.stdout
    assert "the webhook refused ********" in shown.stdout


def test_secrets_of_a_deployed_flow_stay_away(new_project: Project, tmp_path: Path, vault: dict[str, str]) -> None:
    """What is generated for a deployment, and what an orchestrator's commands leave, has no secret."""
    deployed = new_project.command("-m", "mlp_core.cli", "deploy", "flow.py", "--json", **vault)
    assert deployed.returncode == 0, deployed.stderr
    ran = new_project.command("-m", "mlp_core.cli", "deployments", "run", "Flow", **vault)
    assert ran.returncode == 1, ran.stderr
    (new_project.root / ".env").unlink()
    assert [name for name in found_in(tmp_path) if "/vault/" not in name] == []
    assert not [form for form in FORMS if form in (deployed.stdout + ran.stdout + ran.stderr).encode()]


def test_the_test_finds_what_leaks(tmp_path: Path) -> None:
    """The search finds each form in a file, and a command line that has a secret."""
    for number, form in enumerate(FORMS):
        (tmp_path / f"{number}").write_bytes(b"..." + form + b"...")
    assert len(found_in(tmp_path)) == len(FORMS)
    with Watch() as watch:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)", PASSWORD], check=True)
    assert watch.leaks


@pytest.mark.parametrize("place", ["file", "flag"])
def test_a_secret_setting_is_taken_from_the_environment_alone(
    new_project: Project, vault: dict[str, str], place: str
) -> None:
    """In the project's file it would be packed with the code, on a command line all would see it: both are refused."""
    variables = {name: value for name, value in vault.items() if name != "MLP_VAULT_TOKEN"}
    words = []
    if place == "file":
        (new_project.root / "mlp.toml").write_text(f'[vault]\ntoken = "{TOKEN}"\n')
    else:
        words = [f"--vault-token={TOKEN}"]
    ran = new_project.command("-m", "mlp_core.cli", "run", "flow.py", *words, **variables)
    assert ran.returncode == 2
    assert "setting vault.token" in ran.stderr
    assert "MLP_VAULT_TOKEN" in ran.stderr
    assert TOKEN not in ran.stdout + ran.stderr
