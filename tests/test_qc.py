from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import qc, sources
from pipeline.contract import HOUR, POLLUTANTS, check_station_cube
from pipeline.harmonise import to_cube

STATIONS = 8


def cube_of(pm2p5: np.ndarray, spread: float = 0.1, **others: np.ndarray) -> xr.Dataset:
    """StationCube of stations `spread` degrees apart; pollutants that are not given are missing."""
    hours, count = pm2p5.shape
    values = {"pm2p5": pm2p5, **others}
    data = {name: np.asarray(values.get(name, np.full(pm2p5.shape, np.nan)), dtype="float32") for name in POLLUTANTS}
    coords = {
        "time": np.datetime64("2020-01-01T00", "ns") + np.arange(hours) * HOUR,
        "station": [f"n:{i}" for i in range(count)],
        "lon": ("station", 116 + spread * np.arange(count)),
        "lat": ("station", np.full(count, 40.0)),
        "elevation": ("station", np.full(count, 50.0)),
    }
    return xr.Dataset({name: (("time", "station"), array) for name, array in data.items()}, coords=coords)


def natural(hours: int = 6, count: int = STATIONS, level: float = 60.0) -> np.ndarray:
    """Whole-number PM2.5 that varies a little between stations and hours."""
    rng = np.random.default_rng(7)
    return np.round(level * np.exp(0.1 * rng.standard_normal((hours, count)))).astype("float32")


def has(flagged: xr.Dataset, flag: str, pollutant: str = "pm2p5") -> np.ndarray:
    return (flagged[f"qc_{pollutant}"].values & qc.FLAGS[flag]) != 0


arrays = hnp.arrays(
    "float32", (30, STATIONS), elements=st.one_of(st.just(np.nan), st.integers(-3, 1200).map(float)), fill=st.just(50.0)
)


@settings(max_examples=25)
@given(values=arrays, pm10=arrays)
def test_values_are_never_changed_and_every_missing_value_is_flagged(values, pm10):
    cube = cube_of(values, pm10=pm10)
    before = cube.copy(deep=True)
    flagged = check_station_cube(qc.flag(cube))
    xr.testing.assert_identical(cube, before)
    for name in POLLUTANTS:
        np.testing.assert_array_equal(flagged[name], before[name])
        np.testing.assert_array_equal(has(flagged, "missing", name), np.isnan(before[name]))
        accepted = qc.valid(flagged, name).values
        assert not (accepted <= 0).any()
        assert not (accepted > qc.MAXIMA[name]).any()


@settings(max_examples=25)
@given(values=arrays, other=arrays, hour=st.integers(1, 29))
def test_the_future_never_changes_a_flag(values, other, hour):
    changed = np.concatenate([values[:hour], other[hour:]])
    one = qc.flag(cube_of(values, pm10=other))
    two = qc.flag(cube_of(changed, pm10=np.concatenate([other[:hour], values[hour:]])))
    for name in POLLUTANTS:
        np.testing.assert_array_equal(one[f"qc_{name}"][:hour], two[f"qc_{name}"][:hour])


def test_flags_do_not_depend_on_where_the_cube_begins():
    values = natural(200)
    values[40:140, 2] = 77
    values[60:130, 3] = 3
    whole, later = cube_of(values, co=values / 50), cube_of(values, co=values / 50).isel(time=slice(50, None))
    for name in POLLUTANTS:
        np.testing.assert_array_equal(
            qc.flag(whole)[f"qc_{name}"][50 + qc.LOOKBACK_HOURS :],
            qc.flag(later)[f"qc_{name}"][qc.LOOKBACK_HOURS :],
            err_msg=name,
        )


def test_range_zero_and_negative():
    values = natural(1)
    values[0, :4] = [0, -2, 1000, 1001]
    flagged = qc.flag(cube_of(values))
    assert has(flagged, "zero_as_missing")[0, :4].tolist() == [True, True, False, False]
    assert has(flagged, "range")[0, :4].tolist() == [False, True, False, True]


def test_dust_storm_pm10_is_in_range():
    flagged = qc.flag(cube_of(natural(1), pm10=np.full((1, STATIONS), 9985.0)))
    assert not has(flagged, "range", "pm10").any()


@pytest.mark.parametrize(("level", "hours"), [(80.0, 6), (12.0, 12), (3.0, 24)])
def test_a_flat_line_is_flagged_from_its_nth_hour_on(level, hours):
    values = natural(40, level=level + 5)
    values[10:, 1] = level
    values[:10, 1] = level + 1 + np.arange(10) % 2
    flat = has(qc.flag(cube_of(values)), "flat_line")[:, 1]
    assert flat.tolist() == [hour >= 10 + hours - 1 for hour in range(40)]


def test_low_whole_numbers_may_repeat():
    values = natural(20)
    values[:, 1] = 3
    assert not has(qc.flag(cube_of(values)), "flat_line").any()


def test_a_gap_ends_a_flat_line():
    values = natural(12)
    values[:, 1] = 80
    values[4, 1] = np.nan
    flat = has(qc.flag(cube_of(values)), "flat_line")[:, 1]
    assert flat.tolist() == [hour >= 10 for hour in range(12)]


def test_pm10_below_pm2p5_flags_pm10_and_pm2p5_only_when_gross():
    pm2p5 = np.array([[100, 100, 300, 100, 60, 60, 60, 60]], dtype="float32")
    pm10 = np.array([[90, 80, 80, np.nan, 60, 60, 60, 60]], dtype="float32")
    flagged = qc.flag(cube_of(pm2p5, spread=3.0, pm10=pm10))
    assert has(flagged, "pm10_below_pm2p5", "pm10")[0].tolist() == [False, True, True] + [False] * 5
    assert has(flagged, "pm10_below_pm2p5")[0].tolist() == [False, False, True] + [False] * 5


@pytest.mark.parametrize("factor", [8.0, 0.05])
def test_one_station_far_from_its_neighbours_is_flagged_alone(factor):
    values = natural(4, count=12)
    values[2, 5] = values[2, 5] * factor
    flagged = qc.flag(cube_of(values))
    spatial = has(flagged, "buddy") | has(flagged, "sct")
    assert spatial[2, 5]
    assert spatial.sum() == 1
    assert np.isnan(qc.valid(flagged, "pm2p5")[2, 5])


def test_isolated_stations_are_left_alone():
    values = natural(4)
    values[:, 0] = 900
    flagged = qc.flag(cube_of(values, spread=3.0))
    assert not (has(flagged, "buddy") | has(flagged, "sct")).any()


def test_shared_haze_is_kept():
    flagged = qc.flag(cube_of(natural(4, level=600)))
    assert not flagged["qc_pm2p5"].any()


def test_an_hour_without_observations():
    assert (qc.flag(cube_of(np.full((3, STATIONS), np.nan)))["qc_pm2p5"] == qc.FLAGS["missing"]).all()


def test_attributes_name_every_bit():
    attrs = qc.flag(cube_of(natural()))["qc_no2"].attrs
    assert dict(zip(attrs["flag_meanings"].split(), attrs["flag_masks"].tolist(), strict=True)) == qc.FLAGS
    assert attrs["flag_masks"].dtype == "uint16"


def test_summary_counts():
    values = natural(4)
    values[0, 0], values[1, 1] = np.nan, 0
    flagged = qc.flag(cube_of(values))
    table = qc.summary(flagged).set_index(["flag", "pollutant"])
    assert len(table) == len(qc.FLAGS) * len(POLLUTANTS)
    assert table.loc[("missing", "pm2p5"), "count"] == 1
    assert table.loc[("missing", "pm2p5"), "share"] == 1 / 32
    assert table.loc[("zero_as_missing", "pm2p5"), "share"] == 1 / 31
    assert table.loc[("zero_as_missing", "pm2p5"), "count"] == 1
    assert len(table) == len(qc.FLAGS) * len(POLLUTANTS)


@pytest.mark.parametrize(
    ("start", "days"), [("2019-01-12", 1), ("2019-05-12", 1)], ids=["haze of January", "dust of May"]
)
def test_real_haze_and_dust_are_kept(shared_data, start, days):
    first = np.datetime64(start, "h")
    period = first, first + np.timedelta64(24 * days, "h")
    cube = to_cube(sources.read("cnemc", shared_data / "cnemc", None, *period, (105, 32, 125, 45)), *period)
    flagged = qc.flag(cube)
    reported = np.isfinite(cube["pm2p5"].values)
    spatial = has(flagged, "buddy") | has(flagged, "sct")
    assert 0 < spatial[reported].mean() < 0.02
    peak = reported & (cube["pm2p5"].values > 250) & (cube["pm2p5"].values <= 1000)
    assert peak.sum() > 20
    assert spatial[peak].mean() < 0.05
