"""Storage of a cube: a folder or a bucket, opened with the same retries everywhere, and its refusals in plain words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import icechunk

from pipeline import redact
from pipeline.cube import patience
from pipeline.errors import ConfigError, StorageError
from pipeline.location import S3, Location

#: Tries of a request to a bucket that is refused with an error 500 or 503; waits grow from the first to the last, ms.
TRIES, FIRST_WAIT, LAST_WAIT = 10, 200, 15_000
#: Days of a manifest, the list of an array's chunks: a commit writes those anew that it adds to, and no others.
SPLIT = 92
#: Seconds without a byte that end an answer which stopped half-way; one that never begins: `patience.PATIENCE`.
SILENCE = 30

#: Where an endpoint may be told, the particular first; without one it is Amazon's.
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")

_CODE = re.compile(r'code: "(\w+)"')
_CREDENTIALS = "credentials that may use the bucket, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
_EXPECTED = {
    "NoSuchBucket": "a bucket that exists",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "AccessDenied": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
}


def storage(place: Location) -> icechunk.Storage:
    """Storage of a cube; of a bucket, with credentials that each process takes from its own environment.

    Icechunk warns that it cannot guard concurrent commits on the local disk; `pipeline.atomic.lock` does.
    """
    icechunk.set_logs_filter("error")
    if not isinstance(place, S3):
        return icechunk.local_filesystem_storage(str(place))
    endpoint = _first(ENDPOINTS)
    return icechunk.s3_storage(
        bucket=place.bucket,
        prefix=place.prefix,
        region=_first(REGIONS) or "us-east-1",
        endpoint_url=endpoint,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
        force_path_style=endpoint is not None,
        from_env=True,
        network_stream_timeout_seconds=SILENCE,
    )


def _first(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _settings() -> icechunk.RepositoryConfig:
    retries = icechunk.StorageRetriesSettings(TRIES, FIRST_WAIT, LAST_WAIT)
    by_time: Any = {icechunk.ManifestSplitDimCondition.DimensionName("time"): SPLIT}
    splitting = icechunk.ManifestSplittingConfig.from_dict({icechunk.ManifestSplitCondition.AnyArray(): by_time})
    return icechunk.RepositoryConfig(
        storage=icechunk.StorageSettings(retries=retries), manifest=icechunk.ManifestConfig(splitting=splitting)
    )


def exists(place: Location) -> bool:
    """Whether a repository lies there; ConfigError where a bucket cannot be asked."""
    if not isinstance(place, S3):
        return place.is_dir() and icechunk.Repository.exists(storage(place))
    with told(place):
        return patience.within(patience.PATIENCE, icechunk.Repository.exists, storage(place))


def opened(place: Location) -> icechunk.Repository:
    """Open the repository that lies there."""
    return _limited(place, icechunk.Repository.open)


def opened_or_made(place: Location) -> icechunk.Repository:
    """Open the repository that lies there, or begin one."""
    return _limited(place, icechunk.Repository.open_or_create)


def _limited(place: Location, opening: Callable[..., icechunk.Repository]) -> icechunk.Repository:
    """Open a repository; of one in a bucket no call waits for ever."""
    if not isinstance(place, S3):
        return opening(storage(place), _settings())
    with told(place):
        return patience.limited(patience.within(patience.PATIENCE, opening, storage(place), _settings()))


@contextmanager
def told(place: Location) -> Iterator[None]:
    """Say in plain words why a bucket refused, as a ConfigError, or that it was silent; other errors pass.

    Raises
    ------
    ConfigError
        What was expected of the bucket, and what it said.
    StorageError
        When it took a request and did not answer.
    """
    try:
        yield
    except TimeoutError as error:
        if not isinstance(place, S3):
            raise
        where = _first(ENDPOINTS) or "Amazon S3"
        raise StorageError(
            f"{place}: expected an answer; {where} gave none for {patience.PATIENCE:g} s; run it again when it does"
        ) from error
    except icechunk.IcechunkError as error:
        if isinstance(place, S3) and (said := refusal(str(error))):
            raise ConfigError(redact.text(f"{place}: {said}")) from error
        raise


def refusal(message: str) -> str | None:
    """What Icechunk's error says of a bucket: expected and found; None where it is of something else."""
    where = _first(ENDPOINTS) or "Amazon S3"
    if "loading credentials" in message or "no providers in chain" in message:
        return f"expected {_CREDENTIALS}; found none"
    if code := _CODE.search(message):
        return f"expected {_EXPECTED.get(code[1], 'an answer')}; {where} says {code[1]}"
    if re.search(r"dispatch failure|timeout|timed out|service error|response error|streaming error", message):
        lines = [" ".join(line.strip("|`-> x").split()) for line in message.splitlines()]
        return f"expected a bucket that answers (AWS_ENDPOINT_URL); {where} does not: {lines[-1] or lines[0]}"
    return None
