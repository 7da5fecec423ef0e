"""S3, of whatever server, through s3fs; what fsspec's interface lacks is asked of S3 itself."""

from __future__ import annotations

import copy
import functools
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mlp_core.builtin.fsspec_store.filesystems import Filesystem, Loop, Version
from mlp_hookspecs.handles import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONFIG: Final[Mapping[str, Any]] = {
    # The store tries again by itself: libraries that did so too would multiply the attempts.
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    "connect_timeout": 5,
    "read_timeout": 30,
    "max_pool_connections": 32,
}
_CLOSE_SECONDS: Final = 2.0
_PART_BYTES: Final = 8 << 20
_MOST_PARTS: Final = 9_000  # S3 takes ten thousand


class S3Filesystem(Filesystem):
    """A bucket, or a folder in one."""

    @property
    def creates_once(self) -> bool | None:
        """Known of AWS; servers of others have to be tried."""
        host = urlsplit(self._fs.connect().meta.endpoint_url).hostname or ""
        return True if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else None

    def version(self, path: str) -> Version:
        """Return what an object is now: s3fs would list as well where there is none."""
        found = self._ask("head_object", path)
        return Version(found["ContentLength"], found["LastModified"].timestamp(), found.get("ETag", ""))

    def objects(self, folder: str, page: str) -> tuple[Sequence[ObjectInfo], str]:
        """Return a page of the objects below a folder: a thousand, in one request."""
        bucket, _, _ = folder.partition("/")
        listed = self._list(folder, page)
        found = [
            ObjectInfo(f"{bucket}/{entry['Key']}", entry["Size"], entry["LastModified"].timestamp())
            for entry in listed.get("Contents", ())
            if not entry["Key"].endswith("/")  # what other tools make for a folder
        ]
        return found, listed.get("NextContinuationToken", "")

    def names(self, folder: str, page: str) -> tuple[set[str], str]:
        """Return a page of the names in a folder."""
        bucket, _, _ = folder.partition("/")
        listed = self._list(folder, page, Delimiter="/")
        keys = [entry["Key"] for entry in listed.get("Contents", ())]
        keys += [entry["Prefix"].rstrip("/") for entry in listed.get("CommonPrefixes", ())]
        found = {f"{bucket}/{key}".removeprefix(folder) for key in keys}
        return found - {""}, listed.get("NextContinuationToken", "")

    def delete(self, path: str) -> None:
        """Remove an object."""
        self._ask("delete_object", path)

    def part_size(self, size: int) -> int:
        """Return the size of the parts of a file."""
        return max(_PART_BYTES, -(-size // _MOST_PARTS))

    def begin_upload(self, path: str) -> str:
        """Begin an object of several parts, and return the upload's id."""
        upload: str = self._ask("create_multipart_upload", path)["UploadId"]
        return upload

    def upload_part(self, path: str, upload: str, number: int, data: bytes) -> str:
        """Write a part, from 1, and return what `end_upload` needs to know of it."""
        tag: str = self._ask("upload_part", path, UploadId=upload, PartNumber=number, Body=data)["ETag"]
        return tag

    def end_upload(self, path: str, upload: str, tags: Sequence[str]) -> None:
        """Make the object of its parts; FileNotFoundError where the upload has already ended."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        self._ask("complete_multipart_upload", path, UploadId=upload, MultipartUpload={"Parts": parts})

    def abort_upload(self, path: str, upload: str) -> None:
        """Remove the parts of an upload, if that is possible."""
        with suppress(Exception):  # another error is on its way already; buckets have rules for what is left
            self._ask("abort_multipart_upload", path, UploadId=upload)

    def close(self) -> None:
        """Close the connections."""
        from fsspec.asyn import sync

        creator = getattr(self._fs, "_s3creator", None)  # s3fs has no public way that waits; None before the first use
        if creator is not None:
            with suppress(TimeoutError):
                sync(self._fs.loop, creator.__aexit__, None, None, None, timeout=_CLOSE_SECONDS)
        super().close()

    def _ask(self, method: str, path: str, **arguments: object) -> Any:
        """Carry out a request about one object."""
        bucket, _, key = path.partition("/")
        return self._fs.call_s3(method, Bucket=bucket, Key=key, **arguments)

    def _list(self, folder: str, page: str, **arguments: object) -> Any:
        """Return a page of a listing."""
        bucket, _, prefix = folder.partition("/")
        begin = {"ContinuationToken": page} if page else {}
        return self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **begin, **arguments)


def open_s3(kind: Any, root: str, arguments: dict[str, Any], loop: Loop) -> S3Filesystem:
    """Open S3 for this process.

    Parameters
    ----------
    kind : type
        The class of s3fs.
    root : str
        The store's folder: bucket, slash, prefix.
    arguments : dict of str to object
        Arguments of the class.
    loop : Loop
        What carries out its requests.
    """
    arguments.setdefault("session", _session(arguments.pop("profile", None)))
    arguments["config_kwargs"] = {**copy.deepcopy(dict(_CONFIG)), **arguments.get("config_kwargs", {})}
    fs = kind(**arguments, loop=loop.loop)
    fs.retries = 1
    return S3Filesystem(fs, root, loop)


@functools.cache
def aws_data() -> Any:
    """Return botocore's description of S3, which takes longer to read than all else that opening takes."""
    from botocore.loaders import create_loader

    loader = create_loader()
    loader.list_available_services("service-2")
    loader.load_service_model("s3", "service-2")
    loader.load_service_model("s3", "endpoint-rule-set-1")
    return loader


def _session(profile: str | None) -> Any:
    """Return a new session, whose credentials are looked for now."""
    from aiobotocore.session import AioSession

    session = AioSession(profile=profile)
    session.register_component("data_loader", aws_data())
    return session
