"""Damaged lists of sites and points: places by code, which the readers of observations rely on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import pandas as pd

from benchmarks.fuzz import rows
from benchmarks.fuzz.judge import Finding
from benchmarks.fuzz.layouts import source
from benchmarks.fuzz.mutate import Text, mutated
from benchmarks.fuzz.plain import by_name, lines_of, number
from pipeline import sources

_V2 = """StationID|AQSID|FullAQSID|Parameter|Status|Latitude|Longitude|Elevation
010030010|010030010|840010030010|PM2.5|Active|30.4889|-87.8706|0.0
010030010|010030010|840010030010|OZONE|Inactive|30.489|-87.871|0.0
000020401|000020401|124000020401|PM2.5|Active|46.3864|-62.5828|15.3
"""
_POINTS = "station,lon,lat,elevation\nhome,8.5,47.4,\nwork,8.6,47.5,410\n"
_AQSID = ("AQSID", "FullAQSID", "StationID")


@dataclass(frozen=True)
class Listing:
    """A valid list: its file and bytes, where codes and places stand in it, and its columns where it has no header."""

    file: str
    text: Text
    read: Callable[[Path], pd.DataFrame]
    codes: tuple[str, ...]
    place: tuple[str, str] = ("lon", "lat")
    names: tuple[str, ...] | None = None


def _sites(network: str) -> Callable[[Path], pd.DataFrame]:
    """Places by code, as the network's reader has them."""

    def read(path: Path) -> pd.DataFrame:
        reader = source(network).read_sites
        assert reader is not None
        return reader(path).frame[["lon", "lat"]]

    return read


def _points(path: Path) -> pd.DataFrame:
    return sources.read_points(path).set_index("station")[["lon", "lat"]]


def _text(content: str, delimiter: str = ",", header: bool = True, numbers: tuple[int, ...] = (1, 2)) -> Text:
    return Text(content.encode(), delimiter, header, (), (), numbers)


@cache
def listings() -> tuple[Listing, ...]:
    """One list of each network that has one, and the points of an estimate."""
    old = tuple(str(n) for n in range(23))
    degrees = ("Longitude", "Latitude")
    return (
        Listing("stations.csv", _text(rows.WIDE_SITES), _sites("cnemc"), ("code",)),
        Listing("stations.csv", _text(rows.PRSA_SITES, numbers=(2, 3)), _sites("prsa"), ("station",)),
        Listing(
            "sensors.csv", _text(rows.PURPLE_SITES), _sites("purpleair"), ("sensor_index",), ("longitude", "latitude")
        ),
        Listing(
            "monitoring_site_locations.dat", _text(rows.AIRNOW_SITES, "|", False, (8, 9, 10)), _sites("airnow"), ("0",),
            ("9", "8"), old,
        ),
        Listing(
            "Monitoring_Site_Locations_V2.dat", _text(_V2, "|", True, (5, 6, 7)), _sites("airnow"), _AQSID, degrees
        ),
        Listing(
            "DataExtract.csv", _text(rows.EEA_SITES, numbers=(4, 5)), _sites("eea"), ("Sampling Point Id",), degrees
        ),
        Listing("points.csv", _text(_POINTS), _points, ("station",)),
    )  # fmt: skip


def make(rng: Random) -> tuple[Listing, bytes]:
    """A list and the bytes of a damaged copy."""
    chosen = rng.choice(listings())
    return chosen, mutated(chosen.text, [each.text.data for each in listings()], rng)


def read(chosen: Listing, data: bytes) -> Iterator[pd.DataFrame]:
    """Read a list on disk."""
    path = _folder() / chosen.file
    path.write_bytes(data)
    yield chosen.read(path)


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def judge(chosen: Listing, data: bytes, found: list[pd.DataFrame]) -> list[Finding]:
    """Every code has the place of a row of that code, or none."""
    says = _places(chosen, data)
    findings = []
    for code, lon, lat in found[0].itertuples():
        name = str(code).rsplit(" ", 1)[0] if chosen.file == "DataExtract.csv" else str(code)
        if pd.isna(lon) and pd.isna(lat):
            continue
        if (lon, lat) not in says.get(name, set()) or not (-180 <= lon <= 360 and -90 <= lat <= 90):
            findings.append(Finding("wrong place", f"{code} at ({lon}, {lat}); the list says {says.get(name)}"))
    return findings


def _places(chosen: Listing, data: bytes) -> dict[str, set[tuple[float | None, float | None]]]:
    delimiter, names = chosen.text.delimiter, chosen.names
    if chosen.file.lower().startswith("monitoring"):  # the reader tells the generations by their first line
        names = None if b"latitude" in data.split(b"\n")[0].lower() else tuple(str(n) for n in range(23))
    header, lines = lines_of(data, delimiter, names)
    codes, place = (("0",), ("9", "8")) if names else (chosen.codes, chosen.place)
    codes, place = (_AQSID, ("Longitude", "Latitude")) if "AQSID" in header else (codes, place)
    found: dict[str, set[tuple[float | None, float | None]]] = {}
    for cells in lines.values():
        row = by_name(header, cells)
        spot = (number(row.get(place[0])), number(row.get(place[1])))
        for code in codes:
            for spelled in (row.get(code, ""), str(_whole(row.get(code)))):
                found.setdefault(spelled, set()).add(spot)
    return found


def _whole(text: str | None) -> int | None:
    value = number(text)
    return int(value) if value is not None and abs(value) < 1e18 else None
