"""Answers the part of conda's command line that conda-lock uses, with the solver of py-rattler.

It is a program of its own, for hosts that have no conda, mamba or micromamba: conda-lock calls ``create --dry-run``
once a platform, and reads what would be fetched as JSON from the standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rattler import GenericVirtualPackage, RepoDataRecord

VERSION: Final = "24.1.0"
"""The version of conda whose command line is answered."""

DEFAULTS: Final = ("main", "r")
"""What conda's ``defaults`` stands for, below the host of its named channels."""

_OVERRIDE: Final = "CONDA_OVERRIDE_"


def main() -> NoReturn:
    """Answer, and end without the interpreter's own end, in which py-rattler may crash."""
    status = answer(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def answer(arguments: Sequence[str]) -> int:
    """Print the answer to a command line, and return its exit status."""
    parser = argparse.ArgumentParser(
        "mlp-conda-solver", description="The solver of py-rattler, as conda-lock calls it."
    )
    parser.add_argument("--version", action="version", version=f"conda {VERSION}")
    parser.add_argument("command", choices=["create"])
    parser.add_argument("--prefix", "-p", help="passed over: nothing is installed")
    parser.add_argument("--channel", "-c", action="append", default=[])
    for flag in ("--dry-run", "--json", "--override-channels", "--quiet", "--yes"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("specs", nargs="*")
    # Options may stand between the specs.
    try:
        given = parser.parse_intermixed_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        records = asyncio.run(solve(given.specs, given.channel))
    except Exception as error:  # noqa: BLE001 # whatever it is, conda-lock expects it as JSON
        sys.stdout.write(json.dumps({"success": False, "error": type(error).__name__, "message": str(error)}))
        return 1
    fetch = [_action(record) for record in records]
    sys.stdout.write(json.dumps({"success": True, "actions": {"FETCH": fetch, "LINK": fetch}}))
    return 0


async def solve(specs: Sequence[str], channels: Sequence[str]) -> list[RepoDataRecord]:
    """Return the packages that meet the specs on the platform that ``CONDA_SUBDIR`` names."""
    from rattler import Channel, Client, Gateway, MatchSpec, SourceConfig, Subdir
    from rattler import solve as solve_with_rattler
    from rattler.exceptions import GatewayError

    subdir = os.environ.get("CONDA_SUBDIR") or str(Subdir.current())

    async def once(gateway: Gateway) -> list[RepoDataRecord]:
        return await solve_with_rattler(
            sources=[Channel(url) for channel in channels for url in channel_urls(channel)],
            specs=[MatchSpec(spec, strict=False) for spec in specs],
            gateway=gateway,
            platforms=[Subdir(subdir), Subdir("noarch")],
            virtual_packages=virtual_packages(subdir, os.environ),
        )

    client = Client.default_client()
    try:
        return await once(Gateway(client=client))
    except GatewayError as error:
        if "Not Modified" not in str(error):
            raise
        # A server without entity tags answers "not modified" where rattler cannot take it; the plain index can be had.
        return await once(Gateway(client=client, default_config=SourceConfig(sharded_enabled=False)))


def virtual_packages(subdir: str, environ: Mapping[str, str]) -> list[GenericVirtualPackage]:
    """Return what the target platform has beside packages, as conda-lock tells it in variables."""
    from rattler import GenericVirtualPackage, PackageName, Version
    from rattler.package import BuildString

    system = "win" if subdir.startswith("win") else "unix"
    known = {f"__{system}": ("0", "0")}
    for variable, version in environ.items():
        name = variable.removeprefix(_OVERRIDE).lower()
        if variable.startswith(_OVERRIDE) and version:
            known[f"__{name}"] = ("1", version) if name == "archspec" else (version, "0")
    return [
        GenericVirtualPackage(PackageName(name), Version(version), BuildString(build))
        for name, (version, build) in sorted(known.items())
    ]


def channel_urls(channel: str) -> list[str]:
    """Return what a channel stands for: conda's ``defaults`` is several."""
    return [f"pkgs/{name}" for name in DEFAULTS] if channel == "defaults" else [channel]


def _action(record: RepoDataRecord) -> dict[str, Any]:
    """Return a package as conda's JSON has it."""
    action = {
        "name": record.name.normalized,
        "version": str(record.version),
        "build": str(record.build),
        "build_number": record.build_number,
        "channel": record.channel,
        "subdir": record.subdir,
        "fn": record.file_name,
        "url": record.url,
        "depends": list(record.depends),
        "constrains": list(record.constrains),
        "md5": record.md5.hex() if record.md5 else "",
    }
    if record.sha256:
        action["sha256"] = record.sha256.hex()
    return action


if __name__ == "__main__":
    main()
