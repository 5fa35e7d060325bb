"""What tests know of an S3 server: where it is, and the keys to it."""

import random
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest


@dataclass(frozen=True)
class S3Endpoint:
    """An S3 server on this machine that belongs to the tests."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """Return the AWS settings of a process that uses this server and nothing of this machine's own."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": urlsplit(self.url).hostname or "",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this process use the server."""
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def client(self) -> Any:
        """Return a boto3 client: the way around the store under test."""
        import boto3  # as of moto: the session's fixtures are imported for all tests
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def free_ports(number: int) -> list[int]:
    """Return ports on loopback that nobody listens at.

    None of them is one that Linux gives to a connection, or Ray to a worker: the tests run side by side with many of
    these, and such a port could be taken before the test's server listens at it.
    """
    free: list[int] = []
    for port in random.sample(range(61_000, 65_536), 4_536):
        with suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            free.append(port)
        if len(free) == number:
            break
    return free
