"""What an error of a filesystem means: somebody else was first, try again, or give up; and how it is told."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from mlp_hookspecs.masking import Masker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TRANSIENT_STATUS: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""409 is S3's ConditionalRequestConflict: another request for the key was under way, and the outcome is open."""

_TRANSIENT_ERRNO: Final = frozenset(
    {
        *(errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EINTR, errno.ETIMEDOUT, errno.EPIPE),
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH),
        getattr(errno, "EREMOTEIO", errno.EIO),
    }
)
_PRECONDITION_FAILED: Final = 412
_RANGE_NOT_SATISFIABLE: Final = 416
_TRANSIENT_CODES: Final = frozenset(
    {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
)
_TRANSIENT_NAMES: Final = frozenset(
    {
        # of aiohttp, botocore, urllib3, requests, google and azure, which may not be installed
        *(
            "ClientConnectionError",
            "ClientPayloadError",
            "ServerTimeoutError",
            "HTTPClientError",
            "IncompleteReadError",
        ),
        *("ResponseStreamingError", "ProtocolError", "ConnectionError", "Timeout", "FSTimeoutError", "TransportError"),
        *("IncompleteRead", "ServiceRequestError", "ServiceResponseError"),
    }
)
_UNREACHABLE_NAMES: Final = frozenset({"ClientConnectorError", "EndpointConnectionError", "ServiceRequestError"})
_CREDENTIAL_NAMES: Final = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}
)
_SECRET_VARIABLES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def is_conflict(error: BaseException) -> bool:
    """Tell whether a conditional request found an object."""
    if isinstance(error, FileExistsError) or _PRECONDITION_FAILED in _statuses(error):
        return True
    return "PreconditionFailed" in _codes(error)


def is_absence(error: BaseException) -> bool:
    """Tell whether there is no such object, in a bucket that is there."""
    return isinstance(error, FileNotFoundError) and not is_missing_bucket(error)


def is_missing_bucket(error: BaseException) -> bool:
    """Tell whether the bucket itself is missing."""
    return "NoSuchBucket" in _codes(error)


def is_past_the_end(error: BaseException) -> bool:
    """Tell whether a range was asked for that begins where the object ends, or later."""
    return _RANGE_NOT_SATISFIABLE in _statuses(error) or "InvalidRange" in _codes(error)


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may succeed a little later."""
    if isinstance(error, PermissionError | FileNotFoundError | FileExistsError):
        return False
    statuses = set(_statuses(error))
    if statuses:
        return not _TRANSIENT_STATUS.isdisjoint(statuses) or not _TRANSIENT_CODES.isdisjoint(_codes(error))
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return any(kind.__name__ in _TRANSIENT_NAMES for kind in type(error).__mro__)


def is_unreachable(error: BaseException) -> bool:
    """Tell whether nobody answered at all."""
    if isinstance(error, ConnectionRefusedError):
        return True
    return any(kind.__name__ in _UNREACHABLE_NAMES for kind in type(error).__mro__)


def os_error(error: Exception, what: str, masker: Masker) -> OSError:
    """Return an error as the contract asks for it, with nothing secret in it.

    Parameters
    ----------
    error : Exception
        What a filesystem raised.
    what : str
        What was asked for.
    masker : Masker
        Keeps secrets out of the message.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or text
    if is_missing_bucket(error):
        number, reason = errno.ENXIO, "there is no such bucket; make it first, or correct the URL"
    elif any(kind.__name__ in _CREDENTIAL_NAMES for kind in type(error).__mro__):
        number = errno.EACCES
        reason = f"no credentials: {text}; give them by the environment, such as AWS_ACCESS_KEY_ID, or by a profile"
    elif isinstance(error, FileNotFoundError):
        number, reason = errno.ENOENT, "no object of that key"
    elif isinstance(error, PermissionError):
        number, reason = errno.EACCES, f"access denied: {text}"
    elif isinstance(error, TimeoutError):
        number = errno.ETIMEDOUT
    return OSError(number or errno.EIO, masker.text(reason), what)


def masker(options: Mapping[str, object]) -> Masker:
    """Return what masks the secrets among a filesystem's arguments, and those of the usual variables."""
    return Masker([*_texts(options), *(os.environ[name] for name in _SECRET_VARIABLES if os.environ.get(name))])


def _texts(value: object, name: str = "") -> Iterator[str]:
    """Yield the texts below a value whose names are not those of addresses."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, str(key))
    elif isinstance(value, str) and any(word in name.lower() for word in ("key", "secret", "token", "pass", "cred")):
        yield value


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was made from."""
    yield error
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)


def _statuses(error: BaseException) -> Iterator[int]:
    """Yield the HTTP statuses that an error tells of."""
    for each in _causes(error):
        response = getattr(each, "response", None)
        of_botocore = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        of_others = (getattr(each, name, None) for name in ("status", "status_code", "code"))
        yield from (status for status in (of_botocore, *of_others) if isinstance(status, int))


def _codes(error: BaseException) -> frozenset[str]:
    """Return the error codes of S3 that an error tells of."""
    responses = [getattr(each, "response", None) for each in _causes(error)]
    return frozenset(str(r.get("Error", {}).get("Code")) for r in responses if isinstance(r, dict))
