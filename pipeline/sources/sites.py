"""Site lists: coordinates by station code, for networks whose data files have none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.sources.csvfile import CsvFile, shown

log = logging.getLogger("aqnet")

#: Above this share of reporting codes that the list does not have, the list is the wrong one.
MAX_UNKNOWN_SHARE = 0.05


@dataclass(frozen=True)
class SiteList:
    """Coordinates by code; ``lon``, ``lat`` are WGS84 degrees (NaN where the list has none), ``elevation`` metres.

    `frame` has the code as index and the columns ``lon``, ``lat``, ``elevation`` and ``row`` (of `file`, from 0).
    """

    file: CsvFile
    frame: pd.DataFrame
    unknown: dict[str, str] = field(default_factory=dict)

    def coordinates(self, codes: Sequence[str], reports: NDArray[np.bool_], where: str) -> pd.DataFrame:
        """Coordinates of `codes`, NaN for one the list does not have; reporting ones of those are remembered.

        Parameters
        ----------
        codes : station codes, each once.
        reports : which of them report (S,).
        where : name of the data file, for errors.

        Raises
        ------
        InputError
            When a reporting code stands in the list without coordinates, or the list lacks more than 5 % of them.
        """
        found = self.frame.reindex(list(codes))
        lost = found.index[reports & found["lon"].isna().to_numpy()]
        for code in lost.intersection(self.frame.index, sort=False):
            line = self.file.line_at(int(self.frame["row"][code]))
            raise InputError(
                f"{self.file.where}, line {line}: expected lon and lat of station {code}, which reports in {where};"
                " found none; fill them in, or remove the line to leave the station out"
            )
        if len(lost) > MAX_UNKNOWN_SHARE * reports.sum():
            raise InputError(
                f"{self.file.where}: expected a line for each station that reports in {where};"
                f" found none for {len(lost)} of {reports.sum()}: {_some(list(lost))}"
            )
        self.unknown.update(dict.fromkeys(lost, where))
        return found

    def warn_of_unknown(self) -> None:
        """Log once which reporting codes had no line and were left out."""
        if self.unknown:
            codes = list(self.unknown)
            log.warning("%s: no line for %d codes, left out: %s", self.file.where, len(codes), _some(codes))


def read_list(path: Path, code: str = "code") -> SiteList:
    """Read a site list: CSV with columns `code`, ``lon``, ``lat`` (degrees), optionally ``elevation`` (m).

    Raises
    ------
    InputError
        When the file or a column is missing, or a coordinate is not a number or out of range, naming the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a station list (CSV with {code}, lon, lat); found no such file")
    file = CsvFile(str(path), path.read_bytes())
    for column in (code, "lon", "lat"):
        if column not in file.header():
            raise InputError(f"{path}: expected the columns {code}, lon, lat; '{column}' is missing")
    numbers = dict.fromkeys(("lon", "lat", "elevation"), pa.float64())
    return site_list(file, file.read({code: pa.string()} | numbers).to_pandas(), code)


def site_list(file: CsvFile, frame: pd.DataFrame, code: str = "code") -> SiteList:
    """Check a table of sites and make a SiteList of it; of a code twice the last row counts.

    Parameters
    ----------
    file : the list's file, for errors.
    frame : one row a row of the file: `code`, ``lon``, ``lat`` and optionally ``elevation``.

    Raises
    ------
    InputError
        When a coordinate is out of range, naming the line.
    """
    for column, low, high in (("lon", -180, 360), ("lat", -90, 90)):
        for row in np.flatnonzero(frame[column].notna() & ~frame[column].between(low, high))[:1]:
            where, found = f"{file.where}, line {file.line_at(row)}, column '{column}'", frame[column].iloc[row]
            raise InputError(f"{where}: expected degrees in [{low}, {high}]; found {found}")
    sites = frame.reindex(columns=[code, "lon", "lat", "elevation"]).assign(row=np.arange(len(frame)))
    sites.loc[sites[["lon", "lat"]].isna().any(axis=1), ["lon", "lat"]] = np.nan
    return SiteList(file, sites.dropna(subset=code).drop_duplicates(code, keep="last").set_index(code))


def _some(codes: list[str]) -> str:
    return ", ".join(map(shown, codes[:5])) + (", ..." if len(codes) > 5 else "")
