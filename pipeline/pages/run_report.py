"""The report of a run: one self-contained HTML page that can be read on a screen, by ear and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.atomic import replacing
from pipeline.contract import POLLUTANTS
from pipeline.cube.changes import Change, Changes
from pipeline.pages import page, quality_report, run_report_figures
from pipeline.pages.map_view import degrees_text
from pipeline.pages.maps import UNIT
from pipeline.pages.pairs import together
from pipeline.pages.run_summary import Fields, Series, Summary
from pipeline.qc import pictures
from pipeline.qc.flags import FLAGS
from pipeline.release.gate import failed
from pipeline.score import Validation

#: Scores shown, by their name in run.json -> heading, and decimals.
SCORES = {
    "mae_median": ("MAE of the median", 2),
    "rmse_mean": ("RMSE of the mean", 2),
    "bias_mean": ("Bias of the mean", 2),
    "r2_mean": ("R²", 3),
    "crps": ("CRPS", 2),
    "coverage_90": ("In the 90 % interval", 3),
    "width_90": ("Its mean width", 1),
    "pairs": ("Pairs", 0),
}

#: Methods as readers know them.
METHODS = {**run_report_figures.METHODS, "idw_k8_p1": "Inverse distance"}

_NONE, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

Content = dict[str, Any]
Float = NDArray[np.floating]


def write(summary: Summary, path: Path) -> Path:
    """Write the page in one step.

    Parameters
    ----------
    summary : from `pipeline.pages.run_summary.from_run`.
    path : HTML file to write.
    """
    text = page.render("run-report.html", _content(summary))
    with replacing(path) as part:
        part.write_text(text, "utf-8")
    return path


def _content(summary: Summary) -> Content:
    header = summary.header
    return {
        "header": header,
        "run_id": header.run_id,
        "simulated": header.simulated,
        "checks": summary.checks,
        "failed": [check.name for check in failed(summary.checks)],
        "alarms": summary.alarms,
        "unit": UNIT,
        "figures": _figures(summary.fields, summary.validation),
        "maps": _maps(summary),
        "withheld": _withheld(summary),
        "places": [_place(series, header.simulated) for series in summary.series],
        "flags": _flags(summary),
        "changes": _changes(summary.changes),
        "stages": _stages(summary.stages),
        "lineage": _lineage(summary.lineage),
        "files": summary.files,
    }


# ---- the product ----


def _figures(fields: Fields, validation: Validation | None) -> list[tuple[str, str]]:
    """What the cube holds in a few numbers, label and text."""
    fewest, median, most = fields.reporting
    return [
        ("Mean over the land", f"{fields.area_mean:.1f} {UNIT}"),
        ("Mean width of the 90 % interval over the land", f"{fields.area_width:.1f} {UNIT}"),
        ("Highest hour of a cell", _highest(fields)),
        ("Land cell hours that are extrapolated", f"{100 * fields.extrapolated_land:.1f} %"),
        ("Stations that report in an hour", f"{median:,.0f} (median), {fewest:,} to {most:,}"),
        *_gaps(validation),
    ]


def _gaps(found: Validation | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    return [
        ("Hours without any observation", f"{found.hours_without_observations:,} of {found.hours:,}"),
        ("Land cells without an estimate while stations report", f"{100 * found.missing_land:.2f} %"),
    ]


def _highest(fields: Fields) -> str:
    if not np.isfinite(fields.highest):
        return "no estimate in any hour"
    lon, lat = fields.where
    where = f"{degrees_text(round(lat, 2), 'NS')}, {degrees_text(round(lon, 2), 'EW')}"
    return f"{fields.highest:.0f} {UNIT} at {where}, hour from {_clock(fields.when)} UTC"


def _clock(time: np.datetime64) -> str:
    return np.datetime_as_string(time, "m").replace("T", " ")


def _maps(summary: Summary) -> list[Content]:
    """Both maps with their alternative text; none of a grid of one row or column."""
    mean, width = run_report_figures.mean_map(summary), run_report_figures.width_map(summary)
    if mean is None or width is None:
        return []
    fields = summary.fields
    said = (
        ("Mean of the period", fields.mean, fields.area_mean),
        ("Mean width of the 90 % interval", fields.width, fields.area_width),
    )
    return [
        {
            "image": page.picture(png),
            "title": title,
            "alt": f"Map. {title}: {_range(field.values)}; mean over the land {mean:.0f} {UNIT}.",
        }
        for png, (title, field, mean) in zip((mean, width), said, strict=True)
    ]


def _range(values: Float) -> str:
    known = values[np.isfinite(values)]
    return f"cells from {known.min():.0f} to {known.max():.0f} {UNIT}" if known.size else "no cell has an estimate"


# ---- the judgement ----


def _withheld(summary: Summary) -> Content | None:
    """Scores, picture and what both say in words; None where nothing could be withheld."""
    image = run_report_figures.withheld_stations(summary)
    if image is None:
        return None
    pairs = together(summary.pairs)
    return {
        "image": page.picture(image, "svg+xml"),
        "stations": max(month.stations for month in summary.pairs),
        "months": len(summary.pairs),
        "distance": f"{np.median(pairs.distance):.1f}",
        "drawn": f"{len(pairs.truth):,}",
        "pairs": f"{sum(month.cells.to_numpy()[0].sum() for month in summary.pairs):,}",
        "head": [heading for heading, _ in SCORES.values()],
        "rows": _by_month(summary.scores),
        "alt": _withheld_alt(summary.scores),
    }


def _by_month(scores: pd.DataFrame) -> list[tuple[str, list[Content]]]:
    """Months in their order, in each the network before the methods beside it."""
    order = list(METHODS)
    rank = scores["method"].map(lambda name: order.index(name) if name in order else -1)
    months = scores.assign(rank=rank).sort_values("rank", kind="stable").groupby("period")
    return [(str(period), [_score_row(row) for row in own.to_dict("records")]) for period, own in months]


def _score_row(row: Mapping[Any, Any]) -> Content:
    cells = [_number(row[name], places) for name, (_, places) in SCORES.items()]
    return {"method": METHODS.get(row["method"], row["method"]), "cells": cells}


def _number(value: float, places: int) -> str:
    return _NONE if np.isnan(value) else f"{value:,.{places}f}".replace("-", _MINUS)


def _withheld_alt(scores: pd.DataFrame) -> str:
    """Alternative text of the picture: coverage over all pairs, method by method."""
    known = scores.dropna(subset=["coverage_90"])
    weighted = (known["coverage_90"] * known["pairs"]).groupby(known["method"], sort=False).sum()
    share = 100 * weighted / known.groupby("method", sort=False)["pairs"].sum()
    said = "; ".join(f"{METHODS.get(str(name), name)} {value:.1f} %" for name, value in share.items())
    return (
        "Four panels: estimated against observed PM2.5 for AQ-Net and for kriging, the PIT histogram of both, and the "
        f"reliability of their quantiles. Observations in the 90 % interval: {said}."
    )


def _place(series: Series, simulated: bool) -> Content:
    image = run_report_figures.series(series, simulated)
    place, seen = series.place, np.isfinite(series.observed)
    where = f"{degrees_text(round(place.lat, 2), 'NS')}, {degrees_text(round(place.lon, 2), 'EW')}"
    return {
        "name": place.name,
        "where": where,
        "stations": len(place.stations),
        "of": place.of,
        "hours": f"{int(seen.sum()):,} of {len(seen):,}",
        "seen": bool(seen.any()),
        "daily": len(series.time) > run_report_figures.HOURLY,
        "image": page.picture(image, "svg+xml") if image else None,
        "alt": f"Time series at {place.name}: {_series_range('estimate', series.mean)}; "
        f"{_series_range('observed', series.observed)}.",
    }


def _series_range(name: str, values: Float) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return f"{name}: none"
    return f"{name} {known.min():.0f} to {known.max():.0f}, mean {known.mean():.0f} {UNIT}"


# ---- observations ----


def _flags(summary: Summary) -> Content:
    """Flags by pollutant, the share of PM2.5, and the map of stations."""
    counts, of = _by_flag(summary, "count"), _by_flag(summary, "of")
    share = 100 * counts["pm2p5"] / of["pm2p5"].clip(lower=1)
    found = [name for name in FLAGS if counts.loc[name].sum()]
    stations = quality_report.station_counts(summary.quality)
    reported, invalid = int(stations["reported"].sum()), int(stations["invalid"].sum())
    return {
        "head": list(quality_report.NAMES.values()),
        "rows": [(name, [f"{n:,}" for n in counts.loc[name].to_numpy()], f"{share[name]:.3f}") for name in found],
        "none": [name for name in FLAGS if name not in found],
        "stations": f"{int((stations['reported'] > 0).sum()):,}",
        "reported": f"{reported:,}",
        "invalid": f"{invalid:,}",
        "share": f"{100 * invalid / max(reported, 1):.2f}",
        "image": page.picture(pictures.station_map(stations, summary.around)),
    }


def _by_flag(summary: Summary, what: str) -> pd.DataFrame:
    """A column of `pipeline.qc.flags.summary` over all months, flags x pollutants."""
    every = pd.concat([record.counts for record in summary.quality])
    return every.pivot_table(index="flag", columns="pollutant", values=what, aggfunc="sum")[list(POLLUTANTS)]


# ---- how it came about ----


def _changes(found: Changes | None) -> Content | None:
    """Hours by what happened to them, with sizes; None for a first revision."""
    if found is None:
        return None
    image = run_report_figures.change_map(found)
    return {
        "before": found.before,
        "rows": [_change_row(kind) for kind in found.kinds],
        "image": page.picture(image) if image else None,
        "alt": f"Map of the mean absolute change of PM2.5 since {found.before}: {_range(found.field.values)}.",
    }


def _change_row(kind: Change) -> Content:
    sizes = [kind.mean, kind.median, kind.largest] if kind.cells else [np.nan] * 3
    places = (2, 2, 1)
    cells = [_number(size, digits) for size, digits in zip(sizes, places, strict=True)]
    return {"kind": kind.kind, "hours": f"{kind.hours:,}", "differ": f"{kind.differ:,}", "sizes": cells}


def _stages(stages: Sequence[Mapping[str, Any]]) -> Content:
    """Seconds, peak memory and work of each stage, over its months."""
    table = pd.DataFrame(list(stages), columns=["name", "period", "seconds", "peak_mib", "rows", "unit"])
    how = {"period": "count", "seconds": "sum", "peak_mib": "max", "rows": "sum", "unit": "first"}
    found = table.groupby("name", sort=False).agg(how).reset_index()
    longest = max(float(found["seconds"].max()), 1e-9) if len(found) else 1.0
    return {
        "rows": [_stage_row(row, longest) for row in found.to_dict("records")],
        "seconds": f"{found['seconds'].sum():,.1f}",
        "peak": f"{found['peak_mib'].max():,.0f}" if len(found) else _NONE,
    }


def _stage_row(row: Mapping[Any, Any], longest: float) -> Content:
    return {
        "name": row["name"],
        "parts": row["period"],
        "seconds": f"{row['seconds']:,.1f}",
        "bar": f"{100 * row['seconds'] / longest:.1f}",
        "peak": f"{row['peak_mib']:,.0f}",
        "work": f"{row['rows']:,} {row['unit']}",
    }


def _lineage(lineage: Mapping[str, str]) -> list[tuple[str, str]]:
    """Digests first, then the rest, with readable names."""
    order = sorted(lineage, key=lambda name: not name.endswith("_digest"))
    return [(name.replace("_", " ").capitalize(), str(lineage[name])) for name in order]
