"""Objects of a public S3 bucket, listed without signing; the objects themselves are fetched as any file is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import S3Store

from pipeline.fetch.web import USER_AGENT, FetchError, Limits, shown

REGION = "us-east-1"


def url_of(bucket: str, key: str, endpoint: str | None) -> str:
    """Address of an object: the bucket's own host at AWS, path-style at another endpoint."""
    base = f"https://{bucket}.s3.amazonaws.com" if endpoint is None else f"{endpoint.rstrip('/')}/{bucket}"
    return f"{base}/{key}"


def opened(bucket: str, endpoint: str | None, limits: Limits) -> S3Store:
    """Open a public bucket for listing, as patient as `limits`; ``AWS_ENDPOINT_URL`` is that of our own store."""
    where = endpoint.rstrip("/") if endpoint else f"https://s3.{REGION}.amazonaws.com"
    options: dict[str, Any] = {"aws_endpoint_url_s3": where}  # the only name that outranks the environment's
    timeout = timedelta(seconds=limits.timeout)
    return S3Store(
        bucket,
        region=REGION,
        skip_signature=True,
        virtual_hosted_style_request=False,
        client_options={"allow_http": bool(endpoint), "timeout": timeout, "user_agent": USER_AGENT},
        retry_config={"max_retries": limits.tries - 1, "retry_timeout": timedelta(seconds=limits.pause)},
        **options,
    )


def listed(store: S3Store, prefix: str, endpoint: str | None) -> Iterator[tuple[str, str | None]]:
    """Keys below `prefix` with their ETags, in the order of the keys.

    Raises
    ------
    FetchError
        When the bucket cannot be listed.
    """
    where = shown(endpoint or "https://s3.amazonaws.com")
    try:
        for batch in store.list(prefix):
            yield from ((found["path"], found["e_tag"]) for found in batch)
    except BaseError as error:
        reason = " ".join(str(error).split())[:300]
        raise FetchError(f"{where}: expected a list of {prefix} in an open bucket; found: {reason}") from None
