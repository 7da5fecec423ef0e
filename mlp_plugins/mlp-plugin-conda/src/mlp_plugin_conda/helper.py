"""Does what needs py-rattler, in a process of its own that ends before the interpreter does, in which it may crash.

``python -m mlp_plugin_conda.helper`` reads a task as JSON from its standard input, and answers in one line of JSON:
``{"answer": ...}`` or ``{"error": ...}``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from rattler import Client, RepoDataRecord

AT_ONCE: Final = 8
"""So many files are fetched at the same time."""

_CHUNK: Final = 1 << 20


class HelperError(Exception):
    """What went wrong, in words for the user."""


def main() -> NoReturn:
    """Do the task on standard input."""
    task = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = {"answer": asyncio.run(TASKS[task.pop("task")](**task))}
    except Exception as error:  # noqa: BLE001 # whatever it is, it is told to the process that asked
        answer = {"error": str(error) or type(error).__name__}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)


async def available(channels: Sequence[str], platforms: Sequence[str], specs: Sequence[str]) -> list[str]:
    """Return the specs that the channels have a package for, on every one of the platforms."""
    from rattler import Channel, Client, Gateway, MatchSpec, SourceConfig, Subdir
    from rattler.exceptions import GatewayError

    from mlp_plugin_conda.solver import channel_urls

    wanted = [MatchSpec(spec, strict=False) for spec in specs]
    sources = [Channel(url) for channel in channels for url in channel_urls(channel)]

    async def once(gateway: Gateway) -> list[str]:
        subdirs = [Subdir(name) for name in (*platforms, "noarch")]
        found = await gateway.query(sources, subdirs, specs=wanted, recursive=False)
        records = [record for batch in found for record in batch]

        def is_everywhere(spec: MatchSpec) -> bool:
            places = {record.subdir for record in records if spec.matches(record)}
            return "noarch" in places or places.issuperset(platforms)

        return [text for text, spec in zip(specs, wanted, strict=True) if is_everywhere(spec)]

    client = Client.default_client()
    try:
        return await once(Gateway(client=client))
    except GatewayError as error:
        if "Not Modified" not in str(error):
            raise
        # As in the solver.
        return await once(Gateway(client=client, default_config=SourceConfig(sharded_enabled=False)))


async def install(lock: str, platform: str, folders: Mapping[str, str | None]) -> None:
    """Link the conda packages of a lock into a folder, for use at another path.

    The folders are ``staging``, the one to link into, ``prefix``, the path to write into files, ``cache``, that of
    extracted packages, and ``bundle``, where packages lie that are not to be fetched, or None.
    """
    from rattler import Client, PackageCache, Subdir
    from rattler import install as install_with_rattler

    with tempfile.TemporaryDirectory(prefix="mlp-conda-") as scratch:
        records = _records(lock, platform, Path(scratch))
        packages = PackageCache(str(folders["cache"]))
        cached = await packages.index()
        for record in records:
            if not cached.contains_record(record):
                _take_local(record, Path(scratch), folders["bundle"])
        await install_with_rattler(
            records,
            str(folders["staging"]),
            platform=Subdir(platform),
            package_cache=packages,
            client=Client.default_client(),
            show_progress=False,
            alternative_target_prefix=folders["prefix"],
        )


def _records(lock: str, platform: str, scratch: Path) -> list[RepoDataRecord]:
    """Return the packages of a lock, as py-rattler reads it."""
    from rattler import LockFile

    path = scratch / "conda-lock.yml"
    path.write_text(lock)
    environment = LockFile.from_path(path).default_environment()
    return environment.conda_repodata_records().get(platform, []) if environment is not None else []


def _take_local(record: RepoDataRecord, scratch: Path, bundle: str | None) -> None:
    """Verify a package that lies on this host, since py-rattler verifies only what it downloads, and install that copy.

    Only packages of a bundle or of a file:// channel do; the others keep their URLs.
    """
    place = Path(record.subdir, record.file_name)
    if bundle is not None:
        source = Path(bundle) / place
    elif record.url.startswith("file://"):
        source = Path(unquote(urlsplit(record.url).path))
    else:
        return
    copy = scratch / place
    copy.parent.mkdir(exist_ok=True)
    sha256 = record.sha256
    if sha256 is None:
        raise HelperError(f"{record.file_name} has no sha256 in the lock")
    _copy_verified(source, copy, sha256.hex())
    record.url = copy.as_uri()


async def fetch(files: Sequence[dict[str, str]], folder: str) -> None:
    """Download files, each verified, into their places in a folder."""
    from rattler import Client

    client = Client.default_client()
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(file: dict[str, str]) -> None:
        async with slots:
            await _fetch_one(client, file, Path(folder))

    await asyncio.gather(*map(one, files))


async def _fetch_one(client: Client, file: dict[str, str], folder: Path) -> None:
    """Download one file, or copy it from this host."""
    from rattler.package_streaming import download_to_path

    target = folder / file["place"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if file["url"].startswith("file://"):
        _copy_verified(Path(unquote(urlsplit(file["url"]).path)), target, file["sha256"])
        return
    partial = target.with_name(target.name + ".part")
    try:
        await download_to_path(client, file["url"], partial)
        _copy_verified(partial, target, file["sha256"])
    finally:
        partial.unlink(missing_ok=True)


def _copy_verified(source: Path, target: Path, sha256: str) -> None:
    """Copy a file, and refuse it where it does not have its hash."""
    digest = hashlib.sha256()
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
    except FileNotFoundError:
        raise HelperError(f"{target.name} is not where it should be: {source}") from None
    if digest.hexdigest() != sha256:
        target.unlink()
        raise HelperError(
            f"{target.name} is not the file that was locked: its sha256 is {digest.hexdigest()}, not {sha256}"
        )
    shutil.copystat(source, target)


TASKS: Final[dict[str, Callable[..., Coroutine[Any, Any, Any]]]] = {
    "available": available,
    "install": install,
    "fetch": fetch,
}
"""What can be asked for, by name."""


if __name__ == "__main__":
    main()
