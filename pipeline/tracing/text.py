"""A trace as text for people and as a dictionary for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from model.trace import Parts, in_ug
from model.trace_outlook import OutlookParts
from pipeline.provenance import code_version
from pipeline.tracing.cell import VALUES
from pipeline.tracing.stations import (
    Observation,
    Station,
    importance,
    latest,
    observations,
    rejected,
    share,
    stations,
)

if TYPE_CHECKING:
    from pipeline.tracing.trace import Trace

#: Flagged values that the text names.
REJECTED = 5

#: Hours before the traced one whose sizes of weights the text adds up: (first, last), and what it calls them.
_AGES = (
    ((0, 0), "this hour"),
    ((1, 3), "1 to 3 h before"),
    ((4, 12), "4 to 12 h before"),
    ((13, 72), "earlier"),
    ((-72, -1), "after"),
)

_STREAMS = {
    "interim": "interim: from the hour and what came before it",
    "final": "final: from the hours on both sides",
    "outlook": "outlook: A FORECAST",
}


def as_text(trace: Trace, shown: int = 12) -> str:
    """What is known of a value, the `shown` stations that weigh most named."""
    parts = [_head(trace), _NONE if _is_empty(trace) else _agreement(trace)]
    if isinstance(trace.parts, Parts):
        parts += [_decomposition(trace, trace.parts), _stations(trace, trace.parts, shown)]
    elif trace.parts is not None:
        parts += [_forecast(trace, trace.parts), _forecasters(trace, trace.parts, shown)]
    return "\n\n".join(filter(None, [*parts, _rejected(trace)]))


_NONE = """\
Recomputed: no estimate either. None of the 48 nearest stations has a valid PM2.5 observation in the hour; hours
before would give a value, but not an interval that is wide enough."""


def _is_empty(trace: Trace) -> bool:
    """Whether there is no estimate, neither published nor recomputed."""
    return bool(np.isnan([*trace.published.values.values(), *trace.recomputed.values()]).all())


def _head(trace: Trace) -> str:
    p, cell, values = trace.published, trace.cell, trace.published.values
    west, south = cell.ring.min(axis=0)
    east, north = cell.ring.max(axis=0)
    again = f", published {p.revision} times" if p.revision > 1 else ""
    flags = f"; flags: {', '.join(p.flags)}" if p.flags else ""
    source = f"{trace.config.source}, {trace.config.input}"
    kept = "as the run read them" if trace.observed.known else "not known to be the same: the run left no list"
    kept = "CHANGED since, so values may differ:" if trace.changed else kept
    inputs = "\n".join([kept, *(f"             - {text}" for text in trace.changed)])
    interval = f"90 % interval {values['pm2p5_p05']:.4g} to {values['pm2p5_p95']:.4g}"
    value = "no estimate" if np.isnan(values["pm2p5"]) else f"{values['pm2p5']:.4g} ug m-3, {interval}"
    return (
        f"PM2.5 in the hour from {p.hour} UTC: {value}\n"
        f"  cell       {west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N; row {cell.row}, column {cell.column}\n"
        f"  cube       {trace.cube}, {trace.revision}{again}; {trace.title}\n"
        f"  stream     {_STREAMS[p.stream]}{_issued(trace)}{flags}\n"
        f"  made by    run {trace.made.run_id} ({trace.made.revision}), weights {trace.weights[:12]}; {source}\n"
        f"  inputs     {inputs}"
    )


def _issued(trace: Trace) -> str:
    return "" if trace.issue is None else f", issued {trace.issue} UTC from the 336 hours before"


def _agreement(trace: Trace) -> str:
    lines = [f"Recomputed from these observations{'':8}published    recomputed   differs by"]
    for name in VALUES:
        published, again = trace.published.values[name], trace.recomputed[name]
        verdict = "within rounding" if trace.agrees(name) else "NOT EXPLAINED BY ROUNDING"
        lines.append(f"  {name:36} {published:12.6g} {again:13.6g}   {100 * trace.difference(name):+.3f} %  {verdict}")
    lines.append("  Published values are rounded to 9 bits of mantissa, by 0.098 % at most; z is good to 0.0001.")
    if not all(map(trace.agrees, VALUES)):
        lines.append(f"  The run was made by {trace.made.code or 'an unknown version'}; this is {code_version()}.")
    return "\n".join(lines)


# ---- an analysed hour ----


def steps(trace: Trace) -> list[tuple[str, float, float]]:
    """What is added up to the mean: name, z, and the change in ug m-3 as each is added in this order."""
    p = trace.parts
    if not isinstance(p, Parts):
        return []
    parts = [
        ("kriging", p.kriged),
        ("encoder", float(p.correction.sum())),
        ("head", p.shift),
        ("mean over median", p.lift),
        *([("covariates", trace.drift)] if trace.drift else []),
    ]
    reached = np.cumsum([z for _, z in parts])
    levels = [in_ug(float(z)) for z in reached]
    return [(name, z, now - before) for (name, z), now, before in zip(parts, levels, [0.0, *levels[:-1]], strict=True)]


def correction_share(parts: Parts) -> float:
    """The network's share of the median: encoder and head over the z of the median, signed."""
    return (parts.median - parts.kriged) / parts.median


def _decomposition(trace: Trace, p: Parts) -> str:
    said = {
        "kriging": f"kriging of {int((p.weight != 0).sum())} observations of {len(p.stations)} stations",
        "encoder": "encoder: corrections of what stations say",
        "head": "head: shift to the median",
        "mean over median": "head: from the median to the mean",
        "covariates": "covariates",
    }
    lines = [f"What it is made of (z = cube root of PM2.5) {'':12} z        ug m-3"]
    lines += [f"  {said[name]:48} {z:+9.4f}  {ug:+10.3f}" for name, z, ug in steps(trace)]
    z = sum(z for _, z, _ in steps(trace))
    lines.append(f"  {'mean':48} {z:9.4f}  {in_ug(z):10.3f}")
    ages = ", ".join(f"{100 * found:.0f} % {name}" for name, found in _by_age(trace, p) if found >= 0.005)
    return "\n".join(
        [
            *lines,
            f"  The network's corrections (encoder and head) are {100 * correction_share(p):+.2f} % of the median's z.",
            f"  Of the sizes of the kriging weights, {ages}.",
            f"  Without their other pollutants the mean would be {p.alone:.3f} ug m-3.",
        ]
    )


def _by_age(trace: Trace, p: Parts) -> list[tuple[str, float]]:
    """Share of the sizes of all weights that observations of an age have."""
    age = trace.hour - np.arange(p.hours.start, p.hours.stop)
    size = np.abs(p.weight).sum(axis=0) / np.abs(p.weight).sum()
    return [(name, float(size[(age >= low) & (age <= high)].sum())) for (low, high), name in _AGES]


def _stations(trace: Trace, p: Parts, shown: int) -> str:
    every = stations(trace)
    lines = [
        f"Stations, the {min(shown, len(every))} that weigh most of {len(every)}",
        "  station                  km  size %   weight  share %  corrects  responds     PM2.5  flags     file:line",
    ]
    lines += [_station_line(trace, p, station) for station in every[:shown]]
    if rest := every[shown:]:
        lines.append(_sums(trace, p, f"{len(rest)} others", rest))
    return "\n".join([*lines, _sums(trace, p, "all", every), _LEGEND])


_LEGEND = """\
  size: share of the sizes of all kriging weights (every hour of a station, either sign); weight: their sum, which over
  all stations is 1; share: weights times observations, of the kriged z; corrects: what the encoder's correction of the
  station adds, z; responds: rise of the mean, ug m-3, had it reported 1 ug m-3 more in every hour of the window;
  PM2.5, flags, file:line: of its observation in the hour."""


def _sums(trace: Trace, p: Parts, name: str, some: list[Station]) -> str:
    """A line of the table for several stations together."""
    return f"  {name:20} {'':6} {_numbers(trace, p, some)}"


def _numbers(trace: Trace, p: Parts, some: list[Station]) -> str:
    rows = [station.row for station in some]
    size = 100 * importance(p)[rows].sum() / importance(p).sum()
    weight = sum(station.weight for station in some)
    given = 100 * sum(share(p, station, trace.observed) for station in some)
    return f"{size:7.2f} {weight:8.4f} {given:8.2f} {p.correction[rows].sum():+9.4f} {p.response[rows].sum():9.3f}"


def _station_line(trace: Trace, p: Parts, station: Station) -> str:
    return f"  {station.name:20} {station.km:6.1f} {_numbers(trace, p, [station])} {_seen(latest(trace, station))}"


def _seen(found: Observation | None) -> str:
    if found is None:
        return f"{'-':>9}  nothing reported"
    return f"{found.pm2p5:9.1f}  {','.join(found.flags) or 'none':8}  {found.file}:{found.line}"


def _rejected(trace: Trace) -> str:
    found = rejected(trace, REJECTED)
    if not found:
        return ""
    lines = ["Flagged as invalid in the hour and not used, the nearest:"]
    lines += [f"  {name:20} {km:6.1f} {_seen(one)}" for name, km, one in found]
    return "\n".join(lines)


# ---- a forecast ----


def _forecast(trace: Trace, p: OutlookParts) -> str:
    rows = (
        ("forecasts at the stations around, weighted", p.combined),
        ("shift to the median", p.shift),
        ("from the median to the mean", p.lift),
    )
    lines = [f"What it is made of (z = log(PM2.5 + 1)) {'':16} z"]
    lines += [f"  {name:48} {z:+9.4f}" for name, z in rows]
    lines.append(f"  {'mean':48} {sum(z for _, z in rows):9.4f}  {p.mean:10.3f} ug m-3")
    lines.append(
        f"  Each station's forecast is made from its own 336 hours before the issue time and from those of the {p.seen}"
        " stations around it."
    )
    return "\n".join(lines)


def _forecasters(trace: Trace, p: OutlookParts, shown: int) -> str:
    every = stations(trace)
    lines = [
        f"Stations, the {min(shown, len(every))} that weigh most of {len(every)}",
        "  station                  km   weight  forecast     last  flags     file:line",
    ]
    for station in every[:shown]:
        median = float(np.expm1(p.centre[station.row]))
        lines.append(
            f"  {station.name:20} {station.km:6.1f} {station.weight:8.4f} {median:9.1f} {_seen(latest(trace, station))}"
        )
    lines.append(f"  {'all':20} {'':6} {p.weight.sum():8.4f}")
    lines.append("  forecast: median at the station, ug m-3; last: its observation in the last hour before the issue.")
    return "\n".join(lines)


# ---- for scripts ----


def as_dict(trace: Trace) -> dict[str, Any]:
    """Everything there is to say about a value, every observation with its weight, file and line, ready for JSON."""
    p = trace.published
    return {
        "cube": str(trace.cube),
        "revision": trace.revision,
        "time": f"{p.hour}:00:00Z",
        "cell": {
            "row": trace.cell.row,
            "column": trace.cell.column,
            "lon": trace.cell.lon,
            "lat": trace.cell.lat,
            "ring": trace.cell.ring.tolist(),
        },
        "stream": p.stream,
        "issue_time": None if trace.issue is None else f"{trace.issue}:00:00Z",
        "published": _numbers_or_none(p.values)
        | {
            "nearest_observation_distance": _or_none(p.distance),
            "quality_flag": list(p.flags),
            "revision": p.revision,
            "observation_count": p.count,
        },
        "recomputed": _numbers_or_none(trace.recomputed)
        | {"nearest_observation_distance": _or_none(trace.distance), "observation_count": trace.count},
        "agreement": {
            name: {"relative_difference": _or_none(trace.difference(name)), "within_rounding": trace.agrees(name)}
            for name in VALUES
        },
        "made_by": {
            "run_id": trace.made.run_id,
            "revision": trace.made.revision,
            "config": trace.config.model_dump(mode="json"),
            "weights_sha256": trace.weights,
        },
        "changed": list(trace.changed),
        "inputs_known": trace.observed.known,
        "parts": _parts(trace),
        "stations": [_station(trace, station) for station in stations(trace)],
        "rejected": [{"station": name, "km": km} | _observation(one) for name, km, one in rejected(trace, REJECTED)],
    }


def _or_none(value: float) -> float | None:
    """A number as JSON has them: neither NaN nor infinite."""
    return value if np.isfinite(value) else None


def _numbers_or_none(values: Mapping[str, float]) -> dict[str, float | int | None]:
    return {name: _or_none(value) for name, value in values.items()}


def _parts(trace: Trace) -> dict[str, Any] | None:
    p = trace.parts
    if p is None:
        return None
    if isinstance(p, OutlookParts):
        numbers = {"forecasts": p.combined, "shift": p.shift, "lift": p.lift}
        return {"scale": "log(PM2.5 + 1)", "z": numbers, "mean": p.mean, "stations_seen": p.seen}
    return {
        "scale": "cube root",
        "z": {name: z for name, z, _ in steps(trace)},
        "ug_m3": {name: ug for name, _, ug in steps(trace)},
        "mean": in_ug(sum(z for _, z, _ in steps(trace))),
        "correction_share_of_median": correction_share(p),
        "mean_without_other_pollutants": p.alone,
    }


def _station(trace: Trace, station: Station) -> dict[str, Any]:
    p = trace.parts
    said: dict[str, Any] = {
        "station": station.name,
        "lon": station.lon,
        "lat": station.lat,
        "km": station.km,
        "weight": station.weight,
    }
    if isinstance(p, Parts):
        row = station.row
        said |= {
            "share": share(p, station, trace.observed),
            "correction": float(p.correction[row]),
            "attention": float(p.attention[row]),
            "response": float(p.response[row]),
            "band_weight": p.band_weight[:, row].tolist(),
            "bands": p.bands[:, row].tolist(),
        }
    elif p is not None:
        said["forecast_z"] = float(p.centre[station.row])
    return said | {"observations": [_observation(one) for one in observations(trace, station)]}


def _observation(one: Observation) -> dict[str, Any]:
    return {
        "time": f"{one.time}:00:00Z",
        "pm2p5": one.pm2p5,
        "flags": list(one.flags),
        "used": one.used,
        "weight": _or_none(one.weight),
        "file": one.file,
        "line": one.line,
    }
