"""Metrics against closed forms and brute force, the bootstrap against a known difference, the release check."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from model.windows import LEVELS
from pipeline import score
from pipeline.contract import FIELDS
from pipeline.errors import ProductError
from pipeline.score import Prediction

values = hnp.arrays(np.float64, 12, elements=st.floats(0, 1000) | st.just(np.nan))


@given(values, values)
def test_point_metrics_are_those_of_the_valid_pairs(estimate, truth):
    pairs = [(e, t) for e, t in zip(estimate, truth, strict=True) if not (np.isnan(e) or np.isnan(t))]
    if len({t for _, t in pairs}) < 2:
        return
    errors = np.array([e - t for e, t in pairs])
    y = np.array([t for _, t in pairs])
    assert score.mae(estimate, truth) == pytest.approx(sum(abs(errors)) / len(errors))
    assert score.rmse(estimate, truth) == pytest.approx((sum(errors**2) / len(errors)) ** 0.5)
    assert score.bias(estimate, truth) == pytest.approx(sum(errors) / len(errors))
    assert score.r2(estimate, truth) == pytest.approx(1 - sum(errors**2) / sum((y - sum(y) / len(y)) ** 2), rel=1e-6)


@given(values, values)
def test_relative_metrics_are_those_of_a_loop_over_the_valid_pairs(estimate, truth):
    pairs = [(e, t) for e, t in zip(estimate, truth, strict=True) if not (np.isnan(e) or np.isnan(t))]
    if not pairs:
        return
    terms = [2 * (e - t) / (e + t) if e + t > 0 else 0.0 for e, t in pairs]
    assert score.mnmb(estimate, truth) == pytest.approx(sum(terms) / len(terms))
    assert score.fge(estimate, truth) == pytest.approx(sum(map(abs, terms)) / len(terms))


def test_relative_metrics_know_a_factor_of_three_and_their_bounds():
    truth = np.array([1.0, 10.0, 100.0])
    assert score.mnmb(3 * truth, truth) == pytest.approx(1.0)
    assert score.fge(np.array([3.0, 10 / 3, 300.0]), truth) == pytest.approx(1.0)
    assert score.mnmb(0 * truth, truth) == -2.0


def crps_normal(mu: np.ndarray, sigma: float, y: np.ndarray) -> np.ndarray:
    """Gneiting and Raftery 2007, doi:10.1198/016214506000001437, eq. 21."""
    z = (y - mu) / sigma
    return sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


def crps_lognormal(mu: float, sigma: float, y: np.ndarray) -> np.ndarray:
    """Baran and Lerch 2015, doi:10.1002/qj.2521, eq. A.2."""
    w = (np.log(y) - mu) / sigma
    inner = norm.cdf(w - sigma) + norm.cdf(sigma / np.sqrt(2)) - 1
    return y * (2 * norm.cdf(w) - 1) - 2 * np.exp(mu + sigma**2 / 2) * inner


def test_crps_is_near_the_closed_form_of_a_normal_and_a_lognormal():
    y = np.random.default_rng(0).normal(3.0, 1.3, 20000)
    normal = np.repeat(norm.ppf(LEVELS, 3.0, 1.0)[:, None], len(y), axis=1)
    assert score.crps(normal, y, LEVELS) == pytest.approx(crps_normal(3.0, 1.0, y).mean(), rel=0.02)
    lognormal = np.exp(0.5 * normal)
    assert score.crps(lognormal, np.exp(0.5 * y), LEVELS) == pytest.approx(
        crps_lognormal(1.5, 0.5, np.exp(0.5 * y)).mean(), rel=0.02
    )


def test_crps_of_many_levels_tends_to_the_closed_form():
    y = np.random.default_rng(0).normal(0.0, 1.0, 4000)
    levels = (np.arange(2000) + 0.5) / 2000
    quantiles = np.repeat(norm.ppf(levels)[:, None], len(y), axis=1)
    assert score.crps(quantiles, y, levels) == pytest.approx(crps_normal(0.0, 1.0, y).mean(), rel=1e-3)


@given(values, values)
def test_crps_of_one_point_is_its_absolute_error(estimate, truth):
    if np.isnan(estimate + truth).all():
        return
    point = np.repeat(estimate[None], len(LEVELS), axis=0)
    assert score.crps(point, truth, LEVELS) == pytest.approx(score.mae(estimate, truth))


def test_crps_is_least_for_the_true_distribution():
    y = np.random.default_rng(1).normal(0.0, 1.0, 5000)
    found = {
        (shift, spread): score.crps(np.repeat(norm.ppf(LEVELS, shift, spread)[:, None], 5000, axis=1), y, LEVELS)
        for shift in (-0.3, 0.0, 0.3)
        for spread in (0.7, 1.0, 1.4)
    }
    assert min(found, key=found.__getitem__) == (0.0, 1.0)


def test_level_weights_cover_the_unit_interval():
    np.testing.assert_allclose(score.level_weights(LEVELS), [0.075, 0.075, *[0.1] * 7, 0.075, 0.075])


def test_coverage_of_a_known_distribution_leaves_out_missing_truth():
    y = np.random.default_rng(2).normal(size=20000)
    y[::7] = np.nan
    low, high = np.full(20000, norm.ppf(0.05)), np.full(20000, norm.ppf(0.95))
    assert score.coverage(low, high, y) == pytest.approx(0.9, abs=0.01)
    assert score.width(low, high) == pytest.approx(2 * norm.ppf(0.95))


# ---- tables ----


def test_each_metric_uses_its_functional_and_gives_the_other_one_too():
    truth = np.array([1.0, 2.0, 6.0])
    mean, median = np.array([2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0])
    quantiles = np.stack([median - 1, median, median + 1])
    row = score.scores(Prediction(mean, quantiles, (0.05, 0.5, 0.95)), truth)
    assert row["mae_median"] == pytest.approx(1.0)
    assert row["mae_mean"] == pytest.approx(4 / 3)
    assert row["rmse_mean"] == pytest.approx(np.sqrt(2.0))
    assert row["rmse_median"] == pytest.approx(np.sqrt(3.0))
    assert row["bias_mean"] == pytest.approx(0.0)
    assert row["coverage_90"] == pytest.approx(2 / 3)
    assert row["width_90"] == pytest.approx(2.0)
    assert row["pairs"] == 3


def test_a_deterministic_method_scores_its_mae_as_crps_and_has_no_interval():
    row = score.scores(Prediction(np.array([1.0, 5.0])), np.array([2.0, 2.0 + 1e-9]))
    assert row["crps"] == row["mae_median"] == row["mae_mean"] == pytest.approx(2.0)
    assert np.isnan(row["coverage_90"])
    with_levels = score.scores(Prediction(np.array([1.0, 5.0]), None, LEVELS), np.array([1.0, 5.0]))
    assert np.isnan(with_levels["coverage_90"])
    assert np.isnan(with_levels["width_50"])


def test_a_table_scores_all_methods_on_the_same_pairs(caplog: pytest.LogCaptureFixture):
    truth = np.array([1.0, 2.0, np.nan, 4.0])
    with caplog.at_level(logging.WARNING, "aqnet"):
        found = score.table(
            {"a": Prediction(np.array([1.0, 1.0, 1.0, 1.0])), "b": Prediction(np.array([2.0, np.nan, 9.0, 5.0]))}, truth
        )
    assert found["pairs"].tolist() == [2, 2]
    assert found["mae_mean"].tolist() == [1.5, 1.0]
    assert caplog.messages == ["b: no estimate for 1 pairs; no method is scored on them"]


def test_a_table_without_a_common_pair_is_refused():
    with pytest.raises(ValueError, match="no pair of truth and estimate that all of a have"):
        score.table({"a": Prediction(np.array([np.nan]))}, np.array([1.0]))


def test_markdown_of_a_table():
    found = score.table({"a": Prediction(np.array([1.0, 3.0]))}, np.array([2.0, 4.0]))
    text = score.markdown(found[["mae_median", "r2_mean", "coverage_90", "pairs"]])
    assert text.splitlines() == [
        "| method | mae_median | r2_mean | coverage_90 | pairs |",
        "|---|---|---|---|---|",
        "| a | 1.00 | 0.000 | - | 2 |",
    ]


def test_the_central_half_is_interpolated_where_levels_are_near_and_missing_where_they_are_not():
    y = np.random.default_rng(6).normal(size=20000)
    dense = Prediction(y * 0, np.repeat(norm.ppf(LEVELS)[:, None], 20000, axis=1), LEVELS)
    row = score.scores(dense, y)
    assert dense.quantile(0.25)[0] == pytest.approx((norm.ppf(0.2) + norm.ppf(0.3)) / 2)
    assert row["coverage_50"] == pytest.approx(0.5, abs=0.015)
    assert row["width_50"] == pytest.approx(2 * norm.ppf(0.75), rel=0.02)
    published = Prediction(y * 0, np.repeat(norm.ppf([0.05, 0.5, 0.95])[:, None], 20000, axis=1), (0.05, 0.5, 0.95))
    row = score.scores(published, y)
    assert np.isnan(row["coverage_50"])
    assert np.isnan(row["width_50"])
    assert row["coverage_90"] == pytest.approx(0.9, abs=0.01)


def test_what_a_statistic_is_the_mean_of():
    truth, mean = np.array([1.0, 2.0, 6.0]), np.array([2.0, 3.0, 4.0])
    p = Prediction(mean, np.stack([mean - 3, mean - 1, mean + 1]), (0.05, 0.5, 0.95))
    assert score.pair_scores(p, truth, "mae_median").mean() == pytest.approx(score.scores(p, truth)["mae_median"])
    assert score.pair_scores(p, truth, "rmse_mean").mean() ** 0.5 == pytest.approx(score.scores(p, truth)["rmse_mean"])
    assert score.pair_scores(p, truth, "crps").mean() == pytest.approx(score.scores(p, truth)["crps"])


# ---- bootstrap ----


def test_bootstrap_interval_covers_a_known_difference_as_often_as_it_says():
    """Errors share a daily factor, so pairs within a day are dependent; the true difference of MAE is known."""
    rng = np.random.default_rng(3)
    day = np.repeat(np.arange(60), 20)
    true = (1.0 - 0.8) * np.sqrt(2 / np.pi)
    hits = 0
    for seed in range(200):
        scale = np.repeat(rng.choice([0.5, 1.5], 60), 20)
        a, b = scale * rng.normal(0, 1.0, 1200), scale * rng.normal(0, 0.8, 1200)
        found = score.day_block_bootstrap(a, b, day, "mae", n=300, seed=seed)
        hits += found.low <= true <= found.high
    assert 0.9 <= hits / 200 <= 0.99


@pytest.mark.parametrize("statistic", ["mae", "rmse"])
def test_bootstrap_is_that_of_a_loop_over_resampled_days(statistic):
    rng = np.random.default_rng(4)
    day = np.sort(rng.integers(0, 9, 100)) + 17000
    a, b = rng.normal(0, 2, 100), rng.normal(0, 1, 100)
    metric = {"mae": lambda e: np.abs(e).mean(), "rmse": lambda e: np.sqrt((e**2).mean())}[statistic]
    found = score.day_block_bootstrap(a, b, day, statistic, n=4000, seed=1)
    days = np.unique(day)
    draws = [np.concatenate([np.flatnonzero(day == d) for d in rng.choice(days, len(days))]) for _ in range(4000)]
    expected = np.quantile([metric(a[d]) - metric(b[d]) for d in draws], [0.025, 0.975])
    assert found.value == pytest.approx(metric(a) - metric(b))
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.05)


def test_bootstrap_of_a_method_against_itself_is_zero_and_a_seed_repeats():
    e = np.random.default_rng(5).normal(size=50)
    day = np.arange(50) // 5
    same = score.day_block_bootstrap(e, e, day, "rmse")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert score.day_block_bootstrap(e, 2 * e, day, "mae", seed=7) == score.day_block_bootstrap(
        e, 2 * e, day, "mae", seed=7
    )


def test_a_relative_difference_is_in_per_cent_of_the_reference():
    """Method a is 0.8 times method b in every pair, so that every resample says -20 %."""
    b = np.abs(np.random.default_rng(8).normal(size=300))
    found = score.difference(*score.resampled([0.8 * b, b], np.arange(300) // 10), relative=True)
    assert [found.value, found.low, found.high] == pytest.approx([-20.0] * 3)


def test_resampled_series_share_their_days():
    day = np.arange(200) // 20
    means = score.resampled([day * 1.0, day + 5.0], day, n=50, seed=2)
    assert means.shape == (2, 51)
    assert means[0, 0] == pytest.approx(4.5)
    np.testing.assert_allclose(means[1] - means[0], 5.0)
    assert means[0, 1:].std() > 0.3


# ---- release ----

LAND = np.array([[True, True, False], [True, True, True]])


def block(first: str = "2020-01-01T00", hours: int = 2, count: int = 5) -> xr.Dataset:
    time = np.datetime64(first, "ns") + np.arange(hours) * np.timedelta64(1, "h")
    data = {}
    for spec in FIELDS:
        shape = (hours, 2, 3) if spec.gridded else (hours,)
        fill = {"pm2p5": 30, "pm2p5_p05": 10, "pm2p5_p50": 28, "pm2p5_p95": 60, "observation_count": count}
        data[spec.name] = (spec.dims(), np.full(shape, fill.get(spec.name, 0), spec.dtype))
    return xr.Dataset(data, {"time": time.astype("datetime64[ns]"), "lat": [30.0, 31.0], "lon": [1.0, 2.0, 3.0]})


def with_value(value: float, name: str = "pm2p5", at: tuple[int, int, int] = (0, 0, 0)) -> xr.Dataset:
    found = block()
    found[name].values[at] = value
    return found


def test_a_whole_cube_passes_and_sea_cells_may_be_missing():
    sea = block("2020-01-01T02")
    for name in ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95"):
        sea[name].values[:, 0, 2] = np.nan
    assert score.validate([block(), sea], LAND) == score.Validation(4, 0, 0.0, 30.0)


def test_hours_without_observations_may_be_missing_and_are_counted():
    empty = block("2020-01-01T02", count=0)
    for name in ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95"):
        empty[name].values[:] = np.nan
    assert score.validate([block(), empty], LAND) == score.Validation(4, 2, 0.0, 30.0)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "candidate: expected hours; found none"),
        ([with_value(np.nan)], "variable 'pm2p5' from 2020-01-01.*at most 0.00% of land cells missing; found 10.00%"),
        ([with_value(np.nan, "pm2p5_p50")], "variable 'pm2p5_p50'"),
        ([with_value(2500.0)], "variable 'pm2p5': expected less than 2000 ug m-3; found 2500"),
        ([with_value(np.inf)], "variable 'pm2p5': expected less than 2000 ug m-3; found inf"),
        ([with_value(-1.0)], "variable 'pm2p5' holds a negative"),
        ([with_value(70.0, "pm2p5_p50")], "'pm2p5_p50' exceeds 'pm2p5_p95'"),
        ([block().drop_vars("stream")], "variable 'stream' is missing"),
        ([block(), block("2020-01-01T03")], "coordinate 'time' must hold every hour"),
    ],
)
def test_a_cube_that_must_not_be_published_is_refused_by_name(blocks: list[xr.Dataset], message: str):
    with pytest.raises(ProductError, match=message):
        score.validate(blocks, LAND)


def test_missing_land_is_tolerated_up_to_the_limit():
    found = score.validate([with_value(np.nan), block("2020-01-01T02")], LAND, max_missing=0.1)
    assert found.missing_land == pytest.approx(0.05)


def test_prediction_quantile_and_mask():
    p = Prediction(np.array([1.0, np.nan]), np.array([[0.0, 1.0], [2.0, 3.0]]), (0.05, 0.95))
    np.testing.assert_array_equal(p.known(), [True, False])
    np.testing.assert_array_equal(p.take(p.known()).quantile(0.95), [2.0])
    assert not replace(p, quantiles=np.full((2, 2), np.nan)).known().any()
