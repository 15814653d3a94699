"""OpenAQ: one gzipped CSV a location and local day, in an open S3 bucket; its API says which locations lie in a box.

Layout of the bucket: https://docs.openaq.org/aws/about. Locations: https://docs.openaq.org/using-the-api/geospatial.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

from pipeline.errors import ConfigError
from pipeline.fetch import s3
from pipeline.fetch.query import HOUR, BBox, Get, Query, Wanted
from pipeline.fetch.web import FetchError, Web

logger = logging.getLogger("aqnet")

BUCKET = "openaq-data-archive"
API = "https://api.openaq.org"
KEY = "OPENAQ_API_KEY"
PM2P5 = 2  # OpenAQ's number of the parameter "pm25", ug m-3
PAGE = 1000  # as many as the API gives at once

#: Zones reach from UTC-12 to UTC+14, and a time labels its hour's end.
EARLIEST, LATEST = HOUR - timedelta(hours=12), HOUR + timedelta(hours=14)

_NAME = re.compile(r"location-\d+-(\d{4})(\d{2})(\d{2})\.csv\.gz")


def plan(query: Query, web: Web, _get: Get) -> Iterator[Wanted]:
    """Files of the locations in the box (or named), by location and day.

    Raises
    ------
    ConfigError
        When there are neither locations nor a box with a key for the API.
    """
    locations = query.locations or _locations(query, web)
    store = s3.opened(BUCKET, query.base_url, web.limits)
    for location in sorted(set(locations)):
        yield from _of_location(location, query, store)


def _of_location(location: int, query: Query, store: s3.S3Store) -> Iterator[Wanted]:
    """The days that are listed, and those of the period that are not; a day either side may be empty."""
    days, found = list(query.days(EARLIEST, LATEST)), dict[date, tuple[str, str | None]]()
    for month in sorted({day.replace(day=1) for day in days}):
        for key, etag in s3.listed(store, _folder(location, month), query.base_url):
            if match := _NAME.fullmatch(key.rsplit("/", 1)[-1]):
                found[date(*map(int, match.groups()))] = key, etag
    needed = set(query.days())
    for day in days:
        name = f"location-{location}-{day:%Y%m%d}.csv.gz"
        key, etag = found.get(day, (_folder(location, day) + name, None))
        if day in found or day in needed:
            yield Wanted(s3.url_of(BUCKET, key, query.base_url), name, day, etag, listed=day in found)


def _folder(location: int, day: date) -> str:
    return f"records/csv.gz/locationid={location}/year={day:%Y}/month={day:%m}/"


# ---- locations in a box ----


def _locations(query: Query, web: Web) -> list[int]:
    key = os.environ.get(KEY, "")
    if not key or query.bbox is None:
        missing = f"the environment variable {KEY}" if query.bbox else "--bbox"
        raise ConfigError(
            f"openaq: expected --locations, or --bbox with {KEY} in the environment; {missing} is missing"
        )
    pages = (page for box in _boxes(query.bbox) for page in _pages(query, web, box, key))
    found = [place for page in pages for place in page]
    kept = [int(place["id"]) for place in found if _reports(place, query) and not place.get("isMobile")]
    logger.info("openaq: %d of %d locations in the box stay in place and report in the period", len(kept), len(found))
    return kept


def _boxes(bbox: BBox) -> list[BBox]:
    """The box as the API takes it, within 180 degrees W and E: two where it crosses the date line."""
    west, south, east, north = bbox
    if east - west >= 360:
        return [(-180, south, 180, north)]
    west, east = (west + 180) % 360 - 180, (west + 180) % 360 - 180 + (east - west)
    return (
        [(west, south, east, north)] if east <= 180 else [(west, south, 180, north), (-180, south, east - 360, north)]
    )


def _pages(query: Query, web: Web, bbox: BBox, key: str) -> Iterator[list[dict[str, Any]]]:
    """Pages of locations until one is not full."""
    url = f"{(query.api_url or API).rstrip('/')}/v3/locations"
    parameters = {"bbox": ",".join(f"{edge:.6g}" for edge in bbox), "parameters_id": PM2P5, "limit": PAGE}
    number, page = 1, list[dict[str, Any]]()
    while number == 1 or len(page) == PAGE:
        # No redirects: they would carry the key to another host.
        ask = {"params": parameters | {"page": number}, "headers": {"X-API-Key": key}, "follow_redirects": False}
        page = _results(url, web.body("GET", url, "a list of locations", **ask))
        yield page
        number += 1


def _results(url: str, body: bytes) -> list[dict[str, Any]]:
    try:
        results: list[dict[str, Any]] = json.loads(body)["results"]
        return [dict(place, id=int(place["id"])) for place in results]
    except (ValueError, TypeError, KeyError) as error:
        raise FetchError(f"{url}: expected JSON with results that have an id; found {body[:80]!r} ({error})") from None


def _reports(place: dict[str, Any], query: Query) -> bool:
    """Tell whether a location's record can touch the period; one without any times never reported."""
    first, last = ((place.get(name) or {}).get("utc") for name in ("datetimeFirst", "datetimeLast"))
    if not first or not last:
        return False
    return datetime.fromisoformat(first) < query.end + HOUR and datetime.fromisoformat(last) >= query.start
