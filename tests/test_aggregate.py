"""Daily and monthly means against sums written out, and what they do with gaps, sea and flags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from test_write import GRID, NEW_YEAR, make_block

from pipeline.cube import reader, write
from pipeline.errors import ConfigError, ProductError
from pipeline.products import aggregate, export
from pipeline.products.export import Cut
from pipeline.products.series import Series

#: Produced hours of each of 31 days: 1 January is whole, the 2nd has 18 hours, the 3rd 17, the 4th none.
HOURS_OF = dict.fromkeys(range(31), 24) | {1: 18, 2: 17, 3: 0}
LAND = tuple(np.argwhere(GRID.land)[0])
SEA = tuple(np.argwhere(~GRID.land)[0])


def hours(day: int) -> xr.Dataset:
    """Hours of a day; on the 6th one land cell lacks 7 estimates, and on the 7th it is flagged in 7 hours, 8th in 6."""
    block = make_block(NEW_YEAR + 24 * day, HOURS_OF[day])
    block["observation_count"][:] = np.arange(HOURS_OF[day])
    if day == 5:
        for name in ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95"):
            block[name][(slice(0, 7), *LAND)] = np.nan
    if day in (6, 7):
        block["quality_flag"][(slice(0, 13 - day), *LAND)] |= 2
    return block


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    path = tmp_path_factory.mktemp("means") / "cube"
    start, end = (np.datetime64(NEW_YEAR + 24 * day, "h") for day in (0, 31))
    with write.begin(path, GRID, start, end, {}) as candidate:
        for day in range(31):
            if HOURS_OF[day]:
                write.write_block(candidate, hours(day))
        write.publish(candidate)
    return reader.open_cube(path)


def read(series: Series) -> dict[str, np.ndarray]:
    blocks = list(series.blocks())
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


@pytest.fixture(scope="module")
def daily(cube: xr.Dataset) -> Series:
    part = export.subset(cube, "interim")
    return aggregate.daily(part, aggregate.days(part))


@pytest.fixture(scope="module")
def monthly(cube: xr.Dataset) -> Series:
    part = export.subset(cube, "interim")
    return aggregate.monthly(part, aggregate.months(aggregate.days(part)))


def test_days_with_fewer_than_18_hours_are_left_out(daily: Series) -> None:
    numbers = (daily.bounds[:, 0] - NEW_YEAR) // 24
    assert numbers.tolist() == [0, 1, *range(4, 31)]
    assert (np.diff(daily.bounds) == 24).all()


def test_a_daily_mean_is_that_of_the_hours_of_the_cube(cube: xr.Dataset, daily: Series) -> None:
    found = read(daily)
    for at, first in ((0, 0), (1, 24), (2, 96)):
        count = HOURS_OF[first // 24]
        some = cube.isel(time=slice(first, first + count)).load()
        for name, source in (("pm2p5", "pm2p5"), ("mean_hourly_p05", "pm2p5_p05"), ("mean_hourly_p95", "pm2p5_p95")):
            expected = sum(some[source].values.astype(float)) / count
            np.testing.assert_allclose(found[name][at], np.where(GRID.land, expected, np.nan), rtol=2.0**-10)
        distance = sum(some["nearest_observation_distance"].values.astype(float)) / count
        np.testing.assert_allclose(found["nearest_observation_distance"][at], distance, rtol=2.0**-10)
        assert found["observation_count"][at] == sum(range(count))
        assert (found["valid_hours"][at] == np.where(GRID.land, count, 0)).all()


def test_a_cell_with_17_hours_has_no_mean_and_says_so(daily: Series) -> None:
    found, sixth = read(daily), 3
    assert found["valid_hours"][(sixth, *LAND)] == 17
    assert np.isnan(found["pm2p5"][(sixth, *LAND)])
    assert found["quality_flag"][(sixth, *LAND)] == aggregate.INCOMPLETE
    others = GRID.land.copy()
    others[LAND] = False
    assert np.isfinite(found["pm2p5"][sixth][others]).all()
    assert (found["quality_flag"][sixth][others] == 0).all()


def test_a_flag_of_more_than_a_quarter_of_the_hours_is_the_day_s(daily: Series) -> None:
    flags = read(daily)["quality_flag"]
    assert flags[(4, *LAND)] == 2  # 7 hours
    assert flags[(5, *LAND)] == 0  # 6 hours
    assert (flags[:, SEA[0], SEA[1]] == 1).all()


def test_a_monthly_mean_is_that_of_the_valid_days(daily: Series, monthly: Series) -> None:
    days, found = read(daily), read(monthly)
    valid = np.isfinite(days["pm2p5"])
    assert monthly.bounds.tolist() == [[NEW_YEAR, NEW_YEAR + 31 * 24]]
    with np.errstate(invalid="ignore"):
        expected = np.nansum(days["pm2p5"].astype(float), axis=0) / valid.sum(axis=0)
    np.testing.assert_allclose(found["pm2p5"][0], expected, rtol=2.0**-10)
    np.testing.assert_array_equal(found["valid_days"][0], valid.sum(axis=0))
    assert (found["valid_days"][(0, *LAND)], found["valid_days"][(0, *SEA)]) == (28, 0)
    assert found["valid_hours"][(0, *LAND)] == 24 * 27 + 18
    assert found["observation_count"][0] == days["observation_count"].sum()
    assert (found["quality_flag"][0] == np.where(GRID.land, 0, 1)).all()
    assert (found["mean_hourly_p05"][0] < found["pm2p5"][0])[GRID.land].all()


@pytest.mark.parametrize(("days", "is_made"), [(24, True), (23, False)])
def test_a_month_needs_three_quarters_of_its_days(days: int, is_made: bool) -> None:
    which = [aggregate.Day(NEW_YEAR // 24 + n, slice(24 * n, 24 * n + 24)) for n in range(days)]
    assert [len(group) for group in aggregate.months(which)] == ([days] if is_made else [])


def test_a_cell_with_too_few_days_has_no_monthly_mean(cube: xr.Dataset) -> None:
    some = export.subset(cube, "interim").load()
    some["pm2p5"][(slice(0, 24 * 8), *LAND)] = np.nan  # 29 days less 2 of the first 4 and 4 more leave 23
    found = read(aggregate.monthly(some, aggregate.months(aggregate.days(some))))
    assert found["valid_days"][(0, *LAND)] < 24
    assert np.isnan(found["pm2p5"][(0, *LAND)])
    assert found["quality_flag"][(0, *LAND)] == aggregate.INCOMPLETE


def test_local_days_begin_before_those_of_utc(cube: xr.Dataset) -> None:
    cut = Cut("interim", "daily", "2019-01-10", "2019-01-12", day_offset=8)
    (series,) = export.pieces(cube, cut)
    assert series.bounds[:, 0].tolist() == [NEW_YEAR + 9 * 24 - 8, NEW_YEAR + 10 * 24 - 8]
    mean = cube["pm2p5"].isel(time=slice(9 * 24 - 8, 10 * 24 - 8)).mean("time", dtype=float)
    np.testing.assert_allclose(read(series)["pm2p5"][0], mean, rtol=2.0**-10)
    assert "00:00 to 24:00 UTC+08:00" in series.attrs["summary"]


def test_a_month_of_local_time_has_its_own_hours(cube: xr.Dataset) -> None:
    (series,) = export.pieces(cube, Cut("interim", "monthly", day_offset=-5))
    assert series.bounds.tolist() == [[NEW_YEAR + 5, NEW_YEAR + 31 * 24 + 5]]
    assert series.attrs["time_coverage_duration"] == "P1M"


@pytest.mark.parametrize("frequency", ["daily", "monthly"])
def test_means_of_part_of_a_day_are_of_the_whole(cube: xr.Dataset, frequency: str) -> None:
    """A run of some hours makes the mean of all hours that the cube holds of that day or month."""
    (series,) = export.pieces(cube, Cut("interim", frequency, "2019-01-10T06", "2019-01-10T07"))
    assert len(series.bounds) == 1
    assert read(series)["valid_hours"][(0, *LAND)] >= 24


def test_what_is_written_is_what_the_series_holds(cube: xr.Dataset, daily: Series, tmp_path: Path) -> None:
    (file,) = export.export_files(cube, tmp_path, Cut("interim", "daily"), "netcdf", "x", "0.1.0")
    assert file.name == "pm25_x_aqnet_interim_v0.1.0_daily_20190101-20190131.nc"
    with xr.open_dataset(file, decode_timedelta=False) as found:
        for name, values in read(daily).items():
            np.testing.assert_array_equal(found[name], values)
        assert found["time"].values[0] == np.datetime64("2019-01-01")
    path = export.export_zarr(cube, tmp_path / "x.zarr", cut=Cut("interim", "daily"))
    with xr.open_zarr(path, decode_timedelta=False) as found:
        for name, values in read(daily).items():
            np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut("interim", "daily", "2019-01-03", "2019-01-04"), "expected a day with 18 interim hours in 2019-01-03"),
        (Cut("interim", "monthly", bbox=(119, 36, 120, 37), day_offset=14), None),
        (Cut("final", "monthly"), "holds no final hour"),
    ],
)
def test_too_few_hours_are_named(cube: xr.Dataset, cut: Cut, message: str | None) -> None:
    if message is None:
        assert len(list(export.pieces(cube, cut))) == 1
        return
    with pytest.raises(ProductError, match=message):
        list(export.pieces(cube, cut))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": "interim", "day_offset": 8}, "--day-offset: expected with daily or monthly"),
        ({"stream": "interim", "frequency": "daily", "day_offset": 15}, "--day-offset: expected whole hours"),
        ({"frequency": "daily"}, "--stream: expected one stream"),
    ],
)
def test_a_cut_that_makes_no_sense_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cut(**fields)
