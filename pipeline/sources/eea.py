"""European Environment Agency: the download service's Parquet files, one a sampling point (E1a, E2a and Airbase).

A file has one row a sampling point, averaging period and pollutant: ``Start`` and ``End`` of hourly values in UTC+1 the
year round, ``Value``, ``Unit``, and the codes ``Validity`` and ``Verification`` of the EEA's vocabularies. Coordinates
and stations come from the metadata (``DataExtract.csv``), by sampling point and pollutant.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.contract import HOUR, POLLUTANTS
from pipeline.errors import InputError
from pipeline.sources.archive import RawFile, contents, members
from pipeline.sources.columns import MAX_NUMBER, YEARS, require, shown
from pipeline.sources.csvfile import CsvFile, Truncated
from pipeline.sources.longform import Readings, to_table
from pipeline.sources.sites import SiteList, site_list
from pipeline.sources.source import CONVENTIONS, Source
from pipeline.sources.units import factor

log = logging.getLogger("aqnet")

CONVENTION = CONVENTIONS["eea"]

#: Code of the vocabulary aq/pollutant -> pollutant.
POLLUTANT_CODES = {6001: "pm2p5", 5: "pm10", 1: "so2", 8: "no2", 7: "o3", 10: "co"}

#: `Air Pollutant` of the metadata -> pollutant.
POLLUTANT_NAMES = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}

#: Vocabulary aq/observationvalidity: code -> pollutants whose values are kept.
VALIDITY: Mapping[int, tuple[str, ...]] = {
    1: POLLUTANTS,  # valid
    2: POLLUTANTS,  # valid, below the detection limit, the measured value given
    3: POLLUTANTS,  # valid, below the detection limit, half of the limit given
    4: ("o3",),  # valid, ozone by the absorption cross-section CCQM.O3.2019
    -1: (),  # not valid
    -99: (),  # not valid, station maintenance or calibration
}

#: Vocabulary aq/observationverification, and 0 as Airbase has it: code -> precedence where a file has an hour twice.
VERIFICATION = {1: 3, 2: 2, 3: 1, 0: 0}

#: Folder of the download service's zip -> precedence: verified (E1a), up to date (E2a), before 2013 (Airbase).
RANKS = {"e1a": 2, "e2a": 1, "airbase": 0}

#: Country and verification codes whose hours were found not to be in UTC+1 by others: said in the log, not corrected.
DOUBTFUL = {
    ("IT", (2, 3)): "up-to-date values of Italy are reported to be in local civil time, so an hour late in summer",
    ("IE", (1,)): "verified values of Ireland are reported to be in UTC, so an hour early",
}

#: Country before the sampling point in the Parquet files; the metadata do not have it.
_PREFIX = re.compile(r"^[A-Z]{2}/")

COLUMNS = ("Samplingpoint", "Pollutant", "Start", "End", "Value", "Unit", "AggType", "Validity", "Verification")
_TEXTS = ("Samplingpoint", "Unit", "AggType")
SITE_COLUMNS = {
    "Sampling Point Id": pa.string(),
    "Air Quality Station EoI Code": pa.string(),
    "Air Pollutant": pa.string(),
    "Longitude": pa.float64(),
    "Latitude": pa.float64(),
    "Altitude": pa.float64(),
    "Measurement Type": pa.string(),
}


def read_sites(path: Path) -> SiteList:
    """Read the metadata ``DataExtract.csv``, bare or in a zip.

    Returns
    -------
    SiteList
        By ``<sampling point> <pollutant>``, with a column ``station``: the station's EoI code for one sampling point of
        each pollutant (an automatic one before others, then the first by name), and ``<code>/<sampling point>`` for
        further ones of that pollutant, which thereby are stations of their own.

    Raises
    ------
    InputError
        When the file or a column is missing, or a coordinate is not a number or out of range, naming the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected the EEA's metadata (DataExtract.csv, or a zip of it); found no such file")
    _, raw = next(contents(members(path)))
    file = CsvFile(raw.where, raw.data)
    require(file, tuple(SITE_COLUMNS), "the EEA's metadata of sampling points")
    frame = file.read(SITE_COLUMNS).to_pandas()
    frame = frame.rename(columns={"Longitude": "lon", "Latitude": "lat", "Altitude": "elevation"})
    pollutant = frame["Air Pollutant"].map(POLLUTANT_NAMES)
    frame["code"] = (frame["Sampling Point Id"] + " " + pollutant).where(pollutant.notna())
    sites = site_list(file, frame)
    return replace(sites, frame=sites.frame.assign(station=_station_names(frame).reindex(sites.frame.index)))


def _station_names(frame: pd.DataFrame) -> pd.Series:
    """Station of each code of the metadata's rows; see `read_sites`."""
    frame = frame.fillna({"Air Quality Station EoI Code": frame["Sampling Point Id"]})
    rows = frame.dropna(subset="code")
    rows = rows.assign(other=rows["Measurement Type"] != "automatic").sort_values(["other", "Sampling Point Id"])
    rows = rows.drop_duplicates("code")
    further = rows.duplicated(["Air Quality Station EoI Code", "Air Pollutant"])
    own = rows["Air Quality Station EoI Code"] + "/" + rows["Sampling Point Id"]
    return pd.Series(rows["Air Quality Station EoI Code"].where(~further, own).to_numpy(), index=rows["code"])


def parse(raw: RawFile, sites: SiteList | None, _truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one file; see `pipeline.sources.source.Source`."""
    if sites is None:
        raise InputError(f"{raw.where}: expected the EEA's metadata, for coordinates; found none")
    rows = _hourly(_read(raw))
    pollutant = _pollutants(rows)
    rows, pollutant = rows.where(pollutant >= 0, "of other pollutants"), pollutant[pollutant >= 0]
    valid = _valid(rows, pollutant)
    rows, pollutant = rows.where(valid, "not valid (Validity)"), pollutant[valid]
    verification = rows.codes("Verification", VERIFICATION)
    _doubt(rows, verification)
    yield to_table(_readings(rows, pollutant, sites), _looked_up(verification, VERIFICATION))


@dataclass(frozen=True)
class _Rows:
    """Rows of a file, with a column ``row``, from 1; columns as arrays (N,), after a check of each."""

    file: str
    table: pa.Table

    def where(self, keep: NDArray[np.bool_], why: str) -> _Rows:
        """The rows to keep; how many others there are, and why, goes to the log."""
        if out := int((~keep).sum()):
            log.warning("%s: left out %d of %d values: %s", self.file, out, len(keep), why)
        return replace(self, table=self.table.filter(pa.array(keep)))

    def refuse(self, column: str, bad: NDArray[np.bool_], expected: str) -> None:
        """Raise InputError for the first bad row (N,)."""
        for at in np.flatnonzero(bad)[:1]:
            row, found = self.table["row"][int(at)], _as_found(self.table[column][int(at)])
            raise InputError(f"{self.file}, row {row}, column '{column}': expected {expected}; found '{shown(found)}'")

    def _typed(self, column: str, right: bool, expected: str) -> pa.ChunkedArray:
        found = self.table[column]
        if not right:
            raise InputError(f"{self.file}, column '{column}': expected {expected}; found {found.type}")
        self.refuse(column, found.is_null().to_numpy(), expected)
        return found

    def texts(self, column: str) -> tuple[NDArray[np.int64], list[str]]:
        """Codes (N,) of a column of text, and the texts they stand for."""
        kind = self.table.schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        codes, texts = pd.factorize(self._typed(column, True, "text").cast(kind).to_pandas())
        return codes.astype("int64"), [str(text) for text in texts]

    def codes(self, column: str, known: Mapping[int, object] | None = None) -> NDArray[np.int64]:
        """Whole numbers of a column, each one of those that are known."""
        right = pa.types.is_integer(self.table.schema.field(column).type)
        codes = self._typed(column, right, "whole numbers").to_numpy().astype("int64")
        if known is not None:
            self.refuse(column, ~np.isin(codes, list(known)), f"one of {', '.join(map(str, known))}")
        return codes

    def times(self, column: str) -> NDArray[np.datetime64]:
        """Times of a column as written, in the zone of the convention, to the microsecond."""
        kind = self.table.schema.field(column).type
        right = pa.types.is_timestamp(kind) and kind.tz is None
        written = self._typed(column, right, "timestamps without a zone")
        try:
            found = written.cast(pa.timestamp("us")).to_numpy()
        except pa.ArrowInvalid as error:
            raise InputError(f"{self.file}, column '{column}': expected whole hours; found {shown(error)}") from error
        years = found.astype("M8[Y]").astype("int64") + 1970
        self.refuse(column, (years < YEARS[0]) | (years > YEARS[-1]), f"a time in {YEARS[0]}..{YEARS[-1]}")
        return found


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _as_found(cell: pa.Scalar) -> object:
    try:
        return cell.as_py()
    except (ValueError, OverflowError):  # a time that Python does not have
        return "one out of range"


def _read(raw: RawFile) -> _Rows:
    """The columns that count, whole, and in memory."""
    try:
        with pq.ParquetFile(pa.BufferReader(raw.data), coerce_int96_timestamp_unit="us") as file:
            names = file.schema_arrow.names
            table = file.read(columns=list(COLUMNS)) if all(names.count(name) == 1 for name in COLUMNS) else None
            if table is not None:
                table.validate(full=True)
                if table.num_rows != file.metadata.num_rows:  # Arrow stops at a damaged column without a word
                    said = f"{file.metadata.num_rows} rows, as its footer says"
                    raise InputError(f"{raw.where}: expected {said}; found {table.num_rows}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{raw.where}: expected an EEA Parquet file; found one that fails: {shown(error)}") from error
    if table is None:
        found = ", ".join(map(shown, names[:20]))
        raise InputError(f"{raw.where}: expected the EEA's columns {', '.join(COLUMNS)}, each once; found {found}")
    for name in _TEXTS:
        if not _is_text(kind := table.schema.field(name).type):
            raise InputError(f"{raw.where}, column '{name}': expected text; found {kind}")
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):  # no number, and Arrow cannot filter them
            raise InputError(f"{raw.where}, column '{name}': expected numbers or times; found {kind}")
    return _Rows(raw.where, table.append_column("row", pa.array(np.arange(1, table.num_rows + 1))))


def _hourly(rows: _Rows) -> _Rows:
    """The hourly rows; a file without any is one of another kind."""
    codes, kinds = rows.texts("AggType")
    if kinds and "hour" not in kinds:
        found = shown(", ".join(kinds))
        raise InputError(f"{rows.file}, column 'AggType': expected hourly values (hour); found {found}")
    return rows.where(np.array([kind == "hour" for kind in kinds], dtype=bool)[codes], "AggType is not hour")


def _pollutants(rows: _Rows) -> NDArray[np.int64]:
    """Index in POLLUTANTS of each row, -1 for another pollutant."""
    known = {code: POLLUTANTS.index(name) for code, name in POLLUTANT_CODES.items()}
    return _looked_up(rows.codes("Pollutant"), known)


def _looked_up(codes: NDArray[np.int64], known: Mapping[int, int]) -> NDArray[np.int64]:
    """Value of each code, -1 for one that is not known."""
    found, at = np.unique(codes, return_inverse=True)
    return np.array([known.get(int(code), -1) for code in found], dtype="int64")[at]


def _valid(rows: _Rows, pollutant: NDArray[np.int64]) -> NDArray[np.bool_]:
    codes = rows.codes("Validity", VALIDITY)
    kept = [(code, POLLUTANTS.index(name)) for code, names in VALIDITY.items() for name in names]
    return np.isin(codes * len(POLLUTANTS) + pollutant, [code * len(POLLUTANTS) + at for code, at in kept])


def _doubt(rows: _Rows, verification: NDArray[np.int64]) -> None:
    """Say where hours are known not to be what the network declares."""
    codes, points = rows.texts("Samplingpoint")
    for (country, flows), what in DOUBTFUL.items():
        of_country = np.array([point.startswith(f"{country}/") for point in points], dtype=bool)[codes]
        if (of_country & np.isin(verification, flows)).any():
            log.warning("%s: %s; read as UTC+%g all the same", rows.file, what, CONVENTION.zone)


def _readings(rows: _Rows, pollutant: NDArray[np.int64], sites: SiteList) -> Readings:
    values = _values(rows, pollutant)
    starts = _starts(rows)
    at, points = rows.texts("Samplingpoint")
    key, which = np.unique(at * len(POLLUTANTS) + pollutant, return_inverse=True)
    names = [f"{_PREFIX.sub('', points[k // len(POLLUTANTS)])} {POLLUTANTS[k % len(POLLUTANTS)]}" for k in key]
    places = _places(rows.file, sites, names)
    known = places["station"].notna().to_numpy()
    station = np.array([f"eea:{code}" for code in places["station"]], dtype=object)
    lon, lat, elevation = (places[column].to_numpy("float64")[which] for column in ("lon", "lat", "elevation"))
    values = np.where(known[which], values, np.nan)
    return Readings(starts, station[which], pollutant, values, rows.table["row"].to_numpy(), lon, lat, elevation)


def _places(file: str, sites: SiteList, names: list[str]) -> pd.DataFrame:
    """Station and coordinates of sampling points; one that the metadata do not have is left out, and remembered."""
    known = np.array([name in sites.frame.index for name in names], dtype=bool)
    sites.unknown.update({name: file for name, there in zip(names, known, strict=True) if not there})
    return sites.coordinates(names, known, file)


def _starts(rows: _Rows) -> NDArray[np.datetime64]:
    """UTC start of each row's hour; InputError where a period is not one whole hour."""
    start, end = rows.times("Start"), rows.times("End")
    rows.refuse("Start", start != start.astype("M8[h]"), "the start of an hour")
    rows.refuse("End", end - start != HOUR, "one hour after Start, as AggType says")
    return start.astype("M8[h]") - CONVENTION.to_start.astype("m8[h]")


def _values(rows: _Rows, pollutant: NDArray[np.int64]) -> NDArray[np.float64]:
    """Concentrations in the contract's units, NaN where missing."""
    kind = rows.table.schema.field("Value").type
    if not (pa.types.is_decimal(kind) or pa.types.is_floating(kind)):
        raise InputError(f"{rows.file}, column 'Value': expected decimals; found {kind}")
    values = rows.table["Value"].cast(pa.float64()).to_numpy()
    rows.refuse("Value", np.abs(values) > MAX_NUMBER, "a finite concentration")
    # Arrow's way from a decimal to a float is not exact: -999.00000 can become -999.0000000000001.
    missing = np.isin(np.round(values, 6), [float(mark) for mark in CONVENTION.missing if mark])
    codes, units = rows.texts("Unit")
    table = [[factor(name, unit, CONVENTION.celsius) or np.nan for unit in units] for name in POLLUTANTS]
    scale = np.array(table, dtype="float64").reshape(len(POLLUTANTS), -1)[pollutant, codes]
    rows.refuse("Unit", np.isnan(scale), "a unit of concentration, such as ug.m-3")
    return np.where(missing, np.nan, values * scale)


def rank(label: str) -> int:
    """Precedence by the folder in which the download service puts a file; 0 where the name has none of its folders."""
    return max((RANKS.get(part.lower(), 0) for part in re.split("[/!]", label)), default=0)


SOURCE = Source(
    conventions=(CONVENTION,),
    parse=parse,
    suffixes=(".parquet",),
    rank=rank,
    site_names=("DataExtract.csv", "DataExtract.zip", "DataExtract.csv.zip"),
    read_sites=read_sites,
    sites_needed=True,
)
