"""Space-time kriging against brute force and a simulated field whose time scales have ranges of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model import baseline, gaps, space_time, space_time_fit
from model.space_time import Band, Separation, SpaceTime
from model.windows import LEVELS, POLLUTANTS, Observations, Points

Array = NDArray[np.float64]

FAST = Band(0.5, 1.0, (20.0, 100.0), 1.0, 1.0)
SLOW = Band(0.02, 1.0, (300.0, 100.0), 1.0, 1.0)

MODELS = {"causal": space_time.CNEMC_2019_CAUSAL, "two-sided": space_time.CNEMC_2019_TWO_SIDED}


def places(rng: np.random.Generator, n: int) -> tuple[Array, Array, Array]:
    return rng.uniform(113, 117, n), rng.uniform(36, 39, n), rng.uniform(0, 300, n)


def observe(pm2p5: Array, where: tuple[Array, Array, Array]) -> Observations:
    values = np.full((len(POLLUTANTS), *pm2p5.shape), np.nan, np.float32)
    values[0] = pm2p5
    return Observations(420_000 + np.arange(len(pm2p5)), values, *where)


@pytest.fixture(scope="module")
def world() -> tuple[Observations, Points, Array, Array]:
    """900 hours of 60 stations, a value in twenty missing; the truth at 20 points, and the slow part of it.

    A white field of short range and much nugget lies on one of long range that changes over days.
    """
    rng = np.random.default_rng(0)
    where = places(rng, 80)
    everywhere = Observations(np.arange(1), np.empty((6, 1, 80)), *where)
    between = Separation.of(everywhere, everywhere)
    fast, slow = (_factor(band, between) @ rng.normal(size=(80, 900)) for band in (FAST, SLOW))
    keep = np.exp(-1 / 100)
    for t in range(1, 900):
        slow[:, t] = keep * slow[:, t - 1] + np.sqrt(1 - keep**2) * slow[:, t]
    pm2p5 = np.exp(4.2 + 0.35 * fast + 0.5 * slow).T - space_time.OFFSET
    pm2p5, smooth = np.maximum(pm2p5, 0.5), np.exp(4.2 + 0.5 * slow).T - space_time.OFFSET
    seen = np.where(rng.random((900, 60)) < 0.05, np.nan, pm2p5[:, :60])
    return observe(seen, tuple(x[:60] for x in where)), Points(*(x[60:] for x in where)), pm2p5[:, 60:], smooth[:, 60:]


def _factor(band: Band, between: Separation) -> Array:
    covariance = band.covariance(between.terrain(band.terrain_factor)) + band.nugget * np.eye(80)
    return np.linalg.cholesky(covariance)


def between_of(observations: Observations) -> Separation:
    return Separation.of(observations, observations)


# ---- systems ----


def test_one_band_of_one_structure_is_ordinary_kriging(world):
    observations, points, *_ = world
    between, towards = between_of(observations), Separation.of(points, observations)
    weights, variance = space_time._weights(FAST, between, towards)
    values = np.random.default_rng(1).normal(size=(1, 60))
    variogram = baseline.Variogram(FAST.nugget, (1.0, 0.0), (20.0, 1.0), 1.0)
    expected, expected_variance = baseline.krige(values, between.terrain(1.0), towards.terrain(1.0), variogram, 60)
    np.testing.assert_allclose(values @ weights.T, expected, rtol=1e-6)
    np.testing.assert_allclose(variance, expected_variance[0], rtol=1e-6)


def test_left_out_residuals_and_variances_are_those_of_kriging_without_the_block(world):
    observations = world[0]
    between, block = between_of(observations), np.array([3, 17, 40])
    rest = np.setdiff1d(np.arange(60), block)
    values = np.random.default_rng(2).normal(size=(5, 60))
    residual, variance = space_time.leave_out(values, space_time.precision(FAST, between), [block, rest])
    d = between.terrain(1.0)
    variogram = baseline.Variogram(FAST.nugget, (1.0, 0.0), (20.0, 1.0), 1.0)
    expected, s2 = baseline.krige(values[:, rest], d[np.ix_(rest, rest)], d[np.ix_(block, rest)], variogram, 57)
    np.testing.assert_allclose(residual[:, block], values[:, block] - expected, atol=1e-6)
    np.testing.assert_allclose(variance[block], s2[0], rtol=1e-6)


def test_blocks_part_the_stations_and_are_no_wider_than_they_say(world):
    between = between_of(world[0])
    blocks = space_time.blocks_of(between)
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), np.arange(60))
    assert max(between.d[np.ix_(b, b)].max() for b in blocks) <= space_time.BLOCK_KM
    assert min(map(len, blocks)) < max(map(len, blocks))


def test_stations_of_one_block_are_left_out_one_by_one():
    near = Observations(
        np.arange(1), np.empty((6, 1, 3)), np.array([116.0, 116.1, 116.2]), np.full(3, 39.0), np.zeros(3)
    )
    assert [b.tolist() for b in space_time.blocks_of(between_of(near))] == [[0], [1], [2]]


def test_a_band_comes_back_from_its_vector():
    band = Band(0.3, 0.4, (25.0, 600.0), 1.5, 210.0)
    back = Band.from_vector(band.to_vector())
    np.testing.assert_allclose(
        [back.nugget, back.share, *back.ranges, back.power, back.terrain_factor], [0.3, 0.4, 25.0, 600.0, 1.5, 210.0]
    )


# ---- bands and gaps ----


@pytest.mark.parametrize("causal", [True, False])
def test_bands_add_up_and_a_causal_band_reads_no_later_hour(causal: bool):
    x = np.random.default_rng(3).normal(size=(300, 4))
    parts = space_time.bands_of(x, (2.0, 10.0), causal)
    np.testing.assert_allclose(sum(parts), x, atol=1e-12)
    changed = x.copy()
    changed[200:] += 5.0
    same = [
        np.array_equal(a[:200], b[:200])
        for a, b in zip(parts, space_time.bands_of(changed, (2.0, 10.0), causal), strict=True)
    ]
    assert same == [causal] * 3
    slow = parts[-1][50:]
    assert slow.std() < 0.4 < parts[0][50:].std()


def test_a_gap_is_kriged_from_the_hour_and_carries_the_departure_of_the_station(world):
    observations = world[0]
    system = space_time.precision(SLOW, between_of(observations))
    values = np.random.default_rng(4).normal(size=(60, 60))
    values[30:, 7] = np.nan
    filled = gaps.fill_gaps(values, system, causal=True)
    rest = np.setdiff1d(np.arange(60), [7])
    kriged = -(system[7, rest] @ values[:, rest].T) / system[7, 7]
    departure = values[29, 7] - kriged[29]
    np.testing.assert_allclose(filled[30:, 7], kriged[30:] + departure * np.exp(-np.arange(1, 31) / 12.0), rtol=1e-4)
    np.testing.assert_array_equal(filled[:, rest], values[:, rest])


def test_gaps_of_many_stations_in_one_hour_solve_the_whole_system(world):
    system = space_time.precision(SLOW, between_of(world[0]))
    values = np.random.default_rng(5).normal(size=(1, 60))
    gap = np.arange(0, 60, 3)
    values[0, gap] = np.nan
    seen = np.setdiff1d(np.arange(60), gap)
    expected = np.linalg.solve(system[np.ix_(gap, gap)], -system[np.ix_(gap, seen)] @ values[0, seen])
    np.testing.assert_allclose(gaps._krige_gaps(values, system)[0, gap], expected, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_hours_of_no_or_few_stations_go_along_time(causal: bool, world):
    system = space_time.precision(SLOW, between_of(world[0]))
    values = np.repeat(np.arange(5.0)[:, None], 60, axis=1)
    values[1] = np.nan
    values[2, 1:] = np.nan
    filled = gaps.fill_gaps(values, system, causal)
    expected = [0.0, 0.0, 0.0, 3.0, 4.0] if causal else [0.0, 1.0, 2.0, 3.0, 4.0]
    np.testing.assert_allclose(filled[:, 30], expected, atol=1e-9)
    assert filled[2, 0] == 2.0


# ---- estimates ----


@pytest.mark.parametrize("name", MODELS)
def test_an_estimate_is_nan_before_the_first_observation_and_everywhere_without_any(name: str, world):
    observations, points, *_ = world
    values = observations.values.copy()
    values[0, :40] = np.nan
    found = space_time.space_time_kriging(replace(observations, values=values), points, MODELS[name])
    assert np.isnan(found.mean[:40]).all()
    assert not np.isnan(found.mean[40:]).any()
    assert (np.diff(found.quantiles[:, 40:], axis=0) >= 0).all()
    values[0] = np.nan
    assert np.isnan(
        space_time.space_time_kriging(replace(observations, values=values), points, MODELS[name]).mean
    ).all()


def test_one_station_is_too_few(world):
    one = replace(
        world[0],
        values=world[0].values[:, :, :1],
        lon=world[0].lon[:1],
        lat=world[0].lat[:1],
        elevation=world[0].elevation[:1],
    )
    with pytest.raises(ValueError, match="needs two stations; found 1"):
        space_time.space_time_kriging(one, world[1], MODELS["causal"])


def training(world: tuple[Observations, Points, Array, Array]) -> Observations:
    return replace(world[0], hours=world[0].hours[:600], values=world[0].values[:, :600])


def error(world: tuple[Observations, Points, Array, Array], model: SpaceTime) -> float:
    """Mean absolute error of the median about the slow field, which the future or past can tell, after training."""
    found = space_time.space_time_kriging(world[0], world[1], model).quantiles[5, 600:]
    return float(np.abs(found - world[3][600:]).mean())


@pytest.mark.parametrize("name", MODELS)
def test_a_fitted_model_beats_kriging_of_the_hour_and_covers_what_it_says(name: str, world):
    observations, points, truth, slow = world
    model = space_time_fit.fit_space_time(training(world), MODELS[name], sweeps=2)
    hourly = baseline.log_kriging(observations, points, baseline.fit_variogram(training(world)))
    assert error(world, model) < 0.9 * np.abs(hourly.quantiles[5, 600:] - slow[600:]).mean()
    found = space_time.space_time_kriging(observations, points, model).quantiles[:, 600:]
    inside = (truth[600:] >= found[0]) & (truth[600:] <= found[-1])
    assert 0.85 < inside.mean() < 0.95


@pytest.mark.parametrize("name", MODELS)
def test_fitting_reduces_the_error_of_a_start_that_is_far_off(name: str, world):
    bad = Band(1.0, 0.5, (3.0, 5.0), 1.0, 1.0)
    start = replace(MODELS[name], bands=(bad,) * len(MODELS[name].bands))
    model = space_time_fit.fit_space_time(training(world), start, evaluations=25)
    assert error(world, model) < 0.9 * error(world, start)
    assert model.widths == start.widths
    assert len(model.z) == len(LEVELS)


def test_the_hours_scale_widens_the_intervals_of_an_hour_that_is_hard(world):
    observations, points, *_ = world
    values = observations.values.copy()
    values[0, 500:520] *= np.random.default_rng(7).lognormal(0, 1.0, (20, 60)).astype("f4")
    hard = replace(observations, values=values)
    scaled, plain = (space_time.space_time_kriging(hard, points, MODELS["causal"], on) for on in (True, False))
    ratio = ((scaled.quantiles[-1] - scaled.quantiles[0]) / (plain.quantiles[-1] - plain.quantiles[0])).mean(axis=1)
    assert ratio[505:520].mean() > 1.5 * ratio[300:490].mean()
