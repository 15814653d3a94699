"""Places whose series a run shows: the largest cities, well apart, each by the cell most of its stations are in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipeline.grid import Grid
from pipeline.pages import places

GRID = Grid((110.0, 36.0, 113.0, 39.0), 0.1)


def listed(rows: list[tuple[str, float, float, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["station", "lon", "lat", "hours"]).set_index("station").assign(sum=0.0)


def town(name: str, lon: float, lat: float, count: int, hours: int = 5) -> list[tuple[str, float, float, int]]:
    return [(f"n:{name}{k}", lon + 0.001 * k, lat, hours) for k in range(count)]


def test_the_largest_cities_come_first_and_stand_apart() -> None:
    rows = town("a", 110.5, 36.5, 3) + town("b", 112.0, 38.0, 5) + town("c", 112.1, 38.0, 4) + town("d", 112.9, 36.1, 1)
    cities = {row[0][2:]: row[0][2] for row in rows}
    chosen = places.choose(listed(rows), GRID, cities, 3)
    assert [place.name for place in chosen] == ["b", "a", "d"]  # c is too near to b
    assert chosen[0].of == 5
    assert chosen[0].lon == pytest.approx(112.0)


def test_stations_that_never_reported_do_not_make_a_city_large() -> None:
    rows = town("a", 110.5, 36.5, 6, hours=0) + town("b", 112.0, 38.0, 2)
    cities = {row[0][2:]: row[0][2] for row in rows}
    assert [place.name for place in places.choose(listed(rows), GRID, cities)] == ["b", "a"]


def test_without_names_stations_near_one_another_are_a_place() -> None:
    rows = [*town("a", 110.5, 36.5, 2), ("n:far", 110.5, 36.67, 5), *town("b", 112.0, 38.0, 2)]
    first, second = places.choose(listed(rows), GRID, {})
    assert (first.of, second.of) == (3, 2)
    assert first.name == "36.5°N, 110.5°E"
    assert set(first.stations) == {"n:a0", "n:a1"}


def test_stations_off_the_grid_are_no_place() -> None:
    assert places.choose(listed(town("a", 120.0, 36.5, 3)), GRID, {}) == []


def test_moved_stations_keep_their_city() -> None:
    rows = [("cnemc:1001A@2019-12-01T07", 110.5, 36.5, 3)]
    (place,) = places.choose(listed(rows), GRID, {"1001A": "Town"})
    assert place.name == "Town"


@pytest.mark.parametrize(
    "grid", [GRID, Grid((178.0, -20.0, -178.0, -17.0), 0.25), Grid((110, 34, 120, 40), 40_000, "ESRI:102025")]
)
def test_cells_are_those_whose_centre_is_nearest(grid: Grid) -> None:
    rng = np.random.default_rng(0)
    lon, lat = grid.lon_lat()
    row, column = rng.integers(0, grid.shape[0], 50), rng.integers(0, grid.shape[1], 50)
    jitter = 0.3 * grid.resolution / (1 if not grid.projected else 111_000) * rng.uniform(-1, 1, (2, 50))
    around = (lon[row, column] + jitter[0] + 180) % 360 - 180
    found = places.cells(grid, around, lat[row, column] + jitter[1])
    np.testing.assert_array_equal(found, [row, column])
    np.testing.assert_array_equal(places.cells(grid, np.array([0.0]), np.array([80.0])), [[-1], [-1]])


def test_months_are_added_up_and_a_station_stands_where_it_was_last() -> None:
    def month(lon: float, values: list[float]) -> xr.DataArray:
        coords = {"station": ["n:a"], "lon": ("station", [lon]), "lat": ("station", [36.0])}
        return xr.DataArray(np.array(values)[:, None], coords, ("time", "station"))

    found = places.summed([month(110.0, [1.0, np.nan]), month(110.2, [2.0, 4.0, 6.0])])
    assert found.loc["n:a"].to_dict() == {"lon": 110.2, "lat": 36.0, "sum": 13.0, "hours": 4.0}


def test_cities_are_read_where_a_list_names_them(tmp_path: Path) -> None:
    path = tmp_path / "stations.csv"
    path.write_text("code,name,city,lon\n1001A,x,北京,1\n1002A,y,,2\n", "utf-8")
    assert places.city_names(path) == {"1001A": "北京"}
    path.write_text("code,lon\n1001A,1\n")
    assert places.city_names(path) == {}
    assert places.city_names(None) == {}
    path.write_bytes(b"\xff\xfe\x00bad")
    assert places.city_names(path) == {}
