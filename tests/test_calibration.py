"""Calibration of interval widths: what is fitted, how it is applied on both paths, and that no fold sees itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtri

from model import calibration, infer
from model.aqnet import WIDEN_KM, AQNet, AQNetConfig, widening
from model.geometry import distance_matrix
from model.kriging import MODES
from model.windows import LEVELS, POLLUTANTS, Observations, Points
from pipeline.evaluation import calibrate, folds
from pipeline.evaluation.folds import Method, Pooled
from pipeline.score import Prediction

MEDIAN = len(LEVELS) // 2
WIDEN = (1.5, 1.4, 0.8, 0.9, 1.2, 2.0)


def normal(
    seed: int, km: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Truth whose z is normal, and estimates that take its deviation for 0.3 where it is 0.3 times `true`."""
    rng = np.random.default_rng(seed)
    m = rng.uniform(3.0, 5.0, km.shape)
    z = m + 0.3 * ndtri(np.array(LEVELS)).reshape(-1, *(1,) * km.ndim)
    return (m + 0.3 * true * rng.normal(size=km.shape)) ** 3, (z**3).astype(np.float32)


# ---- the fit ----


def test_the_fit_finds_how_much_too_narrow_each_class_of_distance_is():
    km = np.repeat(WIDEN_KM, 20_000)
    truth, quantiles = normal(0, km, np.repeat(WIDEN, 20_000))
    assert calibration.fit(truth, quantiles, km) == pytest.approx(WIDEN, rel=0.03)


def test_a_fitted_width_covers_what_it_should():
    km = np.random.default_rng(1).uniform(0, 250, 100_000)
    true = calibration.factor_at(km, WIDEN)
    widen = calibration.fit(*normal(1, km, true), km)
    truth, quantiles = normal(2, km, true)
    after = calibration.widened(quantiles, calibration.factor_at(km, widen))
    inside = (truth >= after[0]) & (truth <= after[-1])
    for low, high in zip(calibration.EDGES, [*calibration.EDGES[1:], 250], strict=True):
        assert inside[(km >= low) & (km < high)].mean() == pytest.approx(0.9, abs=0.03)


def test_a_class_with_few_pairs_takes_its_neighbours_factor():
    km = np.concatenate([np.full(5000, 2.0), np.full(calibration.FEWEST - 1, 9.0), np.full(5000, 200.0)])
    true = np.where(km < 5, 2.0, np.where(km < 15, 9.0, 0.5))
    widen = calibration.fit(*normal(3, km, true), km)
    assert widen[0] == widen[1] == pytest.approx(2.0, rel=0.05)
    assert widen[5] == pytest.approx(0.5, rel=0.05)
    assert set(widen) == {widen[0], widen[5]}


def test_without_enough_pairs_nothing_is_widened():
    km = np.full(10, 2.0)
    assert calibration.fit(*normal(4, km, np.ones(10)), km) == (1.0,) * len(WIDEN_KM)


# ---- how it is applied ----


@given(st.floats(0, 1000))
def test_factors_are_the_same_for_arrays_and_tensors_and_level_beyond_the_ends(km: float):
    found = widening(torch.tensor([[km]]).log1p(), torch.tensor(WIDEN)).item()
    assert found == pytest.approx(float(calibration.factor_at(np.array(km), WIDEN)), rel=1e-5)
    assert min(WIDEN) <= found <= max(WIDEN)
    if km >= WIDEN_KM[-1]:
        assert found == WIDEN[-1]


def test_the_median_stays_and_quantiles_stay_in_order():
    _, quantiles = normal(5, np.zeros((4, 6)), np.ones((4, 6)))
    after = calibration.widened(quantiles, np.linspace(0.2, 5.0, 6))
    np.testing.assert_allclose(after[MEDIAN], quantiles[MEDIAN], rtol=1e-5)
    assert (np.diff(after, axis=0) >= 0).all()
    assert after.min() >= 0


def record(stations: int = 30, hours: int = 30) -> tuple[Observations, Points]:
    rng = np.random.default_rng(0)
    values = rng.lognormal(3.0, 0.8, (len(POLLUTANTS), hours, stations)).astype(np.float32)
    lon, lat = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations)
    at = Points(rng.uniform(111, 119, 40), rng.uniform(34, 41, 40), np.zeros(40))
    return Observations(24 * 18000 - 6 + np.arange(hours), values, lon, lat, np.zeros(stations)), at


@pytest.mark.parametrize("mode", MODES)
def test_a_calibrated_network_has_the_same_mean_and_wider_quantiles_about_the_same_median(mode: str):
    """The compiled path; `test_infer` holds it to the network's own, which the next test calibrates."""
    torch.manual_seed(0)
    config = AQNetConfig(near=4, lead_hours=6, tail_hours=0, history=3, hidden=8, embedding=2, head_hidden=8)
    net, (seen, at) = AQNet(config).eval(), record()
    before = infer.estimate(net, seen, at, mode)
    after = infer.estimate(calibration.calibrated(net, WIDEN), seen, at, mode)
    assert net.head.widen.tolist() == pytest.approx(WIDEN)
    km = distance_matrix(at.lon, at.lat, seen.lon, seen.lat).min(axis=1)
    np.testing.assert_allclose(after.mean, before.mean, rtol=1e-6)
    expected = calibration.widened(before.quantiles, calibration.factor_at(km, WIDEN))
    np.testing.assert_allclose(after.quantiles, expected, rtol=1e-3, atol=1e-2)
    assert np.abs(after.quantiles[0] - before.quantiles[0]).max() > 1.0


# ---- folds ----


def pooled(seed: int = 0, hours: int = 400, stations: int = 40) -> Pooled:
    """Estimates of four folds, all too narrow by a half."""
    km = np.linspace(1, 60, stations)
    truth, quantiles = normal(seed, np.broadcast_to(km, (hours, stations)), np.full((hours, stations), 1.5))
    estimate = Prediction(quantiles[MEDIAN].copy(), quantiles, LEVELS)
    plain = Prediction(quantiles[MEDIAN].copy())
    found = {"aqnet": estimate, "idw": plain, "kriging": replace(estimate)}
    return Pooled(found, truth, np.arange(hours), km, np.arange(stations) % 4)


def test_each_fold_is_widened_by_what_the_others_ask_for():
    before = pooled()
    after = calibrate.cross_calibrated(before, ["aqnet", "idw"])
    quantiles = after.predictions["aqnet"].quantiles
    assert quantiles is not None
    inside = (before.truth >= quantiles[0]) & (before.truth <= quantiles[-1])
    assert inside.mean() == pytest.approx(0.9, abs=0.02)
    assert after.predictions["kriging"] is before.predictions["kriging"]
    assert after.predictions["idw"] is before.predictions["idw"]


def test_a_folds_own_truth_changes_nothing_of_its_width_and_something_of_the_others():
    before, changed = pooled(), pooled()
    own = changed.fold == 2
    changed.truth[:, own] *= 3
    a, b = (calibrate.cross_calibrated(p, ["aqnet"]).predictions["aqnet"].quantiles for p in (before, changed))
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a[:, :, own], b[:, :, own])
    assert (a[:, :, ~own] != b[:, :, ~own]).any()


def test_both_protocols_count_and_only_what_is_given_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[folds.Protocol] = []

    def run(
        record: object, codes: object, cities: object, protocol: folds.Protocol, methods: object, work: Path
    ) -> Pooled:
        seen.append(protocol)
        assert (record, work) == ("record", tmp_path)
        return pooled(len(seen))

    monkeypatch.setattr(folds, "run", run)
    none = np.array([])
    methods = {"aqnet": Method(lambda *_: infer.estimate, "key", True)}
    widen = calibrate.calibrate("record", none, none, tmp_path, 3, methods)
    assert [(p.leave, p.folds) for p in seen] == [("city", 3), ("station", 3)]
    assert widen[:4] == pytest.approx((1.5,) * 4, rel=0.1)
