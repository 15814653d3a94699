"""The layouts under fuzz: valid files of a few genuine rows each, the reader's name, and how the oracle reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from benchmarks.fuzz import meanings, rows
from benchmarks.fuzz.mutate import Text
from benchmarks.fuzz.netcdf import Cube, seeds
from benchmarks.fuzz.parquet import Parquet
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
    claims : what a row says; None of NetCDF, which has none.
    seconds : after which an input is a hang; more where a worker process has a limit of its own.
    names : columns, where the layout has no header.
    sites : text of the site list, and its file name.
    twice : whether the reader may give a station and hour twice.
    known : stations of the site list; None for all.
    means, label : what hourly means are made of, and whether a sample's time is its ``begin`` or ``end``; None where
        rows are hourly.
    """

    network: str
    file: str
    seeds: tuple[Text | Parquet | Cube, ...]
    claims: Claims | None
    names: tuple[str, ...] | None = None
    sites: tuple[str, str] | None = None
    twice: bool = False
    known: frozenset[str] | None = field(default=None)
    means: Callable[[tuple[float, ...]], float] | None = None
    label: str = "begin"
    seconds: float = 5.0


LAYOUTS: dict[str, Layout] = {
    "cnemc-wide": Layout(
        "cnemc", "china_sites_20191202.csv", (Text(rows.WIDE, ",", True, (0, 1), (2,), (3, 4, 5)),),
        meanings.cnemc_wide,
        sites=("stations.csv", rows.WIDE_SITES), known=frozenset(("1001A", "1002A", "1003A")),
    ),
    "cnemc-api": Layout(
        "cnemc", "2026-02-27T05.csv", (Text(rows.API, ",", True, (0,), (), (2, 3, 8, 10, 12, 16, 18, 20)),),
        meanings.cnemc_api,
    ),
    "airnow-data": Layout(
        "airnow", "HourlyData_2025072409.dat", (Text(rows.AIRNOW, "|", False, (0, 1), (6,), (7,)),),
        meanings.airnow_data,
        names=("date", "time", "AQSID", "site", "zone", "parameter", "unit", "value", "agency"),
        sites=("monitoring_site_locations.dat", rows.AIRNOW_SITES),
        known=frozenset(("000020401", "000030113", "010030010")),
    ),
    "airnow-aqobs": Layout(
        "airnow", "HourlyAQObs_2026092715.dat",
        (Text(rows.AQOBS, ",", True, (10, 11), (23, 25, 27, 29, 31, 33), (4, 5, 22, 24, 26, 28, 30, 32), quoted=True),),
        meanings.airnow_aqobs,
    ),
    "openaq": Layout(
        "openaq", "location-7727-20221101.csv.gz",
        (Text(rows.OPENAQ, ",", True, (3,), (7,), (4, 5, 8)), Text(rows.OPENAQ_FINE, ",", True, (3,), (7,), (4, 5, 8))),
        meanings.openaq, means=meanings.itself, label="end",
    ),
    "prsa": Layout(
        "prsa", "PRSA_Data_Dingling_20130301-20170228.csv",
        (Text(rows.PRSA, ",", True, (1, 2, 3, 4), (), (5, 6, 7, 8, 9, 10)),), meanings.prsa,
        sites=("stations.csv", rows.PRSA_SITES), known=frozenset(("Dingling", "Dongsi")),
    ),
    "aqs": Layout(
        "aqs", "hourly_44201_2024.csv", (Text(rows.AQS, ",", True, (9, 10, 11, 12), (14,), (4, 5, 6, 13)),),
        meanings.aqs,
    ),
    "purpleair": Layout(
        "purpleair", "274866 2023-01-01 history.csv",
        (Text(rows.PURPLE, ",", True, (0,), (), (2, 3, 4)), Text(rows.PURPLE_HOURLY, ",", True, (0,), (), (1, 2, 3))),
        meanings.purpleair, sites=("sensors.csv", rows.PURPLE_SITES), known=frozenset(("274866", "7")),
        means=meanings.barkjohn,
    ),
    "table-csv": Layout(
        "table", "t.csv", (Text(rows.TABLE, ",", True, (0,), (), (2, 3, 4, 5, 6, 7, 8)),), meanings.table, twice=True
    ),
    "table-parquet": Layout(
        "table", "t.parquet",
        (Parquet(rows.TABLE_ROWS, ("time",), ("station",), ("lon", "lat", "elevation", "pm2p5", "pm10", "co")),),
        meanings.table_row, twice=True,
    ),
    "eea": Layout(
        "eea", "SPO-MT00005_06001_100.parquet",
        (Parquet(rows.EEA, ("Start", "End"), ("Unit", "AggType", "Samplingpoint"), ("Value",),
                 ("Pollutant", "Validity", "Verification")),),
        meanings.eea, sites=("DataExtract.csv", rows.EEA_SITES),
    ),
    "timeseries": Layout("timeseries", "stations.nc", seeds(), None, seconds=30.0),
}  # fmt: skip


def told(name: str, data: bytes) -> str:
    """Layout that the first line of a file tells, where a network has several; a damaged one may be another's."""
    first = next((line for line in data.splitlines() if line.strip()), b"")
    if LAYOUTS[name].network == "cnemc":
        return "cnemc-api" if b"timepoint" in first else "cnemc-wide"
    if LAYOUTS[name].network == "airnow":
        return "airnow-data" if first.count(b"|") == 8 else "airnow-aqobs"
    return name


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
