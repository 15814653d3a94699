"""Clocks, copies, shifts, moves, gaps and units: checks of a station against its own days and its neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline import qc, sources
from pipeline.contract import HOUR, POLLUTANTS
from pipeline.harmonise import to_cube
from pipeline.qc import clocks, neighbours, record, shift, twins
from pipeline.qc.alone import in_gap

DAYS, STATIONS = 10, 8
HOURS = 24 * DAYS


def lively(hours: int = HOURS, count: int = STATIONS, seed: int = 3) -> dict[str, np.ndarray]:
    """Series of every pollutant with shared weather, a daily cycle, and noise of each station."""
    rng = np.random.default_rng(seed)
    cycle = np.sin(2 * np.pi * (np.arange(hours) - 8) / 24)[:, None]
    series = {}
    for name in POLLUTANTS:
        weather = np.cumsum(rng.normal(0, 0.12, (hours, 1)), axis=0)
        noise = rng.normal(0, 0.1, (hours, count))
        series[name] = np.round(60 * np.exp(0.5 * cycle + weather - weather.mean() + noise)) + 1
    series["pm10"] = np.maximum(series["pm10"], np.ceil(1.2 * series["pm2p5"]))
    return series | {"co": series["co"] / 50}


def cube_of(series: dict[str, np.ndarray], network: str = "n", spread: float = 0.1) -> xr.Dataset:
    hours, count = series["pm2p5"].shape
    coords = {
        "time": np.datetime64("2020-01-01T00", "ns") + np.arange(hours) * HOUR,
        "station": [f"{network}:{i}" for i in range(count)],
        "lon": ("station", 116 + spread * np.arange(count)),
        "lat": ("station", np.full(count, 40.0)),
        "elevation": ("station", np.full(count, 50.0)),
    }
    data = {name: (("time", "station"), values.astype("float32")) for name, values in series.items()}
    return xr.Dataset(data, coords=coords)


def has(flagged: xr.Dataset, flag: str, pollutant: str = "pm2p5") -> np.ndarray:
    return (flagged[f"qc_{pollutant}"].values & qc.FLAGS[flag]) != 0


# ---- stations ----


@pytest.mark.parametrize("late", [8, -8, 3])
def test_a_station_whose_clock_is_off_is_flagged_in_all_pollutants_and_no_other(late):
    series = lively()
    for values in series.values():
        values[:, 2] = np.roll(values[:, 2], late)
    flagged = qc.flag(cube_of(series))
    for name in POLLUTANTS:
        found = has(flagged, "time_shift", name)
        assert found[-24:, 2].all()
        assert not np.delete(found, 2, axis=1).any()
    assert np.isnan(qc.valid(flagged, "o3").values[-24:, 2]).all()


@given(late=st.integers(-12, 12))
def test_shift_recovers_the_lag(late):
    series = lively(hours=168)
    medians = {name: np.broadcast_to(np.median(v, axis=1, keepdims=True), v.shape) for name, v in series.items()}
    found = shift.shift({name: np.roll(v, late, axis=0)[:168] for name, v in series.items()}, medians)
    assert (found.lag == late).all()


def test_a_copy_is_flagged_once_a_day_of_it_is_seen_and_the_original_is_kept():
    series = lively()
    for values in series.values():
        values[120:, 5] = values[120:, 1]
        values[120:, 1:2] += 0.0
    cube = cube_of(series, spread=0.3)
    found = has(qc.flag(cube), "duplicate_station")
    assert not found[: 120 + 12].any()
    assert (found[144:, 1] ^ found[144:, 5]).all()
    assert not np.delete(found, [1, 5], axis=1).any()


def test_like_stations_are_no_copies():
    series = lively()
    series["pm2p5"][:, 5] = series["pm2p5"][:, 1]  # PM2.5 alike, the gases not
    assert not has(qc.flag(cube_of(series)), "duplicate_station").any()


def test_candidates_miss_no_copy_and_name_the_block():
    values = lively()["pm2p5"].astype("float32")
    values[48:72, 4] = values[48:72, 0]
    time = np.datetime64("2020-01-01T02") + np.arange(len(values)) * HOUR
    pairs = twins.candidates(time, values)
    assert pairs[(0, 4)][0] == 53  # blocks begin where the hour of the day divides by four: rows 2, 6, 10, ...
    assert len(pairs[(0, 4)]) == 5


def test_a_moved_station_is_marked_for_two_days_and_stays_valid():
    series = lively(hours=96, count=1)
    rows = pd.DataFrame({name: values[:, 0] for name, values in series.items()})
    rows = rows.assign(time=pd.date_range("2020-01-01", periods=96, freq="h"), station="n:a", lat=40.0, lon=116.0)
    rows.loc[24:, "lon"] = 116.3
    flagged = qc.flag(to_cube([rows], np.datetime64("2020-01-01"), np.datetime64("2020-01-05")))
    assert flagged["station"].values.tolist() == ["n:a", "n:a@2020-01-02T00"]
    assert np.flatnonzero(has(flagged, "moved")[:, 1]).tolist() == list(range(24, 72))
    assert not has(flagged, "moved")[:, 0].any()
    assert np.isfinite(qc.valid(flagged, "pm2p5").values[24:, 1]).all()


def test_a_gap_begins_at_the_sixth_missing_hour_of_a_station_that_reported():
    absent = np.ones((200, 2), dtype=bool)
    absent[:3, 0] = False
    found = in_gap(absent)
    assert np.flatnonzero(found[:, 0]).tolist() == list(range(8, 171))  # a week after the last report it is no gap
    assert not found[:, 1].any()


@pytest.mark.parametrize("name", POLLUTANTS)
@pytest.mark.parametrize("factor", [1000.0, 1e-3])
def test_a_unit_jump_is_named(name, factor):
    series = lively(hours=96)
    series[name][60:64, 3] *= factor
    found = has(qc.flag(cube_of(series)), "unit_jump", name)
    assert np.argwhere(found).tolist() == [[hour, 3] for hour in range(60, 64)]


def test_five_times_the_usual_is_no_unit_jump():
    series = lively(hours=96)
    series["so2"][60:64] *= 5
    assert not has(qc.flag(cube_of(series)), "unit_jump", "so2").any()


# ---- spikes and gross departures ----


def test_a_spike_is_flagged_and_a_front_that_neighbours_share_is_not():
    series = lively(hours=96)
    series["pm2p5"][60, 3] *= 6
    for name in ("pm2p5", "pm10"):
        series[name][70:] = np.minimum(series[name][70:] * 8, 900)
    found = has(qc.flag(cube_of(series)), "spike")
    assert np.argwhere(found).tolist() == [[60, 3]]


def test_what_two_instruments_show_is_no_spike():
    series = lively(hours=96)
    for name in ("pm2p5", "pm10"):
        series[name][60, 3] *= 5
    assert not has(qc.flag(cube_of(series)), "spike").any()


def test_a_lasting_gross_error_is_invalid_and_a_usual_bias_is_not():
    series = lively()
    series["pm2p5"][:, 1] = np.round(series["pm2p5"][:, 1] * 1.5)
    series["pm10"][:, 1] = series["pm10"][:, 1] * 1.5
    series["pm2p5"][200:, 3] /= 6
    flagged = qc.flag(cube_of(series))
    wrong = np.isnan(qc.valid(flagged, "pm2p5").values)
    assert wrong[200:, 3].mean() > 0.9
    assert wrong[48:, 1].mean() < 0.02


def test_isolated_is_information():
    flagged = qc.flag(cube_of(lively(hours=30), spread=3.0))
    assert has(flagged, "isolated").all()
    assert np.isfinite(qc.valid(flagged, "pm2p5").values).all()


# ---- neighbours ----


def test_silent_columns_change_nothing():
    series = lively(hours=220, count=6)
    series["pm2p5"][150, 2] *= 7
    cube = cube_of(series)
    silent = cube.isel(station=[0, 1]).assign_coords(station=["m:0", "m:1"]) * np.float32(np.nan)
    both = xr.concat([silent, cube], "station").transpose("time", "station")
    some, every = qc.flag(cube), qc.flag(both).sel(station=cube["station"])
    for name in POLLUTANTS:
        np.testing.assert_array_equal(some[f"qc_{name}"], every[f"qc_{name}"])


def test_only_hours_asked_for_get_every_check_and_those_are_the_same():
    series = lively()
    series["pm2p5"][230, 2] *= 7
    cube = cube_of(series)
    since = cube["time"].values[216]
    whole, part = (qc.flag(cube, since=given).sel(time=slice(since, None)) for given in (None, since))
    xr.testing.assert_identical(whole, part)


def test_around_is_the_median_of_the_nearest_that_report():
    values = np.array([[1, 2, np.nan, 4, 8, 16]], dtype="float32")
    near = np.array([[1, 2, 3, 4, 5, 6], [0, 2, 6, 6, 6, 6]])
    found = neighbours.around(values, near)
    assert found.median[0].tolist()[0] == 6
    assert np.isnan(found.median[0, 1])
    assert (found.low[0, 0], found.high[0, 0], found.high[0, 1]) == (2, 16, 1)


# ---- networks ----


@pytest.fixture(scope="module")
def week(shared_data: Path) -> xr.Dataset:
    """A flagged week (range only) of real observations around Beijing."""
    start, end = np.datetime64("2019-12-09T00"), np.datetime64("2019-12-16T00")
    tables = sources.read("cnemc", shared_data / "cnemc", None, start, end, (115.0, 38.0, 118.0, 41.0))
    return qc.flag(to_cube(tables, start, end), end)


@pytest.mark.parametrize("late", [0, 8, -8])
def test_a_network_8_hours_off_is_told_from_a_right_one(week, late):
    (judged,) = qc.clock(week.roll(time=late)).to_dict("records")
    assert judged["offset_hours"] == late
    assert judged["verdict"] == ("wrong" if late else "right")


@pytest.mark.parametrize("late", [0, 8, -8])
def test_pm2p5_alone_of_a_few_stations_may_not_tell_but_tells_nothing_wrong(week, late):
    found = clocks.cycles(week.roll(time=late))
    (judged,) = clocks.judge(found[found["pollutant"] == "pm2p5"]).to_dict("records")
    assert judged["verdict"] != ("right" if late else "wrong")


def test_a_day_is_too_short_to_judge_a_clock(week):
    assert qc.clock(week.isel(time=slice(0, 48)))["verdict"].tolist() in ([], ["cannot tell"])


def test_networks_that_overlap_are_compared(week):
    names = [f"{'late' if n % 2 else 'right'}:{n}" for n in range(week.sizes["station"])]
    mixed = week.assign_coords(station=names)
    moved = mixed.isel(station=slice(1, None, 2)).roll(time=8)
    both = xr.concat([mixed.isel(station=slice(0, None, 2)), moved], "station").transpose("time", "station")
    found = clocks.between(both).set_index("network")
    assert found["offset_hours"].to_dict() == {"late": 8.0, "right": -8.0}
    assert (found["share"] > 0.9).all()


# ---- the record of a month ----


def test_a_record_adds_up(week):
    found = record.record(week, np.datetime64("2019-12-10T00"))
    assert found.daily["reported"].sum() == found.stations["reported"].sum()
    assert len(found.daily) == len(found.shares) == 6
    counts = found.counts.set_index(["flag", "pollutant"])["count"]
    assert counts["flat_line", "pm2p5"] == found.daily["flat_line"].sum() == found.stations["flat_line"].sum()
    assert found.example.attrs["station"] in week["station"].values
