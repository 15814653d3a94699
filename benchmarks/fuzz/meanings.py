"""What a row of each layout says, by the declared conventions, for `plain`: one function a layout."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from benchmarks.fuzz.plain import Claim, clean, factors, hours_since_1970, iso, number, whole

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


_AIRNOW = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "OZONE": "o3", "CO": "co"}
_AQOBS = {"PM25": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "OZONE": "o3", "CO": "co"}
_OPENAQ = {"pm25": "pm2p5", "pm10": "pm10", "so2": "so2", "no2": "no2", "o3": "o3", "co": "co"}
_PRSA = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}
_AQS = {"88101": "pm2p5", "88502": "pm2p5", "81102": "pm10", "42401": "so2", "42602": "no2", "44201": "o3"}
_AQS |= {"42101": "co"}

#: A value whose unit does not fit its pollutant: no reader may make a number of it.
NO_UNIT = math.inf


def _measured(
    station: str, hour: int, pollutant: str, text: str, unit: str, marks: tuple[float, ...], celsius: float
) -> Claim:
    """A claim of a value with a unit of its own; `marks` are numbers that stand for a missing one."""
    value = number(text)
    if value is None or value in marks:
        return Claim(station, hour, pollutant, math.nan, False)
    factor = factors(pollutant, unit, celsius)
    if factor is None:
        return Claim(station, hour, pollutant, NO_UNIT, False)
    return Claim(station, hour, pollutant, value * factor, clean(text) and abs(value) < 1e8)


def _american(date: str, time: str, pattern: str) -> int | None:
    """Hours since 1970 of ``mm/dd/yy[yy]`` and ``hh:00``, digit for digit."""
    found = re.fullmatch(pattern, f"{date} {time}", re.ASCII)
    if found is None:
        return None
    month, day, year, hour, minute = map(int, found.groups())
    return whole(hours_since_1970(year + 2000 * (year < 69) + 1900 * (69 <= year < 100), month, day, hour, minute))


def _nine(code: str) -> str:
    return code[3:] if re.fullmatch("[0-9]{3}.{9}", code) else code


def airnow_data(row: dict[str, str]) -> Iterator[Claim]:
    """``mm/dd/yy|hh:00|AQSID|site|zone|parameter|unit|value|agency``: GMT, the label is the beginning."""
    hour = _american(row.get("date", ""), row.get("time", ""), r"(\d\d)/(\d\d)/(\d\d) (\d\d):(\d\d)")
    pollutant = _AIRNOW.get(row.get("parameter", "").strip())
    if hour is not None and pollutant is not None and row["AQSID"]:
        yield _measured(_nine(row["AQSID"]), hour, pollutant, row["value"], row["unit"], (-999.0,), 25.0)


def airnow_aqobs(row: dict[str, str]) -> Iterator[Claim]:
    """One row a site and hour, a column and a unit a pollutant: GMT, the label is the beginning."""
    pattern = r"(\d\d)/(\d\d)/(\d{4}) (\d\d):(\d\d)"
    hour = _american(row.get("ValidDate", ""), row.get("ValidTime", ""), pattern)
    if hour is None or not row.get("AQSID"):
        return
    for column, pollutant in _AQOBS.items():
        if column in row:
            unit = row.get(f"{column}_Unit", "")
            yield _measured(_nine(row["AQSID"]), hour, pollutant, row[column], unit, (-999.0,), 25.0)


def aqs(row: dict[str, str]) -> Iterator[Claim]:
    """EPA's hourly files: ``Date GMT`` and ``Time GMT`` are the beginning."""
    found = re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", f"{row.get('Date GMT')} {row.get('Time GMT')}", re.ASCII)
    start = iso(found[0]) if found else None
    hour = whole(start[0]) if start else None
    pollutant = _AQS.get(row.get("Parameter Code", ""))
    if hour is not None and pollutant is not None:
        station = "-".join(row.get(column, "") for column in ("State Code", "County Code", "Site Num"))
        yield _measured(
            station, hour, pollutant, row.get("Sample Measurement", ""), row.get("Units of Measure", ""), (), 25.0
        )


def prsa(row: dict[str, str]) -> Iterator[Claim]:
    """``year,month,day,hour``: Beijing time, the label is the end; CO in ug m-3."""
    parts = [whole(number(row.get(column))) for column in ("year", "month", "day", "hour")]
    start = None if None in parts else whole(hours_since_1970(*(part or 0 for part in parts)))
    if start is None or not row.get("station"):
        return
    for column, pollutant in _PRSA.items():
        text = row.get(column, "").strip()
        factor = 1e-3 if pollutant == "co" else 1.0
        yield _value(row["station"], start - 9, pollutant, text, ("", "NA", "nan", "NaN"), factor)


def openaq(row: dict[str, str]) -> Iterator[Claim]:
    """The archive: local time with offset, the end of the averaging period; `judge` makes means of the samples."""
    found, pollutant = iso(row.get("datetime", "")), _OPENAQ.get(row.get("parameter", ""))
    sensor = number(row.get("sensors_id", row.get("sensor_id")))
    if found is None or found[1] is None or pollutant is None or sensor is None or not row.get("location_id"):
        return
    if not (abs(found[1]) <= 14 and (4 * found[1]).is_integer()):
        return
    station = row["location_id"]
    claim = _measured(station, 0, pollutant, row.get("value", ""), row.get("units", ""), (-9999.0, -999.0), 25.0)
    yield claim._replace(hour=found[0] - found[1], sensor=str(int(sensor)), parts=(claim.value,))


def purpleair(row: dict[str, str]) -> Iterator[Claim]:
    """A sample of both channels and the humidity; ``time_stamp`` is UTC and the beginning of the averaging period."""
    parts = tuple(number(row.get(column)) for column in ("pm2.5_cf_1_a", "pm2.5_cf_1_b", "humidity"))
    time, sensor = _purple_time(row.get("time_stamp", "")), number(row.get("sensor_index", "274866"))
    if None in parts or time is None or sensor is None or not 0 <= (parts[2] or 0) <= 100:
        return
    whole_parts = tuple(part or 0.0 for part in parts)
    yield Claim(str(int(sensor)), time, "pm2p5", math.nan, True, str(int(sensor)), whole_parts)


def _purple_time(text: str) -> float | None:
    if re.fullmatch("[0-9]{10}", text):
        return int(text) / 3600
    found = iso(text)
    return found[0] if found is not None and found[1] == 0 else None


_EEA = {6001: "pm2p5", 5: "pm10", 1: "so2", 8: "no2", 7: "o3", 10: "co"}

#: Sampling point and pollutant -> station, of `rows.EEA_SITES`.
_EEA_STATIONS = {
    ("SPO-MT00005_06001_100", "pm2p5"): "MT00005",
    ("SPO-MT00005_06001_101", "pm2p5"): "MT00005/SPO-MT00005_06001_101",
    ("SPO-MT00005_00010_100", "co"): "MT00005",
    ("SPO-MT00005_00007_100", "o3"): "MT00005",
}


def eea(row: dict[str, object]) -> Iterator[Claim]:
    """A row of the EEA's Parquet: ``Start`` and ``End`` in UTC+1; validity codes 1 to 3 count, 4 for ozone."""
    start, end, point, value = (row.get(column) for column in ("Start", "End", "Samplingpoint", "Value"))
    pollutant = _EEA.get(row["Pollutant"]) if _is_int(row.get("Pollutant")) else None
    if (
        pollutant is None
        or row.get("AggType") != "hour"
        or not (_is_int(row.get("Validity")) and isinstance(point, str))
    ):
        return
    if row["Validity"] not in (1, 2, 3) and (row["Validity"], pollutant) != (4, "o3"):
        return
    if not (isinstance(start, datetime) and isinstance(end, datetime) and start.tzinfo is end.tzinfo is None):
        return
    hour = whole((start - datetime(1970, 1, 1)) / timedelta(hours=1))
    station = _EEA_STATIONS.get((re.sub("^[A-Z]{2}/", "", point), pollutant))
    if hour is None or end - start != timedelta(hours=1) or station is None:
        return
    if isinstance(value, Decimal | float) and not isinstance(value, bool):
        yield _measured(station, hour - 1, pollutant, format(value, "f"), str(row.get("Unit")), (-999.0, -9999.0), 20.0)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def table_row(row: dict[str, object]) -> Iterator[Claim]:
    """A row of a StationTable in Parquet: times with their own zone, in UTC without one."""
    time, station = row.get("time"), row.get("station")
    if not (isinstance(station, str) or _is_int(station)):
        return
    hour = _hour_of(time)
    if hour is None:
        return
    for pollutant in ("pm2p5", "pm10", "so2", "no2", "o3", "co"):
        value = row.get(pollutant)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield Claim(str(station).split(":", 1)[-1], hour, pollutant, float(value), abs(value) < 1e30)


def _hour_of(time: object) -> int | None:
    if isinstance(time, datetime):
        if time.tzinfo is not None:
            time = time.astimezone(UTC).replace(tzinfo=None)
        return whole((time - datetime(1970, 1, 1)) / timedelta(hours=1))
    found = iso(time) if isinstance(time, str) else None
    return None if found is None else whole(found[0] - (found[1] or 0))


def itself(parts: tuple[float, ...]) -> float:
    """The value of an hourly mean that nothing is done to."""
    return parts[0]


def barkjohn(parts: tuple[float, ...]) -> float:
    """PM2.5 of mean channels A and B and mean humidity: the US-wide correction, and its extension to smoke."""
    mean, humidity = (parts[0] + parts[1]) / 2, parts[2]
    usual = 5.75 + 0.524 * mean - 0.0862 * humidity
    smoke = 3.44 + 0.392 * mean + 4.21e-4 * mean * mean
    weight = min(max(0.0244 * mean - 13.9, 0.0), 1.0)
    return usual if mean < 570 else smoke if mean >= 611 else weight * smoke + (1 - weight) * usual
