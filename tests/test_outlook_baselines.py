"""The outlook mode's baselines against brute force and known truth, on SIMULATED series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model import baseline
from model.outlook_baselines import (
    METHODS,
    Series,
    boosting,
    climatology,
    damped_persistence,
    dress,
    dressed,
    filled,
    kriging_share,
    level,
    lstm,
    patchtst,
    pattern,
    persistence,
    ridge,
    series,
    spread,
)
from model.outlook_inputs import DAY, HISTORY, HORIZON
from model.windows import LEVELS, Observations, Points

FIRST = 420_000  # hours since 1970, a midnight UTC
ISSUES = np.array([1250, 1262, 1301])


def record(missing: float = 0.1, memory: float = 12.0, cycle: float = 0.4, stations: int = 16) -> Observations:
    """3.5 + a daily cycle + AR(1) anomalies of 0.5."""
    rng, hours = np.random.default_rng(1), 1500
    phi = np.exp(-1 / memory)
    anomaly = np.empty((hours, stations))
    anomaly[0] = 0.5 * rng.standard_normal(stations)
    for t in range(1, hours):
        anomaly[t] = phi * anomaly[t - 1] + 0.5 * np.sqrt(1 - phi**2) * rng.standard_normal(stations)
    z = 3.5 + cycle * np.cos(2 * np.pi * np.arange(hours) / DAY)[:, None] + anomaly
    values = np.full((6, hours, stations), np.nan, np.float32)
    values[0] = np.where(rng.random(z.shape) < missing, np.nan, np.expm1(z))
    lon, lat = rng.uniform(110, 116, stations), rng.uniform(34, 39, stations)
    return Observations(FIRST + np.arange(hours), values, lon, lat, rng.uniform(0, 500, stations))


def data(**options: float) -> Series:
    return series(record(**options), 900, 1200, train_step=7, check_step=11)  # type: ignore[arg-type]


def test_series_keeps_targets_in_their_hours() -> None:
    found = data()
    assert found.train[0] == HISTORY
    assert found.train[-1] + HORIZON <= 900
    assert found.validation[0] == 900
    assert found.validation[-1] + HORIZON <= 1200
    np.testing.assert_allclose(found.truth(ISSUES)[1, 3, :5], found.z[3, 1262:1267])
    np.testing.assert_allclose(found.history(ISSUES)[1, 3, -2:], found.z[3, 1260:1262])


def test_filled_level_and_pattern_against_loops() -> None:
    history = data(missing=0.6).history(ISSUES)
    history[0, 0] = np.nan
    for i, s in ((0, 0), (1, 2), (2, 5)):
        row = history[i, s]
        known = row[np.isfinite(row)]
        mean = known.mean() if len(known) else 3.5
        assert level(history)[i, s] == pytest.approx(mean, rel=1e-5)
        last, expected = mean, []
        for value in row:
            last = value if np.isfinite(value) else last
            expected.append(last)
        np.testing.assert_allclose(filled(history)[i, s], expected, rtol=1e-5)
        for h in range(DAY):
            same = row[h::DAY][np.isfinite(row[h::DAY])]
            assert pattern(history)[i, s, h] == pytest.approx(same.mean() if len(same) else mean, rel=1e-5)


def test_persistence_repeats_the_last_known_value() -> None:
    d = data()
    found = persistence(d)(ISSUES)
    for i, issue in enumerate(ISSUES):
        past = d.z[4, :issue]
        assert (found[i, 4] == past[np.isfinite(past)][-1]).all()


def test_damped_persistence_is_least_squares_towards_the_better_reference() -> None:
    d = data()
    found = damped_persistence(d)(ISSUES)
    history, truth = d.history(d.train), d.truth(d.train)
    daily = pattern(history)  # the series have a daily cycle: the pattern is the best of the references
    lead = 5
    x = (filled(history)[..., -1] - daily[..., -1]).ravel()
    y = (truth[..., lead - 1] - daily[..., (lead - 1) % DAY]).ravel()
    weight = np.linalg.lstsq(x[np.isfinite(y), None].astype(float), y[np.isfinite(y)], rcond=None)[0][0]
    now = d.history(ISSUES)
    reference = pattern(now)
    expected = reference[..., lead - 1] + weight * (filled(now)[..., -1] - reference[..., -1])
    np.testing.assert_allclose(found[..., lead - 1], expected, rtol=1e-4)
    assert weight == pytest.approx(np.exp(-5 / 12), abs=0.12)


def test_climatology_is_the_mean_of_the_hour_of_training_where_levels_stay() -> None:
    d = data()
    found = climatology(d)(ISSUES)
    end = (d.train[-1] + HORIZON) // DAY * DAY
    for lead in (1, 30):
        hour = (ISSUES[0] + lead - 1) % DAY
        assert found[0, 3, lead - 1] == pytest.approx(np.nanmean(d.z[3, :end][hour::DAY]), rel=1e-5)


def test_climatology_is_that_of_the_last_14_days_where_levels_drift() -> None:
    o = record()
    o.values[0, 800:] *= 4
    d = series(o, 900, 1200)
    found = climatology(d)(ISSUES)
    past = d.z[3, ISSUES[0] - HISTORY : ISSUES[0]]
    assert found[0, 3, 0] == pytest.approx(np.nanmean(past[::DAY]), rel=1e-5)


def best_rmse(d: Series, lead: int) -> float:
    """Error of the best forecast of the AR(1) without missing values."""
    hour = ISSUES[:, None] + lead - 1
    cycle = 3.5 + 0.4 * np.cos(2 * np.pi * hour / DAY)
    now = d.z[:, ISSUES - 1].T - 3.5 - 0.4 * np.cos(2 * np.pi * (ISSUES[:, None] - 1) / DAY)
    return float(np.sqrt(np.mean((cycle + np.exp(-lead / 12) * now - d.z[:, ISSUES + lead - 1].T) ** 2)))


def rmse(d: Series, z: np.ndarray, lead: int) -> float:
    return float(np.sqrt(np.nanmean((z[..., lead - 1] - d.truth(ISSUES)[..., lead - 1]) ** 2)))


def test_ridge_and_boosting_come_near_the_best_forecast() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is a development extra")
    d = data(missing=0.0)
    naive = persistence(d)(ISSUES)
    for method in (ridge(d, alphas=(10.0,)), boosting(d, rows=40_000, trees=40)):
        z = method(ISSUES)
        assert z.shape == (3, 16, HORIZON)
        for lead in (3, 12, 36):
            assert rmse(d, z, lead) < 1.4 * best_rmse(d, lead)
        assert rmse(d, z, 12) < 0.8 * rmse(d, naive, 12)


def test_ridge_is_the_closed_form_of_sklearn_a_lead() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is a development extra")
    d = data(missing=0.0)
    calls = []

    class Spy(linear.Ridge):  # type: ignore[misc, name-defined]
        def fit(self, x: np.ndarray, y: np.ndarray) -> Spy:
            calls.append((x, y))
            return super().fit(x, y)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "Ridge", Spy)
        z = ridge(d, rows=2000, alphas=(50.0,))(d.train[:1])
    x, y = (part.astype(np.float64) for part in calls[6])
    mean = x.mean(0)
    weight = np.linalg.solve((x - mean).T @ (x - mean) + 50 * np.eye(x.shape[1]), (x - mean).T @ (y - y.mean()))
    row = np.flatnonzero(np.isclose(y, d.z[2, d.train[0] + 6]))
    assert len(calls) == HORIZON
    expected = y.mean() + (x[row] - mean) @ weight
    assert np.abs(expected - z[0, 2, 6]).min() < 1e-3


def test_lstm_learns_and_reads_no_hour_after_the_issue_time() -> None:
    d = data()
    method = lstm(d, steps=30, batch=64)
    before = method(ISSUES)
    spoilt = d.z.copy()
    d.z[:, ISSUES[-1] :] = 9.0
    np.testing.assert_array_equal(method(ISSUES[-1:]), before[-1:])
    d.z[:] = spoilt
    d.z[:, ISSUES[-1] - 1] = 9.0
    assert not np.array_equal(method(ISSUES[-1:]), before[-1:])
    d.z[:] = spoilt
    assert rmse(d, before, 24) < rmse(d, persistence(d)(ISSUES), 24)


def test_patchtst_reads_no_hour_after_the_issue_time() -> None:
    pytest.importorskip("transformers", reason="transformers is a development extra")
    d = data()
    method = patchtst(d, steps=4, batch=16)
    before = method(ISSUES)
    d.z[:, ISSUES[-1] :] = 9.0
    np.testing.assert_array_equal(method(ISSUES[-1:]), before[-1:])
    assert before.shape == (3, 16, HORIZON)
    assert np.isfinite(before).all()


@pytest.mark.parametrize("name", ["persistence", "damped_persistence", "climatology"])
def test_forecasts_do_not_depend_on_what_comes_after_the_validation_hours(name: str) -> None:
    first = METHODS[name](data())(ISSUES)
    d = data()
    d.z[:, ISSUES.max() :] = 9.0
    np.testing.assert_array_equal(METHODS[name](d)(ISSUES), first)


def test_dress_has_the_quantiles_of_the_errors_and_widens_between_stations() -> None:
    rng = np.random.default_rng(0)
    truth = 3.5 + rng.standard_normal((300, 4, HORIZON)).astype(np.float32) * 0.3
    z = np.full_like(truth, 3.4)
    found = dress(z, truth)
    mean, quantiles = found(z[0])
    error = truth[..., 10].ravel() - z[..., 10].ravel()
    for r, value in enumerate(LEVELS):
        assert quantiles[r, 0, 10] == pytest.approx(np.expm1(3.4 + np.quantile(error, value)), rel=1e-4)
    assert mean[0, 10] == pytest.approx(np.mean(np.exp(3.4 + error)) - 1, rel=1e-4)
    wider = replace(found, share=1.0)(z[0], np.full(4, 3 * found.variance[10]))[1]
    low, middle, high = (np.log1p(quantiles[r, 0, 10]) for r in (0, 5, 10))
    assert np.log1p(wider[0, 0, 10]) == pytest.approx(middle + 2 * (low - middle), rel=1e-3)
    assert np.log1p(wider[10, 0, 10]) == pytest.approx(middle + 2 * (high - middle), rel=1e-3)


def test_dressed_takes_the_validation_hours() -> None:
    d, o = data(), record()
    method = damped_persistence(d)
    folds = [np.arange(0, 8), np.arange(8, 16)]
    found = dressed(method, d, o, folds)
    error = d.truth(d.validation) - method(d.validation)
    np.testing.assert_allclose(found.variance, np.nanvar(error.reshape(-1, HORIZON), axis=0), rtol=1e-4)
    assert found.share == kriging_share(
        dress(method(d.validation), d.truth(d.validation)),
        *(part(d.validation)[::3] for part in (method, d.truth)),
        o,
        folds,
    )


def test_kriging_share_is_none_where_the_neighbours_know_it_all() -> None:
    o = record()
    z = np.full((4, 16, HORIZON), 3.5, np.float32)
    truth = z + np.random.default_rng(0).standard_normal(z.shape).astype(np.float32) * 0.3
    assert kriging_share(dress(z, truth), z, truth, o, [np.arange(8)]) < 0.02


def test_kriging_share_is_large_where_the_neighbours_know_nothing() -> None:
    o, rng = record(), np.random.default_rng(0)
    z = np.repeat(3.5 + rng.standard_normal((4, 16, 1)), HORIZON, axis=-1).astype(np.float32)
    truth = z + rng.standard_normal(z.shape).astype(np.float32) * 0.1
    assert kriging_share(dress(z, truth), z, truth, o, [np.arange(8), np.arange(8, 16)]) > 1


def test_spread_is_the_log_kriging_of_the_forecasts() -> None:
    o = record(missing=0.0)
    points = Points(np.array([112.0, 114.5]), np.array([36.0, 38.0]), np.array([50.0, 200.0]))
    z = np.log1p(o.values[0, 100:110].T)[None].astype(np.float32)  # (1, S, 10)
    kriged, variance = spread(z, o, points)
    hours = replace(o, hours=o.hours[100:110], values=o.values[:, 100:110])
    expected = baseline.log_kriging(hours, points, baseline.CNEMC_2019_TERRAIN)
    assert expected.quantiles is not None
    np.testing.assert_allclose(np.expm1(kriged[0]).T, expected.quantiles[LEVELS.index(0.5)], rtol=1e-3)
    np.testing.assert_allclose(np.exp(kriged[0] + variance[:, None] / 2).T - 1, expected.mean, rtol=1e-3)
