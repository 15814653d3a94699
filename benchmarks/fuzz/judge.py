"""The oracle: whether what a reader gave back is an error of one line, or values that trace to their lines."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import pandas as pd

from benchmarks.fuzz.plain import POLLUTANTS, Claim
from pipeline.contract import check_station_table, line_column
from pipeline.errors import InputError

#: Relative difference that float32 and rounded molar masses may make.
TOLERANCE = 2e-4

#: What the lines of a file claim, by line.
ByLine = Mapping[int, list[Claim]]


class Finding(NamedTuple):
    """Something that must not happen, and what exactly."""

    kind: str
    what: str


class Value(NamedTuple):
    """One value of a StationTable."""

    station: str
    hour: int
    pollutant: str
    value: float
    line: int


def judge_error(error: InputError, where: str) -> list[Finding]:
    """An error must be one printable line that names the file."""
    text = str(error)
    found = []
    if not text.isprintable():
        found.append(Finding("not one line", f"error holds control characters: {text[:200]!r}"))
    if where not in text:
        found.append(Finding("error without file", text[:200]))
    if len(text) > 2000:
        found.append(Finding("error too long", f"{len(text)} characters: {text[:120]!r}"))
    return found


def values_of(table: pd.DataFrame) -> list[Value]:
    """Values of a StationTable, one each; the station without its network."""
    hours = table["time"].astype("datetime64[s]").astype("int64").to_numpy() / 3600
    stations = [name.split(":", 1)[-1] for name in table["station"].astype(str)]
    found = []
    for pollutant in POLLUTANTS:
        if pollutant not in table:
            continue
        lines = table[line_column(pollutant)].tolist()
        for row, value in enumerate(table[pollutant].tolist()):
            if not math.isnan(value):
                found.append(Value(stations[row], int(hours[row]), pollutant, value, int(lines[row])))
            elif lines[row]:
                found.append(Value(stations[row], int(hours[row]), pollutant, math.nan, int(lines[row])))
    return found


def judge_tables(tables: Iterable[pd.DataFrame], claims: ByLine, warned: bool, twice: bool = False) -> list[Finding]:
    """Findings in the tables of one file.

    Parameters
    ----------
    claims : what the plain reading found on each line.
    warned : whether the reader logged that it left something out; nothing counts as lost then.
    twice : whether a reader may give a station and hour twice (`table` leaves that to the cube).
    """
    values, findings = _valued(tables)
    findings += [found for value in values if (found := _untraced(value, claims))]
    if not twice:
        findings += _doubled(values)
    return findings if warned else findings + _lost(values, claims)


def judge_means(
    tables: Iterable[pd.DataFrame],
    samples: ByLine,
    warned: bool,
    label: str,
    made_of: Callable[[tuple[float, ...]], float],
) -> list[Finding]:
    """Findings in tables of hourly means of the samples on each line.

    A mean's line is one of its samples'; its value is `made_of` the means of all samples of that sensor in the hour, or
    lies between theirs where the reader logged that it left some out.
    """
    values, findings = _valued(tables)
    of_hour = _by_hour(samples, label)
    for value in values:
        here = of_hour[value.station, value.hour, value.pollutant].values()
        findings += _not_mean(value, list(here), samples, warned, made_of)
    kept = {(v.station, v.hour, v.pollutant) for v in values}
    if not warned:
        lost = (key for key, own in of_hour.items() if any(s.clean for _, s in own.values()) and key not in kept)
        findings += [Finding("lost", f"hour {key}: {list(of_hour[key].values())[:2]}") for key in lost]
    return findings + _doubled(values)


#: (station, hour, pollutant) -> line and sample, by (sensor, time): of two of one time the later line counts.
_OfHour = dict[tuple[str, int, str], dict[tuple[str, float], tuple[int, Claim]]]


def _by_hour(samples: ByLine, label: str) -> _OfHour:
    """Samples by the hour in which the middle of each lies; a sample is as long as they are apart, an hour at most."""
    series: dict[tuple[str, str, str], dict[float, tuple[int, Claim]]] = defaultdict(dict)
    for line in sorted(samples):
        for sample in samples[line]:
            if not any(map(math.isnan, sample.parts)):
                series[sample.station, sample.pollutant, sample.sensor][sample.hour] = line, sample
    of_hour: _OfHour = defaultdict(dict)
    for (station, pollutant, sensor), own in series.items():
        gaps = [later - earlier for earlier, later in pairwise(sorted(own))]
        half = min(median(gaps) if gaps else 1.0, 1.0) / 2
        for time, found in own.items():
            middle = time - half if label == "end" else time + half
            of_hour[station, math.floor(middle + 1e-9), pollutant][sensor, time] = found
    return of_hour


def _not_mean(
    value: Value,
    here: list[tuple[int, Claim]],
    samples: ByLine,
    warned: bool,
    made_of: Callable[[tuple[float, ...]], float],
) -> list[Finding]:
    sensors = {sample.sensor for line, sample in here if line == value.line}
    own = [sample.parts for _, sample in here if sample.sensor in sensors]
    if not own:
        there = [s for s in samples.get(value.line, []) if (s.station, s.pollutant) == (value.station, value.pollutant)]
        return [Finding("wrong hour" if there else "wrong line", f"{value}; the line says {there}")]
    mean = made_of(tuple(math.fsum(part) / len(own) for part in zip(*own, strict=True)))
    if same(mean, value.value) or math.isclose(mean, value.value, abs_tol=1e-4):
        return []
    each = sorted(map(made_of, own))
    if (
        warned
        and each[0] - 1e-4 - abs(each[0]) * TOLERANCE <= value.value <= each[-1] + 1e-4 + abs(each[-1]) * TOLERANCE
    ):
        return []
    ratio = value.value / mean if mean else math.nan
    odd = math.isinf(mean) or (ratio > 0 and abs(math.log10(ratio)) > 0.1)
    return [Finding("wrong unit" if odd else "wrong value", f"{value}; the samples say {mean}: {own[:4]}")]


def _valued(tables: Iterable[pd.DataFrame]) -> tuple[list[Value], list[Finding]]:
    """Values of all tables, and those tables that are no StationTables."""
    values: list[Value] = []
    findings: list[Finding] = []
    for table in tables:
        try:
            check_station_table(table)
        except InputError as error:
            findings.append(Finding("no StationTable", str(error)))
            continue
        values += values_of(table)
    return values, findings


def same(one: float, other: float) -> bool:
    """Whether two values are one, but for float32 and the rounding of molar masses."""
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-37)


def _untraced(value: Value, claims: ByLine) -> Finding | None:
    here = claims.get(value.line, [])
    of_kind = [c for c in here if c.pollutant == value.pollutant and c.station == value.station]
    if any(c.hour == value.hour and same(c.value, value.value) for c in of_kind):
        return None
    if math.isnan(value.value):
        return Finding("wrong line", f"{value} is missing, but has a line")
    if any(c.hour == value.hour for c in of_kind):
        ratios = [value.value / c.value for c in of_kind if c.value]
        odd = any(math.isinf(c.value) for c in of_kind) or any(abs(math.log10(r)) > 0.1 for r in ratios if r > 0)
        kind = "wrong unit" if odd else "wrong value"
        return Finding(kind, f"{value}; the line says {of_kind}")
    if any(same(c.value, value.value) for c in of_kind):
        return Finding("wrong hour", f"{value}; the line says {of_kind}")
    return Finding("wrong line", f"{value}; the line says {here[:6]}")


def _doubled(values: list[Value]) -> list[Finding]:
    seen: set[tuple[str, int, str]] = set()
    found = []
    for value in values:
        key = (value.station, value.hour, value.pollutant)
        if key in seen:
            found.append(Finding("twice", str(value)))
        seen.add(key)
    return found


def _lost(values: list[Value], claims: ByLine) -> list[Finding]:
    """Clean claims that no value came of, and that no later line of the same station, hour and pollutant replaced."""
    kept = {(v.station, v.hour, v.pollutant): v.line for v in values}
    last = {(c.station, c.hour, c.pollutant): (line, c) for line in sorted(claims) for c in claims[line]}
    return [
        Finding("lost", f"line {line}: {claim}")
        for key, (line, claim) in last.items()
        if claim.clean and key not in kept
    ]
