"""A second, plain reading of files: what each line claims, without a line of the readers that are under test."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

#: Contract's unit of each pollutant as a multiple of 1 ug m-3, and molar masses, g mol-1 (CRC Handbook, rounded).
TARGET = {"pm2p5": 1.0, "pm10": 1.0, "so2": 1.0, "no2": 1.0, "o3": 1.0, "co": 1000.0}
MOLAR = {"so2": 64.066, "no2": 46.0055, "o3": 47.9982, "co": 28.0101}
POLLUTANTS = tuple(TARGET)

#: Units known here, in lower case without blanks: multiples of 1 ug m-3, and of 1 ppb.
MASS = dict.fromkeys(("ug/m3", "µg/m³", "μg/m³", "ugm-3", "ug.m-3", "ug/m^3", "µg/m3", "μg/m3", "ug/m³", "µg.m-3"), 1.0)
MASS |= dict.fromkeys(("microgramspercubicmeter", "micrograms/cubicmeter(lc)", "micrograms/cubicmeter(25c)"), 1.0)
MASS |= dict.fromkeys(("ug/m3lc", "ug/m3(lc)", "micrograms/cubicmeter"), 1.0)
MASS |= dict.fromkeys(("mg/m3", "mg/m³", "mgm-3", "mg.m-3", "mg/m^3"), 1e3)
MASS |= {"g/m3": 1e6, "gm-3": 1e6, "kgm-3": 1e9, "kg/m3": 1e9, "ng/m3": 1e-3}
RATIO = {"ppb": 1.0, "ppbv": 1.0, "ppm": 1e3, "ppmv": 1e3, "partsperbillion": 1.0, "partspermillion": 1e3}
RATIO |= {"1e-9": 1.0, "1e-6": 1e3, "nmolmol-1": 1.0, "umolmol-1": 1e3, "molmol-1": 1e9}

NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,40})?([eE][+-]?\d{1,2})?")
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?(?: ?(Z|[+-]\d\d(?::?\d\d)?))?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1)


class Claim(NamedTuple):
    """What one line says: a value (contract's unit) of a pollutant at a station in an hour (UTC, hours since 1970).

    `clean` says that nothing about it is odd, so that a reader which drops it without a word has lost it. A sample that
    only counts within an hourly mean has its own time, to the fraction of an hour, its sensor, and the `parts` whose
    means make the value.
    """

    station: str
    hour: float
    pollutant: str
    value: float
    clean: bool = True
    sensor: str = ""
    parts: tuple[float, ...] = ()


#: Cells of one row by column -> what it claims.
Claims = Callable[[dict[str, Any]], Iterable[Claim]]


def lines_of(data: bytes, delimiter: str, names: tuple[str, ...] | None) -> tuple[list[str], dict[int, list[str]]]:
    """Column names and the cells of each row by its last line; what csv cannot cut is left out."""
    first, end, others = data.decode("utf-8-sig", errors="replace").partition("\n")
    # Arrow passes over a byte-order mark under the header, too; that makes no difference to what is said.
    text = first + end + (others if names else others.removeprefix("\ufeff"))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    found: dict[int, list[str]] = {}
    limit = csv.field_size_limit(1 << 30)
    try:
        header = list(names) if names else [name.strip() for name in next(rows, [])]
        for cells in rows:
            if cells:
                found[rows.line_num] = cells
    except csv.Error:
        return [], {}
    finally:
        csv.field_size_limit(limit)  # it is the whole process's, the readers' too
    return header, found


def by_name(header: list[str], cells: list[str]) -> dict[str, str]:
    """Cells by column name; of a name twice the first counts."""
    found: dict[str, str] = {}
    for name, cell in zip(header, cells, strict=False):
        found.setdefault(name, cell)
    return found


def number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def clean(*texts: str) -> bool:
    """Whether texts are plain numbers, of a size that float32 holds."""
    return all(NUMBER.fullmatch(text) is not None and abs(float(text)) < 1e30 for text in texts)


def factors(pollutant: str, unit: str, celsius: float | None) -> float | None:
    """What turns a value in `unit` into the contract's; None where the unit is not known here, or cannot be."""
    spelled = "".join(unit.split()).lower().replace("_", "").replace("μ", "µ")
    if spelled in MASS:
        return MASS[spelled] / TARGET[pollutant]
    if spelled in RATIO and celsius is not None and pollutant in MOLAR:
        litres = 22.41396954 * (celsius + 273.15) / 273.15  # of one mole at 1013.25 hPa
        return RATIO[spelled] * MOLAR[pollutant] / litres / TARGET[pollutant]
    return None


def hours_since_1970(year: int, month: int, day: int, hour: int, minute: int = 0, second: int = 0) -> float | None:
    """Hours since 1970 of a time, or None where there is none such (hour 24 included)."""
    try:
        return (datetime(year, month, day, hour, minute, second) - _EPOCH).total_seconds() / 3600
    except ValueError:
        return None


def iso(text: str) -> tuple[float, float | None] | None:
    """ISO 8601 date with hour: hours since 1970 on its own clock, and its offset in hours (None where it has none)."""
    found = _ISO.fullmatch(text.strip())
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    local = hours_since_1970(year, month, day, hour, minute, second)
    if local is None:
        return None
    return local + float(f"0.{found[7] or 0}") / 3600, _offset(found[8])


def _offset(text: str | None) -> float | None:
    if text is None:
        return None
    if text == "Z":
        return 0.0
    digits = text[1:].replace(":", "")
    sign = -1 if text[0] == "-" else 1
    return sign * (int(digits[:2]) + int(digits[2:] or 0) / 60)


def whole(hours: float | None) -> int | None:
    """Hours as an integer where they are one."""
    return None if hours is None or hours != math.floor(hours) else int(hours)
