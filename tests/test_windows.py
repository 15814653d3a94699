"""What the encoder reads: layout and scaling of the features, marks of missing values, local solar time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.windows import (
    CYCLES,
    FEATURES,
    LEVELS,
    POLLUTANTS,
    TERRAIN_FEATURES,
    Observations,
    Points,
    cyclic,
    from_z,
    normalisation,
    terrain_features,
    to_z,
    window,
)
from pipeline import contract

MEAN, STD = (3.5, 4.2, 2.2, 3.2, 3.8, 0.6), (0.85, 0.75, 0.8, 0.7, 0.9, 0.35)
P = len(POLLUTANTS)
MONDAY = int(np.datetime64("2019-12-02T00", "h").astype(int))


def record(hours: int = 12, stations: int = 4) -> Observations:
    rng = np.random.default_rng(0)
    values = rng.lognormal(3.0, 0.8, (P, hours, stations)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    lon, lat = rng.uniform(-180, 180, stations), rng.uniform(-60, 60, stations)
    return Observations(np.arange(437000, 437000 + hours), values, lon, lat, np.zeros(stations))


# ---- features ----


def test_features_are_scaled_logarithms_marks_and_cycles_of_the_chosen_hours_and_stations():
    seen = record()
    chosen = np.array([3, 1])
    found = window(seen, slice(2, 9), chosen, MEAN, STD)
    assert found.features.shape == (2, 7, FEATURES)
    assert found.features.dtype == torch.float32
    for row, s in enumerate(chosen):
        for p in range(1, P):
            value = seen.values[p, 2:9, s]
            valid = np.isfinite(value)
            scaled = np.where(valid, (np.log1p(np.nan_to_num(value)) - MEAN[p]) / STD[p], 0)
            np.testing.assert_allclose(found.features[row, :, p - 1], scaled.clip(-4, 4), atol=1e-5)
            np.testing.assert_array_equal(found.features[row, :, P - 2 + p], valid.astype("f4"))
        cycles = torch.cat([cyclic(seen.hours[2:9], seen.lon[s : s + 1], period) for period in CYCLES], dim=-1)
        assert torch.equal(found.features[row, :, 2 * (P - 1) :], cycles[0])


def test_pm2p5_is_no_feature():
    """What it says reaches the encoder as z alone."""
    seen = record()
    other = replace(seen, values=seen.values.copy())
    other.values[0] = 77.0
    a, b = (window(given, slice(None), np.arange(4), MEAN, STD) for given in (seen, other))
    assert torch.equal(a.features, b.features)
    assert not torch.equal(a.z, b.z)


def test_a_wild_value_of_another_pollutant_is_bounded():
    seen = record()
    seen.values[2] = 1e9
    found = window(seen, slice(None), np.arange(4), MEAN, STD)
    assert (found.features[..., 1] == 4).all()


def test_z_and_valid_are_the_first_pollutant():
    seen = record()
    found = window(seen, slice(None), np.arange(4), MEAN, STD)
    assert found.valid.dtype == torch.bool
    np.testing.assert_array_equal(found.valid, np.isfinite(seen.values[0]).T)
    np.testing.assert_allclose(found.z, np.cbrt(np.nan_to_num(seen.values[0])).T, rtol=1e-5)
    assert not found.valid.all()


def test_a_missing_pollutant_hides_no_other():
    seen = record()
    seen.values[1:] = np.nan
    found = window(seen, slice(None), np.arange(4), MEAN, STD)
    np.testing.assert_array_equal(found.valid, np.isfinite(seen.values[0]).T)
    assert (found.features[..., : 2 * (P - 1)] == 0).all()
    assert torch.isfinite(found.features).all()


def test_a_negative_value_counts_as_zero():
    seen = record()
    seen.values[:] = -3.0
    found = window(seen, slice(None), np.arange(4), MEAN, STD)
    assert (found.z == 0).all()
    assert torch.isfinite(found.features).all()


def test_a_window_leaves_the_record_as_it_is():
    seen = record()
    before = seen.values.copy()
    window(seen, slice(None), np.arange(4), MEAN, STD)
    np.testing.assert_array_equal(seen.values, before)


def test_pollutants_are_those_of_the_contract_and_the_median_is_a_level():
    assert POLLUTANTS == contract.POLLUTANTS
    assert 0.5 in LEVELS
    assert list(LEVELS) == sorted(set(LEVELS))
    assert {0.05, 0.95} < set(LEVELS)


# ---- local solar time ----


@given(st.integers(0, 600_000), st.integers(-12, 11), st.sampled_from(CYCLES))
def test_the_same_local_hour_reads_the_same_at_any_longitude(hour: int, zone: int, period: float):
    """An hour `zone` time zones east happens `zone` hours earlier in UTC."""
    here = cyclic(np.array([hour]), np.array([0.0]), period)
    east = cyclic(np.array([hour - zone]), np.array([15.0 * zone]), period)
    torch.testing.assert_close(here, east, atol=1e-5, rtol=0)


@given(st.integers(0, 600_000), st.floats(-180, 180), st.sampled_from(CYCLES))
def test_cycles_repeat_after_their_period_and_not_before(hour: int, lon: float, period: float):
    hours = hour + np.arange(2 * int(period))
    found = cyclic(hours, np.array([lon]), period)[0]
    torch.testing.assert_close(found[: int(period)], found[int(period) :], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(hours)))
    apart = torch.cdist(found[:1], found[1 : int(period)])
    assert apart.min() > 0.5 * 2 * np.pi / period


@given(st.integers(0, 600_000), st.floats(-180, 179.9), st.sampled_from(CYCLES))
def test_longitudes_may_be_written_either_way(hour: int, lon: float, period: float):
    """It is the same hour of the same day of the week at 182 E and 178 W."""
    here, again = (cyclic(np.array([hour]), np.array([x]), period) for x in (lon, lon + 360))
    torch.testing.assert_close(here, again, atol=1e-5, rtol=0)


def test_phase_0_is_local_midnight_and_monday():
    start = torch.tensor([0.0, 1.0])
    for lon, hour in ((0.0, MONDAY), (120.0, MONDAY - 8), (-75.0, MONDAY + 5)):
        for period in CYCLES:
            torch.testing.assert_close(
                cyclic(np.array([hour]), np.array([lon]), period)[0, 0], start, atol=1e-5, rtol=0
            )
    noon = cyclic(np.array([MONDAY + 12]), np.array([0.0]), 24.0)[0, 0]
    torch.testing.assert_close(noon, -start, atol=1e-5, rtol=0)


def test_features_know_no_season():
    """The same values half a year of whole weeks later are the same input."""
    seen = record()
    later = replace(seen, hours=seen.hours + 26 * 168)
    torch.testing.assert_close(
        window(seen, slice(None), np.arange(4), MEAN, STD).features,
        window(later, slice(None), np.arange(4), MEAN, STD).features,
    )


# ---- normalisation ----


def test_normalisation_is_that_of_the_valid_values():
    values = record(hours=200).values
    mean, std = normalisation(values)
    assert len(mean) == len(std) == P
    for p in range(P):
        logs = np.log1p([v for v in values[p].ravel().astype(float) if v == v])
        assert mean[p] == pytest.approx(logs.mean(), rel=1e-5)
        assert std[p] == pytest.approx(logs.std(), rel=1e-5)


def test_normalisation_does_not_change_with_more_missing_values_around():
    values = record().values
    wider = np.full((P, 40, 9), np.nan, np.float32)
    wider[:, 5:17, 2:6] = values
    np.testing.assert_allclose(normalisation(wider), normalisation(values), rtol=1e-6)


def test_scaled_features_of_the_training_hours_have_mean_0_and_deviation_1():
    seen = record(hours=300)
    found = window(seen, slice(None), np.arange(4), *normalisation(seen.values))
    for p in range(P - 1):
        scaled = found.features[..., p][found.features[..., P - 1 + p] == 1]
        assert scaled.mean().item() == pytest.approx(0, abs=1e-4)
        assert scaled.std().item() == pytest.approx(1, abs=1e-2)


# ---- z and terrain ----


@given(st.floats(0, 2000, width=32))
def test_z_is_the_cube_root_and_there_is_a_way_back(value: float):
    z = to_z(torch.tensor([value]))
    assert z.item() == pytest.approx(np.cbrt(value), rel=1e-5, abs=1e-6)
    assert from_z(z).item() == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_no_z_is_a_concentration_below_0():
    assert from_z(torch.tensor([-3.0, 0.0])).tolist() == [0.0, 0.0]
    assert to_z(torch.tensor([-8.0])).item() == 0


@pytest.mark.parametrize("kind", ["stations", "points"])
def test_terrain_features_are_kilometres_and_relief_in_300_m(kind: str):
    elevation, relief = np.array([0.0, 1500.0]), np.array([[30.0, -60.0, 90.0, 0.0], [300.0, 600.0, 150.0, 3.0]])
    place = Points(np.zeros(2), np.zeros(2), elevation, relief)
    if kind == "stations":
        place = replace(record(stations=2), elevation=elevation, relief=relief)
    found = terrain_features(place)
    assert found.shape == (2, TERRAIN_FEATURES)
    assert found.dtype == torch.float32
    expected = [[0.0, 0.1, -0.2, 0.3, 0.0], [1.5, 1.0, 2.0, 0.5, 0.01]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_unknown_relief_counts_as_flat_and_heights_stop_at_5_km():
    place = Points(np.zeros(2), np.zeros(2), np.array([100.0, 8848.0]))
    flat = replace(place, relief=np.zeros((2, TERRAIN_FEATURES - 1)))
    assert torch.equal(terrain_features(place), terrain_features(flat))
    assert terrain_features(place)[1, 0] == 5
