"""Pictures of the run report: maps as PNG bytes, charts as SVG bytes.

Matplotlib's object interface only. Colours differ in lightness too, and lines in pattern: the page is read on paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.cube.changes import Changes
from pipeline.evaluation.strata import Pairs
from pipeline.pages import maps
from pipeline.pages.figure import panels, svg
from pipeline.pages.maps import INK, UNIT
from pipeline.pages.pairs import calibration, together
from pipeline.pages.run_summary import Fields, Series, Summary
from pipeline.pages.score_figures import draw_pit, draw_reliability, finish
from pipeline.score import MEDIAN

#: Methods whose pairs are drawn, by their name in the scores -> as readers know them.
METHODS = {"AQ-Net": "AQ-Net", "log_kriging": "Kriging"}

#: Colours of an absolute change, ug m-3.
CHANGE = maps.Style((0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50), "YlGnBu", f"Mean absolute change ({UNIT})")

#: Hours up to which a series is drawn hour by hour, and by daily means beyond.
HOURLY = 24 * 92

#: Pairs up to which each is a dot; more are counted into hexagons.
DOTS = 600

#: Lowest concentration on a logarithmic axis, ug m-3.
LOWEST = 1.0

_BAND, _LINE = "#a9cfe6", "#08519c"

Float = NDArray[np.float64]


def mean_map(summary: Summary) -> bytes | None:
    """Period mean and the stations' means; None where the grid is one row or column of cells, which is no map."""
    return _map(summary, summary.fields, maps.CONCENTRATION)


def width_map(summary: Summary) -> bytes | None:
    """Mean width of the 90 % interval; None as of `mean_map`."""
    return _map(summary, summary.fields, maps.WIDTH)


def _map(summary: Summary, fields: Fields, style: maps.Style) -> bytes | None:
    if min(fields.mean.shape) < 2:
        return None
    field, stations = (fields.mean, summary.observed) if style is maps.CONCENTRATION else (fields.width, None)
    return maps.panel(field, style, stations=stations, hatched=fields.extrapolated, made_up=summary.header.simulated)


def change_map(changes: Changes) -> bytes | None:
    """Mean absolute change of PM2.5 since the revision before; None where nothing is compared, or as of `mean_map`."""
    field = changes.field
    if min(field.shape) < 2 or not np.isfinite(field.values).any():
        return None
    return maps.panel(field, CHANGE, made_up=maps.simulated(field.attrs))


# ---- withheld stations ----


def withheld_stations(summary: Summary) -> bytes | None:
    """Pairs of AQ-Net and kriging at withheld stations, and their calibration; None where nothing was withheld."""
    if not summary.pairs:
        return None
    pairs = together(summary.pairs)
    shown = [name for name in METHODS if name in pairs.predictions]
    figure = Figure(figsize=(9.6, 8.6), dpi=110, layout="constrained")
    four = figure.subplots(2, 2).ravel()
    drawn = [_pairs(axes, pairs, name, letter) for axes, name, letter in zip(four, shown, "ab", strict=False)]
    _count_bar(figure, four[:2], drawn)
    pit = calibration(summary.pairs).rename(index=METHODS)
    draw_pit(four[2], pit, [METHODS[name] for name in shown], "c  PIT histogram")
    if summary.header.simulated:
        figure.suptitle(" ", fontsize=12)  # room for the stamp
    draw_reliability(four[3], pit, [METHODS[name] for name in shown], "d  Reliability of the quantiles")
    return _svg(figure, summary.header.simulated)


def _pairs(axes: Axes, pairs: Pairs, name: str, letter: str) -> PolyCollection | None:
    """Estimated median against observation, both logarithmic; lines: equal, and a factor of two apart."""
    observed = pairs.truth.clip(LOWEST)
    estimated = np.asarray(pairs.predictions[name].quantile(MEDIAN), np.float64).clip(LOWEST)
    ends = np.array([max(LOWEST, 0.8 * _least(observed, estimated)), 1.3 * max(observed.max(), estimated.max())])
    hexagons = None
    axes.set_xscale("log")
    axes.set_yscale("log")
    if len(observed) <= DOTS:
        axes.plot(observed, estimated, "o", color=_LINE, ms=3, alpha=0.5, mew=0)
    else:
        extent = (*np.log10(ends), *np.log10(ends))
        how: dict[str, Any] = {
            "xscale": "log",
            "yscale": "log",
            "gridsize": 45,
            "mincnt": 1,
            "cmap": "YlGnBu",
            "linewidths": 0.1,
        }
        hexagons = axes.hexbin(observed, estimated, extent=extent, **how)
    axes.plot(ends, ends, color=INK, lw=1.2)
    for factor in (0.5, 2.0):
        axes.plot(ends, factor * ends, color=INK, lw=0.8, ls=(0, (4, 3)))
    _ug_axes(axes, ends)
    finish(axes, f"{letter}  {METHODS[name]}", f"Observed ({UNIT})", f"Estimated median ({UNIT})")
    return hexagons


def _least(observed: Float, estimated: Float) -> float:
    """The lowest of all but one in 500: a few zeros shall not stretch the axes."""
    return float(np.quantile(np.concatenate([observed, estimated]), 0.002))


def _ug_axes(axes: Axes, ends: Float) -> None:
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if ends[0] <= tick <= ends[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)


def _count_bar(figure: Figure, above: NDArray[np.object_], drawn: list[PolyCollection | None]) -> None:
    """One colour scale for both panels of hexagons."""
    hexagons = [one for one in drawn if one is not None]
    if not hexagons:
        return
    norm = LogNorm(1, max(2.0, *(float(np.max(np.asarray(one.get_array()))) for one in hexagons)))
    for one in hexagons:
        one.set_norm(norm)
    bar = figure.colorbar(hexagons[0], ax=list(above), aspect=30, pad=0.01)
    bar.set_label("Pairs")
    bar.ax.yaxis.set_major_formatter("{x:g}")


# ---- series ----


def series(found: Series, simulated: bool) -> bytes | None:
    """Estimate with its 90 % band and observations at one place; None where there is neither."""
    if not (np.isfinite(found.mean).any() or np.isfinite(found.observed).any()):
        return None
    table, step = _resolved(found)
    start = table.index.to_numpy()
    edges = date2num(np.append(start, start[-1] + step))
    figure = Figure(figsize=(9.6, 2.25), dpi=110)
    axes = panels(figure, left=0.75, right=0.15, bottom=0.53, top=0.34)[0, 0]
    axes.stairs(
        table["high"], edges, baseline=table["low"].to_numpy(), fill=True, color=_BAND, lw=0, label="90 % interval"
    )
    axes.stairs(table["mean"], edges, baseline=None, color=_LINE, lw=1.5, label="estimate")
    middle = (edges[1:] + edges[:-1]) / 2
    axes.plot(middle, table["observed"], "o", color=INK, ms=2.2 if len(table) > 100 else 3.5, label="observed")
    _time_axis(axes, edges)
    axes.set_ylim(0, None)
    finish(axes, "", "UTC", f"PM2.5 ({UNIT})")
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderpad=0.1)
    return _svg(figure, simulated, 9)


def _resolved(found: Series) -> tuple[pd.DataFrame, np.timedelta64]:
    """The series by hour, or by daily means where it is long; and the length of a step."""
    names = ("mean", "low", "high", "observed")
    table = pd.DataFrame({name: getattr(found, name) for name in names}, pd.DatetimeIndex(found.time))
    if len(table) <= HOURLY:
        return table, np.timedelta64(1, "h")
    return table.resample("D").mean(), np.timedelta64(1, "D")


def _time_axis(axes: Axes, edges: Float) -> None:
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlim(edges[0], edges[-1])


def _svg(figure: Figure, simulated: bool, size: float = 12) -> bytes:
    if simulated:
        maps.stamp(figure, size)
    return svg(figure)
