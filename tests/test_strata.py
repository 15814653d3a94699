"""Conditions, PIT and spread against forecasts of known calibration; whole reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from model.windows import LEVELS
from pipeline import score
from pipeline.evaluation import assess, strata
from pipeline.evaluation.strata import Pairs
from pipeline.pages import score_figures
from pipeline.score import Prediction

N = 60_000


def normal_forecast(mean: np.ndarray, sigma: np.ndarray | float) -> Prediction:
    return Prediction(mean, mean + norm.ppf(LEVELS)[:, None] * sigma, LEVELS)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Truth about a known mean with a known, varying spread; forecasts that are right, too narrow, and a point."""
    rng = np.random.default_rng(0)
    mean, sigma = rng.uniform(50, 150, N), rng.uniform(2, 20, N)
    truth = mean + sigma * rng.normal(size=N)
    found = {
        "right": normal_forecast(mean, sigma),
        "narrow": normal_forecast(mean, sigma / 2),
        "point": Prediction(mean),
    }
    return Pairs(found, truth, np.arange(N) + 420_000, rng.uniform(0, 200, N))


# ---- conditions ----


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2019-02-28T23", "DJF"),
        ("2019-03-01T00", "MAM"),
        ("2019-08-31T23", "JJA"),
        ("2019-09-01T00", "SON"),
        ("2019-12-01T00", "DJF"),
    ],
)
def test_a_season_starts_at_midnight_utc_of_its_first_month(time: str, expected: str):
    hour = np.array([np.datetime64(time, "h").astype(int)])
    one = Pairs({}, np.array([1.0]), hour, np.array([0.0]))
    assert strata.season(one, Prediction(np.array([1.0]))).tolist() == [expected]


def test_classes_of_distance_hold_their_lower_edge():
    km = np.array([0.0, 4.9, 5.0, 15.0, 40.0, 80.0, 150.0, 9000.0])
    one = Pairs({}, km, np.zeros(8, int), km)
    found = strata.distance(one, Prediction(km)).tolist()
    assert found == ["0-5 km", "0-5 km", "5-15 km", "15-40 km", "40-80 km", "80-150 km", "over 150 km", "over 150 km"]


def test_a_table_by_condition_is_the_scores_of_its_pairs(pairs: Pairs):
    found = strata.by_condition(pairs, "distance")
    inside = (pairs.distance >= 15) & (pairs.distance < 40)
    expected = score.scores(pairs.predictions["right"].take(inside), pairs.truth[inside])
    assert found.loc[("15-40 km", "right")].to_dict() == pytest.approx({k: expected[k] for k in strata.COLUMNS})
    assert found.xs("point", level="method")["pairs"].sum() == N
    assert found.xs("point", level="method")["coverage_90"].isna().all()


def test_a_calibrated_forecast_covers_in_each_tercile_of_its_median_but_not_of_the_truth():
    """The mean varies as much as the error, so what is observed high was often above its interval."""
    rng = np.random.default_rng(1)
    mean = rng.normal(100, 10, N)
    truth = mean + rng.normal(0, 10, N)
    one = Pairs({"right": normal_forecast(mean, 10.0)}, truth, np.zeros(N, int), np.zeros(N))
    by_median = strata.by_condition(one, "tercile_of_median")["coverage_90"]
    by_truth = strata.by_condition(one, "tercile_of_truth")["coverage_90"]
    np.testing.assert_allclose(by_median, 0.9, atol=0.01)
    assert by_truth.iloc[1] > 0.95
    assert by_truth.iloc[2] < 0.88
    assert by_median.index.get_level_values(0).tolist() == ["low", "middle", "high"]


def test_only_pairs_that_all_methods_estimate_are_kept():
    truth = np.array([[1.0, np.nan], [3.0, 4.0]])
    a, b = np.array([[1.0, 1.0], [np.nan, 1.0]]), np.ones((2, 2))
    found = strata.common_pairs(
        {"a": Prediction(a), "b": Prediction(b)}, truth, np.array([10, 34]), np.array([3.0, 7.0])
    )
    assert found.truth.tolist() == [1.0, 4.0]
    assert found.day.tolist() == [0, 1]
    assert found.distance.tolist() == [3.0, 7.0]


# ---- calibration ----


def test_pit_is_flat_for_a_calibrated_forecast_and_heavy_at_the_ends_for_a_narrow_one(pairs: Pairs):
    found = strata.pit(pairs)
    assert found.index.tolist() == ["calibrated", "right", "narrow"]
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(found.loc["right"], found.loc["calibrated"], atol=0.005)
    assert found.loc["narrow"].iloc[0] == pytest.approx(norm.cdf(norm.ppf(0.05) / 2), abs=0.01)
    assert found.columns[0] == "0-0.05"


def test_pit_shows_on_which_side_a_biased_forecast_errs():
    y = np.random.default_rng(3).normal(size=N)
    low = Pairs({"low": normal_forecast(y * 0 - 1.0, 1.0)}, y, np.zeros(N, int), np.zeros(N))
    assert strata.pit(low).loc["low"].iloc[-1] == pytest.approx(1 - norm.cdf(norm.ppf(0.95) - 1), abs=0.01)


def test_spread_equals_error_for_a_calibrated_forecast_and_is_half_of_it_for_a_narrow_one(pairs: Pairs):
    found = strata.spread_skill(pairs)
    np.testing.assert_allclose(found.loc["right", "rmse"], found.loc["right", "spread"], rtol=0.05)
    np.testing.assert_allclose(found.loc["narrow", "rmse"], 2 * found.loc["narrow", "spread"], rtol=0.05)
    assert found.loc["right", "spread"].is_monotonic_increasing
    assert (found["pairs"] == N / 10).all()


# ---- whole reports ----


@pytest.fixture(scope="module")
def report() -> assess.Assessment:
    """Two hundred hours from November at 30 points; method b errs twice as much as a."""
    rng = np.random.default_rng(5)
    mean = rng.uniform(50, 150, (200, 30))
    error = rng.normal(size=(200, 30))
    found = {
        "a": Prediction(mean, np.stack([mean + z * 5.0 for z in norm.ppf(LEVELS)]), LEVELS),
        "b": Prediction(mean - 5 * error, np.stack([mean - 5 * error + z * 9.0 for z in norm.ppf(LEVELS)]), LEVELS),
        "point": Prediction(mean),
    }
    hours = np.datetime64("2019-11-27T00", "h").astype(int) + np.arange(200)
    return assess.assess(found, mean + 5 * error, hours, np.linspace(1, 100, 30), ["a", "not there"], ["b", "point"])


def test_skill_holds_difference_per_cent_and_skill_of_each_statistic(report: assess.Assessment):
    row = report.skill.query("minus == 'b' and statistic == 'mae_median'").iloc[0]
    a, b = (report.scores.loc[name, "mae_median"] for name in "ab")
    assert row["value"] == pytest.approx(a - b)
    assert row["percent"] == pytest.approx(-50.0)
    assert row["percent_low"] == pytest.approx(-50.0) == row["percent_high"]
    assert row["skill"] == pytest.approx(1 - a / b)
    assert set(report.skill["statistic"]) == {"mae_median", "rmse_mean", "crps"}
    against = report.skill.query("minus == 'point' and statistic == 'crps'").iloc[0]
    assert against["value"] == pytest.approx(report.scores.loc["a", "crps"] - report.scores.loc["point", "crps"])
    assert against["low"] < against["value"] < against["high"] < 0


def test_a_report_goes_to_json_and_shows_the_main_methods_by_condition(report: assess.Assessment):
    saved = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert {"season", "distance", "tercile_of_truth", "tercile_of_median"} == saved["conditions"].keys()
    assert saved["conditions"]["season"][0]["method"] == "a"
    assert saved["conditions"]["season"][2]["coverage_90"] is None
    text = report.to_markdown(["a"])
    assert "| SON | a | 2880 |" in text
    assert "| SON | b |" not in text
    assert "| a | b | -50.0 [-50.0, -50.0] |" in text


def test_a_picture_of_scores_is_drawn_and_shows_its_methods(report: assess.Assessment, tmp_path: Path):
    one = score_figures.draw_scores(report, tmp_path / "one.png", ["a"], "title")
    both = score_figures.draw_scores(report, tmp_path / "both.png", ["a", "b", "point", "absent"], "title")
    assert one.read_bytes().startswith(b"\x89PNG")
    assert one.read_bytes() != both.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.png", "one.png"]


def test_skill_without_a_reference_is_empty(pairs: Pairs):
    pd.testing.assert_frame_equal(assess.skill(pairs, ["right"], []), pd.DataFrame())
