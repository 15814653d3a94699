"""Figures as bytes, laid out and drawn once.

``Figure.savefig`` draws a figure with a layout engine twice: once for the layout alone, whose drawing is thrown away,
then for the file. A canvas lays out as it draws, and makes the same bytes in two thirds of the time. The layout engine
takes as long as the drawing, so figures that every run makes have margins of their own (`panels`).
"""

from __future__ import annotations

from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

SOFTWARE = "aqnet-reanalysis"


def panels(
    figure: Figure,
    rows: int = 1,
    columns: int = 1,
    *,
    left: float,
    right: float,
    bottom: float,
    top: float,
    between: tuple[float, float] = (0, 0),
) -> NDArray[np.object_]:
    """Axes (rows, columns) of one size; inches around them and `between` those side by side, one above the other."""
    width, height = figure.get_size_inches()
    across = (width - left - right - (columns - 1) * between[0]) / columns
    down = (height - bottom - top - (rows - 1) * between[1]) / rows
    ends = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    spaces = {"wspace": between[0] / across, "hspace": between[1] / down}
    return figure.subplots(rows, columns, squeeze=False, gridspec_kw=ends | spaces)


def png(figure: Figure) -> bytes:
    """PNG at the figure's own dots per inch; the bytes depend on the picture alone."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": SOFTWARE})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """SVG whose bytes depend on the picture alone; letters are outlines, so that it looks the same everywhere."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": SOFTWARE, "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": SOFTWARE})
    return buffer.getvalue()
