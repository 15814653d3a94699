"""Where a cube lies: a folder of this machine, or a prefix in an S3 bucket."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

SCHEME = "s3://"

#: Rules of bucket names, and characters of keys that need no care: docs.aws.amazon.com/AmazonS3, "Naming".
_KEY, _BUCKET = r"[\w!.*'()-]+", r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_URL = re.compile(rf"s3:/{{1,2}}(?P<bucket>{_BUCKET})/(?P<prefix>{_KEY}(?:/{_KEY})*)/?", re.ASCII)


@dataclass(frozen=True)
class S3:
    """A prefix in a bucket; endpoint, region and credentials are those of the environment (``AWS_*``)."""

    bucket: str
    prefix: str

    @property
    def name(self) -> str:
        """Last part of the prefix, as of a path."""
        return self.prefix.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}"


Location = Path | S3


def is_url(text: str) -> bool:
    """Whether a text means a store and no folder; a `Path` made of an address has lost a slash."""
    return re.match(r"s3:/", text, re.IGNORECASE) is not None


def located(place: str | Path | S3) -> Location:
    """Read a folder or an ``s3://bucket/prefix``.

    Raises
    ------
    ValueError
        When an address is none of these. It is not repeated: people put passwords into addresses.
    """
    if isinstance(place, S3):
        return place
    if not is_url(str(place)):
        return Path(place)
    found = _URL.fullmatch(str(place))
    if found is None:
        raise ValueError(
            "expected s3://bucket/prefix without user, port or query (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID ... tell"
            " endpoint and credentials); found another address"
        )
    return S3(found["bucket"], found["prefix"])


def relative(place: Location, folder: Path) -> str:
    """Link from a folder to a location."""
    return str(place) if isinstance(place, S3) else Path(os.path.relpath(place, folder)).as_posix()


def uri(place: Location) -> str:
    """Address of a location, for links."""
    return str(place) if isinstance(place, S3) else place.resolve().as_uri()
