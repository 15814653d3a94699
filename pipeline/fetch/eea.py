"""European Environment Agency: one Parquet file a sampling point, listed by the download service.

Service: https://eeadmz1-downloads-api-appservice.azurewebsites.net/swagger/index.html. Where the sampling points are
stands in ``DataExtract.csv``, which comes in a zip.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError
from pipeline.fetch.query import BBox, Get, Query, Wanted, inside
from pipeline.fetch.web import FetchError, Web

logger = logging.getLogger("aqnet")

API = "https://eeadmz1-downloads-api-appservice.azurewebsites.net"
METADATA = "https://discomap.eea.europa.eu"
METADATA_PATH = "/App/AQViewer/download?fqn=Airquality_Dissem.b2g.measurements&f=csv"
METADATA_CSV = "DataExtract.csv"

POLLUTANTS = ("PM2.5", "PM10", "SO2", "NO2", "O3", "CO")

#: Name -> the service's number: E2a, as measured; E1a, verified by 30 September for the year before; AirBase, to 2012.
DATASETS = {"recent": 1, "verified": 2, "historical": 3}
VERIFIED_FROM = datetime(2013, 1, 1, tzinfo=UTC)

_NAME = re.compile(r"[\w.+ -]+\.parquet")


def plan(query: Query, web: Web, get: Get) -> Iterator[Wanted]:
    """Files of the sampling points inside the box.

    Raises
    ------
    ConfigError
        When there is no box, or the period needs two datasets.
    FetchError
        When no sampling point lies inside the box.
    """
    if query.bbox is None:
        raise ConfigError("eea: expected --bbox, since a file is asked for by its country; found none")
    dataset = query.dataset or _dataset(query, web.now())
    address = f"{(query.base_url or METADATA).rstrip('/')}{METADATA_PATH}"
    metadata = get(Wanted(address, METADATA_CSV, data=False, inner=r".*\.csv"))
    points = sampling_points(metadata, query.bbox)
    if not points:
        raise FetchError(f"{metadata}: expected sampling points inside bbox {query.bbox}; found none")
    logger.info("eea: %d sampling points in the box, %s data", len(points), dataset)
    for country in sorted(set(points.values())):
        for url in _addresses(query, web, country, DATASETS[dataset]):
            name = unquote(PurePosixPath(urlsplit(url).path).name)
            if name.removesuffix(".parquet") in points and _NAME.fullmatch(name):
                yield Wanted(url, name)


def _dataset(query: Query, now: datetime) -> str:
    """The delivery that holds the period: verified data of a year are complete from October of the next."""
    verified_to = datetime(now.year - (now.month < 10), 1, 1, tzinfo=UTC)
    if query.start < VERIFIED_FROM < query.end:
        raise ConfigError("eea: expected a period before or after 2013-01-01, where datasets change; fetch it in two")
    if query.end <= VERIFIED_FROM:
        return "historical"
    return "verified" if query.end <= verified_to else "recent"


def sampling_points(metadata: Path, bbox: BBox) -> dict[str, str]:
    """Sampling points of our pollutants inside the box, with the code of their country.

    Raises
    ------
    FetchError
        When the file lacks a column, or a coordinate is no number.
    """
    found = dict[str, str]()
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        needed = {"Sampling Point Id", "B-G Namespace", "Air Pollutant", "Longitude", "Latitude"}
        if missing := needed - set(rows.fieldnames or ()):
            raise FetchError(f"{metadata}, line 1: expected the columns {sorted(needed)}; {sorted(missing)} missing")
        for row in rows:
            place = _place(row, f"{metadata}, line {rows.line_num}")
            if row["Air Pollutant"] in POLLUTANTS and place and inside(*place, bbox):
                found[row["Sampling Point Id"]] = row["B-G Namespace"][:2].upper()
    return found


def _place(row: dict[str, str], where: str) -> tuple[float, float] | None:
    if not row["Longitude"] or not row["Latitude"]:
        return None
    try:
        return float(row["Longitude"]), float(row["Latitude"])
    except ValueError:
        found = row["Longitude"], row["Latitude"]
        raise FetchError(f"{where}: expected Longitude and Latitude in degrees; found {found}") from None


def _addresses(query: Query, web: Web, country: str, dataset: int) -> Iterator[str]:
    """Addresses of a country's files, as the service lists them."""
    url = f"{(query.api_url or API).rstrip('/')}/ParquetFile/urls"
    question = {
        "countries": [country], "cities": [], "pollutants": list(POLLUTANTS), "dataset": dataset, "source": "API",
        "dateTimeStart": f"{query.start:%Y-%m-%dT%H:%M:%SZ}", "dateTimeEnd": f"{query.end:%Y-%m-%dT%H:%M:%SZ}",
        "aggregationType": "hour",
    }  # fmt: skip
    text = web.body("POST", url, "a list of Parquet files", json=question).decode("utf-8-sig", "replace")
    rows = csv.DictReader(io.StringIO(text))
    if rows.fieldnames != ["ParquetFileUrl"]:
        raise FetchError(f"{url}: expected a CSV with the column ParquetFileUrl; found {text[:80]!r}")
    yield from (row["ParquetFileUrl"].strip() for row in rows)
