"""What a run's report says of its cube: a day at a time, the same as all at once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr

from pipeline.grid import Grid
from pipeline.pages import run_summary
from pipeline.pages.places import Place

GRID = Grid((115.0, 38.0, 118.0, 40.0), 0.5)
START = np.datetime64("2019-12-01T00")


def some_cube(hours: int = 53) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (hours, *GRID.shape)
    mean = rng.lognormal(3, 1, shape).astype("float32")
    mean[:, 0, 0] = np.nan
    mean[7] = np.nan
    dims = ("time", *GRID.spatial)
    data = {"pm2p5": mean, "pm2p5_p05": 0.5 * mean, "pm2p5_p95": 2 * mean}
    flags = np.where(rng.random(shape) < 0.4, 2, 0).astype("uint8")
    count = rng.integers(0, 9, hours).astype("int32")
    time = START.astype("M8[ns]") + np.arange(hours) * np.timedelta64(1, "h")
    fields = {name: (dims, values) for name, values in data.items()}
    extra = {"quality_flag": (dims, flags), "observation_count": ("time", count)}
    return xr.Dataset(fields | extra, {"time": time})


def test_days_add_up_to_the_whole() -> None:
    cube, place = some_cube(), Place("x", 2, 3, 116.5, 39.0, ("n:1",), 1)
    cuts = [0, 5, 24, 25, 53]
    days = (cube.isel(time=slice(a, b)) for a, b in itertools.pairwise(cuts))
    found, (one,) = run_summary.survey(days, GRID, [place])
    mean = cube["pm2p5"].mean("time").values
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.width, 1.5 * mean, rtol=1e-5)
    np.testing.assert_array_equal(found.extrapolated, (cube["quality_flag"] == 2).mean("time") > 0.5)
    known = GRID.land & np.isfinite(mean)
    expected = np.average(mean[known], weights=GRID.cell_area[known])
    assert found.area_mean == pytest.approx(expected, rel=1e-5)
    share = (cube["quality_flag"].values[:, GRID.land] == 2).mean()
    assert found.extrapolated_land == pytest.approx(share)
    count = cube["observation_count"].values
    assert found.reporting == (count.min(), np.median(count), count.max())
    np.testing.assert_array_equal(one.mean, cube["pm2p5"].values[:, 2, 3])
    np.testing.assert_array_equal(one.time, cube["time"])


def test_the_highest_hour_is_found_with_its_place() -> None:
    cube = some_cube()
    cube["pm2p5"][30, 3, 4] = 900.0
    found, _ = run_summary.survey(iter([cube.isel(time=slice(0, 24)), cube.isel(time=slice(24, 53))]), GRID, [])
    assert (found.highest, found.where) == (900.0, (117.0, 39.5))
    assert found.when == np.datetime64("2019-12-02T06")


def test_a_cube_without_any_estimate_has_no_highest_and_no_mean() -> None:
    cube = some_cube()
    for name in ("pm2p5", "pm2p5_p05", "pm2p5_p95"):
        cube[name][:] = np.nan
    found, _ = run_summary.survey(iter([cube]), GRID, [])
    assert not np.isfinite(found.highest)
    assert np.isnan(found.area_mean)
    assert np.isnan(found.mean).all()
