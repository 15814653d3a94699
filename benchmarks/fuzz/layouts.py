"""The layouts under fuzz: valid files of a few genuine rows each, the reader's name, and how the oracle reads them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from benchmarks.fuzz import meanings
from benchmarks.fuzz.mutate import Text
from benchmarks.fuzz.plain import Claims
from pipeline import sources
from pipeline.sources.sites import SiteList
from pipeline.sources.source import Source


@dataclass(frozen=True)
class Layout:
    """One layout of one network.

    Attributes
    ----------
    network : name of the reader's source.
    file : name of a file of this layout.
    seeds : valid files.
    claims : what a row says.
    names : columns, where the layout has no header.
    sites : text of the site list, and its file name.
    twice : whether the reader may give a station and hour twice.
    """

    network: str
    file: str
    seeds: tuple[Text, ...]
    claims: Claims
    names: tuple[str, ...] | None = None
    sites: tuple[str, str] | None = None
    twice: bool = False
    known: frozenset[str] | None = field(default=None)


_WIDE = b"""date,hour,type,1001A,1002A,1003A
20191202,0,AQI,19,19,17
20191202,0,PM2.5,2,2,7
20191202,0,PM2.5_24h,14,7,13
20191202,0,PM10,19,12,15
20191202,0,SO2,2,1,4
20191202,0,NO2,5,2,9
20191202,0,O3,56,59,53
20191202,0,O3_8h,53,66,58
20191202,0,CO,0.2,0.2,0.3
20191202,1,PM2.5,4,3,9
20191202,1,PM10,11,11,10
20191202,1,CO,0.2,,0.3
"""

_API = """timepoint,stationcode,longitude,latitude,area,positionname,primarypollutant,aqi,pm10,pm10_24h,pm2_5,\
pm2_5_24h,o3,o3_24h,o3_8h,o3_8h_24h,no2,no2_24h,so2,so2_24h,co,co_24h
2026-02-27T0500,2568A,102.2503,31.8896,阿坝藏族羌族自治州,马师校,,14,11,17,3,8,42,,,,3,5,5,5,0.3,0.3
2026-02-27T0500,3994A,102.2174,31.9016,阿坝藏族羌族自治州,马尔康中学西区,,12,6,25,3,6,37,,,,4,5,6,6,0.3,0.4
2026-02-27T0600,2568A,102.2503,31.8896,阿坝藏族羌族自治州,马师校,,14,12,17,4,8,/,,,,3,5,5,5,0.3,0.3
""".encode()

_TABLE = b"""time,station,lon,lat,elevation,pm2p5,pm10,o3,co
2019-12-10T03:00,cnemc:1001A,116.3621,39.8784,44,171,196,,2.9
2019-12-10T03:00:00Z,cnemc:1002A,116.2202,40.2915,112,118,NA,1,1.6
2019-12-10T12:00:00+08:00,cnemc:1003A,116.417,39.929,46,192,201,3,2.5
2019-12-10T04:00,cnemc:1001A,116.3621,39.8784,44,168.5,190,2,2.7
"""

_WIDE_SITES = "code,lon,lat\n1001A,116.3621,39.8784\n1002A,116.2202,40.2915\n1003A,116.417,39.929\n"

LAYOUTS: dict[str, Layout] = {
    "cnemc-wide": Layout(
        "cnemc", "china_sites_20191202.csv", (Text(_WIDE, ",", True, (0, 1), (2,), (3, 4, 5)),), meanings.cnemc_wide,
        sites=("stations.csv", _WIDE_SITES), known=frozenset(("1001A", "1002A", "1003A")),
    ),
    "cnemc-api": Layout(
        "cnemc", "2026-02-27T05.csv", (Text(_API, ",", True, (0,), (), (2, 3, 8, 10, 12, 16, 18, 20)),),
        meanings.cnemc_api,
    ),
    "table-csv": Layout(
        "table", "t.csv", (Text(_TABLE, ",", True, (0,), (), (2, 3, 4, 5, 6, 7, 8)),), meanings.table, twice=True
    ),
}  # fmt: skip


@cache
def source(network: str) -> Source:
    """The reader of a network; looking for plug-ins takes longer than reading a small file."""
    return sources.find(network)


@cache
def site_list(name: str) -> SiteList | None:
    """Site list of a layout, read once by the network's own reader."""
    layout = LAYOUTS[name]
    read = source(layout.network).read_sites
    if layout.sites is None or read is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / layout.sites[0]
        path.write_text(layout.sites[1], encoding="utf-8")
        return read(path)
