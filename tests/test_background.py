"""Covariates around the network: what helps must help, noise must do no harm, and nothing may leak."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import background, infer
from model.aqnet import AQNet, AQNetConfig
from model.background import Covariates, Fit, boxes, farness, fit, move
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points

TINY = AQNetConfig(near=12, lead_hours=24, tail_hours=12, history=6, hidden=8, attention_heads=2, head_hidden=8)
MIDNIGHT, LEAD, HOURS = 24 * 18000, 24, 60
MIDDLE = LEVELS.index(0.5)
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def network() -> AQNet:
    """Near kriging, as it starts."""
    torch.manual_seed(0)
    return AQNet(TINY).eval()


class World:
    """PM2.5 whose cube root is a smooth field, `strength` times a field of short waves, and noise; 6 by 6 degrees."""

    def __init__(self, strength: float = 0.5, stations: int = 90, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.hours = np.arange(MIDNIGHT - LEAD, MIDNIGHT - LEAD + HOURS)
        self.lon, self.lat = self.rng.uniform(110, 116, stations), self.rng.uniform(34, 40, stations)
        self.points = Points(self.rng.uniform(110, 116, 200), self.rng.uniform(34, 40, 200), np.zeros(200))
        self.waves = self.rng.normal(0, 7, (12, 2)), self.rng.uniform(0, 2 * np.pi, 12), self.rng.normal(0, 0.3, 12)
        self.strength = strength

    def drift(self, lon: Array, lat: Array) -> Array:
        """The covariate, (T, N): about 50 km between crests, slowly on its way."""
        vectors, phases, speeds = self.waves
        phase = np.stack([lon, lat], axis=-1) @ vectors.T + phases
        moving = phase[None] + speeds * np.arange(HOURS)[:, None, None]
        return np.sin(moving).mean(axis=-1) * np.sqrt(24)  # unit variance

    def truth(self, lon: Array, lat: Array) -> Array:
        """PM2.5 (T, N), ug m-3."""
        smooth = 3.6 + 0.3 * np.sin(lon / 1.5) + 0.3 * np.cos(lat / 2.0) + 0.2 * np.sin(np.arange(HOURS) / 5)[:, None]
        return np.maximum(smooth + self.strength * self.drift(lon, lat), 0.0) ** 3

    def record(self) -> Observations:
        z = np.cbrt(self.truth(self.lon, self.lat)) + self.rng.normal(0, 0.15, (HOURS, len(self.lon)))
        values = np.full((len(POLLUTANTS), HOURS, len(self.lon)), np.nan, np.float32)
        values[0] = np.where(self.rng.random(z.shape) < 0.1, np.nan, np.maximum(z, 0.0) ** 3)
        return Observations(self.hours, values, self.lon, self.lat, np.zeros(len(self.lon)))

    def covariates(self) -> Covariates:
        return known(self.drift(self.lon, self.lat), self.drift(self.points.lon, self.points.lat))


def known(stations: Array, points: Array) -> Covariates:
    """One covariate, (T, S) and (T, Q)."""
    return Covariates(stations[None], lambda hours: points[None, hours])


def only(seen: Observations, stations: NDArray[np.int64]) -> Observations:
    part = {name: getattr(seen, name)[stations] for name in ("lon", "lat", "elevation")}
    return replace(seen, values=seen.values[:, :, stations], **part)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def seen(world: World) -> Observations:
    return world.record()


@pytest.fixture(scope="module")
def plain(network: AQNet, world: World, seen: Observations) -> Estimate:
    return infer.estimate(network, seen, world.points)


@pytest.fixture(scope="module")
def helped(network: AQNet, world: World, seen: Observations) -> Estimate:
    return background.estimate(network, seen, world.points, world.covariates())


def assert_close(a: Estimate, b: Estimate) -> None:
    """Up to rounding."""
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(a.quantiles, b.quantiles, rtol=1e-4, atol=1e-3)


def assert_equal(a: Estimate, b: Estimate, hours: slice = slice(None)) -> None:
    np.testing.assert_array_equal(a.mean[hours], b.mean[hours])
    np.testing.assert_array_equal(a.quantiles[:, hours], b.quantiles[:, hours])


def rmse(found: Estimate, world: World, hours: slice = slice(LEAD, None)) -> float:
    """Of the mean, ug m-3, from the second day."""
    return float(np.sqrt(np.mean((found.mean - world.truth(world.points.lon, world.points.lat))[hours] ** 2)))


# ---- it helps ----


def test_a_covariate_that_carries_what_stations_miss_helps(plain: Estimate, helped: Estimate, world: World):
    assert rmse(helped, world) < 0.6 * rmse(plain, world)


def test_it_helps_in_final_mode(network: AQNet, world: World, seen: Observations):
    without = infer.estimate(network, seen, world.points, "final")
    found = background.estimate(network, seen, world.points, world.covariates(), "final")
    assert rmse(found, world) < 0.6 * rmse(without, world)
    assert rmse(found, world, slice(0, LEAD)) < 0.6 * rmse(without, world, slice(0, LEAD))


def test_intervals_narrow_and_still_cover(plain: Estimate, helped: Estimate, world: World):
    truth = world.truth(world.points.lon, world.points.lat)[LEAD:]
    low, high = (helped.quantiles[k, LEAD:] for k in (0, -1))
    assert (high - low).mean() < 0.8 * (plain.quantiles[-1] - plain.quantiles[0])[LEAD:].mean()
    assert 0.85 < ((low <= truth) & (truth <= high)).mean() <= 1


def test_the_sign_and_the_unit_of_a_covariate_do_not_matter(
    network: AQNet, world: World, seen: Observations, helped: Estimate
):
    given = world.covariates()
    turned = Covariates(-1000 * given.stations, lambda hours: -1000 * given.points(hours))
    found = background.estimate(network, seen, world.points, turned)
    np.testing.assert_allclose(found.mean, helped.mean, rtol=1e-3)


# ---- it does no harm ----


def noise(world: World, seed: int, static: bool) -> Covariates:
    """Short waves as those of the truth, but others."""
    other = World(seed=1000 + seed)
    at = [other.drift(lon, lat) for lon, lat in ((world.lon, world.lat), (world.points.lon, world.points.lat))]
    return known(*(np.broadcast_to(x[:1], x.shape) if static else x for x in at))


@pytest.mark.parametrize("static", [False, True])
def test_noise_does_no_harm(network: AQNet, world: World, seen: Observations, plain: Estimate, static: bool):
    worse = [
        rmse(background.estimate(network, seen, world.points, noise(world, seed, static)), world) / rmse(plain, world)
        for seed in range(4)
    ]
    assert np.mean(worse) < 1.005
    assert max(worse) < 1.02


def test_noise_beside_a_useful_covariate_takes_little_from_it(
    network: AQNet, world: World, seen: Observations, helped: Estimate
):
    parts = world.covariates(), noise(world, 7, static=True)
    both = Covariates(
        np.concatenate([part.stations for part in parts]), lambda h: np.concatenate([part.points(h) for part in parts])
    )
    assert rmse(background.estimate(network, seen, world.points, both), world) < 1.03 * rmse(helped, world)


def test_a_covariate_that_is_the_same_everywhere_changes_nothing(
    network: AQNet, world: World, seen: Observations, plain: Estimate
):
    flat = known(np.full((HOURS, 90), 3.0), np.full((HOURS, 200), 3.0))
    assert_equal(background.estimate(network, seen, world.points, flat), plain)


def test_an_offset_is_not_lost_in_rounding(network: AQNet, world: World, seen: Observations, helped: Estimate):
    """A pressure in Pa, say."""
    given = world.covariates()
    high = Covariates(given.stations + 101325.0, lambda hours: given.points(hours) + 101325.0)
    np.testing.assert_allclose(background.estimate(network, seen, world.points, high).mean, helped.mean, rtol=1e-3)


# ---- where it is unknown ----


def test_a_covariate_that_is_unknown_leaves_every_bit(
    network: AQNet, world: World, seen: Observations, plain: Estimate
):
    nothing = known(np.full((HOURS, 90), np.nan), np.full((HOURS, 200), np.nan))
    assert_equal(background.estimate(network, seen, world.points, nothing), plain)


def test_a_place_where_it_is_unknown_has_the_plain_estimate(
    network: AQNet, world: World, seen: Observations, plain: Estimate, helped: Estimate
):
    here = world.drift(world.points.lon, world.points.lat)
    here[:, :50] = np.nan
    here[40] = np.nan
    found = background.estimate(network, seen, world.points, known(world.drift(world.lon, world.lat), here))
    np.testing.assert_array_equal(found.mean[:, :50], plain.mean[:, :50])
    np.testing.assert_array_equal(found.quantiles[:, 40], plain.quantiles[:, 40])
    np.testing.assert_array_equal(np.delete(found.mean, 40, axis=0)[:, 50:], np.delete(helped.mean, 40, axis=0)[:, 50:])
    assert (found.mean[LEAD:40, 50:] != plain.mean[LEAD:40, 50:]).all()


def test_stations_and_hours_where_it_is_unknown_cost_little(
    network: AQNet, world: World, seen: Observations, helped: Estimate, plain: Estimate
):
    there = world.drift(world.lon, world.lat)
    there[:, :20] = np.nan
    there[5:15] = np.nan
    gaps = known(there, world.drift(world.points.lon, world.points.lat))
    found = rmse(background.estimate(network, seen, world.points, gaps), world)
    assert found < 0.8 * rmse(plain, world)
    assert found >= 0.98 * rmse(helped, world)


def test_few_stations_use_no_covariate(network: AQNet, world: World, seen: Observations):
    few = only(seen, np.flatnonzero(boxes(world.lon, world.lat) < background.FEWEST_GROUPS - 1))
    given = known(world.drift(few.lon, few.lat), world.drift(world.points.lon, world.points.lat))
    assert_equal(background.estimate(network, few, world.points, given), infer.estimate(network, few, world.points))


def test_one_station_is_enough_to_run(network: AQNet, world: World, seen: Observations):
    one = only(seen, np.array([3]))
    given = known(world.drift(one.lon, one.lat), world.drift(world.points.lon, world.points.lat))
    assert_equal(background.estimate(network, one, world.points, given), infer.estimate(network, one, world.points))


# ---- it does not leak ----


@pytest.mark.parametrize("hour", [30, 47, 48])
def test_what_comes_after_an_hour_never_changes_it(
    network: AQNet, world: World, seen: Observations, helped: Estimate, hour: int
):
    """Neither covariates nor observations, interim mode."""
    rng, late = np.random.default_rng(1), np.arange(HOURS) > hour
    there, here = world.drift(world.lon, world.lat), world.drift(world.points.lon, world.points.lat)
    there[late], here[late] = rng.normal(0, 5, (late.sum(), 90)), rng.normal(0, 5, (late.sum(), 200))
    values = seen.values.copy()
    values[:, late] = rng.uniform(0, 500, values[:, late].shape)
    found = background.estimate(network, replace(seen, values=values), world.points, known(there, here))
    np.testing.assert_array_equal(found.mean[: hour + 1], helped.mean[: hour + 1])
    np.testing.assert_array_equal(found.quantiles[:, : hour + 1], helped.quantiles[:, : hour + 1])
    assert (found.mean[hour + 1] != helped.mean[hour + 1]).any()


def test_a_station_that_does_not_report_does_not_count(network: AQNet, world: World, seen: Observations):
    """Hidden stations are out of the record, or in it without values: nothing of them matters, no covariate there."""
    hidden = np.arange(60, 90)
    there, here = world.drift(world.lon, world.lat), world.drift(world.points.lon, world.points.lat)
    visible = background.estimate(network, only(seen, np.arange(60)), world.points, known(there[:, :60], here))
    values = seen.values.copy()
    values[:, :, hidden] = np.nan
    there[:, hidden] = 1e6
    found = background.estimate(network, replace(seen, values=values), world.points, known(there, here))
    assert_close(found, visible)


def test_points_do_not_change_each_other(network: AQNet, world: World, seen: Observations, helped: Estimate):
    chosen = np.array([7, 150])
    few = Points(*(part[chosen] for part in (world.points.lon, world.points.lat, world.points.elevation)))
    here = world.drift(few.lon, few.lat)
    found = background.estimate(network, seen, few, known(world.drift(world.lon, world.lat), here))
    np.testing.assert_allclose(found.mean, helped.mean[:, chosen], rtol=1e-4)


@pytest.mark.parametrize("first", [LEAD - 24, 3])
def test_a_day_does_not_depend_on_where_the_record_begins(
    network: AQNet, world: World, seen: Observations, helped: Estimate, first: int
):
    """Given the lead of the second day, from its midnight: hour 48 of the record looks back to hour 24."""
    part = slice(first, None)
    late = replace(seen, hours=seen.hours[part], values=seen.values[:, part])
    there, here = world.drift(world.lon, world.lat), world.drift(world.points.lon, world.points.lat)
    found = background.estimate(network, late, world.points, known(there[part], here[part]))
    np.testing.assert_allclose(found.mean[48 - first :], helped.mean[48:], rtol=1e-5)


# ---- its parts ----


def products(x: Array, y: Array) -> Array:
    """Sums (G, M, M) of (G, n, J) regressors and (G, n) values."""
    v = np.concatenate([x, y[..., None]], axis=-1)
    return np.einsum("gni,gnj->gij", v, v)


def test_fit_recovers_known_coefficients():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 50, 2))
    y = x @ [0.7, -0.3] + 0.1 * rng.normal(size=(40, 50))
    found = fit(products(x, y))
    np.testing.assert_allclose(found.beta, [0.7, -0.3], atol=0.01)
    assert found.ratio == pytest.approx(0.1 / np.sqrt(0.7**2 + 0.3**2 + 0.1**2), rel=0.1)


def test_fit_of_noise_is_nothing_mostly():
    rng = np.random.default_rng(0)
    found = [fit(products(rng.normal(size=(40, 50, 1)), rng.normal(size=(40, 50)))).beta[0] for _ in range(60)]
    assert np.mean(np.array(found) == 0) > 0.7
    assert np.abs(found).max() < 0.1


def test_fit_sees_that_groups_err_together():
    """Within a group all values are one: 2000 of them say as little as 10 do."""
    rng = np.random.default_rng(0)
    alike = np.broadcast_to(rng.normal(size=(60, 10, 1, 2)), (60, 10, 200, 2))
    found = fit(np.stack([products(part[..., :1], part[..., 1]) for part in alike]))
    assert np.mean(found.beta == 0) > 0.7
    assert (found.ratio[found.beta[:, 0] == 0] == 1).all()


def test_fit_without_regressors_or_values():
    nothing = fit(np.zeros((3, 5, 2, 2)))
    assert isinstance(nothing, Fit)
    np.testing.assert_array_equal(nothing.beta, np.zeros((3, 1)))
    np.testing.assert_array_equal(nothing.ratio, np.ones(3))


def test_fit_of_the_same_covariate_twice_shares_it():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(40, 50, 1)), 2, axis=-1)
    found = fit(products(x, x[..., 0] + 0.1 * rng.normal(size=(40, 50))))
    np.testing.assert_allclose(found.beta, [0.5, 0.5], atol=0.02)


@given(
    st.floats(0.5, 6),
    st.floats(-2, 2),
    st.floats(0.1, 1),
    st.lists(st.floats(0, 5), min_size=3, max_size=3).map(sorted),
)
def test_moved_quantiles_stay_in_order_and_not_below_zero(level: float, shift: float, ratio: float, z: list[float]):
    quantiles = np.array(z)[:, None, None] ** 3
    found, mean = move(quantiles, np.full((1, 1), level**3), np.full((1, 1), shift), np.full((1, 1), ratio), 1)
    assert all((a <= b).all() for a, b in pairwise(found))
    assert (found >= 0).all()
    assert (mean >= 0).all()


def test_the_mean_moves_as_that_of_a_normal_does():
    rng = np.random.default_rng(0)
    z = rng.normal(size=1_000_000)
    before, after = (3.0 + 0.5 * z) ** 3, (3.8 + 0.25 * z) ** 3
    quantiles = np.quantile(before, [0.05, 0.5, 0.95])[:, None, None]
    found, mean = move(quantiles, np.full((1, 1), before.mean()), np.full((1, 1), 0.8), np.full((1, 1), 0.5), 1)
    assert mean[0, 0] == pytest.approx(after.mean(), rel=0.005)
    np.testing.assert_allclose(found[:, 0, 0], np.quantile(after, [0.05, 0.5, 0.95]), rtol=0.01)


def test_farness_goes_from_the_stations_distance_to_fifty_kilometres():
    np.testing.assert_allclose(farness(np.array([0.0, 5.0, 50.0, 300.0]), 5.0), [0, 0, 1, 1])
    assert 0 < farness(np.array([15.0]), 5.0)[0] < 1
    assert farness(np.array([24.0]), 400.0)[0] == 0  # a sparse network has no nearer judge


def test_boxes_hold_cities_together_across_the_date_line():
    found = boxes(np.array([179.9, -179.9, 180.1, 0.5]), np.array([10.5, 10.5, 10.5, 10.5]))
    assert found[1] == found[2]
    assert len(set(found)) == 3


def test_levels_need_the_median(network: AQNet, world: World, seen: Observations):
    with pytest.raises(ValueError, match=r"expected levels with the median, 0\.5"):
        next(background.day_blocks(network, seen, world.points, (0.05, 0.95), world.covariates()))
