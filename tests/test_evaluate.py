"""The public evaluation: no leak from hidden stations or the future, alignment of hours, the files it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from model import baseline, infer, space_time
from model.aqnet import AQNet, AQNetConfig
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points
from pipeline import sources
from pipeline.errors import InputError
from pipeline.evaluation import evaluate
from pipeline.release import skill


def untrained() -> baseline.Estimator:
    """AQ-Net with random weights: a leak would show whatever the weights are."""
    torch.manual_seed(0)
    return partial(infer.estimate, AQNet(AQNetConfig()).eval())


#: Methods that need a continuous record, built when their test runs.
SEQUENTIAL: dict[str, Callable[[], baseline.Estimator]] = {
    "aqnet untrained": untrained,
    "aqnet shipped": infer.estimator,
    "aqnet final": lambda: infer.estimator(mode="final"),
    "space_time": lambda: space_time.METHODS["space_time"],
    "space_time_two_sided": lambda: space_time.METHODS["space_time_two_sided"],
}

#: Methods for the final analysis, which may read later hours.
TWO_SIDED = ("aqnet final", "space_time_two_sided")

HOURS = 240

GROUPS = ("visible", "hidden_random", "hidden_city")


def record(seed: int = 0, hours: int = 120, stations: int = 40) -> Observations:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(3.0, 0.8, (len(POLLUTANTS), hours, stations)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    lon, lat = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations)
    return Observations(np.arange(430000, 430000 + hours), values, lon, lat, rng.uniform(0, 500, stations))


VISIBLE, HIDDEN = np.arange(0, 40, 1)[np.arange(40) % 4 != 0], np.arange(0, 40, 4)


# ---- what methods see ----


def run(seen: Observations, scored: NDArray[np.int64], name: str) -> Estimate:
    hourly = {name: baseline.METHODS[name]} if name in baseline.METHODS else {}
    sequential = {name: SEQUENTIAL[name]()} if name in SEQUENTIAL else {}
    found = evaluate.predict(evaluate.withhold(seen, VISIBLE, HIDDEN), scored, hourly, sequential)[name]
    return Estimate(found.mean, found.quantiles)


@pytest.mark.parametrize("name", [*baseline.METHODS, *SEQUENTIAL])
def test_hidden_values_and_the_future_change_no_estimate(name: str):
    """The leak test: every value at hidden stations, and every value after an hour, may be anything."""
    whole, scored = record(), np.arange(80, 120, 6)
    now = 98  # the fourth scored hour
    leaky = whole.values.copy()
    leaky[:, :, HIDDEN] = np.random.default_rng(1).lognormal(5.0, 1.0, leaky[:, :, HIDDEN].shape)
    leaky[:, ::3, HIDDEN] = np.nan
    hidden_changed, before = run(replace(whole, values=leaky), scored, name), run(whole, scored, name)
    np.testing.assert_array_equal(hidden_changed.mean, before.mean)
    leaky[:, now + 1 :] = np.nan
    leaky[:, now + 1 :, ::2] = 900.0
    future_changed = run(replace(whole, values=leaky), scored, name)
    assert np.array_equal(future_changed.mean[:4], before.mean[:4]) == (name not in TWO_SIDED)
    assert not np.array_equal(future_changed.mean[4:], before.mean[4:])
    if before.quantiles is not None:
        np.testing.assert_array_equal(hidden_changed.quantiles, before.quantiles)
        same = np.array_equal(future_changed.quantiles[:, :4], before.quantiles[:, :4])
        assert same == (name not in TWO_SIDED)


def test_methods_get_no_array_that_holds_a_hidden_value():
    whole = record()
    whole.values[:, :, HIDDEN] = -1.0
    parts = evaluate.withhold(whole, VISIBLE, HIDDEN)
    assert not (parts.visible.values == -1.0).any()
    assert not np.shares_memory(parts.visible.values, whole.values)
    assert (parts.truth == -1.0).all()
    assert vars(parts.points).keys() == {"lon", "lat", "elevation", "relief"}


def test_sequential_methods_get_their_lead_and_are_read_at_the_scored_hours():
    seen: list[Observations] = []

    def clock(observations: Observations, points: Points) -> Estimate:
        seen.append(observations)
        return Estimate(np.repeat(observations.hours[:, None] % 1000, len(points.lon), axis=1).astype("f4"), None)

    scored = np.arange(83, 120, 6)  # the first is 03 UTC
    parts = evaluate.withhold(record(), VISIBLE, HIDDEN)
    found = evaluate.predict(parts, scored, {"hourly": clock}, {"sequential": clock})
    np.testing.assert_array_equal(found["hourly"].mean[:, 0], scored)
    np.testing.assert_array_equal(found["sequential"].mean[:, 0], scored)
    np.testing.assert_array_equal(seen[0].hours, 430000 + scored)
    np.testing.assert_array_equal(seen[1].hours, 430000 + np.arange(80 - 72, scored[-1] + 1))


def test_a_longer_lead_gives_an_earlier_start():
    seen: list[Observations] = []

    def note(observations: Observations, points: Points) -> Estimate:
        seen.append(observations)
        return baseline.idw(observations, points)

    evaluate.predict(evaluate.withhold(record(), VISIBLE, HIDDEN), np.array([100, 110]), {}, {"m": note}, lead=1000)
    assert (seen[0].hours[0], len(seen[0].hours)) == (430000, 111)


def test_distance_is_to_the_nearest_station_that_methods_see():
    whole = record()
    parts = evaluate.withhold(whole, VISIBLE, HIDDEN)
    d = space_time.Separation.of(parts.points, parts.visible).d
    np.testing.assert_allclose(evaluate.nearest_km(parts), d.min(axis=1), rtol=1e-3)


# ---- a run's own withheld stations ----


def test_withheld_stations_are_seeded_tenths_that_no_method_sees():
    seen: list[tuple[int, int]] = []

    def count(observations: Observations, points: Points) -> Estimate:
        seen.append((len(observations.lon), len(points.lon)))
        return baseline.idw(observations, points)

    def sample(seed: int) -> skill.Sample:
        found = skill.sample(record(), {"aqnet": count}, evaluate.LEAD_HOURS, 120, seed)
        assert found is not None
        return found

    found = sample(3)
    assert set(seen) == {(36, 4)}
    assert len(set(found.stations)) == len(found.stations) == 4 * len(seen)
    assert found.table().index.tolist() == ["log_kriging", "idw_k8_p1", "aqnet"]
    assert found.table().loc["aqnet"].equals(found.table().loc["idw_k8_p1"])
    pd.testing.assert_frame_equal(found.table(), sample(3).table())
    assert not found.table().equals(sample(4).table())


def test_one_station_is_too_few_to_withhold_any():
    assert skill.sample(record(stations=1), {}, evaluate.LEAD_HOURS, 120) is None


# ---- end to end ----

CODES = [f"{1001 + i}A" for i in range(30)]


@pytest.fixture(scope="module")
def cnemc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days of 30 stations in CNEMC's layout; the PM2.5 of hour index h at station s is 10 + h + s / 100."""
    folder = tmp_path_factory.mktemp("cnemc")
    rng = np.random.default_rng(0)
    labels = pd.Timestamp("2019-01-01") + pd.to_timedelta(np.arange(HOURS), unit="h")
    for day, hours in pd.Series(np.arange(HOURS), labels).groupby(labels.strftime("%Y%m%d")):
        rows = [
            f"{day},{h % 24},{kind}," + ",".join(f"{value + s / 100:.2f}" for s in range(30))
            for h in hours
            for kind, value in (("PM2.5", 10 + h), ("PM10", 50), ("SO2", 5), ("NO2", 20), ("O3", 60), ("CO", 1))
        ]
        rows[0] = rows[0].replace(",10.00,", ",-5,").replace(",11.00", ",1500") if day == "20190101" else rows[0]
        header = "date,hour,type," + ",".join(CODES)
        (folder / f"china_sites_{day}.csv").write_text("\n".join([header, *rows]) + "\n")
    places = pd.DataFrame({"code": CODES, "lon": rng.uniform(113, 117, 30), "lat": rng.uniform(36, 39, 30)})
    places.assign(name="-", city="-").to_csv(folder / "stations.csv", index=False)
    split = {"bbox_WSEN": [105, 32, 125, 45], "visible": CODES[:24], "hidden_random": CODES[24:27]}
    split |= {"hidden_city": CODES[27:], "train_end_hour_index": 150, "test_start_hour_index": 180, "hours": HOURS}
    (folder / "splits.json").write_text(json.dumps(split))
    return folder


def test_hour_index_0_is_the_hour_that_ends_at_label_0_in_beijing(cnemc: Path):
    split = evaluate.Splits.read(cnemc / "splits.json")
    found, codes = evaluate.read_record(cnemc, cnemc / "stations.csv", split)
    order = [codes.tolist().index(code) for code in CODES]
    assert found.hours[0] == np.datetime64("2018-12-31T15", "h").astype(int)
    expected = 10 + np.arange(HOURS)[:, None] + np.arange(30) / 100
    expected[0, 0] = np.nan  # the file says -5, outside (0, 1000]
    np.testing.assert_allclose(found.values[0][:, order], expected, rtol=1e-6)
    assert np.nanmax(found.values[1]) == pytest.approx(50.29)


def offset(observations: Observations, points: Points, by: float) -> Estimate:
    """Truth of the simulated files (its hundredths apart) and an offset, with quantiles."""
    mean = np.nanmean(observations.values[0], axis=1)[:, None] + by + np.zeros(len(points.lon))
    return Estimate(mean.astype("f4"), np.stack([mean + 10 * (level - 0.5) for level in LEVELS]).astype("f4"))


def test_evaluation_writes_tables_seeds_differences_and_digests(cnemc: Path, tmp_path: Path, monkeypatch):
    networks = {f"aqnet s{i}": partial(offset, by=by) for i, by in enumerate((3.0, -1.0, 2.0))}
    monkeypatch.setattr(evaluate, "_networks", lambda weights: networks)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    methods = {"log_kriging": partial(offset, by=4.0), "idw_k8_p1": baseline.idw}
    found = evaluate.evaluate(
        cnemc, cnemc / "stations.csv", cnemc / "splits.json", tmp_path / "out", [weights], stride=6, methods=methods
    )
    city = found.tables["hidden_city"]
    assert city.index.tolist() == ["log_kriging", "idw_k8_p1", "aqnet s0", "aqnet s1", "aqnet s2"]
    assert (city["pairs"] == 10 * 3).all()
    np.testing.assert_allclose(found.seeds["hidden_city"]["mae_mean"], [1.83, 1.17, 2.83], atol=0.02)
    row = found.differences.query("group == 'hidden_city' and minus == 'log_kriging' and statistic == 'mae_median'")
    assert row["method"].item() == "aqnet s2"
    assert row["value"].item() == pytest.approx(-2.0, abs=1e-4)
    assert row["low"].item() <= row["value"].item() <= row["high"].item() < 0
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved["about"]["digests"].keys() == {"observations", "stations.csv", "splits.json", "w.safetensors"}
    assert saved["groups"]["hidden_city"]["scores"][1]["coverage_90"] is None
    assert saved["groups"]["hidden_city"]["conditions"]["season"][0]["season"] == "DJF"
    assert {row["minus"] for row in saved["groups"]["hidden_city"]["skill"]} == {"log_kriging", "idw_k8_p1"}
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| aqnet s2 | 1.8" in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "evaluation-hidden_city.png",
        "evaluation-hidden_random.png",
        "evaluation.json",
        "evaluation.md",
    ]


def test_baselines_are_fitted_on_training_hours_of_visible_stations(cnemc: Path, tmp_path: Path, monkeypatch):
    seen: list[Observations] = []
    fit = baseline.fit_variogram

    def spy(observations: Observations, factor: float) -> baseline.Variogram:
        seen.append(observations)
        return fit(observations, factor)

    monkeypatch.setattr(baseline, "fit_variogram", spy)
    monkeypatch.setattr(baseline, "METHODS", {"idw_k8_p1": baseline.idw})
    found = evaluate.evaluate(cnemc, cnemc / "stations.csv", cnemc / "splits.json", tmp_path, [], stride=24)
    assert [o.values.shape for o in seen] == [(6, 150, 24)] * 2
    assert found.about["variograms"]["log_kriging_terrain"]["terrain_factor"] == 400.0
    assert not found.seeds
    assert set(found.differences["method"]) == set(space_time.METHODS)


def test_a_station_that_is_not_in_the_data_is_named(cnemc: Path):
    split = evaluate.Splits.read(cnemc / "splits.json")
    with pytest.raises(InputError, match="1 absent, first cnemc:9999A"):
        evaluate.read_record(cnemc, cnemc / "stations.csv", replace(split, visible=[*split.visible, "9999A"]))


def test_a_split_without_its_keys_is_refused(tmp_path: Path):
    (tmp_path / "splits.json").write_text('{"visible": []}')
    with pytest.raises(InputError, match="missing or unreadable: 'hidden_random'"):
        evaluate.Splits.read(tmp_path / "splits.json")


def test_real_january_ranks_the_baselines_as_published(shared_data: Path, tmp_path: Path):
    """Kriging leads inverse distance in cities without a station; near stations the two are close; the mean is last."""
    folder = shared_data / "cnemc"
    split = json.loads((folder / "splits.json").read_text())
    split |= {"train_end_hour_index": 400, "test_start_hour_index": 500, "hours": 740}
    first, last = evaluate.ORIGIN, evaluate.ORIGIN + np.timedelta64(48, "h")
    tables = sources.read("cnemc", folder, folder / "stations.csv", first, last, split["bbox_WSEN"], "keep")
    present = set().union(*(rows["station"].str.removeprefix("cnemc:") for rows in tables))
    split |= {group: [code for code in split[group] if code in present] for group in GROUPS}
    (tmp_path / "splits.json").write_text(json.dumps(split))
    found = evaluate.evaluate(
        folder, folder / "stations.csv", tmp_path / "splits.json", tmp_path / "out", [], stride=12
    )
    city, near = found.tables["hidden_city"], found.tables["hidden_random"]
    assert city.loc["log_kriging", "mae_median"] < city.loc["idw_k8_p1", "mae_median"]
    assert city["mae_median"].idxmax() == near["mae_median"].idxmax() == "hourly_mean"
    assert near.loc["log_kriging", "mae_median"] == pytest.approx(near.loc["idw_k8_p1", "mae_median"], rel=0.1)
    assert near.loc["log_kriging", "r2_mean"] > 0.7
    assert 0.75 < city.loc["log_kriging", "coverage_90"] < 0.97
