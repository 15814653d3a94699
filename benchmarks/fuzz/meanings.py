"""What a row of each layout says, by the declared conventions, for `plain`: one function a layout."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.fuzz.plain import Claim, clean, hours_since_1970, iso, number, whole

_CNEMC_MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "/")
_CNEMC_TYPES = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}
_API = {"pm2_5": "pm2p5", "pm10": "pm10", "so2": "so2", "no2": "no2", "o3": "o3", "co": "co"}


def _value(station: str, hour: int, pollutant: str, text: str, missing: tuple[str, ...], factor: float = 1.0) -> Claim:
    """A claim of one cell; NaN where it is missing or no number."""
    found = None if text in missing else number(text)
    if found is None:
        return Claim(station, hour, pollutant, math.nan, False)
    return Claim(station, hour, pollutant, found * factor, clean(text))


def cnemc_wide(row: dict[str, str]) -> Iterator[Claim]:
    """``date,hour,type,<code>...``: Beijing time, the label is the end of the hour."""
    date, hour, kind = (row.get(name, "") for name in ("date", "hour", "type"))
    date, hour = date.strip(" \t").lstrip("0"), hour.strip(" \t").lstrip("-0")[:3] or "0"
    if kind not in _CNEMC_TYPES or len(date) != 8 or not (date + hour).isdecimal() or not (date + hour).isascii():
        return
    start = whole(hours_since_1970(int(date[:4]), int(date[4:6]), int(date[6:]), int(hour)))
    if start is None:
        return
    for code, text in row.items():
        if code not in ("date", "hour", "type", ""):
            yield _value(code, start - 9, _CNEMC_TYPES[kind], text, _CNEMC_MISSING)


def cnemc_api(row: dict[str, str]) -> Iterator[Claim]:
    """``timepoint,stationcode,longitude,latitude,...``: Beijing time ``YYYY-MM-DDThh00``, the label is the end."""
    text, code = row.get("timepoint", ""), row.get("stationcode", "")
    label = iso(text) if len(text) == 15 and text[10] == "T" else None
    if label is None or label[1] is not None or code in _CNEMC_MISSING or whole(label[0]) is None:
        return
    if number(row.get("longitude")) is None or number(row.get("latitude")) is None:
        return
    for column, pollutant in _API.items():
        if column in row:
            yield _value(code, int(label[0]) - 9, pollutant, row[column], _CNEMC_MISSING)


def table(row: dict[str, str]) -> Iterator[Claim]:
    """StationTable columns: ISO 8601 start of the hour, UTC where no offset is given."""
    found, station = iso(row.get("time", "")), row.get("station", "")
    if found is None or station in _CNEMC_MISSING:
        return
    start = whole(found[0] - (found[1] or 0))
    if start is None:
        return
    for pollutant in ("pm2p5", "pm10", "so2", "no2", "o3", "co"):
        if pollutant in row:
            yield _value(station.split(":", 1)[-1], start, pollutant, row[pollutant], _CNEMC_MISSING)
