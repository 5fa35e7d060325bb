"""Why a file or an object cannot be read or written, in words for a message."""

import errno
import os
import re
from urllib.parse import urlsplit

from dpr.store.temporary import is_full_disk

_S3_URL = re.compile(r"s3a?://")


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line: the system's words for its number, if it has one."""
    words = error.strerror if isinstance(error, OSError) else None
    text = " ".join(str(words or error).split())
    return text if text not in ("", "None") else type(error).__name__


def remedy_of(error: Exception, room: str = "free disk space there, and start again") -> str:
    """Return what to do about an error of the system, to end its sentence; empty if that is not known.

    `room` is what to do about a full disk.
    """
    if isinstance(error, OSError) and is_full_disk(error):
        return f"; {room}"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "; that file system is mounted read-only, so mount it for writing, or use another folder"
    if isinstance(error, PermissionError):
        return "; give this user access to it, or run as one who has it"
    return ""


def unreadable(path: str, error: Exception) -> str:
    """Return why a file cannot be read; for an object on S3 also what to do. No credentials are shown."""
    if _S3_URL.match(path) is None:
        return reason_of(error)
    from dpr.store.s3_failures import REQUEST_ERRORS, Patience, error_code, explain, without_secrets

    cause = error if isinstance(error, REQUEST_ERRORS) else error.__cause__
    if cause is None or not isinstance(cause, REQUEST_ERRORS):
        return reason_of(error)
    bucket = urlsplit(path).netloc
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = without_secrets(url) if url else "S3"
    if error_code(cause)[1] in (401, 403):  # wrong keys and missing rights look alike where an answer has no body
        return (
            f"{endpoint} refused the credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            f"and that they may list bucket {bucket} and read its objects"
        )
    failure = explain(cause, bucket, endpoint, Patience())
    return f"{failure.cause}; {failure.remedy}"
