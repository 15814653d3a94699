"""The picture of a trace: where the stations lie and what they weigh, the hours around, and what is added up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from model.trace import Parts
from pipeline.atomic import replacing
from pipeline.contract import HOUR
from pipeline.pages import maps
from pipeline.pages.figure import png
from pipeline.tracing.stations import Station, importance, latest, observations, stations
from pipeline.tracing.text import correction_share, steps

if TYPE_CHECKING:
    from pipeline.pages.coast import Bbox
    from pipeline.tracing.trace import Trace

#: Share of all weights whose stations the map reaches, and the half width of the smallest and largest map, degrees.
_REACHED, _NARROW, _WIDE = 0.85, 0.75, 6.0

#: Area of the dot of a station that has all the weight, points squared; and the smallest.
_AREA, _SMALLEST = 2600.0, 9.0

#: Stations whose series are drawn: their colours.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

_CELL = "#00a000"


def draw(trace: Trace, path: Path) -> Path:
    """Write the picture as PNG, in one step."""
    figure = Figure(figsize=(16.5, 8.6), dpi=110, layout=ConstrainedLayoutEngine(rect=(0.015, 0, 0.98, 1)))
    panels = figure.subplot_mosaic("ab;ac", width_ratios=[1.0, 0.85], height_ratios=[1.15, 1.0])
    every = stations(trace)
    _map(panels["a"], trace, every)
    _hours(panels["b"], trace, every)
    _sum(panels["c"], trace)
    figure.suptitle(_title(trace), x=0.01, ha="left", fontsize=14, fontweight="bold")
    figure.supxlabel(_footer(trace), x=0.01, ha="left", fontsize=8, color="#444444")
    if maps.simulated({"title": trace.title}):
        box = {"facecolor": "#b00020", "edgecolor": "none", "boxstyle": "square,pad=0.35"}
        how: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 13, "fontweight": "bold", "color": "white"}
        figure.text(0.99, 0.985, "SIMULATED DATA", bbox=box, **how)
    with replacing(path) as partial:
        partial.write_bytes(png(figure))
    return path


def _title(trace: Trace) -> str:
    values, forecast = trace.published.values, " (a forecast)" if trace.issue is not None else ""
    when = str(trace.published.hour).replace("T", " ")
    return (
        f"{values['pm2p5']:.1f} {maps.UNIT} PM2.5{forecast} at {trace.cell.lon:.3f}°E, {trace.cell.lat:.3f}°N,"
        f" hour from {when}:00 UTC: what it was made of"
    )


def _footer(trace: Trace) -> str:
    worst = 100 * max((abs(trace.difference(name)) for name in trace.recomputed), default=0.0)
    said = f"{trace.cube} {trace.revision}, stream {trace.published.stream}; made by run {trace.made.run_id}"
    state = "inputs as the run read them" if trace.observed.known else "inputs not known to be the same"
    state = "INPUTS CHANGED since" if trace.changed else state
    return f"{said}; {state}; recomputed values differ by {worst:.3f} % at most (rounding: 0.098 %).\n{maps.CREDIT}"


# ---- map ----


def _map(axes: Axes, trace: Trace, every: list[Station]) -> None:
    maps.backdrop(axes, _box(trace, every))
    style = maps.CONCENTRATION
    size = importance(trace.parts) if trace.parts is not None else np.zeros(0)
    for station in every:
        one = latest(trace, station)
        area = max(_AREA * size[station.row] / size.sum(), _SMALLEST)
        used = one is not None and one.used
        colour = style.colormap(style.norm(one.pm2p5)) if one is not None and used else "white"
        axes.scatter(
            _turned(station.lon, trace.cell.lon),
            station.lat,
            s=area,
            facecolors=[colour],
            edgecolors=maps.INK if station.weight >= 0 else "#0000dd",
            linewidths=0.7 if station.weight >= 0 else 1.4,
            linestyles="-" if used else ":",
            zorder=5,
        )
    axes.add_patch(Polygon(_ring(trace), facecolor="none", edgecolor=_CELL, linewidth=2.2, zorder=6))
    axes.plot(trace.cell.lon, trace.cell.lat, marker="+", color=_CELL, markersize=13, markeredgewidth=1.8, zorder=6)
    _names(axes, trace, every[: len(_SERIES)])
    bar = axes.figure.colorbar(ScalarMappable(style.norm, style.colormap), ax=axes, ticks=style.levels, shrink=0.8)
    bar.set_label(
        f"Observed PM2.5 of the hour ({maps.UNIT})" if trace.issue is None else f"Last observed ({maps.UNIT})"
    )
    axes.set_title("a  Stations: area is the size of the weight", loc="left", fontsize=12)
    axes.legend(handles=_handles(), loc="upper left", fontsize=8.5, framealpha=0.9).set_zorder(8)


def _names(axes: Axes, trace: Trace, some: list[Station]) -> None:
    """Names of the stations of panel b: those farther west to the left of their dots, no line across another."""
    places = [(_turned(station.lon, trace.cell.lon), station.lat) for station in some]
    westward = sorted(range(len(some)), key=lambda n: places[n])
    half = len(some) // 2
    for side, own in ((-78, westward[:half]), (42, westward[half:])):
        for height, n in zip((-38, 34), sorted(own, key=lambda n: places[n][1]), strict=False):
            line = {"arrowstyle": "-", "color": _SERIES[n], "linewidth": 1.0}
            how: dict[str, Any] = {"fontsize": 9, "fontweight": "bold", "color": _SERIES[n], "zorder": 7}
            name = some[n].name.partition(":")[2]
            text = axes.annotate(name, places[n], (side, height), textcoords="offset points", arrowprops=line, **how)
            text.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8})


def _handles() -> list[Line2D]:
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "white"}
    return [
        Line2D([], [], linestyle="", marker="s", markerfacecolor="none", markeredgecolor=_CELL, label="the cell"),
        Line2D([], [], markeredgecolor=maps.INK, label="weight above 0", **dot),
        Line2D(
            [], [], markeredgecolor="#0000dd", markeredgewidth=1.4, label="weight below 0 (hidden by others)", **dot
        ),
        Line2D([], [], markeredgecolor="#888888", label="white: no valid observation in the hour", **dot),
    ]


def _box(trace: Trace, every: list[Station]) -> Bbox:
    """Map around the cell that holds the stations of most of the weight."""
    lon, lat = trace.cell.lon, trace.cell.lat
    half = _NARROW
    if trace.parts is not None:
        size = importance(trace.parts)[[station.row for station in every]]
        held = int(np.searchsorted(np.cumsum(size) / size.sum(), _REACHED)) + 1
        for station in every[:held]:
            away = abs(_turned(station.lon, lon) - lon) * np.cos(np.radians(lat)), abs(station.lat - lat)
            half = max(half, 1.08 * max(away))
    half = min(half, _WIDE)
    wide = half / float(np.cos(np.radians(min(abs(lat), 80.0))))
    return lon - wide, max(lat - half, -90.0), lon + wide, min(lat + half, 90.0)


def _turned(lon: float, middle: float) -> float:
    """A longitude moved by whole turns to within 180 degrees of another."""
    return (lon - middle + 180) % 360 - 180 + middle


def _ring(trace: Trace) -> np.ndarray[Any, Any]:
    ring = trace.cell.ring.copy()
    ring[:, 0] = [_turned(lon, trace.cell.lon) for lon in ring[:, 0]]
    return ring


# ---- the hours around ----


def _hours(axes: Axes, trace: Trace, every: list[Station]) -> None:
    around, hour = trace.around, trace.published.hour
    time = around["time"].values
    axes.fill_between(
        time, around["pm2p5_p05"], around["pm2p5_p95"], color="#999999", alpha=0.35, linewidth=0, label="90 % interval"
    )
    axes.plot(time, around["pm2p5"], color=maps.INK, linewidth=2.0, label="published, this cell")
    for colour, station in zip(_SERIES, every, strict=False):
        seen = [one for one in observations(trace, station) if abs(one.time - hour) <= 48 * HOUR and one.used]
        label = f"{station.name.partition(':')[2]}, {station.km:.0f} km"
        axes.plot(
            [one.time for one in seen], [one.pm2p5 for one in seen], ".-", color=colour, linewidth=0.9, label=label
        )
    axes.axvline(hour, color=_CELL, linewidth=1.6)  # type: ignore[arg-type]
    if trace.issue is not None:
        axes.axvline(trace.issue, color=maps.INK, linestyle=":", linewidth=1.2, label="issue")  # type: ignore[arg-type]
    axes.set_xlim(hour - 49 * HOUR, hour + 49 * HOUR)  # type: ignore[arg-type]
    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.set_ylabel(f"PM2.5 ({maps.UNIT})")
    axes.set_title("b  The hours around (UTC); stations as far as the estimate read them", loc="left", fontsize=12)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8.5, ncols=2, framealpha=0.9)


# ---- what is added up ----


def _sum(axes: Axes, trace: Trace) -> None:
    if isinstance(trace.parts, Parts):
        _waterfall(axes, trace, trace.parts)
    else:
        _bars(axes, trace)


def _waterfall(axes: Axes, trace: Trace, parts: Parts) -> None:
    """What kriging gives and what each part of the network adds, ug m-3, as they are added."""
    added = steps(trace)
    names = [*(name for name, _, _ in added), "mean"]
    ug = np.array([change for _, _, change in added])
    reached = np.cumsum(ug)
    colours = ["#5b7a99", *("#c26b2e" if change >= 0 else "#2e8bc2" for change in ug[1:]), maps.INK]
    starts = np.append(reached - ug, 0.0)
    heights = np.append(ug, reached[-1])
    axes.bar(names, heights, bottom=starts, color=colours, width=0.6)
    for n, (start, height) in enumerate(zip(starts, heights, strict=True)):
        label = f"{height:.2f}" if n in (0, len(names) - 1) else f"{height:+.2f}"
        axes.text(n, max(start, start + height), label, ha="center", va="bottom", fontsize=10)
    low = max(0.0, float(min(reached.min(), reached[-1])) * 0.9 - 2)
    axes.set_ylim(low, float(reached.max()) * 1.02 + 1.5)
    axes.set_ylabel(f"PM2.5 ({maps.UNIT})" + (", axis cut" if low else ""))
    share = 100 * correction_share(parts)
    axes.set_title(f"c  What is added up; the network's share of the median is {share:+.2f} %", loc="left", fontsize=12)
    axes.grid(axis="y", linewidth=0.3)


def _bars(axes: Axes, trace: Trace) -> None:
    """Weights of the forecasts at the stations around."""
    some = [station for station in stations(trace)[:12]]
    axes.bar(
        [station.name.partition(":")[2] for station in some], [station.weight for station in some], color="#5b7a99"
    )
    axes.axhline(0, color=maps.INK, linewidth=0.8)
    axes.tick_params(axis="x", rotation=60)
    axes.set_ylabel("weight")
    axes.set_title("c  Weights of the forecasts at the stations that weigh most", loc="left", fontsize=12)
    axes.grid(axis="y", linewidth=0.3)
