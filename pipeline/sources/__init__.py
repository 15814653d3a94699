"""One module a network: raw files to StationTables. Each network declares its zone and hour label; `read` is for all.

`names` lists the sources there are: those built in, and plug-ins that name a `Source` under the entry point group
``aqnet.sources``. `read` clips what a network's reader yields to the period and the bounding box.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.contract import HOUR, check_station_table
from pipeline.errors import ConfigError, InputError
from pipeline.harmonise import utc_hour
from pipeline.sources.archive import Member, contents, digests, members
from pipeline.sources.csvfile import Truncated
from pipeline.sources.sites import SiteList
from pipeline.sources.source import CONVENTIONS, Convention, Source
from pipeline.sources.table import read_points, read_table

__all__ = ["CONVENTIONS", "Convention", "Source", "Truncated", "read_points", "read_table"]

BBox = tuple[float, float, float, float]

#: Sources that come with the package, and the module that holds the `SOURCE` of each; loaded when one is used.
BUILT_IN = {
    name: f"pipeline.sources.{name}"
    for name in ("airnow", "aqs", "cnemc", "eea", "openaq", "prsa", "purpleair", "store", "table", "timeseries")
}

#: Entry point group of plug-ins.
GROUP = "aqnet.sources"


def names() -> list[str]:
    """Names of all sources, built in or plugged in, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def find(name: str) -> Source:
    """Return the source of a name.

    Raises
    ------
    ConfigError
        When there is none of this name, or a plug-in does not load, takes the name of a built-in source or is none.
    """
    points = list(entry_points(group=GROUP, name=name))
    if name in BUILT_IN:
        if points:
            raise ConfigError(f"source '{name}': expected a plug-in with a name of its own; found {points[0].value}")
        return import_module(BUILT_IN[name]).SOURCE
    if not points:
        raise ConfigError(f"source: expected one of {', '.join(names())}; found '{name}'")
    if len(points) > 1:
        both = " and ".join(point.value for point in points)
        raise ConfigError(f"source '{name}': expected one plug-in of this name; found {both}")
    return _plugged_in(points[0])


def _plugged_in(point: EntryPoint) -> Source:
    where = f"source '{point.name}', plug-in {point.value}"
    try:
        found = point.load()
    except Exception as error:  # whatever a third party's module raises when it is imported
        raise ConfigError(f"{where}: expected a module that loads; found {type(error).__name__}: {error}") from error
    if not isinstance(found, Source):
        raise ConfigError(f"{where}: expected a pipeline.sources.Source; found {type(found).__name__}")
    return found


def read(
    source: str,
    path: Path,
    stations: Path | None,
    start: np.datetime64 | datetime,
    end: np.datetime64 | datetime,
    bbox: BBox | None,
    truncated: Truncated = "error",
    around: BBox | None = None,
) -> Iterator[pd.DataFrame]:
    """Read the observations of [start, end) as StationTables, one a file.

    Parameters
    ----------
    source : one of `names`.
    path : file, zip or folder.
    stations : site list for layouts without coordinates; None looks for the network's own in or beside `path`.
    start, end : whole hours, UTC, half open.
    bbox : west, south, east, north in degrees, edges included; None takes every station.
    truncated : what to do with a CSV row that does not have every column: ``error``, or ``keep`` the whole rows.
    around : a wider box than `bbox` whose stations are read too; one inside `bbox` is needed all the same.

    Yields
    ------
    StationTable
        Pollutants float32; ``station`` and ``source_file`` categorical.

    Raises
    ------
    InputError
        When an input is not what was declared, no file covers the period, or no station lies inside `bbox`.
    """
    spec = find(source)
    first, last = utc_hour(start), utc_hour(end)
    seen = _Seen(Path(path), first, last, bbox, around or bbox)
    sites = site_list(spec, Path(path), stations)
    for member, raw in contents(find_members(spec, Path(path), first, last, stations)):
        for found in spec.parse(raw, sites, truncated):
            clipped = seen.clip(check_station_table(found, str(path)))
            if len(clipped):
                label = pd.Categorical.from_codes(np.zeros(len(clipped), "int8"), pd.Index([member.label]))
                yield clipped.reset_index(drop=True).assign(source_file=label)
    if sites is not None:
        sites.warn_of_unknown()
    seen.check()


def input_digests(
    source: str,
    path: Path,
    start: np.datetime64 | datetime,
    end: np.datetime64 | datetime,
    stations: Path | None = None,
) -> dict[str, str]:
    """SHA-256 of the files (of a zip: its members' own bytes) that a read of [start, end) uses, by name, sorted.

    The site list is one of them, where the network has one.
    """
    spec, path = find(source), Path(path)
    found = digests(find_members(spec, path, utc_hour(start), utc_hour(end), stations))
    listed = site_path(spec, path, stations)
    if listed is not None and listed.is_file():
        found[listed.name] = hashlib.sha256(listed.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


def site_path(spec: Source, path: Path, stations: Path | None) -> Path | None:
    """Return the site list that a read of `path` uses: `stations`, else one of the network's names in or beside it."""
    folder = path if path.is_dir() else path.parent
    beside = (folder / name for name in spec.site_names)
    return stations or next((listed for listed in beside if listed.exists()), None)


def site_list(spec: Source, path: Path, stations: Path | None) -> SiteList | None:
    """Read the site list of a read of `path`, where the network has one; InputError where it needs one and has none."""
    listed = site_path(spec, path, stations)
    if listed is None and spec.sites_needed:
        wanted = " or ".join(spec.site_names)
        raise InputError(f"{path}: expected a site list ({wanted}) in or beside it, or as --stations; found none")
    return spec.read_sites(listed) if listed is not None and spec.read_sites is not None else None


def find_members(
    spec: Source, path: Path, start: np.datetime64, end: np.datetime64, stations: Path | None = None
) -> list[Member]:
    """List the files whose name does not rule out hours in [start, end) UTC, in the order of their hours.

    Of dated files with one name (the same day in two archives) the last in sorted order counts.

    Raises
    ------
    InputError
        When no file covers the period, naming the period that the files cover.
    """
    found = _members(spec, path, stations)
    spans = {member: spec.span(member.base) for member in found}
    dated = {member.base: member for member in found if spans[member]}
    kept = [member for member in found if dated.get(member.base, member) == member]
    wanted = [m for m in kept if (span := spans[m]) is None or (span[0] < end and span[1] > start)]
    if not wanted:
        first, last = min(span[0] for span in spans.values() if span), max(span[1] for span in spans.values() if span)
        raise InputError(f"{path}: expected files for {start} to {end} UTC; found files for {first} to {last} UTC only")
    return sorted(wanted, key=lambda member: spans[member] or (start, end))


def list_members(spec: Source, path: Path, stations: Path | None) -> list[Member]:
    """List every data file of `path`, in the order of the hours that their names tell; those that do not tell, last."""
    never = np.datetime64("9999-01-01", "h")
    return sorted(_members(spec, path, stations), key=lambda member: (spec.span(member.base) or (never,))[0])


def _members(spec: Source, path: Path, stations: Path | None) -> list[Member]:
    if spec.members is not None:
        return spec.members(path)
    return members(path, spec.suffixes, ignore={*spec.site_names, *([stations.name] if stations else [])})


@dataclass
class _Seen:
    """Clips tables to period and box, and remembers what it saw so that an empty result can say why."""

    path: Path
    start: np.datetime64
    end: np.datetime64
    bbox: BBox | None
    around: BBox | None
    first: np.datetime64 | None = None
    last: np.datetime64 | None = None
    in_period: int = 0
    in_both: int = 0

    def clip(self, found: pd.DataFrame) -> pd.DataFrame:
        """Rows of the period around the box; what is inside the box is counted."""
        time = found["time"].to_numpy()
        if len(time):
            self.first = min(filter(None, (self.first, time.min())))
            self.last = max(filter(None, (self.last, time.max())))
        timely = (time >= self.start) & (time < self.end)
        self.in_period += int(timely.sum())
        self.in_both += int((timely & _inside(found, self.bbox)).sum())
        return found[timely & _inside(found, self.around)]

    def check(self) -> None:
        """Raise InputError where nothing was in the period, or in the box."""
        period = f"{self.start} to {self.end} UTC"
        if not self.in_period:
            held = "none at all" if self.last is None else f"{self.first} to {self.last + HOUR} UTC only"
            raise InputError(f"{self.path}: expected observations for {period}; found {held}")
        if not self.in_both:
            raise InputError(f"{self.path}: expected stations inside bbox {self.bbox} in {period}; found none there")


def _inside(found: pd.DataFrame, bbox: BBox | None) -> NDArray[np.bool_]:
    if bbox is None:
        return np.ones(len(found), dtype=bool)
    west, south, east, north = bbox
    # Modulo 360, so that 0..360 and -180..180 longitudes, and a box across the date line, all work.
    eastward = (found["lon"].to_numpy() - west) % 360 <= east - west
    return eastward & found["lat"].between(south, north).to_numpy()
