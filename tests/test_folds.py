"""Folds: who is left out, that nothing of a fold's stations reaches what is fitted for it, going on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model import baseline
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points
from pipeline.evaluation import evaluate, fold_report, folds
from pipeline.evaluation.folds import Method, Protocol

CODES = np.array([f"{1000 + i}A" for i in range(24)])
CITIES = np.array([f"city{i // 3}" for i in range(24)])
CITY = Protocol("city", folds=4, stride=7)
STATION = Protocol("station", folds=4, stride=7)


def record(seed: int = 0, hours: int = 240) -> Observations:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(3.0, 0.8, (len(POLLUTANTS), hours, 24)).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    centre = rng.uniform(0, 4, (2, 8)).repeat(3, axis=1) + rng.normal(0, 0.02, (2, 24))
    return Observations(430_000 + np.arange(hours), values, 113 + centre[0], 36 + centre[1], rng.uniform(0, 300, 24))


def spy(found: list[tuple[Observations, list[str], int]], method: baseline.Estimator = baseline.idw) -> Method:
    """Inverse distance that notes what each fold gives it to train on."""

    def train(others: Observations, cities: NDArray[np.str_], seed: int) -> baseline.Estimator:
        found.append((others, cities.tolist(), seed))
        return method

    return Method(train, "spy")


# ---- who is left out ----


def test_a_city_is_left_out_whole_and_every_station_once():
    fold = folds.fold_of(CITY, CODES, CITIES)
    assert all(len(set(fold[np.char.equal(CITIES, city)])) == 1 for city in CITIES)
    assert np.bincount(fold).tolist() == [6, 6, 6, 6]
    assert np.bincount(folds.fold_of(STATION, CODES, CITIES)).tolist() == [6] * 4
    assert len({tuple(fold[np.char.equal(CITIES, c)]) for c in set(CITIES)}) == 4


def test_the_assignment_is_that_of_the_seed_whatever_the_order_of_stations():
    fold = folds.fold_of(CITY, CODES, CITIES)
    order = np.random.default_rng(1).permutation(24)
    np.testing.assert_array_equal(folds.fold_of(CITY, CODES[order], CITIES[order]), fold[order])
    assert not np.array_equal(folds.fold_of(replace(CITY, seed=1), CODES, CITIES), fold)


def test_stations_without_a_city_are_not_one_city():
    fold = folds.fold_of(Protocol("city", folds=24), CODES, np.full(24, ""))
    assert sorted(fold) == list(range(24))


def test_more_folds_than_cities_are_refused():
    with pytest.raises(ValueError, match="9 folds need as many units to leave out; found 8"):
        folds.fold_of(replace(CITY, folds=9), CODES, CITIES)


def test_every_hour_of_the_day_and_month_of_a_year_is_scored():
    scored = np.arange(0, 8760, Protocol("city").stride)
    assert set(scored % 24) == set(range(24))
    assert np.bincount(scored // 730).min() > 100


# ---- what methods see ----


def test_methods_train_on_the_other_stations_with_their_cities_and_own_seed(tmp_path: Path):
    found: list[tuple[Observations, list[str], int]] = []
    whole = record()
    fold = folds.fold_of(CITY, CODES, CITIES)
    folds.run(whole, CODES, CITIES, CITY, {"spy": spy(found)}, tmp_path)
    assert [seed for *_, seed in found] == [0, 1, 2, 3]
    for number, (others, cities, _) in enumerate(found):
        np.testing.assert_array_equal(others.values, whole.values[:, :, fold != number])
        assert cities == CITIES[fold != number].tolist()


def test_pooled_estimates_are_those_of_each_fold_in_the_order_of_the_stations(tmp_path: Path):
    whole, fold = record(), folds.fold_of(CITY, CODES, CITIES)
    pooled = folds.run(whole, CODES, CITIES, CITY, {"idw": spy([])}, tmp_path)
    scored = np.arange(0, 240, 7)
    np.testing.assert_array_equal(pooled.hours, whole.hours[scored])
    np.testing.assert_array_equal(pooled.truth, whole.values[0][scored].astype(float))
    for number in range(4):
        parts = evaluate.withhold(whole, np.flatnonzero(fold != number), np.flatnonzero(fold == number))
        expected = baseline.idw(evaluate.take(parts.visible, scored), parts.points)
        np.testing.assert_array_equal(pooled.predictions["idw"].mean[:, fold == number], expected.mean)
        np.testing.assert_allclose(pooled.distance[fold == number], evaluate.nearest_km(parts))
    assert pooled.predictions["idw"].quantiles is None
    assert pooled.distance.min() > 5


BASELINES = folds.baselines(evaluations=3)


@pytest.mark.parametrize("name", BASELINES)
def test_values_of_a_folds_stations_change_nothing_that_is_fitted_or_estimated_for_it(name: str, tmp_path: Path):
    """The leak test: in each fold the values left out are replaced by others, and by none at all."""
    whole, fold = record(hours=120), folds.fold_of(CITY, CODES, CITIES)
    before = folds.run(whole, CODES, CITIES, CITY, {name: BASELINES[name]}, tmp_path / "a").predictions[name]
    for number in (0, 3):
        values = whole.values.copy()
        inside = fold == number
        values[:, :, inside] = np.random.default_rng(1).lognormal(5.0, 1.0, values[:, :, inside].shape)
        values[:, ::3, inside] = np.nan
        changed = replace(whole, values=values)
        after = folds.run(changed, CODES, CITIES, CITY, {name: BASELINES[name]}, tmp_path / str(number)).predictions[
            name
        ]
        np.testing.assert_array_equal(after.mean[:, inside], before.mean[:, inside])
        assert not np.array_equal(after.mean[:, ~inside], before.mean[:, ~inside])
        if before.quantiles is not None:
            np.testing.assert_array_equal(after.quantiles[:, :, inside], before.quantiles[:, :, inside])


@pytest.mark.parametrize("name", ["log_kriging", "log_kriging_terrain", "space_time", "space_time_two_sided"])
def test_a_fitted_model_of_a_fold_is_that_of_its_other_stations(name: str):
    """Models, not estimates alone: refitted on a record whose left-out stations hold other values, they are equal."""
    whole, fold = record(hours=120), folds.fold_of(CITY, CODES, CITIES)
    values = whole.values.copy()
    values[:, :, fold == 1] = 999.0
    seen, hidden = np.flatnonzero(fold != 1), np.flatnonzero(fold == 1)
    every_other = np.arange(0, 24, 2)
    a, b, other = (
        BASELINES[name].train(evaluate.withhold(r, s, h).visible, CITIES[s], 0)
        for r, s, h in (
            (whole, seen, hidden),
            (replace(whole, values=values), seen, hidden),
            (whole, every_other, hidden),
        )
    )
    assert isinstance(a, partial)
    assert isinstance(b, partial)
    assert isinstance(other, partial)
    assert a.keywords == b.keywords
    assert a.keywords != other.keywords


# ---- going on ----


def counted(calls: list[int], fail_at: int = -1, key: str = "counted", sequential: bool = False) -> Method:
    def estimate(observations: Observations, points: Points) -> Estimate:
        calls.append(len(observations.hours))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        mean = np.full((len(observations.hours), len(points.lon)), 30.0, "f4")
        return Estimate(mean, np.stack([mean * (0.5 + level) for level in LEVELS]))

    return Method(lambda *_: estimate, key, sequential)


def test_a_run_that_was_cut_off_goes_on_with_the_folds_that_are_left(tmp_path: Path):
    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        folds.run(record(), CODES, CITIES, CITY, {"m": counted(calls, fail_at=3)}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    calls.clear()
    resumed = folds.run(record(), CODES, CITIES, CITY, {"m": counted(calls)}, tmp_path)
    assert len(calls) == 2
    whole = folds.run(record(), CODES, CITIES, CITY, {"m": counted([])}, tmp_path / "new")
    np.testing.assert_array_equal(resumed.predictions["m"].quantiles, whole.predictions["m"].quantiles)


CHANGES: dict[str, Callable[[Observations], tuple[Observations, Protocol, str | None]]] = {
    "another value": lambda r: (replace(r, values=np.where(r.values == r.values[0, 0, 0], 1.0, r.values)), CITY, None),
    "another place": lambda r: (replace(r, lon=r.lon + 0.1), CITY, None),
    "another stride": lambda r: (r, replace(CITY, stride=5), None),
    "another seed": lambda r: (r, replace(CITY, seed=4), None),
    "another recipe": lambda r: (r, CITY, "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_estimates_of_another_input_or_recipe_are_not_used(change: str, tmp_path: Path):
    calls: list[int] = []
    folds.run(record(), CODES, CITIES, CITY, {"m": counted([])}, tmp_path)
    changed, protocol, key = CHANGES[change](record())
    folds.run(changed, CODES, CITIES, protocol, {"m": counted(calls, key=key or "counted")}, tmp_path)
    assert calls


def test_half_a_file_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def cut(file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", cut)
    with pytest.raises(KeyboardInterrupt):
        folds.run(record(), CODES, CITIES, CITY, {"m": counted([])}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_sequential_methods_get_all_hours_up_to_the_last_scored_and_others_the_scored_ones(tmp_path: Path):
    calls: list[int] = []
    folds.run(record(), CODES, CITIES, CITY, {"m": counted(calls, sequential=True)}, tmp_path)
    assert calls == [239] * 4
    calls.clear()
    folds.run(record(), CODES, CITIES, CITY, {"m": counted(calls)}, tmp_path)
    assert calls == [35] * 4


def test_a_key_tells_code_and_settings_apart():
    one = folds.code_key(baseline, steps=3)
    assert one == folds.code_key(baseline, steps=3)
    assert len({one, folds.code_key(baseline, steps=4), folds.code_key(evaluate, steps=3)}) == 3


# ---- the whole protocol ----


def test_the_protocol_pools_all_folds_and_writes_assignment_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate.Splits, "read", lambda path: None)
    monkeypatch.setattr(evaluate, "read_record", lambda *_: (record(), CODES))
    monkeypatch.setattr(evaluate, "cities", lambda *_: CITIES)
    monkeypatch.setattr(evaluate, "digests", lambda *_: {"digests": {"observations": "0"}})
    monkeypatch.setattr(folds, "baselines", lambda: {"idw_k8_p1": spy([]), "log_kriging": counted([])})
    found = fold_report.evaluate_folds(
        Path("source"),
        Path("stations"),
        Path("splits"),
        tmp_path,
        tmp_path / "work",
        [CITY, STATION],
        {"aqnet": counted([], key="n", sequential=True)},
    )
    pairs = int((~np.isnan(record().values[0][::7])).sum())
    assert found["leave_city_out"].scores["pairs"].tolist() == [pairs] * 3
    assert set(found["leave_station_out"].skill["minus"]) == {"idw_k8_p1", "log_kriging"}
    saved = json.loads((tmp_path / "folds.json").read_text())
    assert saved["about"]["leave_city_out"]["fold"] == dict(
        zip(CODES, folds.fold_of(CITY, CODES, CITIES).tolist(), strict=True)
    )
    assert saved["about"]["leave_station_out"]["stride"] == 7
    assert {row["method"] for row in saved["leave_city_out"]["scores"]} == {"idw_k8_p1", "log_kriging", "aqnet"}
    assert (tmp_path / "folds-leave_city_out.png").stat().st_size > 10_000
    text = (tmp_path / "folds.md").read_text()
    assert text.startswith("# Leave city out\n")
    assert "# Leave station out" in text
    assert "| aqnet | idw_k8_p1 |" in text
