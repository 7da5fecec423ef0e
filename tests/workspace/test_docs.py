"""Every example of the README and the docs works: each page is carried out from top to bottom, as a reader would.

A page's fenced blocks are read in order, in an empty folder that has the repository's examples in it:

- ``python`` is run as a script; ``python`` and ``toml`` that begin with a comment with a file's path are written to it,
  and Python then imported;
- ``console`` has commands after ``$``, and below each the lines of its output that matter. Every such line must occur
  in what the command prints; ``...`` stands for anything. What differs each time (run ids, times, durations, sizes,
  hashes) may differ, but a run id that a page shows stands for the same run all through the page. A command must
  succeed, unless an ``error:`` or a line with "failed" is shown below it.

Where a command names a bucket, there is a real S3 server with one named ``bucket``, which all processes find by their
environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import pytest

from mlp_reliability import fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator

seaweedfs = fixtures.seaweedfs  # pytest finds it here
ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs/hooks.md"  # its examples are doctests of the contract's docstrings, which its own tests run
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page != GENERATED)]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")
BUCKET = re.compile(r"^\s*\$ .*\bs3://", re.MULTILINE)
VARIES: Final = {
    "run": r"\d{8}-\d{6}-\d{6}",
    "time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
    "amount": r"\d+(?:\.\d+)? (?:ms|s|B|kB|MB|GB|KiB|MiB)\b",
    "digest": r"\b[0-9a-f]{12,64}\b",
    "any": r"\.\.\.",
}
VARYING = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in VARIES.items()))

README_ONLY = ("pip install ./hookspecs", "pip install -r", "pytest")
"""Commands that install what these tests run in, and these tests: ``.ci/run`` carries them out."""


@attrs.frozen
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str

    @property
    def file(self) -> str:
        """The path of the file that it is, if any."""
        match = FILE.match(self.text)
        return match[1] if match and self.language in ("python", "toml") else ""

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each command with the lines that are shown below it."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, *shown = part.replace("\\\n", " ").splitlines()
            yield command, [line for line in shown if line.strip()]


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks."""
    return [Block(*found.groups()) for found in BLOCK.finditer(page.read_text())]


@attrs.define
class Reader:
    """Carries out a page in a folder."""

    folder: Path
    server: dict[str, str] = attrs.field(factory=dict)  # the variables by which an S3 server is found
    runs: dict[str, str] = attrs.field(factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the processes."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = str(self.folder / "home")
        site = str(self.folder / "site")
        own = {"PATH": path, "HOME": home, "PYTHONPATH": site, "MLP_USERNAME": "ada", "COLUMNS": "120"}
        return {**os.environ, **self.server, **own}

    def read(self, page: Path) -> None:
        """Carry out every block."""
        (self.folder / "examples").symlink_to(ROOT / "examples")
        for block in blocks(page):
            if block.file:
                self.write(block)
            elif block.language == "python":
                self.run([sys.executable, "-c", block.text])
            elif block.language == "console":
                for command, shown in block.commands():
                    self.carry_out(command, shown)

    def write(self, block: Block) -> None:
        """Write a block's file; it must be importable, or be TOML."""
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        check = "import runpy, sys; runpy.run_path(sys.argv[1])"
        if block.language == "toml":
            check = "import tomllib, sys; tomllib.load(open(sys.argv[1], 'rb'))"
        self.run([sys.executable, "-c", check, str(path)])

    def carry_out(self, command: str, shown: list[str]) -> None:
        """Run a command, and compare what it prints."""
        parts = [part for part in command.split(" && ") if not part.startswith(README_ONLY)]
        if not parts:
            return
        for written, real in self.runs.items():
            parts = [part.replace(written, real) for part in parts]
        # The reader's own plugin: installed without a network, and not into the environment of the tests.
        pip = f"{sys.executable} -m pip install --no-build-isolation --no-deps --quiet --target site"
        parts = [part.replace("pip install", pip) if part.startswith("pip ") else part for part in parts]
        may_fail = any("error:" in line or "failed" in line for line in shown)
        printed = self.run(["bash", "-c", " && ".join(parts)], may_fail=may_fail)
        missing = [line for line in shown if not self.occurs(line, printed)]
        assert missing == [], f"`{command}` does not print this, but:\n{printed}"

    def run(self, words: list[str], *, may_fail: bool = False) -> str:
        """Return what a command prints, errors included."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert may_fail or done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def occurs(self, line: str, printed: str) -> bool:
        """Tell whether a shown line is in what was printed; a run id that is shown first learns what it stands for."""
        if line.strip() == "...":
            return True
        pieces, ids, position = [], [], 0
        for varying in VARYING.finditer(line):
            pieces.append(spaced(line[position : varying.start()]))
            position = varying.end()
            if varying.lastgroup == "run" and varying[0] in self.runs:
                pieces.append(re.escape(self.runs[varying[0]]))
            elif varying.lastgroup == "run" and varying[0] not in ids:
                ids.append(varying[0])
                pieces.append(f"({VARIES['run']})")
            else:
                pieces.append({"any": ".*?", "run": VARIES["run"]}.get(varying.lastgroup or "", VARIES["amount"]))
                if varying.lastgroup in ("time", "digest"):
                    pieces[-1] = VARIES[varying.lastgroup]
        pieces.append(spaced(line[position:]))
        match = re.search(rf"^\s*{''.join(pieces)}\s*$", printed, re.MULTILINE)
        if match is None:
            return False
        self.runs.update(zip(ids, match.groups(), strict=True))
        return True


def spaced(text: str) -> str:
    """Return the pattern of a text in which spaces may be wider or narrower."""
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", text))


def name(page: Path) -> str:
    """Return a page's path below the root."""
    return page.relative_to(ROOT).as_posix()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_works(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What a page shows is what happens, from its first example to its last."""
    needs_server = BUCKET.search(page.read_text())
    Reader(tmp_path, dict(request.getfixturevalue("seaweedfs").environ) if needs_server else {}).read(page)


@pytest.mark.parametrize("page", [*PAGES, GENERATED, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page has a file or folder behind it, and the heading that it names."""
    broken = []
    for path, heading in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in anchors(target)):
            broken.append(f"{path}#{heading}" if heading else path)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("shown", "printed", "occurs"),
    [
        ("F/20260131-094500-123456 succeeded in 0.4 s", "F/20270101-000000-000001 succeeded in 88 ms\n", True),
        ("a  1    done", "b 2\na   1  done\n", True),
        ("a done", "a done, but\n", False),
        ("a ... done", "a is done\n", True),
        ("...", "", True),
    ],
)
def test_comparison_is_loose_where_it_should_be(shown: str, printed: str, *, occurs: bool, tmp_path: Path) -> None:
    """Run ids, durations and the width of columns may differ from what a page shows; nothing else may."""
    assert Reader(tmp_path).occurs(shown, printed) is occurs
