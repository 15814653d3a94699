from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.contract import POLLUTANTS, UNITS, check_station_cube
from pipeline.errors import InputError
from pipeline.harmonise import to_cube

START, END = np.datetime64("2020-01-01T00"), np.datetime64("2020-01-01T06")


def table(*rows: tuple, **columns) -> pd.DataFrame:
    """StationTable of (hour, station, pm2p5) rows at one place."""
    hours, stations, values = zip(*rows, strict=True)
    place = {"lon": 116.0, "lat": 40.0, "elevation": 50.0} | columns
    time = pd.to_datetime(START + np.array(hours, dtype="timedelta64[h]"))
    return pd.DataFrame({"time": time, "station": list(stations), "pm2p5": values, **place})


rows = st.lists(
    st.tuples(st.integers(-2, 8), st.sampled_from(["n:b", "n:a", "n:c"]), st.floats(-9, 2000, width=32)), min_size=1
)


@given(parts=st.lists(rows, min_size=1, max_size=3))
def test_cube_holds_the_last_row_of_each_station_and_hour_and_nothing_else(parts):
    expected = {(hour, name): value for part in parts for hour, name, value in part if 0 <= hour < 6}
    tables = [table(*part) for part in parts]
    if not expected:
        with pytest.raises(InputError, match="expected observations"):
            to_cube(tables, START, END)
        return
    cube = check_station_cube(to_cube(tables, START, END))
    assert list(cube["station"].values) == sorted({name for _, name in expected})
    assert cube.sizes["time"] == 6
    assert int(np.isfinite(cube["pm2p5"]).sum()) == len(expected)
    for (hour, name), value in expected.items():
        assert cube["pm2p5"].sel(station=name).values[hour] == value
    assert np.isnan(cube["co"]).all()


def test_duplicates_are_counted(caplog):
    with caplog.at_level(logging.WARNING, "aqnet"):
        cube = to_cube([table((0, "n:a", 1.0), (0, "n:a", 2.0)), table((0, "n:a", 3.0))], START, END)
    assert float(cube["pm2p5"][0, 0]) == 3
    assert "2 values repeat a station, hour and pollutant" in caplog.text


def test_pollutants_of_a_station_may_come_in_tables_apart():
    """As the EEA's do: a file a pollutant."""
    ozone = table((0, "n:a", np.nan), (1, "n:a", np.nan)).assign(o3=[50.0, 60.0])
    cube = to_cube([table((0, "n:a", 1.0), (1, "n:a", 2.0)), ozone], START, END)
    assert cube["pm2p5"].values[:2, 0].tolist() == [1, 2]
    assert cube["o3"].values[:2, 0].tolist() == [50, 60]


def test_of_a_small_change_the_latest_coordinates_count_whatever_the_order_of_rows(caplog):
    moved = table((5, "n:a", 1.0), (1, "n:a", 1.0), (2, "n:b", 1.0), lon=[116.005, 116.0, 90.0])
    with caplog.at_level(logging.WARNING, "aqnet"):
        cube = to_cube([moved], START, END)
    assert cube["lon"].values.tolist() == [116.005, 90.0]
    assert "1 stations change coordinates; the latest count: n:a" in caplog.text


def test_a_station_that_moved_has_a_column_for_each_place(caplog):
    moved = table((5, "n:a", 3.0), (1, "n:a", 1.0), (4, "n:a", 2.0), (2, "n:b", 9.0), lon=[117.0, 116.0, 117.0, 90.0])
    with caplog.at_level(logging.WARNING, "aqnet"):
        cube = to_cube([moved], START, END)
    assert cube["station"].values.tolist() == ["n:a", "n:a@2020-01-01T04", "n:b"]
    assert cube["lon"].values.tolist() == [116.0, 117.0, 90.0]
    assert cube["pm2p5"].values[[1, 4, 5], [0, 1, 1]].tolist() == [1, 2, 3]
    assert int(np.isfinite(cube["pm2p5"]).sum()) == 4
    assert "moved by more than 1 km: n:a@2020-01-01T04" in caplog.text


def test_a_station_that_comes_back_is_at_its_first_place_again():
    lon = [116.0, 116.1, 116.0, 116.001]
    cube = to_cube([table((0, "n:a", 1.0), (1, "n:a", 2.0), (2, "n:a", 3.0), (3, "n:a", 4.0), lon=lon)], START, END)
    assert cube["station"].values.tolist() == ["n:a", "n:a@2020-01-01T01"]
    np.testing.assert_array_equal(cube["pm2p5"].values[:4, 0], [1, np.nan, 3, 4])


def test_the_date_line_is_no_move():
    cube = to_cube([table((0, "n:a", 1.0), (1, "n:a", 2.0), lon=[179.999, -179.9999])], START, END)
    assert cube["station"].values.tolist() == ["n:a"]


@given(places=st.lists(st.sampled_from([116.0, 116.004, 116.2, 117.0]), min_size=6, max_size=6))
def test_an_hour_of_a_moving_station_does_not_depend_on_later_hours(places):
    whole = to_cube([table(*((h, "n:a", float(h)) for h in range(6)), lon=places)], START, END)
    for hour, lon in enumerate(places):
        (column,) = np.flatnonzero(np.isfinite(whole["pm2p5"].values[hour]))
        assert abs(whole["lon"].values[column] - lon) < 0.01


def test_longitudes_are_brought_to_180():
    assert to_cube([table((0, "n:a", 1.0), lon=200.0)], START, END)["lon"].item() == -160


def test_terrain_fills_only_missing_elevations():
    mixed = table((0, "n:a", 1.0), (0, "n:b", 1.0), lon=[91.1, 91.1], lat=29.65, elevation=[np.nan, 12.0])
    elevation = to_cube([mixed], START, END)["elevation"].values
    assert 3000 < elevation[0] < 6000  # Lhasa
    assert elevation[1] == 12


def test_attributes_follow_the_contract():
    cube = to_cube([table((0, "n:a", 1.0))], START, END)
    assert {name: cube[name].attrs["units"] for name in POLLUTANTS} == UNITS
    assert all("standard_name" in cube[name].attrs for name in (*POLLUTANTS, "lon", "lat", "elevation", "time"))


def test_real_day_matches_its_tables(shared_data):
    start, end = np.datetime64("2019-12-10T00"), np.datetime64("2019-12-11T00")
    tables = list(sources.read("cnemc", shared_data / "cnemc", None, start, end, (116, 39, 117, 41)))
    cube = to_cube(tables, start, end)
    # china_sites_20191210.csv, label 9: 1001A 171, 1002A 118, 1003A 192
    first = cube["pm2p5"].sel(station=["cnemc:1001A", "cnemc:1002A", "cnemc:1003A"])[0]
    assert first.values.tolist() == [171, 118, 192]
    long = pd.concat(tables)
    for name in POLLUTANTS:
        assert float(np.nansum(cube[name])) == pytest.approx(float(np.nansum(long[name])), rel=1e-5)
    assert isinstance(cube, xr.Dataset)
