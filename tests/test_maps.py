from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread
from numpy.typing import NDArray

from pipeline.atomic import replacing
from pipeline.errors import ProductError
from pipeline.grid import Grid
from pipeline.pages import coast, map_view, maps

CHINA = (105.0, 32.0, 125.0, 45.0)


def distance_to(lines: list[NDArray[np.float64]], lon: float, lat: float) -> float:
    """Degrees from a point to the nearest vertex."""
    return min(float(np.hypot(*(line - [lon, lat]).T).min()) for line in lines)


def some_field(grid: Grid, **attrs: str) -> xr.DataArray:
    lon, lat = grid.lon_lat()
    values = (60 + 50 * np.sin(lon) + 40 * np.cos(lat)).astype("float32")
    return grid.coords().assign(field=(grid.spatial, values, attrs))["field"]


def some_cube(grid: Grid, **attrs: str) -> xr.Dataset:
    field = some_field(grid)
    times = np.arange("2020-01-01", "2020-01-02", dtype="M8[h]").astype("M8[ns]")
    mean = field.expand_dims(time=times) * xr.DataArray(np.linspace(0.5, 2, 24), dims="time")
    distance = xr.full_like(mean, 0) + 5 * abs(field - 60)
    values = {"pm2p5": mean, "pm2p5_p05": 0.5 * mean, "pm2p5_p95": 1.8 * mean, "nearest_observation_distance": distance}
    return xr.Dataset(values | {"quality_flag": xr.zeros_like(mean, "uint8")}, attrs=attrs)


def colours(path: Path, left: float, right: float, top: float, bottom: float) -> int:
    """Number of different colours in a part of a picture, in shares of its width and height."""
    image = (imread(path)[:, :, :3] * 255).astype("uint32")
    rows, columns = image.shape[:2]
    part = image[int(top * rows) : int(bottom * rows), int(left * columns) : int(right * columns)]
    return len(np.unique(part @ np.array([1, 256, 65536], "uint32")))


@pytest.mark.parametrize(("lon", "lat"), [(120.3, 36.07), (121.65, 38.90), (119.60, 39.93), (126.62, 37.45)])
def test_coast_passes_known_harbours(lon: float, lat: float) -> None:
    assert distance_to(coast.coastlines((105, 32, 128, 45)), lon, lat) < 0.1


def test_coast_is_not_inland_and_stays_near_the_box() -> None:
    lines = coast.coastlines(CHINA)
    assert distance_to(lines, 114.5, 38.0) > 0.25  # a lake shore is the nearest
    ends = np.concatenate(lines)
    assert ends[:, 0].min() > 103
    assert ends[:, 0].max() < 127


def test_border_passes_the_yalu_mouth_and_the_mongolian_crossing() -> None:
    lines = coast.borders(CHINA)
    assert distance_to(lines, 124.38, 40.1) < 0.15
    assert distance_to(lines, 111.9, 43.7) < 0.25  # Erenhot


def test_lines_run_on_over_the_dateline() -> None:
    east = coast.coastlines((170, -25, 190, 0))
    assert distance_to(east, 178.44, -18.15) < 0.1  # Suva
    assert distance_to(east, 188.2, -13.85) < 0.15  # Apia, 171.8 W
    assert distance_to(coast.coastlines((-190, -25, -170, 0)), -181.56, -18.15) < 0.1
    whole = coast.coastlines((0, 60, 360, 75))
    assert distance_to(whole, 190.6, 64.25) < 2  # Chukotka, beyond 180
    along = [line for line in whole if (np.abs(np.stack([line[:-1, 0], line[1:, 0]]) - 180) < 1e-6).all(axis=0).any()]
    assert not along, "the cut of the polygons at 180 is not coast"


def test_draw_fills_the_map_and_leaves_no_partial_file(tmp_path: Path) -> None:
    field = some_field(Grid((115, 34, 123, 40), 0.2))
    stations = (np.array([116.4, 118.0]), np.array([39.9, 36.0]), np.array([80.0, 10.0]))
    path = maps.draw(
        field, tmp_path / "map.png", title="PM2.5", stations=stations, uncertainty=field, provenance="test"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]
    assert colours(path, 0.05, 0.4, 0.2, 0.8) > 30
    assert colours(path, 0.55, 0.9, 0.2, 0.8) > 30


def test_stations_have_the_colours_of_the_field(tmp_path: Path) -> None:
    grid = Grid((110, 34, 114, 38), 0.2)
    field = some_field(grid) * 0 + 10
    seen = {}
    for value in (10.0, 400.0):
        dot = (np.array([112.0]), np.array([36.0]), np.array([value]))
        path = maps.draw(field, tmp_path / f"{value:g}.png", title="dots", stations=dot)
        seen[value] = imread(path)
    assert seen[10.0].shape == seen[400.0].shape
    assert (seen[10.0] != seen[400.0]).any(axis=-1).sum() > 20


def test_simulated_data_is_stamped(tmp_path: Path) -> None:
    grid = Grid((115, 34, 119, 38), 0.2)
    red = np.array([0xB0, 0x00, 0x20]) / 255
    counts = []
    for name, attrs in (("plain", {}), ("stamped", {"simulated": "SIMULATED by aqnet simulate"})):
        image = imread(maps.draw(some_field(grid, **attrs), tmp_path / f"{name}.png", title=name))[:, :, :3]
        counts.append(int((np.abs(image - red).max(axis=-1) < 0.01).sum()))
    assert counts[0] == 0
    assert counts[1] > 2000
    assert not maps.simulated({"simulated": "false"})
    assert maps.simulated({"source": "SIMULATED by aqnet simulate"})


def test_projected_field_and_missing_values_are_drawn(tmp_path: Path) -> None:
    field = some_field(Grid((110, 34, 120, 40), 40_000, "ESRI:102025"))
    path = maps.draw(field.where(field > 30), tmp_path / "projected.png", title="projected")
    assert colours(path, 0.1, 0.8, 0.2, 0.8) > 30
    with pytest.raises(ProductError, match="needs a coordinate 'crs'"):
        maps.draw(field.drop_vars("crs"), tmp_path / "none.png", title="none")
    with pytest.raises(ProductError, match="two dimensions"):
        maps.draw(field[0], tmp_path / "none.png", title="none")


def test_field_over_the_dateline_is_drawn(tmp_path: Path) -> None:
    path = maps.draw(some_field(Grid((176, -20, 184, -14), 0.2)), tmp_path / "fiji.png", title="Fiji")
    assert colours(path, 0.1, 0.8, 0.2, 0.8) > 10


@pytest.mark.parametrize("with_truth", [True, False])
def test_summary_fills_four_panels(tmp_path: Path, with_truth: bool) -> None:
    cube = some_cube(Grid((115, 34, 121, 39), 0.25), simulated="SIMULATED")
    lon, lat = ("station", [116.0, 117.5]), ("station", [37.0, 38.0])
    seen = np.full((24, 2), [50.0, np.nan])
    stations = xr.DataArray(
        seen, dims=("time", "station"), coords={"time": cube["time"].values, "lon": lon, "lat": lat}
    )
    truth = cube["pm2p5"] * 1.2 if with_truth else None
    path = maps.summary_figure(cube, tmp_path / "summary.png", stations, truth, "test")
    for left, top in ((0.06, 0.1), (0.56, 0.1), (0.06, 0.57), (0.56, 0.57)):
        assert colours(path, left, left + 0.34, top, top + 0.3) > 25
    assert [file.name for file in tmp_path.iterdir()] == ["summary.png"]


def test_hours_without_any_estimate_are_drawn_and_say_so(tmp_path: Path) -> None:
    cube = some_cube(Grid((115, 34, 121, 39), 0.25))
    silent = cube.assign({name: cube[name].where(False) for name in cube if name != "quality_flag"})
    place = {"lon": ("station", [116.0]), "lat": ("station", [37.0])}
    stations = xr.DataArray(np.full((24, 1), 50.0), {"time": cube["time"].values} | place, ("time", "station"))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "_say", lambda axes, text: said.append(f"{axes.get_title('left')[0]} {text}"))
        maps.summary_figure(silent, tmp_path / "unsaid.png", stations)
    estimate, observation = "no estimate in these hours", "no observation in these hours"
    assert said == [f"a {estimate}", f"b {estimate}", f"c {estimate}", f"d {observation}"]
    shown = imread(maps.summary_figure(silent, tmp_path / "said.png", stations))
    differs = (shown != imread(tmp_path / "unsaid.png")).any(axis=2)
    rows, columns = (size // 2 for size in differs.shape)
    for top, left in ((0, 0), (0, columns), (rows, 0), (rows, columns)):
        assert differs[top : top + rows, left : left + columns].mean() > 0.002


def test_what_is_mostly_extrapolated_is_hatched(tmp_path: Path) -> None:
    cube = some_cube(Grid((110, 34, 114, 38), 0.2))
    plain = imread(maps.summary_figure(cube, tmp_path / "plain.png"))
    cube["quality_flag"][:13, 10:] = 2  # the north, in more than half of the hours
    cube["quality_flag"][13:, :10] = 2  # the south, in fewer
    changed = (imread(maps.summary_figure(cube, tmp_path / "hatched.png")) != plain).any(axis=2)
    rows, columns = changed.shape
    panel = changed[int(0.08 * rows) : int(0.45 * rows), int(0.06 * columns) : int(0.36 * columns)]
    north, south = panel[: len(panel) // 3], panel[int(0.6 * len(panel)) :, int(0.5 * panel.shape[1]) :]
    assert north.mean() > 0.02
    assert south.mean() < 0.002


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    field = some_field(Grid((115, 34, 119, 38), 0.2))

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_bytes(b"half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    maps.draw(field, path, title="new")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_pictures_are_the_same_bytes_for_the_same_field(tmp_path: Path) -> None:
    field = some_field(Grid((115, 34, 119, 38), 0.2))
    first, second = (maps.draw(field, tmp_path / f"{k}.png", title="same").read_bytes() for k in range(2))
    assert first == second


def test_a_panel_is_a_map_without_words_and_is_stamped_when_simulated(tmp_path: Path) -> None:
    field = some_field(Grid((115, 34, 121, 39), 0.25))
    images = {}
    for made_up in (False, True):
        path = tmp_path / f"{made_up}.png"
        path.write_bytes(maps.panel(field, maps.CONCENTRATION, hatched=field > 1000, made_up=made_up))
        images[made_up] = imread(path)[:, :, :3]
        assert colours(path, 0.1, 0.8, 0.2, 0.8) > 30
    red = np.array([0xB0, 0x00, 0x20]) / 255
    stamped = {made_up: int((np.abs(image - red).max(axis=-1) < 0.01).sum()) for made_up, image in images.items()}
    assert stamped[False] == 0
    assert stamped[True] > 2000


def test_stations_outside_the_map_leave_no_mark(tmp_path: Path) -> None:
    field = some_field(Grid((115, 34, 119, 38), 0.25))
    none = (np.zeros(0),) * 3
    beyond = (np.array([119.14, 115.0]), np.array([36.0, 38.15]), np.array([300.0, 300.0]))
    pictures = [maps.panel(field, maps.CONCENTRATION, stations=stations) for stations in (none, beyond)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("value", "signs", "text"),
    [
        (116.4, "EW", "116.4°E"),
        (-70.0, "EW", "70°W"),
        (190.0, "EW", "170°W"),
        (0.0, "NS", "0°"),
        (-33.5, "NS", "33.5°S"),
    ],
)
def test_angles_are_written_as_on_maps(value: float, signs: str, text: str) -> None:
    assert map_view.degrees_text(value, signs) == text
