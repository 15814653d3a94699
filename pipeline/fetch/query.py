"""What to fetch: the user's question, and the files that answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

BBox = tuple[float, float, float, float]

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@dataclass(frozen=True)
class Query:
    """A network's hours and places.

    Attributes
    ----------
    network : name in `pipeline.fetch.NETWORKS`.
    start, end : hours, UTC, half open.
    bbox : west, south, east, north in degrees; None where the archive is not to be cut.
    locations : OpenAQ's location numbers; empty asks its API for those inside `bbox`.
    product : which of AirNow's two hourly layouts; empty takes ``HourlyData``.
    dataset : which of the EEA's deliveries; empty takes the one that the period asks for.
    base_url, api_url : address of a mirror of the files, and of the network's API; None takes the network's own.
    """

    network: str
    start: datetime
    end: datetime
    bbox: BBox | None = None
    locations: tuple[int, ...] = ()
    product: str = ""
    dataset: str = ""
    base_url: str | None = None
    api_url: str | None = None

    def days(self, before: timedelta = timedelta(), after: timedelta = timedelta()) -> Iterator[date]:
        """Days touched by the period, its start moved by `before` and its end by `after`; oldest first."""
        day, last = (self.start + before).date(), (self.end - timedelta.resolution + after).date()
        while day <= last:
            yield day
            day += DAY

    def hours(self) -> Iterator[datetime]:
        """Starts of the hours of the period, oldest first."""
        hour = self.start.astimezone(UTC)
        while hour < self.end:
            yield hour
            hour += HOUR


@dataclass(frozen=True)
class Wanted:
    """A file to have.

    Attributes
    ----------
    url : where it is.
    name : what it is called in the folder.
    day : the last day whose hours it holds; None for a file that may change at any time (a site list).
    etag : what a listing says of it now; None where there is no listing.
    older : addresses to try in turn where the archive does not have `url`.
    listed : False where a listing shows that the archive does not have it.
    data : whether it holds observations (or else, where the stations are).
    inner : where `url` is a zip around the file, a regular expression that the file's name in it has to match.
    """

    url: str
    name: str
    day: date | None = None
    etag: str | None = None
    older: tuple[str, ...] = ()
    listed: bool = True
    data: bool = True
    inner: str = ""


#: Fetches a file that a plan needs to read, and tells where it is.
Get = Callable[[Wanted], Path]


def inside(lon: float, lat: float, bbox: BBox) -> bool:
    """Tell whether a place lies in a box, edges included; longitudes count modulo 360."""
    west, south, east, north = bbox
    return (lon - west) % 360 <= east - west and south <= lat <= north
