"""Figures as bytes, laid out and drawn once.

``Figure.savefig`` draws a figure with a layout engine twice: once for the layout alone, whose drawing is thrown away,
then for the file. A canvas lays out as it draws, and makes the same bytes in two thirds of the time.
"""

from __future__ import annotations

from io import BytesIO

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SOFTWARE = "aqnet-reanalysis"


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
