"""What a network's files mean, declared in one table, and what a source is made of: the contract of a plug-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.contract import UNITS
from pipeline.sources.archive import Member, RawFile
from pipeline.sources.csvfile import MISSING, Truncated
from pipeline.sources.sites import SiteList

#: UTC hours, half open.
Span = tuple[np.datetime64, np.datetime64]

#: One raw file -> StationTables, not clipped, without ``source_file``; see `Source.parse`.
Parse = Callable[[RawFile, SiteList | None, Truncated], Iterator[pd.DataFrame]]


@dataclass(frozen=True)
class Convention:
    """What the times and values of a layout mean.

    Attributes
    ----------
    zone : hours east of UTC of its times; ``each`` where every time carries its own offset or zone.
    label : whether a time is the ``begin`` or the ``end`` of its averaging hour.
    units : unit of each pollutant; ``each`` where every row names its own.
    missing : what stands where a value is missing.
    celsius : temperature at which mixing ratios become concentrations, at 1013.25 hPa; None where there are none.
    source : where this is documented, or how it was found.
    """

    zone: float | Literal["each"]
    label: Literal["begin", "end"]
    units: Mapping[str, str] | Literal["each"]
    missing: tuple[str, ...]
    celsius: float | None
    source: str

    @property
    def to_start(self) -> np.timedelta64:
        """What to take from a time in `zone` to get the UTC start of its hour."""
        zone = 0.0 if self.zone == "each" else self.zone
        return np.timedelta64(round(3600 * (zone + (self.label == "end"))), "s")


#: The declared conventions of every layout that is read here. Readers take their constants from this table alone.
CONVENTIONS = {
    "cnemc": Convention(
        zone=8, label="end", units=UNITS, missing=MISSING, celsius=None,
        source="running daily maximum of 8-hour ozone starts anew at label 01 (docs/reference/sources.md)",
    ),
    "airnow-hourly-data": Convention(
        zone=0, label="begin", units="each", missing=("", "-999"), celsius=25.0,
        source="AirNow API, Hourly Data Fact Sheet: times in GMT, beginning of the hour; 40 CFR 50: 25 degrees C",
    ),
    "airnow-aqobs": Convention(
        zone=0, label="begin", units="each", missing=("", "-999"), celsius=25.0,
        source="AirNow API, Hourly AQ Obs Fact Sheet (2023): GMT, beginning of the hour; 40 CFR 50: 25 degrees C",
    ),
    "openaq": Convention(
        zone="each", label="end", units="each", missing=("", "-9999", "-999"), celsius=25.0,
        source="OpenAQ, About Open Data on AWS: datetime with offset; openaq-fetch pull request 660: end of the period",
    ),
    "eea": Convention(
        zone=1, label="begin", units="each", missing=("", "-999", "-9999"), celsius=20.0,
        source="EEA: hourly Start and End in UTC+1 (docs/reference/sources.md); 2008/50/EC, annex VI: gases at 293 K",
    ),
    "prsa": Convention(
        zone=8, label="end", units=UNITS | {"co": "ug m-3"}, missing=("", "NA"), celsius=None,
        source="UCI 501: Beijing time; midnight fireworks of four Spring Festivals first show under label 1",
    ),
    "aqs": Convention(
        zone=0, label="begin", units="each", missing=("",), celsius=25.0,
        source="EPA, AirData Download Files Documentation, Hourly Data Files: beginning of the hour; 40 CFR 50: 25 C",
    ),
    "purpleair": Convention(
        zone=0, label="begin", units={"pm2p5": "ug m-3"}, missing=("", "nan", "null"), celsius=None,
        source="PurpleAir history API: UTC; start_timestamp included, end_timestamp not: taken as the period's begin",
    ),
    "timeseries": Convention(
        zone="each", label="begin", units="each", missing=(), celsius=25.0,
        source="CF-1.11, chapter 9 and appendix H.2: featureType timeSeries; time bounds tell the hour where given",
    ),
    "table": Convention(
        zone="each", label="begin", units=UNITS, missing=MISSING, celsius=None,
        source="docs/reference/sources.md; a time without an offset is UTC",
    ),
    "store": Convention(
        zone=0, label="begin", units=UNITS, missing=(), celsius=None,
        source="docs/reference/observation-store.md",
    ),
}  # fmt: skip


def base_name(label: str) -> str:
    """File name without zip and folders."""
    return label.rsplit("!", 1)[-1].rsplit("/", 1)[-1]


def _spanless(_name: str) -> Span | None:
    return None


def _rankless(_label: str) -> int:
    return 0


def _stateless(_path: Path) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Source:
    """One network, built in or a plug-in (entry point group ``aqnet.sources``).

    Attributes
    ----------
    conventions : what times and values of its layouts mean, by layout.
    parse : ``(file, sites, truncated)`` -> StationTables with every value of the file: ``time`` (UTC start),
        ``station`` (categorical ``network:code``), ``lon``, ``lat``, optional ``elevation``, the pollutants (float32,
        in `pipeline.contract.UNITS`) and for each of them ``line_<pollutant>`` (int32): the line of the file on which
        the value stands (CSV: the first line is 1; Parquet: the row, the first is 1; 0 where missing). Raises
        InputError.
    suffixes : endings of the data files in a folder or zip, lower case.
    span : file name -> UTC hours that such a file can hold, or None when its name does not tell.
    rank : label of a file (``<zip>!<folder>/<name>``) -> precedence among the network's files in the observation
        store; the higher one counts.
    site_names : names of the network's site list (coordinates), looked for in or beside the input; empty where the
        files hold coordinates.
    read_sites : site list -> SiteList; None where there is none.
    sites_needed : whether files cannot be read without a site list.
    members : path -> its data files, where endings do not tell them.
    state : path -> global attributes that say in which state the input was when a product was made from it.
    """

    conventions: tuple[Convention, ...]
    parse: Parse
    suffixes: tuple[str, ...] = (".csv",)
    span: Callable[[str], Span | None] = _spanless
    rank: Callable[[str], int] = _rankless
    site_names: tuple[str, ...] = field(default=())
    read_sites: Callable[[Path], SiteList] | None = None
    sites_needed: bool = False
    members: Callable[[Path], list[Member]] | None = None
    state: Callable[[Path], dict[str, str]] = _stateless
