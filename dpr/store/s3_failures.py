"""The meaning of a failed S3 request: its cause and remedy in words, and how long repeating it can help."""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

REQUEST_ERRORS = (OSError, BotoCoreError, ResponseParserError, aiohttp.ClientError, asyncio.TimeoutError)
"""Errors of a request through s3fs when the endpoint, the network or the configuration is at fault."""

_OVERLOAD_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "ServiceUnavailable")
}
# damaged on the way (BadDigest), overtaken by another request (409), or given up by the server while we were sending
_PASSING_CODES = {
    *("BadDigest", "XAmzContentSHA256Mismatch", "ConditionalRequestConflict", "OperationAborted", "RequestTimeout"),
    "InternalError",
}
_CREDENTIAL_CODES = {
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"),
}
_REGION_CODES = {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307"}
_TRY_AGAIN = "start again when the endpoint works; finished work is kept"


@dataclass(frozen=True)
class Patience:
    """For how long an S3 store keeps trying. The defaults suit a nightly run."""

    total_seconds: float = 180.0
    """How long after its start a request that was throttled, timed out or was cut off is tried again."""
    unreachable_seconds: float = 30.0
    """The same where the endpoint cannot be reached or does not answer as S3 does: mostly a mistyped endpoint."""
    first_delay_seconds: float = 0.2
    """Upper bound of the first random delay; each further one doubles it."""
    longest_delay_seconds: float = 20.0
    """Upper bound of any delay."""
    connect_seconds: float = 10.0
    """Time-out of making a connection."""
    read_seconds: float = 30.0
    """Time-out of a connection over which nothing comes."""
    attempt_seconds: float = 120.0
    """Time-out of one whole attempt, against endpoints that send a byte now and then."""


@dataclass(frozen=True)
class Failure:
    """Why a request failed, and for how many seconds after its start it is worth repeating."""

    cause: str
    remedy: str
    retry_seconds: float = 0.0


def error_code(error: BaseException) -> tuple[str, int]:
    """Return S3's error code and the HTTP status of the answer, or ("", 0) where there was no answer.

    s3fs turns botocore's ClientError into an OSError and keeps it as the cause.
    """
    source = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(source, ClientError):
        return "", 0
    status = source.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return source.response.get("Error", {}).get("Code") or "", status


def explain(error: BaseException, bucket: str, endpoint: str, patience: Patience) -> Failure:
    """Return what `error`, one of REQUEST_ERRORS, means. It repeats no texts of servers and no credentials."""
    code, status = error_code(error)
    if status:
        return _answered(code, status, bucket, endpoint, patience)
    match error:
        case NoCredentialsError() | PartialCredentialsError() | CredentialRetrievalError():
            return Failure(
                "there are no complete AWS credentials",
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE) or a role",
            )
        case ProfileNotFound() | ConfigParseError():
            return Failure(f"the AWS configuration cannot be used ({error})", "correct it or AWS_PROFILE")
        case ResponseParserError():
            return Failure(
                f"{endpoint} does not answer as S3 does", "check AWS_ENDPOINT_URL", patience.unreachable_seconds
            )
        case BotoConnectionError() | HTTPClientError() | IncompleteReadError() | aiohttp.ClientError() | OSError():
            return _unanswered(error, endpoint, patience)
        case _:
            # malformed endpoints, regions and bucket names, which botocore checks before it sends anything
            return Failure(
                f"a request to {endpoint} cannot be made ({type(error).__name__})",
                "check the store's URL, AWS_ENDPOINT_URL (http://host:port or https://host) and AWS_DEFAULT_REGION",
            )


def _unanswered(error: BaseException, endpoint: str, patience: Patience) -> Failure:
    """Return what an error of the connection means."""
    match error:
        case SSLError():
            return Failure(
                f"cannot make a trusted TLS connection to {endpoint}",
                "check the endpoint's certificate, and name its authority in AWS_CA_BUNDLE",
            )
        case EndpointConnectionError() | ConnectTimeoutError() | ProxyConnectionError():
            return Failure(
                f"cannot connect to {endpoint}",
                "check AWS_ENDPOINT_URL, the network and that the endpoint runs",
                patience.unreachable_seconds,
            )
        case ReadTimeoutError() | TimeoutError():
            return Failure(f"{endpoint} did not answer in time", _TRY_AGAIN, patience.total_seconds)
        case ConnectionClosedError() | ResponseStreamingError() | IncompleteReadError() | aiohttp.ClientPayloadError():
            return Failure(f"the connection to {endpoint} broke", _TRY_AGAIN, patience.total_seconds)
        case _:
            cause = f"the connection to {endpoint} failed ({type(error).__name__})"
            return Failure(cause, f"check AWS_ENDPOINT_URL and the network, or {_TRY_AGAIN}", patience.total_seconds)


def _answered(code: str, status: int, bucket: str, endpoint: str, patience: Patience) -> Failure:
    """Return what an answer with an error code or status means."""
    is_s3 = bool(code) and not code.isdigit()  # botocore invents codes such as 404 where the answer holds none
    message = f"{endpoint} answered {code if is_s3 else 'no S3 error code'} (HTTP status {status})"
    if code in _OVERLOAD_CODES or status in (429, 503):
        return Failure(f"{message}: it is overloaded", f"use fewer workers, or {_TRY_AGAIN}", patience.total_seconds)
    if code in _PASSING_CODES or status in (500, 502, 504):
        return Failure(
            message, _TRY_AGAIN if is_s3 else f"check AWS_ENDPOINT_URL, or {_TRY_AGAIN}", patience.total_seconds
        )
    if code == "NoSuchBucket":
        return Failure(f"there is no bucket {bucket} at {endpoint}", "create it or correct the store's URL")
    if code == "RequestTimeTooSkewed":
        return Failure(message, "set this machine's clock")
    if code in _CREDENTIAL_CODES:
        return Failure(
            f"{message}: it refused the credentials", "check AWS_ACCESS_KEY_ID, AWS_PROFILE or the role in use"
        )
    if code in _REGION_CODES:
        return Failure(f"{message}: bucket {bucket} is in another region", "set AWS_DEFAULT_REGION to the bucket's own")
    if status == 403:
        return Failure(
            f"{message}: access is denied",
            f"allow these credentials s3:ListBucket on bucket {bucket} and s3:GetObject, s3:PutObject and "
            "s3:DeleteObject on its objects",
        )
    if code == "NoSuchUpload" or status == 412:
        return Failure(f"{message}: the object or its unfinished upload was removed meanwhile", "start again")
    if status == 404:
        return Failure(message, "check AWS_ENDPOINT_URL")
    return Failure(message, "check that the endpoint supports the request")


def without_secrets(endpoint_url: str) -> str:
    """Return the endpoint's scheme, host and port."""
    parts = urlsplit(endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
