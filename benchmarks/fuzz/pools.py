"""Texts that files of hourly observations should not hold but do: numbers, units, marks and times gone wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

NUMBERS = (
    "0", "-0", "-5", "1e3", "1E+3", "1e-400", "1e38", "3.5e38", "1e39", "1e308", "1e400", "9" * 40,
    "0." + "0" * 60 + "1",
    "inf", "-inf", "Infinity", "nan", "NaN", "-nan", "0x1A", "1,000", "1.234,5", "1 000", "12.", ".5", "+7", "--7",
    "1_000", "\uff11\uff12", "\u0663", "5*", "<5", "7.0.0", "007", "1e", "e5", "True", "12abc", " 8 ", "\t8", "8\u00a0",
    "-999",    "-999.0", "-9999", "9999", "2147483648", "1.0e+02", "1d3", "5%", "5L", "0b1", "½", "\u22125",
)  # fmt: skip

MARKS = (
    "",
    "NA",
    "N/A",
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
    "-",
    "--",
    "/",
    "-999",
    "-9999",
    "999",
    "n/a",
    " ",
    "#N/A",
    "*",
)

UNITS = (
    "UG/M3", "µg/m³", "μg/m³", "ug/m3", "ug m-3", "ug.m-3", "MG/M3", "mg/m³", "mg m-3", "NG/M3", "ng/m3", "PPB", "ppb",
    "PPM", "ppm", "ppt", "PPBC", "ppbv", "Parts per million", "Parts per billion", "Micrograms/cubic meter (LC)",
    "Micrograms/cubic meter (25 C)", "Micrograms/cubic meter", "Âµg/mÂ³", "�g/m�", "?g/m?", "g/m3", "kg m-3", "kg/m3",
    "1", "", "%", "degC", "AQI", "c", "1e-9", "mol mol-1", "umol mol-1", "nmol mol-1", "m3/ug", "ug/m2", "ug/ft3",
    "u g/m3", "UGM3", "µg/m3 ", "mgm", "ppb ppm", "Mg/m3", "pg/m3", "UG/M3 (LC)", "ug/m^3", "cm",
)  # fmt: skip

TIMES = (
    "2019-12-10", "20191210", "2019-12-10T24:00:00Z", "2019-12-10T25:00:00Z", "2019-12-10T23:59:60Z", "12/10/2019",
    "10/12/2019 03:00", "13/12/2019 03:00", "19-12-10T03:00", "2019-02-29T03:00:00Z", "2019-12-10T03:30:00Z",
    "now", "today",
    "NaT", "0001-01-01T00:00:00Z", "1600-01-01T00:00:00Z", "2300-01-01T00:00:00Z", "9999-12-31T23:00:00Z", "1575946800",
    "1575946800000", "43809.125", "2019-W50-2T03:00", "2019-344T03:00", "Dec 10 2019 3AM", "2019-12-10T03:00:00.5Z",
    "2019-12-10T03:00:00+08", "2019-12-10T03:00:00+0800", "2019-12-10T03:00:00+08:00", "2019-12-10T03:00:00-08:00",
    "2019-12-10T03:00:00+05:30", "2019-12-10T03:00:00 CST", "2019-12-10T03:00:00", "2019-12-10 03:00:00+26:00", "",
    "24", "24:00", "25:00", "3", "3:00", "3:30", "-1", "00:60", "03:00:00", "3 PM", "03h",
    "2019121", "2019120", "191210",
    "2019-12", "2019", "-2019-12-10T03:00", "2019-12-10T3", "2019-12-10T030", "2026-02-27T050", "99991231", "16000101",
)  # fmt: skip


OFFSETS = ("", "Z", "+00:00", "+01:00", "-05:00", "+08:00", "+09:30", "-08", "+0545", "+15:00", "+99:00", " UTC")


def _offset(rng: Random, text: str) -> str:
    offset = rng.choice(
        ("", "Z", "+00:00", "+01:00", "-05:00", "+08:00", "+09:30", "-08", "+0545", "+15:00", "+99:00", " UTC")
    )
    return re.sub(r"(Z|[+-]\d\d:?\d\d)?$", offset, text, count=1)


def _hour(rng: Random, text: str) -> str:
    hour = rng.choice(("24", "25", "99", "-1", "0", "00", "02", "12", "23"))
    return re.sub(r"(?<=[T ])\d\d|^\d{1,2}(?=:|$)", hour, text, count=1)


def _digit(rng: Random, text: str) -> str:
    places = [i for i, c in enumerate(text) if c.isdigit()] or [0]
    at = rng.choice(places)
    return text[:at] + rng.choice(("", "", "0", "1", "2", "9", "O", "l", " ")) + text[at + 1 :]


def _day_month(_rng: Random, text: str) -> str:
    return re.sub(r"(\d{4})([-/])(\d\d)[-/](\d\d)|(\d\d)([-/])(\d\d)[-/](\d{2,4})", _swapped, text, count=1)


def _swapped(found: re.Match[str]) -> str:
    if found[1]:
        return f"{found[1]}{found[2]}{found[4]}{found[2]}{found[3]}"
    return f"{found[7]}{found[6]}{found[5]}{found[6]}{found[8]}"


#: Changes of a time's text.
TIME_CHANGES: tuple[Callable[[Random, str], str], ...] = (
    _offset,
    _offset,
    _hour,
    _digit,
    _day_month,
    lambda rng, text: rng.choice(TIMES),
    lambda rng, text: rng.choice(TIMES),
    lambda rng, text: re.sub(r"\d\d(\d\d)", r"\1", text, count=1),
    lambda rng, text: re.sub(r":\d\d", rng.choice((":30", ":59", ":60", ":01")), text, count=1),
    lambda rng, text: re.sub(r"[T ].*$", "", text),
    lambda rng, text: text.replace("T", " ") if "T" in text else text.replace(" ", "T"),
    lambda rng, text: text.replace("-", rng.choice("/._ ")),
    lambda rng, text: text.replace(":", rng.choice(("", "h", ".", "-"))),
    lambda rng, text: text + rng.choice((" AM", " PM", "Z", "+08:00", ".000", ".5", " ", "0")),
    lambda rng, text: re.sub(
        r"\d{4}", rng.choice(("0000", "0001", "1600", "1677", "2262", "2300", "9999", "12019")), text, count=1
    ),
)
