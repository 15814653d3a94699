"""Pictures of the QC report, as PNG bytes: where, when, which stations, what it looks like, and the clock.

Matplotlib's object interface only. Colours differ in lightness too, and lines in pattern: the page is read on paper.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from pipeline.pages.figure import panels, png
from pipeline.pages.maps import BAR, INK, LABELS, LABELS_BELOW, UNIT, backdrop, bar_axes
from pipeline.qc.clocks import CYCLES
from pipeline.qc.flags import FLAGS, INFORMATION, INVALID

#: Class limits of the share of values flagged.
SHARES = (0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
#: Stations in the heat map, and flags in the picture over time.
ROWS, KINDS = 25, 6
#: Above this PM2.5 a series is drawn logarithmically from 100 on.
EXTREME = 600.0
PATTERNS = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
NAMES = {"o3": "O3", "no2": "NO2", "pm2p5": "PM2.5"}
_RED = "#b2182b"


def _figure(width: float, height: float, left: float = 0.7, right: float = 0.15) -> tuple[Figure, Axes]:
    """Figure of these inches, and its axes with those beside it for words."""
    figure = Figure(figsize=(width, height), dpi=110)
    return figure, panels(figure, left=left, right=right, bottom=0.55, top=0.12)[0, 0]


def station_map(stations: pd.DataFrame, bbox: tuple[float, float, float, float]) -> bytes:
    """Stations on a map, coloured by the share of their PM2.5 that is flagged as invalid; the worst on top."""
    west, south, east, north = bbox
    aspect = (north - south) / ((east - west) * np.cos(np.radians((south + north) / 2)))
    figure = Figure(figsize=(9.6, float(np.clip(8.0 * aspect + 0.5, 3.5, 11))), dpi=110)
    axes = panels(figure, left=LABELS, right=BAR + 0.15, bottom=LABELS_BELOW, top=0.12)[0, 0]
    backdrop(axes, bbox)
    shown = stations[stations["reported"] > 0]
    share = (shown["invalid"] / shown["reported"]).sort_values()
    at, norm = shown.loc[share.index], BoundaryNorm(SHARES, 256)
    lon = (at["lon"] - west) % 360 + west
    size = 20 + 60 * np.sqrt(share.to_numpy())
    dots = axes.scatter(
        lon, at["lat"], s=size, c=share, cmap="YlOrRd", norm=norm, edgecolors=INK, linewidths=0.4, zorder=5
    )
    bar = figure.colorbar(dots, cax=bar_axes(axes), ticks=SHARES)
    bar.ax.set_yticklabels([f"{100 * share:g} %" for share in SHARES])
    bar.set_label("Share of reported PM2.5 flagged as invalid")
    return png(figure)


def over_time(daily: pd.DataFrame) -> bytes:
    """Share of the reported PM2.5 with each of the commonest invalidating flags, a day a point."""
    figure, axes = _figure(9.6, 3.8, right=2.0)
    kinds = [name for name in FLAGS if name not in (*INFORMATION, "missing")]
    common = daily[kinds].sum().sort_values(ascending=False)
    reported = daily["reported"].clip(lower=1)
    axes.plot(daily.index, 100 * daily["invalid"] / reported, color=INK, lw=2.2, marker="o", ms=3, label="any")
    for n, name in enumerate(common[common > 0].index[:KINDS]):
        shade = colormaps["viridis"](n / KINDS)
        axes.plot(daily.index, 100 * daily[name] / reported, color=shade, ls=PATTERNS[n], lw=1.5, label=name)
    axes.set_ylabel("% of reported PM2.5")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    half = np.timedelta64(12, "h")
    axes.set_xlim(daily.index[0] - half, daily.index[-1] + half)
    _date_axis(axes)
    return png(figure)


def _date_axis(axes: Axes) -> None:
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("UTC")


def heat_map(shares: pd.DataFrame, worst: list[str]) -> bytes:
    """Share of each day's PM2.5 that is invalid at the worst stations; white days had no report."""
    table = shares[worst[:ROWS]].T
    figure, axes = _figure(
        9.6, max(2.4, 1.2 + 0.22 * len(table)), left=0.3 + 0.07 * max(map(len, table.index)), right=BAR
    )
    days = np.append(shares.index.to_numpy(), shares.index.to_numpy()[-1] + np.timedelta64(1, "D"))
    norm = BoundaryNorm((0, 0.001, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1), 256)
    mesh = axes.pcolormesh(days, np.arange(len(table) + 1), table.to_numpy(), cmap="YlOrRd", norm=norm)
    axes.set_yticks(np.arange(len(table)) + 0.5, table.index, fontsize=8)
    axes.invert_yaxis()
    _date_axis(axes)
    bar = figure.colorbar(mesh, cax=bar_axes(axes), ticks=norm.boundaries)
    bar.ax.set_yticklabels([f"{100 * edge:g} %" for edge in norm.boundaries])
    bar.set_label("share invalid")
    return png(figure)


def example_series(series: pd.DataFrame) -> bytes:
    """A station's hourly PM2.5 beside its neighbours' median; crosses are invalid values."""
    figure, axes = _figure(9.6, 3.8)
    axes.plot(series.index, series["neighbours"], color="#4393c3", lw=1.6, ls="--", label="neighbours' median")
    axes.plot(series.index, series["pm2p5"], color=INK, lw=0.9, label=series.attrs["station"])
    invalid = series[(series["bits"] & (INVALID & ~FLAGS["missing"])) != 0]
    axes.plot(invalid.index, invalid["pm2p5"], "x", color=_RED, ms=5, label="flagged as invalid")
    axes.set_ylabel(f"PM2.5 ({UNIT})")
    if np.nanmax(series[["pm2p5", "neighbours"]].to_numpy()) > EXTREME:
        axes.set_yscale("symlog", linthresh=100)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", ncols=3)
    _date_axis(axes)
    return png(figure)


def clocks(cycles: pd.DataFrame) -> bytes:
    """Mean daily cycle of each network beside the reference cycle, by local solar hour, a panel a pollutant."""
    figure = Figure(figsize=(9.6, 3.4), dpi=110)
    three = panels(figure, 1, len(CYCLES), left=0.75, right=0.15, bottom=0.85, top=0.35, between=(0.55, 0))[0]
    hours = np.arange(24) + 0.5
    for axes, (name, reference) in zip(three, CYCLES.items(), strict=True):
        axes.plot(hours, reference, color="#777777", lw=4, alpha=0.5, label="reference (China, 2019)")
        own = cycles[cycles["pollutant"] == name]
        for n, (network, cycle) in enumerate(zip(own["network"], own["cycle"], strict=True)):
            axes.plot(hours, cycle, color=INK, lw=1.3, ls=PATTERNS[n % len(PATTERNS)], label=network)
        axes.set_title(NAMES[name], loc="left", fontsize=11)
        axes.set_xticks(range(0, 25, 6))
        axes.set_xlabel("local solar hour")
        axes.grid(alpha=0.3)
    three[0].set_ylabel("log, less the day's mean")
    handles, labels = max((axes.get_legend_handles_labels() for axes in three), key=lambda found: len(found[1]))
    figure.legend(handles, labels, fontsize=8, loc="lower center", ncols=4, frameon=False)
    return png(figure)
