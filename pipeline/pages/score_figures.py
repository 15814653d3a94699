"""Pictures of scores: PIT histograms, error against predicted spread, error and coverage against distance.

Matplotlib's object interface only: no pyplot, no global state, no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.atomic import replacing
from pipeline.evaluation.assess import Assessment
from pipeline.pages.figure import png
from pipeline.pages.maps import INK, UNIT

#: Colours that stay apart for colour-blind readers (Okabe and Ito 2008), and markers that stay apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

#: Of lines without markers, so that they stay apart in grey.
PATTERNS = ("-", (0, (4, 1.5)), ":", "-.")

_GRID = "#dddddd"


def draw_scores(assessment: Assessment, path: Path, methods: Sequence[str], title: str) -> Path:
    """Write calibration and error by distance of some methods as PNG, in one step.

    Parameters
    ----------
    assessment : see `pipeline.evaluation.assess`.
    path : PNG to write.
    methods : shown in this order; those that are not in the assessment, or have no distribution where one is needed,
        are passed over.
    title : what was withheld, where and when.
    """
    shown = [name for name in methods if name in assessment.scores.index]
    figure = Figure(figsize=(12.0, 9.0), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    draw_pit(panels[0], assessment.pit, shown)
    _spread_skill(panels[1], assessment.spread_skill, shown)
    distance = assessment.conditions["distance"]
    _by_distance(panels[2], distance, shown, "mae_median", f"MAE of the median ({UNIT})", "c  Error by distance")
    _by_distance(panels[3], distance, shown, "coverage_90", "Share of observations inside", "d  Coverage of 90 %")
    panels[3].axhline(0.9, color=INK, linewidth=1.0, linestyle="--")
    figure.suptitle(title, fontsize=13, color=INK)
    with replacing(path) as part:
        part.write_bytes(png(figure))
    return path


def draw_pit(axes: Axes, pit: pd.DataFrame, shown: Sequence[str], title: str = "a  PIT histogram") -> None:
    """Density of the PIT, 1 where calibrated, as steps over the cells between the levels.

    Parameters
    ----------
    pit : see `pipeline.evaluation.strata.pit`.
    shown : its methods to draw, in this order.
    """
    edges = np.concatenate([[0.0], np.cumsum(pit.loc["calibrated"].to_numpy(float))])
    for (name, style), pattern in zip(_styles(shown, pit.index).items(), cycle(PATTERNS)):
        density = pit.loc[name].to_numpy(float) / np.diff(edges)
        axes.stairs(density, edges, color=style["color"], linewidth=1.8, linestyle=pattern, label=name, baseline=None)
    axes.axhline(1.0, color=INK, linewidth=1.0, linestyle="--")
    axes.set_ylim(bottom=0.0)
    axes.set_xlim(0.0, 1.0)
    finish(axes, title, "Probability given to values below the observed one", "Density (calibrated: 1)")


def draw_reliability(axes: Axes, pit: pd.DataFrame, shown: Sequence[str], title: str) -> None:
    """Share of the observations below each quantile, less its level, in percentage points; 0 where calibrated.

    Above 0 the quantile lies too high. Parameters as of `draw_pit`.
    """
    levels = pit.loc["calibrated"].to_numpy(float).cumsum()[:-1]
    for name, style in _styles(shown, pit.index).items():
        below = pit.loc[name].to_numpy(float).cumsum()[:-1]
        _line(axes, levels, 100 * (below - levels), name, style)
    axes.axhline(0.0, color=INK, linewidth=1.0, linestyle="--")
    top = max(5.0, *np.abs(axes.get_ylim()))
    axes.set_ylim(-top, top)
    axes.set_xlim(0.0, 1.0)
    finish(axes, title, "Level of the quantile", "Observations below it, less its level (points)")


def _spread_skill(axes: Axes, rows: pd.DataFrame, shown: Sequence[str]) -> None:
    """RMSE of each bin of predicted spread; on the diagonal they agree."""
    for name, style in _styles(shown, rows.index.get_level_values("method")).items():
        own = rows.xs(name, level="method")
        _line(axes, own["spread"].to_numpy(float), own["rmse"].to_numpy(float), name, style)
    top = max([1.0, *rows["spread"], *rows["rmse"]]) if len(rows) else 1.0
    axes.plot([0, top], [0, top], color=INK, linewidth=1.0, linestyle="--")
    axes.set_xlim(0, top * 1.03)
    axes.set_ylim(0, top * 1.03)
    axes.set_aspect("equal")
    finish(axes, "b  Error against spread", f"Width of the 90 % interval / 3.29 ({UNIT})", f"RMSE of the mean ({UNIT})")


def _by_distance(axes: Axes, rows: pd.DataFrame, shown: Sequence[str], column: str, label: str, title: str) -> None:
    """A score of each class of distance to the nearest station; the pairs of a class stand under it."""
    classes = list(dict.fromkeys(rows.index.get_level_values(0)))
    pairs = rows["pairs"].groupby(level=0).first()
    known = rows[column].dropna().index.get_level_values("method")
    for name, style in _styles(shown, known).items():
        values = rows.xs(name, level="method")[column].reindex(classes)
        _line(axes, np.arange(len(classes), dtype=float), values.to_numpy(float), name, style)
    axes.set_xticks(range(len(classes)), [f"{c}\n({_count(pairs[c])})" for c in classes])
    finish(axes, title, "Distance to the nearest station seen (pairs)", label)


def _line(axes: Axes, x: NDArray[np.floating], y: NDArray[np.floating], name: str, style: dict[str, str]) -> None:
    axes.plot(x, y, label=name, linewidth=1.5, markersize=5, color=style["color"], marker=style["marker"])


def _count(pairs: float) -> str:
    return f"{pairs / 1000:.0f} k" if pairs >= 10_000 else f"{pairs:.0f}"


def _styles(shown: Sequence[str], known: pd.Index) -> dict[str, dict[str, str]]:
    """Colour and marker of each method that is known, the same in every panel."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(shown)
        if name in known
    }


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels, a light grid and a legend, the same in every panel."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
