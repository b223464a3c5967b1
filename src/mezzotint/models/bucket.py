"""An S3 bucket: opened by its URL, and what its errors say. Needs the [serve] extra."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Store

__all__ = ["S3_SCHEME", "bucket_error_text", "open_bucket"]

S3_SCHEME = "s3://"


def open_bucket(
    url: str, client_options: ClientConfig | None = None, retry_config: RetryConfig | None = None
) -> S3Store:
    """The place at `url`, s3://bucket/prefix. Nothing is asked of it yet.

    The options are the library's. Credentials, region and endpoint come from the AWS_* variables of the
    environment.

    Raises:
        ValueError: no bucket is named.
    """
    from obstore.store import S3Store

    bucket, _, prefix = url.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise ValueError("no bucket is named")
    # Given options, the library reads no AWS_ALLOW_HTTP of its own.
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
    return S3Store(
        bucket,
        prefix=prefix.strip("/") or None,
        client_options={"allow_http": allow_http, **(client_options or {})},
        retry_config=retry_config,
    )


def bucket_error_text(error: Exception) -> str:
    """What the library says of it, on one line, at most 300 characters."""
    # What follows is the library's own structures.
    return " ".join(str(error).partition("Debug source")[0].split())[:300]
