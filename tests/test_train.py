"""Training: repeatable, blind to what it must not see, and it learns. Tiny networks on tiny synthetic records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from model import checkpoint
from model import train as training
from model.aqnet import AQNet, AQNetConfig
from model.train import Recipe, Split, loss, pinball
from model.windows import LEVELS, POLLUTANTS, Observations, normalisation
from pipeline import train as pipeline_train
from pipeline.errors import InputError

SIZES = {"neighbours": 8, "lead_hours": 6, "hidden": 8, "attention_heads": 2, "embedding": 2, "kriging_heads": 2}
SHORT = Recipe(steps=3, windows=1, queries=8, check_every=3)
HOURS, STATIONS = 160, 33


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small network on one thread; and torch as it was, afterwards."""
    monkeypatch.setattr(training, "AQNetConfig", partial(AQNetConfig, head_hidden=8, **SIZES))
    monkeypatch.setattr(training, "THREADS", 1)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def record(seed: int = 0) -> Observations:
    """A smooth field with a gap in a tenth of the values; other pollutants go with PM2.5."""
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(113, 117, STATIONS), rng.uniform(36, 39, STATIONS)
    hours = np.arange(430000, 430000 + HOURS)
    z = 3 + 0.5 * np.sin(2 * lon) + 0.4 * np.cos(2 * lat) + 0.5 * np.sin(hours / 9)[:, None]
    values = np.stack([np.expm1(z * share) for share in (1, 1.1, 0.7, 0.9, 1, 0.3)]).astype(np.float32)
    values *= rng.lognormal(0, 0.05, values.shape).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    return Observations(hours, values, lon, lat, rng.uniform(0, 300, STATIONS))


def split() -> Split:
    return Split(slice(0, 90), slice(90, 130), np.array([f"city {s // 3}" for s in range(STATIONS)]))


def run(seen: Observations, seed: int = 0, recipe: Recipe = SHORT) -> training.Trained:
    return training.train(seen, split(), seed, recipe)


def same(a: training.Trained, b: training.Trained) -> bool:
    other = b.network.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.network.state_dict().items())


def task(seed: int, network: AQNet | None = None, seen: Observations | None = None) -> training._Task:
    """The task as training with `seed` draws it, its held-out cities among it."""
    made = network or AQNet(training.AQNetConfig())
    return training._Task(made, seen or record(), split(), np.random.default_rng(seed), SHORT)


def altered(seen: Observations, where: tuple[object, ...]) -> Observations:
    values = seen.values.copy()
    values[where] = np.random.default_rng(9).lognormal(5, 1, values[where].shape)
    return replace(seen, values=values)


# ---- repeatable ----


def test_a_seed_makes_the_same_weights_and_another_does_not():
    first, again, other = run(record()), run(record()), run(record(), seed=1)
    assert same(first, again)
    assert first.history == again.history
    assert not same(first, other)


def test_training_changes_every_weight_and_returns_a_network_in_evaluation_mode():
    torch.manual_seed(0)
    start = AQNet(training.AQNetConfig()).state_dict()
    found = run(record())
    assert not found.network.training
    kept = [name for name, tensor in found.network.state_dict().items() if torch.equal(tensor, start[name])]
    assert kept == []


def test_the_recipe_and_normalisation_are_kept_with_the_network():
    found = run(record())
    assert Recipe(**found.recipe) == SHORT
    mean, std = normalisation(record().values[:, :90])
    assert (found.network.config.mean, found.network.config.std) == (mean, std)


# ---- leaks ----


def test_hours_after_validation_change_nothing():
    assert same(run(record()), run(altered(record(), (slice(None), slice(130, None)))))


def test_validation_hours_only_choose_where_to_stop():
    """With one check there is nothing to choose."""
    changed = altered(record(), (slice(None), slice(90, None)))
    assert same(run(record()), run(changed))
    assert run(record()).history != run(changed).history


def test_held_out_cities_are_whole_and_drawn_by_the_seed():
    city = split().city
    for seed in range(5):
        drawn = task(seed)
        assert not set(city[drawn.learn]) & set(city[drawn.judge])
        assert len(drawn.judge) == 3
        assert sorted([*drawn.learn, *drawn.judge]) == list(range(STATIONS))
    assert len({tuple(task(seed).judge) for seed in range(5)}) > 1


def test_values_of_held_out_cities_are_never_learned_from(monkeypatch: pytest.MonkeyPatch):
    """Apart from normalisation, which is held fixed here, a step sees nothing of them: weights stay the same bits."""
    monkeypatch.setattr(training, "normalisation", lambda values: ((3.0,) * 6, (1.0,) * 6))
    changed = altered(record(), (slice(None), slice(0, 90), task(0).judge))
    assert same(run(record()), run(changed))


def test_held_out_stations_are_neither_neighbours_nor_queries_of_a_step(monkeypatch: pytest.MonkeyPatch):
    seen: dict[bool, list[tuple[NDArray[np.int64], ...]]] = {True: [], False: []}
    forward = training._Task._forward

    def spy(self, hours, stations, queries, radius, alone):
        seen[self.network.training].append((stations, queries))
        return forward(self, hours, stations, queries, radius, alone)

    monkeypatch.setattr(training._Task, "_forward", spy)
    run(record(), recipe=replace(SHORT, steps=6))
    judge = task(0).judge
    assert len(seen[True]) == 6
    for stations, queries in seen[True]:
        assert not np.isin(judge, stations).any()
        assert not np.isin(judge, queries).any()
    for stations, queries in seen[False]:
        assert not np.isin(judge, stations).any()
        np.testing.assert_array_equal(queries, judge)


def test_a_query_is_never_its_own_neighbour_and_nothing_within_its_radius_is():
    made = task(0)
    radius = np.where(np.arange(len(made.learn)) % 2, 200.0, -1.0)
    nearest, km, enough = made._neighbours(made.learn, made.learn, radius)
    between = made.between.numpy()
    for q, station in enumerate(made.learn):
        allowed = [s for s in made.learn if s != station and between[station, s] > radius[q]]
        expected = sorted(allowed, key=lambda s: between[station, s])[:8]
        assert enough[q] == (len(allowed) >= 8)
        assert made.learn[nearest[q][: len(expected)]].tolist() == expected
        np.testing.assert_allclose(km[q][: len(expected)], between[station, expected])
    assert not enough.all()


def test_the_truth_at_a_query_is_not_among_its_inputs():
    """The value of a query station's own hours may change: its estimate stays, the others' do not."""
    made = task(0)
    station = made.learn[:1]
    alone = np.full(1, -1.0)
    with torch.no_grad():
        before = made._forward(slice(0, 30), made.learn, station, alone, False)[0]
        made.observations = altered(made.observations, (slice(None), slice(None), station))
        after = made._forward(slice(0, 30), made.learn, station, alone, False)[0]
        made.observations = altered(made.observations, (slice(None), slice(None), made.learn[1:]))
        other = made._forward(slice(0, 30), made.learn, station, alone, False)[0]
    assert torch.equal(before, after)
    assert not torch.equal(before, other)


def test_pm2p5_alone_hides_every_other_pollutant():
    made = task(0)
    arguments = slice(0, 30), made.learn, made.learn[:2], np.full(2, -1.0)
    changed = altered(made.observations, (slice(1, None),))
    changed.values[1:, ::2] = np.nan
    with torch.no_grad():
        before = [made._forward(*arguments, alone)[0] for alone in (True, False)]
        made.observations = changed
        after = [made._forward(*arguments, alone)[0] for alone in (True, False)]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


# ---- loss ----


def test_pinball_is_the_brute_force_sum():
    rng = np.random.default_rng(0)
    truth, quantiles = rng.normal(size=(2, 3)), np.sort(rng.normal(size=(2, 3, len(LEVELS))))
    found = pinball(torch.from_numpy(truth).float(), torch.from_numpy(quantiles).float())
    edges = [LEVELS[0], *((a + b) / 2 for a, b in itertools.pairwise(LEVELS)), LEVELS[-1]]
    for i in range(2):
        for j in range(3):
            total = 0.0
            for n, level in enumerate(LEVELS):
                error = truth[i, j] - quantiles[i, j, n]
                inner = 0 < n < len(LEVELS) - 1
                width = edges[n + 1] - edges[n] if inner else abs(LEVELS[n] - LEVELS[n + (1 if n == 0 else -1)])
                total += width * (level * error if error > 0 else (level - 1) * error)
            assert found[i, j] == pytest.approx(total, rel=1e-4)


def test_pinball_is_least_at_the_quantiles_of_the_truth():
    truth = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    right = torch.quantile(truth[:, 0], torch.tensor(LEVELS)).expand(4000, 1, len(LEVELS))
    least = pinball(truth, right).mean()
    for wrong in (right + 0.3, right - 0.3, right * 1.5, right * 0.5):
        assert pinball(truth, wrong).mean() > least


def test_an_unknown_truth_adds_nothing_to_the_loss():
    torch.manual_seed(0)
    quantiles, mean, truth = torch.randn(3, 4, 11).sort(-1).values + 3, torch.randn(3, 4) + 3, torch.rand(3, 4) + 3
    known = torch.rand(3, 4) > 0.4
    before = loss(quantiles, mean, truth, known, SHORT)
    other = torch.where(known, truth, 6.0)
    assert torch.equal(loss(quantiles, mean, other, known, SHORT), before)
    assert not torch.equal(loss(quantiles, mean, truth + 0.1 * known, known, SHORT), before)


def test_a_window_without_any_truth_leaves_the_weights_finite():
    quantiles = torch.randn(2, 3, 11, requires_grad=True)
    found = loss(quantiles, quantiles[..., 0], torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), SHORT)
    found.backward()
    assert found == 0
    assert torch.isfinite(quantiles.grad).all()


def test_a_stray_early_step_stays_finite():
    quantiles = torch.full((1, 1, 11), 300.0, requires_grad=True)
    found = loss(quantiles, quantiles[..., 0], torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), SHORT)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(quantiles.grad).all()


# ---- it learns ----


def test_thirty_steps_on_an_easy_field_lower_the_loss_where_it_is_judged():
    recipe = Recipe(steps=30, windows=1, queries=24, check_every=10, learning_rate=1e-2)
    found = run(record(), recipe=recipe)
    torch.manual_seed(0)
    untrained = task(0, AQNet(found.network.config)).validate()
    assert min(entry["validation"] for entry in found.history) < 0.8 * untrained
    assert found.history[-1]["loss"] < found.history[0]["loss"]


def test_the_network_returned_is_the_best_of_the_checks():
    """A learning rate that ruins the network shows whether the last or the best is kept."""
    recipe = Recipe(steps=12, windows=1, queries=16, check_every=2, learning_rate=0.3)
    found = run(record(), recipe=recipe)
    scores = [entry["validation"] for entry in found.history]
    assert [entry["step"] for entry in found.history] == [2, 4, 6, 8, 10, 12]
    assert scores[-1] > min(scores)
    assert task(0, found.network).validate() == pytest.approx(min(scores), rel=1e-5)


def test_too_few_stations_are_refused():
    few = training.visible_only(record(), np.arange(9))
    with pytest.raises(ValueError, match="expected more than 8 stations; found 6"):
        training.train(few, Split(slice(0, 90), slice(90, 130), split().city[:9]), 0, SHORT)


def test_visible_only_takes_every_array_of_the_stations():
    chosen = np.array([5, 2])
    found, whole = training.visible_only(record(), chosen), record()
    np.testing.assert_array_equal(found.values, whole.values[:, :, chosen])
    for name in ("lon", "lat", "elevation"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[chosen])
    np.testing.assert_array_equal(found.hours, whole.hours)


# ---- from the archive to the weights ----

CODES = [f"{1001 + i}A" for i in range(30)]
VISIBLE, HIDDEN = slice(0, 24), slice(24, 30)


def archive(folder: Path, change: Callable[[NDArray[np.float64]], None] | None = None) -> dict[str, Path]:
    """Seven days of 30 stations in CNEMC's layout; `change` may alter the values (hours, pollutants, stations)."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lon, lat = rng.uniform(113, 117, 30), rng.uniform(36, 39, 30)
    values = 50 + 30 * np.sin(lon) + 20 * np.sin(np.arange(168) / 6)[:, None, None] + rng.uniform(0, 5, (168, 6, 30))
    if change:
        change(values)
    kinds = ("PM2.5", "PM10", "SO2", "NO2", "O3", "CO")
    for day in range(7):
        date = (pd.Timestamp("2019-01-01") + pd.Timedelta(days=day)).strftime("%Y%m%d")
        rows = [
            f"{date},{h},{kind}," + ",".join(f"{v:.1f}" for v in values[24 * day + h, k])
            for h in range(24)
            for k, kind in enumerate(kinds)
        ]
        (folder / f"china_sites_{date}.csv").write_text("\n".join(["date,hour,type," + ",".join(CODES), *rows]) + "\n")
    listed = pd.DataFrame(
        {"code": CODES, "name": "-", "city": [f"c{i // 3}" for i in range(30)], "lon": lon, "lat": lat}
    )
    listed.to_csv(folder / "stations.csv", index=False)
    groups = {"visible": CODES[VISIBLE], "hidden_random": CODES[24:27], "hidden_city": CODES[27:]}
    bounds = {"bbox_WSEN": [105, 32, 125, 45], "train_end_hour_index": 90, "test_start_hour_index": 130, "hours": 168}
    (folder / "splits.json").write_text(json.dumps(groups | bounds))
    return {"source_path": folder, "stations": folder / "stations.csv", "splits": folder / "splits.json"}


def test_hidden_stations_and_test_hours_never_reach_the_weights(tmp_path: Path):
    """The leak test, from files to file: the same bytes whatever hidden stations and test hours hold."""

    def change(values: NDArray[np.float64]) -> None:
        values[:, :, HIDDEN] = 300 - values[:, :, HIDDEN]
        values[130:] = 400 - values[130:]

    def learn(values: NDArray[np.float64]) -> None:
        values[40, 0, 0] += 100

    paths = []
    for name, changed in (("a", None), ("b", change), ("c", learn)):
        files = archive(tmp_path / name, changed)
        paths.append(pipeline_train.train(**files, out=tmp_path / f"out {name}", seed=3, steps=2))
    weights = [path.read_bytes() for path in paths]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert paths[0].name == "aqnet-seed3.safetensors"
    described, other = (json.loads(path.with_suffix(".json").read_text())["training"] for path in paths[:2])
    assert described["history"] == other["history"]
    assert described["digests"]["observations"] != other["digests"]["observations"]
    assert (described["seed"], described["visible_stations"], described["train_hours"]) == (3, 24, 90)
    assert described["recipe"]["steps"] == 2
    assert checkpoint.load(paths[0]).config.neighbours == 8


def test_a_station_list_without_cities_is_refused(tmp_path: Path):
    files = archive(tmp_path / "a")
    pd.read_csv(files["stations"], dtype=str).drop(columns="city").to_csv(files["stations"], index=False)
    with pytest.raises(InputError, match=r"stations\.csv: column 'city' is missing; found code, name, lon, lat"):
        pipeline_train.train(**files, out=tmp_path / "out", seed=0, steps=2)


def test_pollutants_of_the_record_are_those_the_network_expects():
    assert len(POLLUTANTS) == record().values.shape[0]
