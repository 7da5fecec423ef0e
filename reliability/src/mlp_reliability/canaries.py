"""The row ``canaries``: secrets that steps print, raise, hand on and attach; afterwards there must be no trace of them.

Each canary is a random value of an awkward shape. It comes from a plugin of its own by ``mlp_fetch_secret``, or is a
setting that is declared a secret. The store, the project with all that was generated, caches, the runtime folder with
the marks that processes leave, what commands printed, and the command lines of all processes meanwhile are searched for
it as it is and in the forms in which programs print it.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import string
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

from mlp_reliability.hostile.texts import chance
from mlp_reliability.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

_EACH: Final = 10
"""How many canaries a run has."""

_LOOK_SECONDS: Final = 0.01

_PLUGIN: Final = """
import json, os
from mlp_hookspecs import *
from mlp_hookspecs import hookimpl


def known():
    with open(os.environ["CANARY_FILE"]) as file:
        return json.load(file)


@hookimpl
def mlp_backends():
    return (Backend("secret", "canary", "Canaries."),)


@hookimpl
def mlp_settings():
    return (Setting("canary.token", "str", None, "A token.", secret=True),)


@hookimpl
def mlp_plan_step(step, options):
    return StepPlan(secrets=("canary://all",))


@hookimpl
def mlp_fetch_secret(reference):
    return known()


@hookimpl
def mlp_event(event, settings):
    raise ValueError("refused by the service with " + settings["canary.token"])


class Report:
    def __init__(self, step):
        self.step = step

    def __enter__(self):
        pass

    def __exit__(self, *exception):
        self.step.attach("card", "environment", json.dumps(dict(os.environ)).encode())


@hookimpl
def mlp_wrap_step(step):
    return Wrap(0, "report", Report(step))
"""

_FLOW: Final = """
import base64, json, logging, os, subprocess, sys, time
from urllib.parse import quote, quote_plus

from mlp_core import FlowSpec, catch, retry, step


def secrets():
    names = [name for name in sorted(os.environ) if name.startswith("CANARY_N")]
    return [os.environ[name] for name in ["MLP_CANARY_TOKEN", *names]]


class Flow(FlowSpec):
    @step
    def start(self):
        for secret in secrets():
            print("plain", secret)
            print("json", json.dumps({"secret": secret}), json.dumps(secret, ensure_ascii=False), file=sys.stderr)
            print("url", quote(secret, safe=""), quote(secret), quote_plus(secret))
            for before in ("", "u:", "usr", "four"):
                print("base64", base64.b64encode((before + secret + "tail").encode()).decode())
                print("base64", base64.urlsafe_b64encode((before + secret).encode()).decode())
            print("repr", repr(secret), repr(secret.encode()))
            data = secret.encode()
            for place in range(1, len(data), 3):
                os.write(1, data[:place])
                os.write(2, b"-- between --" + chr(10).encode())
                time.sleep(0.005)
                os.write(1, data[place:] + chr(10).encode())
            logging.warning("connecting as %s", secret)
        subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], check=True)
        self.kinds = [1, 2]
        self.next(self.each, foreach="kinds")

    @retry(times=1, minutes_between_retries=0)
    @catch(var="problem")
    @step
    def each(self):
        raise RuntimeError({"headers": secrets()})
        self.next(self.join)

    @step
    def join(self, inputs):
        print([str(each.problem) for each in inputs])
        self.next(self.end)

    @step
    def end(self):
        sys.stdout.write(secrets()[0][:3])
        sys.stdout.flush()
        error = ValueError(*secrets())
        error.secrets = secrets()
        raise error


if __name__ == "__main__":
    Flow()
"""


def run(n: int, seed: int, folder: Path) -> Result:
    """Look for canaries.

    Parameters
    ----------
    n : int
        How many canaries.
    seed : int
        What they are drawn from.
    folder : pathlib.Path
        Where everything happens.

    Returns
    -------
    Result
        What was found.
    """
    rng = random.Random(seed)  # reproducible on purpose
    violations: list[str] = []
    masked = lines = 0
    ways = ("fork", "spawn", "inline", "deploy", "orchestrated")
    for number in range(0, n, _EACH):
        way = ways[number // _EACH % len(ways)]
        canaries = [_canary(rng) for _ in range(min(_EACH, n - number))]
        place = _Place(folder / f"{number:04}", canaries)
        with _CommandLines() as seen:
            said = place.run(way)
        label = f"canaries {number} to {number + len(canaries) - 1} ({way})"
        violations += [f"{label}: {found}" for found in place.search(said, seen.lines, printed=way != "inline")]
        masked += said.count("********")
        lines += len(seen.lines)
        if "********" not in said and way != "deploy":
            violations.append(f"{label}: nothing was masked, so that nothing was tried: {said[-500:]!a}")
        shutil.rmtree(place.folder, ignore_errors=True)
    return Result("canaries", n, seed, violations, {"masked": masked, "command_lines": lines})


def _canary(rng: random.Random) -> str:
    """Return a value that is awkward to find: with quotes, escapes, several lines, or no ASCII."""
    core = "".join(rng.choices(string.ascii_letters + string.digits, k=rng.choice((12, 20, 40))))
    odd = rng.choice(("", "/+=", "\"'", "\\n\\", " pass word ", "üñî😀", "%20&?#", "$(x)`y`", "{}[]:,", "\t"))
    middle = rng.randrange(len(core))
    value = core[:middle] + odd + core[middle:]
    if chance(rng, 0.1):
        value = f"-----BEGIN-----\n{value}\n{core[::-1]}\n-----END-----\n"
    return value


def forms(canary: str) -> set[bytes]:
    """Return what may be found nowhere, worked out apart from the product."""
    raw = canary.encode()
    found = {canary, json.dumps(canary)[1:-1], json.dumps(canary, ensure_ascii=False)[1:-1], repr(canary)[1:-1]}
    found |= {repr(raw)[2:-1], quote(canary, safe=""), quote(canary), quote_plus(canary)}
    encoded = {text.encode() for text in found}
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Without what also depends on what stands around it.
            encoded.add(encode(bytes(before) + raw)[4:-4])
    lines = [line.encode() for line in canary.splitlines() if len(line) >= 12 and not line.startswith("-----")]  # noqa: PLR2004 # telling
    return encoded | set(lines)


class _Place:
    """The folder of one run: store, project, plugin, caches; the canaries themselves lie beside it."""

    def __init__(self, folder: Path, canaries: Sequence[str]) -> None:
        self.folder = folder
        self._forms = {form for canary in canaries for form in forms(canary)}
        self._inside = folder / "inside"
        site = self._inside / "site"
        info = site / "mlp_plugin_canary-1.0.dist-info"
        for path in (info, self._inside / "project", self._inside / "tmp", self._inside / "home"):
            path.mkdir(parents=True)
        (site / "throwaway_canary.py").write_text(_PLUGIN)
        (info / "entry_points.txt").write_text("[mlp]\ncanary = throwaway_canary\n")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlp-plugin-canary\nVersion: 1.0\n")
        (self._inside / "project/mlp.toml").touch()
        (self._inside / "project/flow.py").write_text(_FLOW)
        secrets = {f"CANARY_N{number}": canary for number, canary in enumerate(canaries[1:])}
        (folder / "canaries").write_text(json.dumps(secrets))
        (self._inside / "project/.env").write_text("\n".join(f"{name}={value!r}" for name, value in secrets.items()))
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("MLP_") or name == "MLP_PLANTED"
        }
        self._environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", "")))),
            "MLP_PLUGINS_ALLOW": "canary",
            "MLP_CANARY_TOKEN": canaries[0].strip() or "token",
            "CANARY_FILE": str(folder / "canaries"),
            "HOME": str(self._inside / "home"),
            "XDG_CACHE_HOME": str(self._inside / "cache"),
            "XDG_RUNTIME_DIR": str(self._inside),
            "TMPDIR": str(self._inside / "tmp"),
        }

    def run(self, way: str) -> str:
        """Run the flow in a way, look at it by all commands, and return what was printed."""
        if way in ("fork", "spawn", "inline"):
            said = self._command("run", "flow.py", f"--isolation={way}")
        else:
            said = self._command("deploy", "flow.py", "--json")
            if way == "orchestrated":
                said += self._orchestrated()
            else:
                said += self._command("deployments", "run", "Flow")
        for words in (("list", "--json"), ("show", "Flow"), ("show", "Flow", "--json"), ("logs", "Flow"), ("plugins",)):
            said += self._command(*words)
        said += self._command("plugins", "--settings", "--json")
        return said

    def search(self, said: str, lines: Iterable[str], *, printed: bool) -> list[str]:
        """Return where a canary was found."""
        (self._inside / "project/.env").unlink()
        files = [path for path in self._inside.rglob("*") if path.is_file() and not path.is_symlink()]
        leaky = [path for path in files if self._has(path.read_bytes() + os.fsencode(path.name))]
        found = [f"in the file {path.relative_to(self._inside)}" for path in leaky]
        if printed and self._has(said.encode(errors="surrogateescape")):
            found.append("in what commands printed")
        found += [f"on a command line: {line[:120]!a}" for line in lines if self._has(line.encode(errors="replace"))]
        return found

    def _has(self, content: bytes) -> bool:
        return any(form in content for form in self._forms)

    def _command(self, *words: str) -> str:
        return self._python("-m", "mlp_core.cli", *words)

    def _python(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            check=False,
            cwd=self._inside / "project",
            env=self._environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            stdin=subprocess.DEVNULL,
        )
        return done.stdout + done.stderr

    def _orchestrated(self) -> str:
        """Run the first step as an orchestrator does."""
        store = str(self._inside / "project/.mlp")
        (blueprint,) = Path(store, "blueprints").iterdir()
        place = ("-P", "-m", "mlp_core.orchestrated")
        said = self._python(*place, "begin", "--store", store, "--blueprint", blueprint.name)
        run_id = json.loads(said.splitlines()[0])["run_id"]
        where = ("--store", store, "--flow", "Flow", "--run-id", run_id)
        said += self._python(*place, "step", *where, "--step", "start", "--task-id", "0")
        return said + self._python(*place, "finish", *where, "--status", "failed")


class _CommandLines:
    """Looks at the command lines of all processes for a time."""

    def __init__(self) -> None:
        self.lines: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit():
                    try:
                        content = (folder / "cmdline").read_bytes()
                    except OSError:  # it has ended
                        continue
                    self.lines.add(content.replace(b"\0", b" ").decode(errors="replace"))
