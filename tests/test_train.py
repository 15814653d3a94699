"""Training: repeatable, blind to what it must not see, and it learns. Tiny networks on tiny synthetic records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import checkpoint
from model import train as training
from model.aqnet import AQNet, AQNetConfig
from model.geometry import distance_matrix
from model.kriging import BANDS, MODES, WHOLE, Kriging, band_rows
from model.train import Recipe, Split, leave_out, loss, pinball
from model.windows import LEVELS, POLLUTANTS, Observations, Window, normalisation
from pipeline import train as pipeline_train
from pipeline.errors import InputError
from pipeline.evaluation import calibrate

SIZES = {"near": 4, "lead_hours": 6, "tail_hours": 6, "history": 3}
WIDTHS = {"hidden": 8, "attention_heads": 2, "embedding": 2, "head_hidden": 8}
SHORT = Recipe(covariance_steps=4, covariance_hours=16, steps=5, windows=1)
HOURS, STATIONS = 160, 33


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small network on one thread; and torch as it was, afterwards."""
    monkeypatch.setattr(training, "AQNetConfig", partial(AQNetConfig, **SIZES, **WIDTHS))
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
    return Observations(hours, values, lon, lat, rng.uniform(0, 300, STATIONS), rng.uniform(-200, 200, (STATIONS, 4)))


def split() -> Split:
    return Split(slice(0, 90), np.array([f"city {s // 3}" for s in range(STATIONS)]))


def run(seen: Observations, seed: int = 0, recipe: Recipe = SHORT) -> training.Trained:
    return training.train(seen, split(), seed, recipe)


@cache
def unchanged() -> training.Trained:
    """Trained on the record as it is, for what is compared with it."""
    return run(record())


def same(a: training.Trained, b: training.Trained) -> bool:
    other = b.network.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.network.state_dict().items())


def untrained(seed: int = 0) -> AQNet:
    torch.manual_seed(seed)
    return AQNet(training.AQNetConfig())


def task(seed: int, seen: Observations | None = None, recipe: Recipe = SHORT, net: AQNet | None = None):
    """The task as training draws it; the network is the same whatever the record."""
    made = net or untrained()
    return training._Task(made, seen or record(), split(), np.random.default_rng(seed), recipe)


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
    start, found = untrained().state_dict(), unchanged()
    assert not found.network.training
    assert all(p.requires_grad for p in found.network.parameters())
    assert all(torch.isfinite(tensor).all() for tensor in found.network.state_dict().values())
    kept = [name for name, tensor in found.network.state_dict().items() if torch.equal(tensor, start[name])]
    assert kept == ["head.widen"]  # which calibration sets


def test_the_recipe_normalisation_and_loss_are_kept_with_the_network():
    found = unchanged()
    assert Recipe(**found.recipe) == SHORT
    assert (found.network.config.mean, found.network.config.std) == normalisation(record().values[:, :90])
    assert [entry["step"] for entry in found.history] == [SHORT.steps]
    assert all(np.isfinite(entry["loss"]) for entry in found.history)


# ---- leaks ----


def test_hours_after_the_training_hours_change_nothing():
    assert same(unchanged(), run(altered(record(), (slice(None), slice(90, None)))))


def test_hours_before_the_training_hours_change_nothing():
    later = replace(split(), train=slice(60, 150))
    whole, changed = record(), altered(record(), (slice(None), slice(0, 60)))
    assert same(training.train(whole, later, 0, SHORT), training.train(changed, later, 0, SHORT))


def test_the_last_training_hour_counts():
    assert not same(unchanged(), run(altered(record(), (slice(None), slice(89, 90)))))


def drawn(seed: int, seen: Observations, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Quantiles and means of a step, the truth they are held against, and its loss."""
    said: list[Tensor] = []
    truths: list[Tensor] = []

    def spy(quantiles: Tensor, mean: Tensor, truth: Tensor, known: Tensor, recipe: Recipe) -> Tensor:
        said.extend([quantiles.detach(), mean.detach()])
        truths.append(truth)
        return loss(quantiles, mean, truth, known, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss", spy)
        total = task(seed, seen, replace(SHORT, windows=2)).draw()
    return said, truths, total


@pytest.mark.parametrize("seed", range(8))
def test_values_of_hidden_stations_change_no_estimate_of_their_step(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Neither through the encoder, nor through what neighbours say, nor through kriging; only the truth changes."""
    seen, queries = task(seed)._partition()
    unseen = np.setdiff1d(np.arange(STATIONS), seen)
    assert set(queries) <= set(unseen)
    before, truth, total = drawn(seed, record(), monkeypatch)
    after, other, moved = drawn(seed, altered(record(), (slice(None), slice(None), unseen)), monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(truth, other, strict=True))
    assert total != moved
    changed, _, _ = drawn(seed, altered(record(), (0, slice(None), seen[:3])), monkeypatch)
    assert not any(torch.equal(a, b) for a, b in zip(before, changed, strict=True))


def test_both_modes_are_among_the_steps_above():
    def mode(seed: int) -> str:
        made = task(seed)
        made._partition()
        return MODES[int(made.rng.integers(len(MODES)))]

    assert {mode(seed) for seed in range(8)} == set(MODES)


@pytest.mark.parametrize("thin", [0.0, 1.0])
def test_a_step_hides_whole_cities_and_single_stations_and_asks_for_them(thin: float):
    """Thinned-out stations are neither seen nor asked for."""
    made, city = task(0, recipe=replace(SHORT, thin=thin)), split().city
    whole = single = 0
    for _ in range(60):
        seen, queries = made._partition()
        assert not set(seen) & set(queries)
        assert len(seen) > SIZES["near"]
        hidden = {name for name in city[queries] if np.isin(np.flatnonzero(city == name), queries).all()}
        assert len(hidden) >= 1
        whole, single = whole + len(hidden), single + int((~np.isin(city[queries], list(hidden))).sum())
        if thin == 0:
            assert len(seen) + len(queries) == STATIONS
    assert 60 <= whole < 60 * 5
    assert single > 60


def windows_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> list[tuple[slice, NDArray[np.int64]]]:
    """Hours and stations of every window that is read meanwhile."""
    read: list[tuple[slice, NDArray[np.int64]]] = []
    window = training.window

    def spy(seen: Observations, hours: slice, stations: NDArray[np.int64], *scale: object) -> Window:
        read.append((hours, stations))
        return window(seen, hours, stations, *scale)

    with monkeypatch.context() as patch:
        patch.setattr(training, "window", spy)
        call()
    return read


def test_every_window_lies_within_the_training_hours(monkeypatch: pytest.MonkeyPatch):
    later = replace(split(), train=slice(40, 90))
    recipe = replace(SHORT, steps=25)
    read = windows_of(monkeypatch, lambda: training.train(record(), later, 0, recipe))
    assert len(read) >= 25
    assert min(hours.start for hours, _ in read) == 40
    assert max(hours.stop for hours, _ in read) <= 90
    lengths = {hours.stop - hours.start for hours, stations in read if len(stations) < STATIONS}
    assert lengths == {6 + 24, 6 + 24 + 6}


def test_pm2p5_alone_hides_every_other_pollutant():
    seen = np.arange(STATIONS)
    for share, hidden in ((0.0, True), (1.0, False)):
        made = task(0, recipe=replace(SHORT, other_pollutants=share))
        for mode in MODES:
            read = made._window(seen, mode)[1]
            others = read.features[..., : 2 * (len(POLLUTANTS) - 1)]
            assert bool((others == 0).all()) == hidden
            assert read.z.abs().sum() > 0
            assert (read.features[..., 2 * (len(POLLUTANTS) - 1) :] != 0).any()


def test_a_share_of_the_windows_is_pm2p5_alone():
    made = task(0, recipe=replace(SHORT, other_pollutants=0.75))
    seen = np.arange(STATIONS)
    alone = [bool((made._window(seen, "interim")[1].features[..., :10] == 0).all()) for _ in range(200)]
    assert 25 < sum(alone) < 75


# ---- leaving out ----


def field(seed: int = 0, stations: int = 14, parts: int = 2, hours: int = 3):
    """Distances, terrain, random covariances of `parts` bands, and values (R, S, T)."""
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations)
    between = torch.from_numpy(distance_matrix(lon, lat, lon, lat))
    terrain = torch.from_numpy(rng.uniform(-1, 1, (stations, 5)))
    torch.manual_seed(seed)
    kriging = Kriging().double()
    with torch.no_grad():
        for parameter in kriging.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return between, terrain, kriging, torch.from_numpy(rng.normal(0, 1, (parts, stations, hours)))


def solved_again(matrix: NDArray[np.float64], nugget: float, x: NDArray[np.float64], block: NDArray[np.int64]):
    """Residuals and error variances of ordinary kriging at the stations of a block from all others, one at a time."""
    rest = np.setdiff1d(np.arange(len(matrix)), block)
    n = len(rest)
    system = np.block([[matrix[np.ix_(rest, rest)] + nugget * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), 0.0]])
    residual, variance = [], []
    for s in block:
        right = np.append(matrix[rest, s], 1.0)
        weights = np.linalg.solve(system, right)
        residual.append(x[s] - weights[:n] @ x[rest])
        variance.append(matrix[s, s] + nugget - weights @ right)
    return np.array(residual), np.array(variance)


BLOCKS = {
    "singles": [[s] for s in range(14)],
    "cities": [[0, 5, 9], [1], [2, 3], [4, 6, 7], [8, 10], [11], [12, 13]],
    "large": [[0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13]],
}


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_leave_out_is_leaving_out_and_solving_again(blocks: list[list[int]]):
    between, terrain, kriging, parts = field()
    rows, groups = [1, 3], [np.array(block) for block in blocks]
    with torch.no_grad():
        matrix = kriging.covariance(between, terrain, terrain, rows)
        nugget = kriging.log_nugget[rows].exp()
        system = kriging.system(between, terrain, rows).precision
        residual, variance = leave_out(system, parts, groups)
    for r in range(2):
        for block in groups:
            expected, spread = solved_again(matrix[r].numpy(), nugget[r].item(), parts[r].numpy(), block)
            np.testing.assert_allclose(residual[r, block], expected, atol=1e-6)
            np.testing.assert_allclose(variance[r, block], spread, atol=1e-6)


def test_a_station_left_out_alone_needs_no_block():
    between, terrain, kriging, parts = field(1)
    with torch.no_grad():
        system = kriging.system(between, terrain, [0, 2]).precision
        alone = (system @ parts) / system.diagonal(dim1=1, dim2=2)[..., None]
        singles = leave_out(system, parts, [np.array([s]) for s in range(14)])[0]
    torch.testing.assert_close(alone, singles)
    torch.testing.assert_close(system.sum(2), torch.zeros(2, 14, dtype=torch.float64), atol=1e-8, rtol=0)


def test_blocks_are_the_cities():
    assert sorted(block.tolist() for block in task(0).blocks) == [[s, s + 1, s + 2] for s in range(0, STATIONS, 3)]


# ---- the covariances ----


def correlated(between: NDArray[np.float64], reach: float, count: int, rng: np.random.Generator):
    """Samples (count, S) of a Gaussian field of variance 1 whose covariance is exp(-d / reach)."""
    lower = np.linalg.cholesky(np.exp(-between / reach) + 1e-6 * np.eye(len(between)))
    return rng.normal(size=(count, len(between))) @ lower.T


def known_field(fast: float, slow: float, stations: int = 60) -> tuple[Observations, Split]:
    """PM2.5 whose hourly swings and whose level have covariances exp(-d / reach) of their own, km; towns of three."""
    rng = np.random.default_rng(0)
    lon, lat = (np.repeat(rng.uniform(a, a + 4, stations // 3), 3) for a in (113, 36))
    lon, lat = lon + rng.normal(0, 0.08, stations), lat + rng.normal(0, 0.08, stations)
    between = distance_matrix(lon, lat, lon, lat)
    z = 4 + 0.5 * correlated(between, slow, 1, rng) + 0.4 * correlated(between, fast, HOURS, rng)
    values = np.full((len(POLLUTANTS), HOURS, stations), np.nan, np.float32)
    values[:] = z.clip(0.5) ** 3
    city = np.array([f"town {s // 3}" for s in range(stations)])
    seen = Observations(np.arange(430000, 430000 + HOURS), values, lon, lat, np.zeros(stations))
    return seen, Split(slice(0, 150), city)


def correlation(made: training._Task, row: int, km: float) -> float:
    """Correlation of what two stations observe at a distance, nugget included."""
    kriging, flat = made.network.knn.kriging, torch.zeros(1, 5)
    with torch.no_grad():
        there = kriging.covariance(torch.tensor([[km]]), flat, flat, [row])[0, 0, 0]
        here = kriging.variance(flat, [row])[0, 0] + kriging.log_nugget[row].exp()
    return float(there / here)


def fitted(seen: Observations, part: Split, steps: int, mode: str = "interim") -> training._Task:
    recipe = replace(SHORT, covariance_steps=steps, covariance_hours=48)
    made = training._Task(untrained(), seen, part, np.random.default_rng(0), recipe)
    made.fit_bands(mode)
    return made


@pytest.mark.parametrize("mode", MODES)
def test_the_fit_learns_which_band_reaches_how_far(mode: str):
    """Hourly swings are given the longer reach, against the starting point: at 100 km the order turns round."""
    seen, part = known_field(fast=600.0, slow=25.0)
    first = BANDS * MODES.index(mode)
    start, found = fitted(seen, part, 0, mode), fitted(seen, part, 80, mode)
    assert correlation(start, first, 100.0) < correlation(start, first + BANDS - 1, 100.0)
    assert correlation(found, first, 100.0) > correlation(found, first + BANDS - 1, 100.0) + 0.2


@pytest.mark.parametrize("mode", MODES)
def test_the_fit_lowers_the_error_at_stations_left_out(mode: str):
    """To that of the covariances which the field was drawn from, or below: it is the errors that are fitted."""
    seen, part = known_field(fast=300.0, slow=40.0)
    rows = band_rows(mode)
    start, found, truth = (fitted(seen, part, steps, mode) for steps in (0, 120, 0))
    kriging = truth.network.knn.kriging
    with torch.no_grad():
        kriging.shape[rows], kriging.log_sill[rows] = 0.0, torch.tensor([0.0, -20.0])
        kriging.log_nugget[rows], kriging.log_drift[rows] = float(np.log(1e-4)), -20.0
        kriging.log_range[rows] = torch.tensor([300.0, 300.0, 300.0, 40.0]).log()[:, None]
        parts, valid = start._parts(mode)
        losses = [
            float(made._left_out_loss(made.network.knn.kriging, rows, parts.double(), valid))
            for made in (start, found, truth)
        ]
    assert losses[1] < 0.97 * losses[0]
    assert losses[1] < 1.02 * losses[2]


def test_variances_are_scaled_to_the_errors_at_stations_left_out():
    seen, part = known_field(fast=300.0, slow=40.0)
    made = fitted(seen, part, 10)
    rows = band_rows("interim")
    parts, valid = made._parts("interim")
    with torch.no_grad():
        kriging = made.network.knn.kriging
        precision = kriging.system(made.between, made.terrain, rows).precision
        residual, unit = leave_out(precision, parts.double(), made.blocks)
        scaled = (kriging.log_scale[rows].exp()[:, None] * unit).sum(0).mean()
    hours = slice(None, None, 23)
    squared = residual.sum(0)[:, hours][valid[:, hours]].pow(2).mean()
    assert float(scaled) == pytest.approx(float(squared), rel=1e-3)


def test_parts_add_up_to_z_where_it_was_observed():
    made = task(0)
    for mode in MODES:
        parts, valid = made._parts(mode)
        assert parts.shape == (BANDS, STATIONS, 90)
        truth = made.truth[:, :90]
        assert torch.equal(valid, torch.isfinite(truth))
        torch.testing.assert_close(parts.sum(0)[valid], truth[valid] ** (1 / 3), atol=1e-3, rtol=0)


def test_a_field_of_one_value_is_estimated_without_error():
    made = task(0)
    parts, valid = torch.full((1, STATIONS, 4), 3.0, dtype=torch.float64), torch.ones(STATIONS, 4, dtype=torch.bool)
    with torch.no_grad():
        found = made._left_out_loss(made.network.knn.kriging, [WHOLE], parts, valid)
    assert float(found) == pytest.approx(0, abs=1e-6)


# ---- the second stage ----


def mean_loss(net: AQNet, seen: Observations) -> float:
    """Mean loss of the same twenty steps for any network."""
    made = task(77, seen, net=net)
    with torch.no_grad():
        return float(np.mean([made.draw().item() for _ in range(20)]))


def test_the_second_stage_lowers_the_loss():
    """Where a tenth of the values is a spike that no neighbour shows: kriging alone hands it on."""
    seen = record()
    seen.values[0][np.random.default_rng(5).random(seen.values[0].shape) < 0.1] *= 8
    recipe = replace(SHORT, covariance_steps=10, learning_rate=3e-2)
    first, both = (run(seen, recipe=replace(recipe, steps=steps)).network for steps in (0, 40))
    assert mean_loss(both, seen) < 0.94 * mean_loss(first, seen)


def test_the_second_stage_leaves_the_covariances_as_they_are():
    first, both = (run(record(), recipe=replace(SHORT, steps=steps)).network.knn.kriging for steps in (0, 5))
    for name, tensor in both.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name


def test_the_network_returned_is_the_average_of_the_last_steps():
    made = task(0, recipe=replace(SHORT, steps=10, averaged=0.3))
    states = [
        {name: tensor.clone() for name, tensor in made.network.state_dict().items()} for _ in training._steps(made)
    ]
    assert len(states) == 10
    for name, tensor in made.network.state_dict().items():
        expected = torch.stack([state[name] for state in states[7:]]).mean(0)
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_even_a_few_steps_are_kept(steps: int):
    made = task(0, recipe=replace(SHORT, steps=steps))
    before = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
    assert len(list(training._steps(made))) == steps
    assert not torch.equal(made.network.head.mlp[0].weight, before["head.mlp.0.weight"])


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 7, 10])
def test_any_number_of_steps_works(steps: int):
    found = run(record(), recipe=replace(SHORT, covariance_steps=steps, steps=steps))
    assert all(torch.isfinite(tensor).all() for tensor in found.network.state_dict().values())


# ---- what cannot be trained on ----


def test_too_few_stations_are_refused():
    few = training.visible_only(record(), np.arange(4))
    with pytest.raises(ValueError, match="expected more than 4 stations; found 4"):
        training.train(few, Split(slice(0, 90), split().city[:4]), 0, SHORT)


@pytest.mark.parametrize("stations", [5, 6, 9, 12])
def test_one_station_more_than_attention_looks_at_is_enough(stations: int):
    few = training.visible_only(record(), np.arange(stations))
    found = training.train(few, Split(slice(0, 90), split().city[:stations]), 0, replace(SHORT, steps=20))
    assert np.isfinite(found.history[-1]["loss"])


def test_too_few_hours_are_refused():
    with pytest.raises(ValueError, match="expected more than 36 hours; found 36"):
        training.train(record(), Split(slice(10, 46), split().city), 0, SHORT)


def test_one_city_is_refused():
    """Nothing is left to estimate it from."""
    with pytest.raises(ValueError, match="expected stations of two or more cities; found 1"):
        training.train(record(), Split(slice(0, 90), np.full(STATIONS, "Beijing")), 0, SHORT)


def test_visible_only_takes_every_array_of_the_stations():
    chosen = np.array([5, 2])
    found, whole = training.visible_only(record(), chosen), record()
    np.testing.assert_array_equal(found.values, whole.values[:, :, chosen])
    for name in ("lon", "lat", "elevation", "relief"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[chosen])
    np.testing.assert_array_equal(found.hours, whole.hours)
    assert training.visible_only(replace(whole, relief=None), chosen).relief is None


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
    assert (described["seed"], described["stations"], described["hours"]) == (3, 24, 90)
    assert not described["everything"]
    assert described["recipe"]["steps"] == 2
    assert checkpoint.load(paths[0]).config.near == 4


def test_production_weights_learn_from_everything(tmp_path: Path):
    """Hidden stations and test hours among it; another name keeps them apart from those that are scored."""

    def change(station: slice, hours: slice) -> Callable[[NDArray[np.float64]], None]:
        def alter(values: NDArray[np.float64]) -> None:
            values[hours, :, station] += 50

        return alter

    paths = []
    for name, changed in (("a", None), ("b", change(HIDDEN, slice(0, 9))), ("c", change(VISIBLE, slice(150, 168)))):
        files = archive(tmp_path / name, changed)
        out = tmp_path / f"out {name}"
        paths.append(pipeline_train.train(**files, out=out, seed=0, steps=2, everything=True))
    assert {path.name for path in paths} == {"aqnet.safetensors"}
    assert len({path.read_bytes() for path in paths}) == 3
    described = json.loads(paths[0].with_suffix(".json").read_text())["training"]
    assert (described["stations"], described["hours"], described["everything"]) == (30, 168, True)


def test_intervals_are_calibrated_by_visible_stations_and_training_hours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given: list[tuple[Observations, int, Path, int]] = []

    def spy(seen: Observations, codes: NDArray[np.str_], cities: NDArray[np.str_], work: Path, number: int, _: object):
        given.append((seen, len(set(codes)), work, number))
        assert len(codes) == len(cities)
        return (1.25,) * 6

    monkeypatch.setattr(calibrate, "calibrate", spy)
    files, work = archive(tmp_path / "a"), tmp_path / "folds"
    path = pipeline_train.train(**files, out=tmp_path / "out", seed=3, steps=2, work=work, number=4)
    (seen, codes, where, number) = given[0]
    assert (seen.values.shape[1:], codes, where, number) == ((90, 24), 24, work, 4)
    plain = pipeline_train.train(**files, out=tmp_path / "plain", seed=3, steps=2)
    assert checkpoint.digest(plain) != checkpoint.digest(path)  # products name the weights by it
    before, after = (checkpoint.load(found).state_dict() for found in (plain, path))
    assert before.pop("head.widen").tolist() == [1.0] * 6
    assert after.pop("head.widen").tolist() == [1.25] * 6
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_stations_without_a_city_are_cities_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = archive(tmp_path / "a")
    listed = pd.read_csv(files["stations"], dtype=str)
    listed.loc[:4, "city"] = None
    listed.to_csv(files["stations"], index=False)
    splits: list[Split] = []

    def spy(seen: Observations, given: Split, seed: int, recipe: Recipe) -> training.Trained:
        splits.append(given)
        return training.Trained(untrained())

    monkeypatch.setattr(training, "train", spy)
    pipeline_train.train(**files, out=tmp_path / "out", seed=0)
    assert len(set(splits[0].city[:5])) == 5
    assert len(set(splits[0].city)) == 5 + len({f"c{i // 3}" for i in range(5, 24)})


def test_a_station_list_without_cities_is_refused(tmp_path: Path):
    files = archive(tmp_path / "a")
    pd.read_csv(files["stations"], dtype=str).drop(columns="city").to_csv(files["stations"], index=False)
    with pytest.raises(InputError, match=r"stations\.csv: column 'city' is missing; found code, name, lon, lat"):
        pipeline_train.train(**files, out=tmp_path / "out", seed=0, steps=2)


def test_pollutants_of_the_record_are_those_the_network_expects():
    assert len(POLLUTANTS) == record().values.shape[0]
