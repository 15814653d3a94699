"""Pairs kept for a run's report: counts over all of them, and a bounded, seeded sample."""

from __future__ import annotations

import numpy as np
import pytest

from model.windows import LEVELS
from pipeline.evaluation import strata
from pipeline.pages import pairs
from pipeline.pages.pairs import Kept
from pipeline.score import Prediction

HOURS, STATIONS = 200, 7


def kept(seed: int, limit: int = 300) -> tuple[Kept, strata.Pairs]:
    rng = np.random.default_rng(seed)
    truth = rng.lognormal(3, 1, (HOURS, STATIONS))
    truth[rng.random(truth.shape) < 0.2] = np.nan
    quantiles = np.sort(rng.lognormal(3, 1, (len(LEVELS), HOURS, STATIONS)), axis=0)
    given = {"AQ-Net": Prediction(quantiles.mean(axis=0), quantiles, LEVELS), "idw": Prediction(quantiles[5])}
    hours, distance = np.arange(HOURS), np.arange(STATIONS, dtype=float)
    return pairs.keep(given, truth, hours, distance, limit, seed), strata.common_pairs(given, truth, hours, distance)


def test_cells_count_all_pairs_and_the_sample_is_bounded() -> None:
    found, every = kept(0)
    assert found.stations == STATIONS
    assert found.cells.loc["AQ-Net"].sum() == len(every.truth) > 300
    assert len(found.sample.truth) == 300
    np.testing.assert_allclose(pairs.calibration([found]), strata.pit(every))


def test_the_sample_is_of_the_pairs_and_seeded() -> None:
    found, every = kept(1)
    index = {value: n for n, value in enumerate(every.truth)}
    at = [index[value] for value in found.sample.truth]
    assert at == sorted(at)
    quantiles = found.sample.predictions["AQ-Net"].quantiles
    expected = every.predictions["AQ-Net"].quantiles
    assert quantiles is not None
    assert expected is not None
    np.testing.assert_array_equal(quantiles, expected[:, at])
    np.testing.assert_array_equal(found.sample.distance, every.distance[at])
    np.testing.assert_array_equal(found.sample.truth, kept(1)[0].sample.truth)
    assert pairs.drawn(every, 5, 1).truth.tolist() != pairs.drawn(every, 5, 2).truth.tolist()


def test_few_pairs_are_all_kept() -> None:
    found, every = kept(2, limit=10**6)
    np.testing.assert_array_equal(found.sample.truth, every.truth)


def test_months_are_put_together_exactly() -> None:
    (one, first), (other, second) = kept(3), kept(4)
    merged = pairs.together([one, other])
    assert len(merged.truth) == 600
    assert merged.predictions["idw"].quantiles is None
    weights = np.array([len(first.truth), len(second.truth)], float)
    expected = sum(w * strata.pit(p).loc["AQ-Net"] for w, p in zip(weights, (first, second), strict=True))
    np.testing.assert_allclose(pairs.calibration([one, other]).loc["AQ-Net"], expected / weights.sum())
    assert pairs.calibration([one, other]).loc["AQ-Net"].sum() == pytest.approx(1.0)
