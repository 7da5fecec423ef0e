"""Errors of filesystems: which are tried again and for how long, how they are told, and what they must not tell."""

from __future__ import annotations

import errno
import itertools

import botocore.exceptions
import pytest
import s3fs.errors

from mlp_core.builtin.fsspec_store import failures, retrying


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nobody wait, and tell how long they would have."""
    waited: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", waited.append)
    return waited


def s3_error(code: str, status: int) -> Exception:
    """An error of S3 as s3fs raises it."""
    response = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    made: Exception = s3fs.errors.translate_boto_error(botocore.exceptions.ClientError(response, "GetObject"))
    return made


class HttpError(Exception):
    """An error as the libraries of other clouds raise them."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status_code = status


TRANSIENT = [
    s3_error("SlowDown", 503),
    s3_error("InternalError", 500),
    s3_error("InternalError", 200),
    s3_error("RequestTimeout", 400),
    s3_error("ConditionalRequestConflict", 409),
    s3_error("Throttling", 429),
    HttpError(429),
    HttpError(503),
    TimeoutError("slow"),
    ConnectionResetError("reset"),
    OSError(errno.EIO, "failed"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
    botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
]
PERMANENT = [
    (s3_error("AccessDenied", 403), errno.EACCES, "access denied: AccessDenied"),
    (s3_error("SignatureDoesNotMatch", 403), errno.EACCES, "access denied"),
    (s3_error("NoSuchKey", 404), errno.ENOENT, "no object of that key"),
    (s3_error("NoSuchBucket", 404), errno.ENXIO, "there is no such bucket; make it first, or correct the URL"),
    (s3_error("InvalidBucketName", 400), errno.EINVAL, "InvalidBucketName"),
    (s3_error("NotImplemented", 501), errno.ENOSYS, "NotImplemented"),
    (botocore.exceptions.NoCredentialsError(), errno.EACCES, "no credentials: Unable to locate credentials; give them"),
    (HttpError(400), errno.EIO, "status 400"),
    (ValueError(), errno.EIO, "ValueError"),
    (OSError(errno.ENOSPC, "full"), errno.ENOSPC, "full"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again(error: Exception, quick: list[float]) -> None:
    """Throttling, failures of the server and of the way to it are tried again, and a success is all that is seen."""
    attempts = iter([error, error, error])

    def request() -> str:
        for raised in attempts:
            raise raised
        return "done"

    assert retrying.Retrying("s3://x", 60, failures.masker({}))("key", request) == "done"
    assert len(quick) == 3


@pytest.mark.parametrize(("error", "number", "message"), PERMANENT, ids=repr)
def test_what_cannot_pass_is_told_at_once(error: Exception, number: int, message: str, quick: list[float]) -> None:
    """What trying again cannot change is one clear OSError that names the object."""

    def request() -> None:
        raise error

    with pytest.raises(OSError, match=message) as caught:
        retrying.Retrying("s3://x", 60, failures.masker({}))("key", request)
    assert (caught.value.errno, caught.value.filename) == (number, "s3://x/key")
    assert quick == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting takes no time: it is added up here, with a moment for each look at the clock."""
    waited = [0.0]
    looks = itertools.count()
    monkeypatch.setattr(retrying.time, "sleep", waited.append)
    monkeypatch.setattr(retrying.time, "monotonic", lambda: sum(waited) + next(looks) / 1000)
    return waited


def test_time_is_bounded(clock: list[float]) -> None:
    """Delays grow with jitter, up to a bound each and in all; the message says how often and how long."""

    def request() -> None:
        raise s3_error("SlowDown", 503)

    with pytest.raises(OSError, match=r"SlowDown \(tried \d+ times in 1[12]\d s\)"):
        retrying.Retrying("s3://x", 120, failures.masker({}))("key", request)
    assert 115 < sum(clock) <= 120
    assert all(seconds <= min(20, 0.1 * 2**place) for place, seconds in enumerate(clock[1:]))
    assert len(set(clock)) == len(clock), "without jitter, all who wait come back at once"


def test_who_never_answered_is_given_up_soon(clock: list[float]) -> None:
    """A wrong address is told in seconds; a server that had answered is waited for as long as the setting says."""
    ask = retrying.Retrying("s3://x", 120, failures.masker({}))

    def refuse() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    for least, most in ((9, 10), (115, 120)):
        clock[:] = [0.0]
        with pytest.raises(OSError, match="refused"):
            ask("key", refuse)
        assert least < sum(clock) <= most
        ask("key", lambda: None)


def test_no_time_is_no_second_attempt(quick: list[float]) -> None:
    """With a time of 0 nothing is tried again."""
    attempts = []

    def request() -> None:
        attempts.append(1)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retrying.Retrying("s3://x", 0, failures.masker({}))("key", request)
    assert (len(attempts), quick) == (1, [])


def test_secrets_are_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library puts into its message is masked, whether it came by an option or by a variable."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-environment")
    masker = failures.masker({"key": "AKIA-OPTION", "client_kwargs": {"aws_secret_access_key": "hush/hush"}, "anon": 1})
    error = failures.os_error(ValueError("AKIA-OPTION hush%2Fhush of-the-environment endpoint"), "s3://x", masker)
    assert error.strerror == "******** ******** ******** endpoint"
