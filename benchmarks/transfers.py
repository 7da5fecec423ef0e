"""How fast an object of 1 GiB gets to a bucket and back, beside s3fs's own way and one plain HTTP request.

::

    python benchmarks/transfers.py

The server is SeaweedFS on this machine's loopback: it shares the cores with what is measured. Each transfer is made by
a process of its own, whose connection is warm when the clock starts, and whose memory is what it used at most.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from harness import Claim, Workspace, arguments, interleave, report

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET: Final = "s3://bucket/objects"
WARM_UP: Final = b"warm"


def ours(kind: str, source: Path, target: Path) -> Callable[[], object]:
    """Return a transfer by the platform's store."""
    from mlp_core.builtin.fsspec_store import mlp_open_store

    store = mlp_open_store(BUCKET, {})
    store.replace("warm", WARM_UP, sync=True)
    if kind == "download":
        return lambda: store.download("object", target)
    adopted = store.staging() / "object"
    os.link(source, adopted)
    return lambda: store.adopt(adopted, "object", sync=True)


def s3fs(kind: str, source: Path, target: Path) -> Callable[[], object]:
    """Return a transfer by s3fs with its defaults."""
    from s3fs import S3FileSystem

    filesystem = S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    filesystem.pipe_file(f"{BUCKET}/warm", WARM_UP)
    if kind == "download":
        return lambda: filesystem.get_file(f"{BUCKET}/object", str(target))
    return lambda: filesystem.put_file(str(source), f"{BUCKET}/other")


def plain(kind: str, source: Path, target: Path) -> Callable[[], object]:
    """Return a transfer by one request of the standard library, signed beforehand."""
    import botocore.session

    client = botocore.session.get_session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    method, key = ("get_object", "objects/object") if kind == "download" else ("put_object", "objects/plain")
    url = urlsplit(client.generate_presigned_url(method, Params={"Bucket": "bucket", "Key": key}))
    connection = http.client.HTTPConnection(url.netloc, blocksize=1 << 20)
    connection.connect()

    def put() -> None:
        with source.open("rb") as file:
            connection.request("PUT", f"{url.path}?{url.query}", file, {"Content-Length": str(source.stat().st_size)})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status

    def get() -> None:
        connection.request("GET", f"{url.path}?{url.query}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        with target.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)

    return get if kind == "download" else put


WAYS: Final = {"ours": ours, "s3fs": s3fs, "plain": plain}


def transfer(way: str, kind: str, source: Path, target: Path) -> None:
    """Make one transfer, and print what it took."""
    run = WAYS[way](kind, source, target)
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of Linux, in KiB
    print(json.dumps({"seconds": seconds, "mebibytes": peak}))
    sys.stdout.flush()
    os._exit(0)


def main() -> int:
    """Measure, and report."""
    parser = arguments("Transfers to and from a bucket.", rounds=5, needs_metaflow=False)
    parser.add_argument("--transfer", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.transfer:
        way, kind, source, target = args.transfer
        transfer(way, kind, Path(source), Path(target))
    from mlp_reliability.s3_servers import s3_server

    size = 32 << 20 if args.quick else 1 << 30
    rounds = 2 if args.quick else args.rounds
    with Workspace.make() as space, s3_server("seaweedfs") as server:
        server.make_bucket("bucket")
        source, target = space.folder / "source", space.folder / "target"
        with source.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        memory: dict[str, list[float]] = {}

        def measure(way: str, kind: str) -> float:
            command = [sys.executable, __file__, "--transfer", way, kind, str(source), str(target)]
            environment = {**os.environ, **server.environ, "TMPDIR": str(space.folder)}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            answer: dict[str, Any] = json.loads(done.stdout)
            memory.setdefault(f"{way} {kind}", []).append(answer["mebibytes"])
            if kind == "download":
                subprocess.run(["cmp", source, target], check=True)
                target.unlink()
            return float(answer["seconds"])

        cases = [(way, kind) for kind in ("upload", "download") for way in WAYS]
        measured = interleave({f"{way} {kind}": lambda w=way, k=kind: measure(w, k) for way, kind in cases}, rounds)
    claims = [
        Claim(
            f"{kind} of {size >> 20} MiB",
            measured[f"ours {kind}"],
            measured[f"{peer} {kind}"],
            limit=100 if args.quick else limit,
            peer_name=name,
        )
        for kind in ("upload", "download")
        for peer, name, limit in (("s3fs", "s3fs", 1.0), ("plain", "one plain request", 2.0))
    ]
    claims += [
        Claim(
            f"memory at most, {kind}",
            memory[f"ours {kind}"],
            memory[f"s3fs {kind}"],
            limit=100 if args.quick else 0.5,
            unit="MiB",
            peer_name="s3fs",
        )
        for kind in ("upload", "download")
    ]
    return report("transfers", args, claims, server="SeaweedFS")


if __name__ == "__main__":
    sys.exit(main())
