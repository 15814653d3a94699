"""Baselines and geometry against brute force, closed forms and simulated fields of known variogram."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Geod

from model import baseline, geometry
from model.baseline import METHODS, Estimator, Variogram
from model.windows import LEVELS, POLLUTANTS, Observations, Points

Array = NDArray[np.float64]

TRUE = Variogram(nugget=0.05, sills=(0.15, 0.4), ranges=(15.0, 150.0))


def observe(pm2p5: Array, lon: Array, lat: Array, elevation: Array | None = None) -> Observations:
    values = np.full((len(POLLUTANTS), *pm2p5.shape), np.nan, np.float32)
    values[0] = pm2p5
    return Observations(np.arange(len(pm2p5)), values, lon, lat, np.zeros(len(lon)) if elevation is None else elevation)


def at(lon: Array, lat: Array) -> Points:
    return Points(lon, lat, np.zeros(len(lon)))


def places(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    return rng.uniform(113, 117, n), rng.uniform(36, 39, n)


def simulate(variogram: Variogram, lon: Array, lat: Array, hours: int, rng: np.random.Generator) -> Array:
    """Independent draws (hours, S) of log(PM2.5 + 1), mean 4, at places; the nugget is independent noise."""
    covariance = variogram.covariance(geometry.distance_matrix(lon, lat, lon, lat)) + variogram.nugget * np.eye(
        len(lon)
    )
    return 4.0 + rng.normal(size=(hours, len(lon))) @ np.linalg.cholesky(covariance).T


@pytest.fixture(scope="module")
def network() -> tuple[Observations, Points, Array]:
    """120 stations with a value in twenty missing, 30 points, 300 hours of the field `TRUE`; log truth at points."""
    rng = np.random.default_rng(1)
    lon, lat = places(rng, 150)
    field = simulate(TRUE, lon, lat, 300, rng)
    seen = np.where(rng.random((300, 120)) < 0.05, np.nan, np.expm1(field[:, :120]))
    return observe(seen, lon[:120], lat[:120]), at(lon[120:], lat[120:]), field[:, 120:]


# ---- geometry ----

lons = st.floats(-180, 360, allow_nan=False)
lats = st.sampled_from([-90.0, 90.0, 0.0]) | st.floats(-90, 90, allow_nan=False)
lists = st.lists(st.tuples(lons, lats), min_size=1, max_size=12)


def geodesic(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> Array:
    geod = Geod(ellps="WGS84")
    return np.array([[geod.inv(*p, *q)[2] / 1000 for q in b] for p in a])


@given(lists, lists, st.integers(1, 14))
def test_neighbours_are_those_of_brute_force_also_at_poles_and_date_line(points, stations, k):
    found, distance = geometry.neighbours(*np.array(points).T, *np.array(stations).T, k)
    every = geodesic(points, stations)
    assert found.dtype == np.int64
    assert found.shape == distance.shape == (len(points), min(k, len(stations)))
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(distance, np.take_along_axis(every, found, axis=1), atol=1e-6)


def test_neighbours_of_a_dense_network_seen_from_afar_are_exact():
    rng = np.random.default_rng(0)
    lon, lat = 116 + rng.normal(0, 0.3, 400), 40 + rng.normal(0, 0.3, 400)
    q_lon, q_lat = rng.uniform(-180, 180, 50), rng.uniform(-90, 90, 50)
    _, distance = geometry.neighbours(q_lon, q_lat, lon, lat, 48)
    every = geodesic(list(zip(q_lon, q_lat, strict=True)), list(zip(lon, lat, strict=True)))
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :48], rtol=1e-9)


@given(lists, lists)
def test_distance_matrix_is_within_its_stated_error_of_the_geodesic(a, b):
    np.testing.assert_allclose(
        geometry.distance_matrix(*np.array(a).T, *np.array(b).T), geodesic(a, b), rtol=1.3e-4, atol=1e-3
    )


def test_stations_either_side_of_the_date_line_are_neighbours():
    index, distance = geometry.neighbours(
        np.array([179.99]), np.array([10.0]), np.array([170.0, -179.99]), np.array([10.0, 10.0]), 1
    )
    assert index.item() == 1
    assert distance.item() == pytest.approx(2.19, abs=0.01)


def test_terrain_distance_counts_a_kilometre_of_height_as_400_km():
    assert geometry.terrain_distance(np.array(300.0), np.array(-1000.0)) == pytest.approx(500.0)


# ---- inverse distance, nearest, mean ----


@pytest.mark.parametrize(("k", "power"), [(1, 1.0), (8, 1.0), (20, 2.0)])
def test_idw_is_the_weighted_mean_of_the_nearest_valid_stations(k, power):
    rng = np.random.default_rng(2)
    lon, lat = places(rng, 25)
    values = np.where(rng.random((12, 25)) < 0.3, np.nan, rng.lognormal(3, 1, (12, 25)))
    q_lon, q_lat = places(rng, 7)
    found = baseline.idw(observe(values, lon, lat), at(q_lon, q_lat), k, power).mean
    d = geodesic(list(zip(q_lon, q_lat, strict=True)), list(zip(lon, lat, strict=True)))
    for hour, point in np.ndindex(found.shape):
        valid = [s for s in np.argsort(d[point]) if not np.isnan(values[hour, s])][:k]
        weights = d[point, valid] ** -power
        assert found[hour, point] == pytest.approx((weights @ values[hour, valid]) / weights.sum(), rel=1e-4)


def test_nearest_and_mean_by_hand():
    observations = observe(np.array([[10.0, 20.0, np.nan]]), np.array([0.0, 1.0, 2.0]), np.zeros(3))
    points = at(np.array([0.1, 2.1]), np.zeros(2))
    np.testing.assert_allclose(baseline.nearest(observations, points).mean, [[10.0, 20.0]])
    np.testing.assert_allclose(baseline.hourly_mean(observations, points).mean, [[15.0, 15.0]])


# ---- kriging ----


def ordinary_kriging(values: Array, between: Array, towards: Array, variogram: Variogram) -> tuple[float, float]:
    """One point by the bordered system of semivariances (Cressie 1993, eq. 3.2.12): an independent formulation."""
    n = len(values)
    matrix = np.zeros((n + 1, n + 1))
    matrix[:n, :n] = variogram.semivariance(between) - variogram.nugget * np.eye(n)
    matrix[n, :n] = matrix[:n, n] = 1.0
    right = np.append(variogram.semivariance(towards), 1.0)
    weights = np.linalg.solve(matrix, right)
    return float(weights[:n] @ values), float(weights @ right)


def test_kriging_solves_the_textbook_system_with_gaps():
    rng = np.random.default_rng(3)
    lon, lat = places(rng, 20)
    values = np.where(rng.random((9, 20)) < 0.4, np.nan, rng.normal(size=(9, 20)))
    values[4] = values[3]
    between = geometry.distance_matrix(lon, lat, lon, lat)
    towards = geometry.distance_matrix(*places(rng, 6), lon, lat)
    estimate, variance = baseline.krige(values, between, towards, TRUE, k=7)
    for hour, point in np.ndindex(estimate.shape):
        valid = [s for s in np.argsort(towards[point]) if not np.isnan(values[hour, s])][:7]
        expected = ordinary_kriging(values[hour, valid], between[np.ix_(valid, valid)], towards[point, valid], TRUE)
        assert (estimate[hour, point], variance[hour, point]) == pytest.approx(expected, abs=1e-6)


def test_kriging_without_nugget_returns_the_observations_with_no_variance():
    rng = np.random.default_rng(4)
    lon, lat = places(rng, 30)
    d = geometry.distance_matrix(lon, lat, lon, lat)
    values = rng.normal(size=(5, 30))
    estimate, variance = baseline.krige(values, d, d, replace(TRUE, nugget=0.0), k=12)
    np.testing.assert_allclose(estimate, values, atol=1e-5)
    np.testing.assert_allclose(variance, 0.0, atol=1e-5)


@given(st.floats(-5, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_kriging_weights_sum_to_one(constant, k, seed):
    rng = np.random.default_rng(seed)
    lon, lat = places(rng, 20)
    lon[1], lat[1] = lon[0], lat[0]  # two stations at one place
    towards = geometry.distance_matrix(*places(rng, 4), lon, lat)
    values = np.where(rng.random((3, 20)) < 0.2, np.nan, constant)
    values[0] = constant
    between = geometry.distance_matrix(lon, lat, lon, lat)
    estimate, variance = baseline.krige(values, between, towards, replace(TRUE, nugget=0.0), k)
    np.testing.assert_allclose(estimate[0], constant, atol=1e-6)
    assert (variance[0] > 0).all()


def test_variogram_of_a_simulated_field_is_recovered(network):
    fitted = baseline.fit_variogram(network[0])
    lag = np.array([3.0, 10.0, 30.0, 100.0, 200.0])
    np.testing.assert_allclose(fitted.semivariance(lag), TRUE.semivariance(lag), rtol=0.1)
    assert fitted.nugget == pytest.approx(TRUE.nugget, rel=0.5)


def test_variogram_ignores_what_all_stations_share(network):
    observations = network[0]
    shift = np.random.default_rng(0).normal(0, 1, (1, len(observations.hours), 1))
    moved = replace(observations, values=np.expm1(np.log1p(observations.values) + shift + 4))
    lag = np.array([3.0, 30.0, 200.0])
    np.testing.assert_allclose(
        baseline.fit_variogram(moved).semivariance(lag),
        baseline.fit_variogram(observations).semivariance(lag),
        rtol=1e-3,
    )


def test_variogram_needs_pairs_in_five_lag_classes():
    observations = observe(np.array([[1.0, 2.0, 3.0]]), np.array([0.0, 0.1, 0.2]), np.zeros(3))
    with pytest.raises(ValueError, match="5 lag classes up to 300 km; found 2"):
        baseline.fit_variogram(observations)


def test_kriging_errors_have_the_variance_that_kriging_says(network):
    observations, points, truth = network
    between = geometry.distance_matrix(observations.lon, observations.lat, observations.lon, observations.lat)
    towards = geometry.distance_matrix(points.lon, points.lat, observations.lon, observations.lat)
    m, s2 = baseline.krige(np.log1p(observations.values[0].astype(float)), between, towards, TRUE, k=48)
    standardised = (m - truth) / np.sqrt(s2)
    assert standardised.mean() == pytest.approx(0.0, abs=0.1)
    assert standardised.var() == pytest.approx(1.0, abs=0.05)


def test_lognormal_quantiles_and_mean_are_calibrated(network):
    observations, points, truth = network
    estimate = baseline.log_kriging(observations, points, TRUE)
    below = (np.expm1(truth) <= estimate.quantiles).mean(axis=(1, 2))
    np.testing.assert_allclose(below, LEVELS, atol=0.03)
    assert estimate.mean.mean() == pytest.approx(np.expm1(truth).mean(), rel=0.05)


def test_terrain_factor_prefers_the_station_at_the_points_own_height():
    lon, lat = np.array([115.0, 115.2]), np.array([38.0, 38.0])
    observations = observe(np.array([[10.0, 100.0]]), lon, lat, elevation=np.array([1000.0, 0.0]))
    points = Points(np.array([115.05]), np.array([38.0]), np.array([0.0]))
    plain = baseline.log_kriging(observations, points, replace(TRUE, nugget=0.001)).mean
    terrain = baseline.log_kriging(observations, points, replace(TRUE, nugget=0.001, terrain_factor=400.0)).mean
    assert plain < 40 < 80 < terrain


# ---- optimal interpolation ----


def test_oi_keeps_a_constant_and_its_background_far_away():
    rng = np.random.default_rng(5)
    lon, lat = places(rng, 20)
    points = at(np.append(lon[:3], 60.0), np.append(lat[:3], 20.0))
    np.testing.assert_allclose(
        baseline.gridpp_oi(observe(np.full((2, 20), 30.0), lon, lat), points).mean, 30.0, rtol=1e-5
    )
    values = rng.lognormal(3, 1, (2, 20))
    far = baseline.gridpp_oi(observe(values, lon, lat), points).mean[:, 3]
    np.testing.assert_allclose(far, np.expm1(np.log1p(values).mean(axis=1)), rtol=0.2)


def test_oi_beats_the_mean_and_trails_the_true_kriging(network):
    observations, points, truth = network
    observations = replace(observations, values=observations.values[:, :60], hours=observations.hours[:60])
    truth = truth[:60]
    error = {
        name: np.abs(np.log1p(method(observations, points).mean) - truth).mean()
        for name, method in (("oi", baseline.gridpp_oi), ("mean", baseline.hourly_mean))
    }
    best = baseline.log_kriging(observations, points, TRUE).quantiles[LEVELS.index(0.5)]
    assert np.abs(np.log1p(best) - truth).mean() < error["oi"] < 0.8 * error["mean"]


# ---- every method ----

every_method = pytest.mark.parametrize("method", [pytest.param(m, id=name) for name, m in METHODS.items()])


@every_method
def test_each_method_gives_whole_ordered_nonnegative_estimates(method: Estimator, network):
    observations, points, _ = network
    estimate = method(replace(observations, values=observations.values[:, :5], hours=observations.hours[:5]), points)
    assert estimate.mean.shape == (5, 30)
    assert estimate.mean.dtype == np.float32
    assert (estimate.mean >= 0).all()
    if estimate.quantiles is not None:
        assert estimate.quantiles.shape == (len(LEVELS), 5, 30)
        assert (np.diff(estimate.quantiles, axis=0) >= 0).all()


@every_method
def test_each_method_has_no_estimate_in_an_hour_without_data_and_one_with_a_single_station(method: Estimator):
    values = np.full((2, 3), np.nan)
    values[1, 2] = 42.0
    observations = observe(values, np.array([115.0, 115.1, 115.2]), np.full(3, 38.0))
    mean = method(observations, at(np.array([115.05]), np.array([38.0]))).mean
    assert np.isnan(mean[0]).all()
    assert 40 < mean[1, 0] < 60


@every_method
def test_each_method_reads_its_own_hour_and_pm2p5_only(method: Estimator, network):
    observations, points, _ = network
    few = replace(observations, values=observations.values[:, :6], hours=observations.hours[:6])
    other = few.values.copy()
    other[1:] = 7.0
    other[0, 3:] *= 2.0
    np.testing.assert_array_equal(method(replace(few, values=other), points).mean[:3], method(few, points).mean[:3])


@every_method
def test_each_method_is_the_same_whatever_the_order_of_stations(method: Estimator, network):
    observations, points, _ = network
    order = np.random.default_rng(6).permutation(len(observations.lon))
    few = replace(observations, values=observations.values[:, :4], hours=observations.hours[:4])
    shuffled = Observations(few.hours, few.values[:, :, order], few.lon[order], few.lat[order], few.elevation[order])
    np.testing.assert_allclose(method(shuffled, points).mean, method(few, points).mean, rtol=1e-4)


def test_shipped_variograms_are_the_tables():
    assert METHODS["log_kriging_terrain"].keywords == {"variogram": baseline.CNEMC_2019_TERRAIN}
    assert isinstance(METHODS["idw_k20_p2"], partial)


def test_lag_classes_whose_pairs_all_agree_tell_nothing_of_the_field():
    """As in a run of one hour, where a class may have a single pair."""
    rng = np.random.default_rng(3)
    values = rng.lognormal(3, 0.5, (1, 1, 30))
    values[0, 0, 1] = values[0, 0, 0]
    lon, lat = rng.uniform(110, 116, 30), rng.uniform(35, 40, 30)
    lon[:2], lat[:2] = (100.0, 100.02), (30.0, 30.0)  # the only pair within 2 km, and equal
    one_hour = Observations(np.zeros(1, np.int64), values, lon, lat, np.zeros(30), np.zeros((30, 4)))
    lag, semivariance, _ = baseline.empirical_variogram(one_hour, 0.0, baseline.LAG_EDGES)
    assert (semivariance > 0).all()
    assert lag[0] > 2
    assert np.isfinite(baseline.fit_variogram(one_hour).nugget)
