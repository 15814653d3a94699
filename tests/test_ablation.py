"""Ablation: a part that is out does nothing, in training and in estimates; tables compare like with like; going on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import ablation, infer
from model import train as training
from model.aqnet import AQNet, AQNetConfig
from model.geometry import distance_matrix
from model.kriging import BANDS, MODES, WHOLE, Geometry, band_rows
from model.train import Recipe, Split
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points, terrain_features, to_z
from pipeline import score
from pipeline.evaluation import ablation as table
from pipeline.evaluation import evaluate
from pipeline.evaluation.evaluate import Splits
from pipeline.score import Prediction

SIZES = {"near": 4, "lead_hours": 6, "tail_hours": 6, "history": 3}
WIDTHS = {"hidden": 8, "attention_heads": 2, "embedding": 2, "head_hidden": 8}
SHORT = Recipe(covariance_steps=3, covariance_hours=16, steps=4, windows=1, learning_rate=0.05)
STATIONS, VISIBLE, HOURS, TRAIN_END, TEST_START = 36, 28, 144, 90, 96
HOUR = 20  # of the third day, whose estimates are looked at

MODE = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small network; and torch as it was, afterwards."""
    monkeypatch.setattr(training, "AQNetConfig", partial(AQNetConfig, **SIZES, **WIDTHS))
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def record(hours: int = HOURS) -> Observations:
    """A smooth field of whole hours up to the third day, then with gaps; other pollutants vary by themselves."""
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(113, 117, STATIONS), rng.uniform(36, 39, STATIONS)
    time = 430_008 + np.arange(hours)  # begins at 0 UTC
    z = 3 + 0.5 * np.sin(2 * lon) + 0.4 * np.cos(2 * lat) + 0.5 * np.sin(time / 9)[:, None]
    values = np.stack([np.expm1(z * share) for share in (1, 1.1, 0.7, 0.9, 1, 0.3)]).astype(np.float32)
    values *= rng.lognormal(0, 0.1, values.shape).astype(np.float32)
    values[:, 72:][rng.random(values[:, 72:].shape) < 0.1] = np.nan
    return Observations(time, values, lon, lat, rng.uniform(0, 300, STATIONS), rng.uniform(-200, 200, (STATIONS, 4)))


def seen(whole: Observations) -> Observations:
    return training.visible_only(whole, np.arange(VISIBLE))


def points(whole: Observations) -> Points:
    assert whole.relief is not None
    return Points(*(part[VISIBLE:] for part in (whole.lon, whole.lat, whole.elevation, whole.relief)))


def split() -> Split:
    return Split(slice(0, TRAIN_END), np.array([f"city {s // 4}" for s in range(VISIBLE)]))


@cache
def trained(part: str) -> AQNet:
    """A network after a few steps without a part, on the first stage of the whole network."""
    shared = trained("").knn.kriging.state_dict() if part else None
    return training.train(seen(record()), split(), 0, replace(SHORT, without=part), shared).network


def estimate(network: AQNet, mode: str, whole: Observations | None = None) -> Estimate:
    whole = whole or record()
    return infer.estimate(network, seen(whole), points(whole), mode)


def median(network: AQNet, mode: str, whole: Observations | None = None) -> NDArray[np.floating]:
    """Median (Q,) of the hour that is looked at."""
    found = estimate(network, mode, whole).quantiles
    assert found is not None
    return found[LEVELS.index(0.5), 48 + HOUR]


def perturbed(network: AQNet, *names: str) -> AQNet:
    """The network with other weights in some parameters."""
    made = AQNet(network.config)
    made.load_state_dict(network.state_dict())
    torch.manual_seed(5)
    with torch.no_grad():
        for name in names:
            made.get_parameter(name).normal_()
    return made.eval()


def pinned(network: AQNet, part: str) -> set[str]:
    """Names of the parameters that change when a part is taken out."""
    other = perturbed(network)
    ablation.pin(other, part)
    return {name for name, x in network.state_dict().items() if not torch.equal(x, other.state_dict()[name])}


def same(a: Estimate, b: Estimate) -> bool:
    assert a.quantiles is not None
    assert b.quantiles is not None
    return np.array_equal(a.mean, b.mean, equal_nan=True) and np.array_equal(a.quantiles, b.quantiles, equal_nan=True)


def off(a: Estimate, b: Estimate) -> float:
    """Largest relative difference."""
    return float(np.nanmax(np.abs(a.mean / b.mean - 1)))


# ---- in general ----


def test_an_unknown_part_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"expected one of attention, lstm, .*second_stage; found 'lsmt'"):
        Recipe(without="lsmt")
    with pytest.raises(ValueError, match="found 'other'"):
        ablation.pin(trained(""), "other")


@pytest.mark.parametrize("part", ablation.PARTS)
def test_held_weights_hold_after_training_and_only_where_the_part_is_out(part: str):
    assert pinned(trained(part), part) == set()
    assert pinned(trained(""), part) == {held.name for held in ablation.PARTS[part](trained(""))}


def test_nothing_is_held_in_the_whole_network():
    assert pinned(trained(""), "") == set()


def test_gradients_of_held_weights_are_taken_out_of_the_step():
    network = perturbed(trained("pollutants"))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    ablation.pin(network, "pollutants")
    found = network.encoder.inflow.weight.grad
    assert found is not None
    others = 2 * (len(POLLUTANTS) - 1)
    assert not found[:, :others].any()
    assert found[:, others:].all()
    assert sum(int((p.grad == 0).sum()) for p in network.parameters() if p.grad is not None) == others * len(found)


@pytest.mark.parametrize("part", ["lstm", "pollutants", "temporal_context"])
def test_every_step_is_taken_without_the_part(part: str, monkeypatch: pytest.MonkeyPatch):
    """Neither the loss nor the length of a step, whose gradients are clipped, know of it."""
    draw, clip, steps = training._Task.draw, torch.nn.utils.clip_grad_norm_, []

    def watched_draw(task: training._Task) -> Tensor:
        assert pinned(task.network, part) == set()
        steps.append(task.network)
        return draw(task)

    def watched_clip(parameters: list[Tensor], limit: float) -> Tensor:
        for name, where, _ in ablation.PARTS[part](steps[-1]):
            found = steps[-1].get_parameter(name).grad
            assert found is None or not found[where].any()
        return clip(parameters, limit)

    monkeypatch.setattr(training._Task, "draw", watched_draw)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched_clip)
    shared = trained("").knn.kriging.state_dict()
    training.train(seen(record()), split(), 0, replace(SHORT, without=part), shared)
    assert len(steps) == SHORT.steps


def test_the_first_stage_of_the_whole_network_is_what_its_seed_makes():
    again = training.train(seen(record()), split(), 0, SHORT, trained("").knn.kriging.state_dict()).network
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in trained("").state_dict().items())


# ---- each part: what it reads changes nothing where it is out, and something where it is in ----


def other_pollutants(whole: Observations) -> Observations:
    values = whole.values.copy()
    values[1:] = np.random.default_rng(3).lognormal(3, 1, values[1:].shape)
    values[1:][np.random.default_rng(4).random(values[1:].shape) < 0.3] = np.nan
    return replace(whole, values=values)


def other_clock(whole: Observations) -> Observations:
    """The same places and days, half a turn of the Earth and three days on."""
    return replace(whole, lon=whole.lon + 165.0, hours=whole.hours + 72)


def other_hours(whole: Observations) -> Observations:
    """Other PM2.5 in all hours but the one that is looked at, and other pollutants with it."""
    values = whole.values.copy()
    away = np.arange(values.shape[1]) != 48 + HOUR
    values[:, away] = values[:, away] * np.random.default_rng(3).lognormal(0, 0.7, values[:, away].shape)
    return replace(whole, values=values)


@MODE
def test_without_pollutants_their_values_change_no_estimate(mode: str):
    network = trained("pollutants")
    assert same(estimate(network, mode), estimate(network, mode, other_pollutants(record())))
    assert off(estimate(trained(""), mode), estimate(trained(""), mode, other_pollutants(record()))) > 1e-3


@MODE
def test_without_cyclic_encoding_the_clock_changes_no_estimate(mode: str):
    """Turning the Earth leaves distances as they are but for rounding."""
    network = trained("cyclic")
    assert off(estimate(network, mode), estimate(network, mode, other_clock(record()))) < 1e-4
    assert off(estimate(trained(""), mode), estimate(trained(""), mode, other_clock(record()))) > 1e-3


@MODE
def test_without_temporal_context_other_hours_change_no_median_where_no_gap_is_filled(mode: str):
    network = trained("temporal_context")
    np.testing.assert_allclose(median(network, mode), median(network, mode, other_hours(record())), rtol=1e-5)
    for part in ("", "attention", "lstm", "bands"):
        some = trained(part)
        assert np.abs(median(some, mode) / median(some, mode, other_hours(record())) - 1).max() > 1e-3, part


READ_BY = {
    "attention": ("encoder.query.weight", "encoder.key_value.weight", "encoder.recency"),
    "lstm": ("encoder.forwards.weight_hh_l0",),
    "learned_knn": ("knn.score.0.weight",),
    "second_stage": ("encoder.inflow.weight", "knn.score.0.weight", "head.mlp.0.weight", "head.mlp.2.weight"),
}


@MODE
@pytest.mark.parametrize("part", READ_BY)
def test_without_a_part_its_other_weights_change_no_estimate(part: str, mode: str):
    """Weights that only the part uses; those of the LSTM's memory are held, so they are pinned again."""
    network, names = trained(part), READ_BY[part]
    other = perturbed(network, *names)
    ablation.pin(other, part)
    assert same(estimate(network, mode), estimate(other, mode))
    assert off(estimate(trained(""), mode), estimate(perturbed(trained(""), *names), mode)) > 1e-3


@MODE
def test_without_embedding_its_weights_change_no_estimate(mode: str):
    def other(network: AQNet) -> AQNet:
        made = perturbed(network)
        with torch.no_grad():
            made.get_parameter("encoder.correct.2.weight")[BANDS:].normal_()
        return made

    network = trained("embedding")
    assert same(estimate(network, mode), estimate(other(network), mode))
    assert off(estimate(trained(""), mode), estimate(other(trained("")), mode)) > 1e-4


def test_without_lstm_a_state_is_that_of_its_hour_alone():
    torch.manual_seed(0)
    x = torch.randn(3, 12, WIDTHS["hidden"])
    other = x.clone()
    other[:, [0, 3, 10]] += 1
    for part, alike in (("lstm", True), ("", False)):
        for way in (trained(part).encoder.forwards, trained(part).encoder.backwards):
            with torch.no_grad():
                before, after = way(x)[0], way(other)[0]
            assert torch.equal(before[:, 4:10], after[:, 4:10]) is alike, part
            assert not torch.equal(before[:, 3], after[:, 3])


def geometry(whole: Observations) -> tuple[Geometry, Tensor]:
    """Hidden stations among the visible ones, and the nearest of these (Q, A)."""
    o, p = seen(whole), points(whole)
    between = torch.from_numpy(distance_matrix(o.lon, o.lat, o.lon, o.lat)).float()
    distance = torch.from_numpy(distance_matrix(p.lon, p.lat, o.lon, o.lat)).float()
    index = distance.topk(SIZES["near"], largest=False)[1]
    return Geometry(distance, between, terrain_features(p), terrain_features(o)), index


@MODE
def test_without_bands_every_band_has_the_weights_of_the_whole_value_and_variances_add_up_to_its(mode: str):
    made, index = geometry(record())
    network = trained("bands")
    with torch.no_grad():
        weight, variance = network.knn.kriging(Geometry(*(part.double() for part in made)), [WHOLE])
        found, other = network.knn(made, index, mode), trained("").knn(made, index, mode)
    for b in range(BANDS):
        torch.testing.assert_close(found.bands[:, b], weight[0].float())
    torch.testing.assert_close(found.variance.sum(1), variance[0].float())
    assert (other.bands[:, 0] - other.bands[:, 3]).abs().max() > 1e-2
    assert len(set(network.knn.kriging.log_nugget[band_rows(mode)].tolist())) == 1


@MODE
def test_without_bands_and_second_stage_the_median_is_kriging_of_the_hour_alone(mode: str):
    whole = record()
    network = perturbed(trained("bands"))
    ablation.pin(network, "second_stage")
    with torch.no_grad():
        weight = network.knn.kriging(Geometry(*(part.double() for part in geometry(whole)[0])), [WHOLE])[0][0]
    z = to_z(torch.from_numpy(seen(whole).values[0, 48 + HOUR])).double()
    np.testing.assert_allclose(median(network, mode), ((weight @ z) ** 3).numpy(), rtol=1e-3)
    np.testing.assert_allclose(median(network, mode), median(network, mode, other_hours(whole)), rtol=1e-4)


@MODE
def test_without_second_stage_quantiles_are_normal_about_the_kriged_bands(mode: str):
    found = estimate(trained("second_stage"), mode).quantiles
    assert found is not None
    z = np.cbrt(found[:, :72].astype(np.float64))
    steps = np.diff(z, axis=0) / trained("").head.normal_steps.numpy()[:, None, None]
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), rtol=1e-2, atol=1e-3)


def test_without_learned_knn_attention_is_the_positive_kriging_weights():
    made, index = geometry(record())
    with torch.no_grad():
        whole = torch.linspace(-0.2, 0.8, index.numel()).view(index.shape)
        args = whole, made.distance.gather(1, index), made.place, made.stations[index]
        found, other = (trained(part).knn.attention(*args) for part in ("learned_knn", ""))
    expected = whole.clamp(min=0) + 5e-3
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    assert (other - found).abs().max() > 1e-3


# ---- the table ----


def made_up(errors: dict[tuple[str, int], float]) -> tuple[dict[tuple[str, int], Prediction], NDArray[np.float64]]:
    """Estimates that are off by so much everywhere, and their truth, 10 hours of 3 days x 4 stations."""
    truth = np.random.default_rng(0).uniform(20, 80, (30, 4))
    truth[3, 2] = np.nan
    made = {}
    for key, error in errors.items():
        mean = truth + error
        made[key] = Prediction(mean, np.stack([mean + 20 * (level - 0.5) for level in LEVELS]), LEVELS)
    return made, truth


ERRORS = {
    ("full", 0): 2.0,
    ("lstm", 0): 4.0,
    ("full", 1): 4.0,
    ("lstm", 1): 5.0,
    ("full", 2): 1.0,
    ("lstm", 2): 1.0,
}


def test_rows_are_compared_with_the_whole_network_of_their_seed():
    found, truth = made_up(ERRORS)
    compared = table.compare(found, truth, np.arange(30) * 3, np.full(4, 10.0))
    lines = compared.differences.set_index(["row", "seed", "statistic"])
    assert len(lines) == 9
    percent = [lines.loc[("lstm", seed, "mae_median"), "percent"] for seed in (0, 1, 2)]
    np.testing.assert_allclose(percent, [100, 25, 0], atol=1e-6)
    assert lines[lines["middle"]].index.get_level_values("seed").unique().tolist() == [1]
    rows = compared.as_dict()["rows"]
    assert rows["lstm"]["mae_median"] == pytest.approx({"median": 4.0, "min": 1.0, "max": 5.0})
    assert rows["full"]["pairs"]["min"] == 119


def test_the_table_shows_median_range_and_the_difference_of_the_middle_seed():
    found, truth = made_up(ERRORS)
    text = table.compare(found, truth, np.arange(30) * 3, np.full(4, 10.0)).to_markdown()
    head, _, full, lstm = text.strip().splitlines()
    assert head.startswith("| without | mae_median | rmse_mean | crps | coverage_90 | mae_median, % |")
    assert full.startswith("| nothing | 2.00 [1.00, 4.00] |")
    assert full.endswith("| - | - | - |")
    assert lstm.startswith("| lstm | 4.00 [1.00, 5.00] |")
    assert "| +25.0 [+25.0, +25.0] |" in lstm


# ---- the whole run ----


CODES = np.array([f"{1000 + s}A" for s in range(STATIONS)])
CITIES = np.array([f"city {s // 4}" for s in range(STATIONS)])
HIDDEN = {"hidden_random": CODES[VISIBLE : VISIBLE + 3].tolist(), "hidden_city": CODES[VISIBLE + 3 :].tolist()}


@pytest.fixture
def public_split(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The split on the tiny record; gives a list in which trainings are noted."""
    made = Splits(CODES[:VISIBLE].tolist(), HIDDEN, (113, 36, 117, 39), TRAIN_END, TEST_START, HOURS)
    monkeypatch.setattr(Splits, "read", classmethod(lambda cls, path: made))
    monkeypatch.setattr(evaluate, "read_record", lambda *_: (record(), CODES))
    monkeypatch.setattr(evaluate, "cities", lambda *_: CITIES)
    monkeypatch.setattr(evaluate, "digests", lambda *_: {"digests": {"observations": "0"}})
    noted: list[str] = []

    def train(o: Observations, s: Split, seed: int, recipe: Recipe, shared: object = None) -> training.Trained:
        noted.append(recipe.without)
        assert (shared is None) is (recipe.without == "")
        np.testing.assert_array_equal(o.values, seen(record()).values)
        assert s.train == slice(0, TRAIN_END)
        return real(o, s, seed, recipe, shared)  # type: ignore[arg-type]

    real = training.train
    monkeypatch.setattr(training, "train", train)
    return noted


def ablate(folder: Path, recipe: Recipe = SHORT) -> table.Ablation:
    return table.ablate(Path("cnemc"), Path("stations"), Path("splits"), folder, folder / "work", (0,), 5, recipe)


def test_a_run_writes_the_table_and_a_run_that_was_cut_off_goes_on(
    tmp_path: Path, public_split: list[str], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(table, "ROWS", ("full", "lstm", "stop"))
        with pytest.raises(ValueError, match="'stop'"):
            ablate(tmp_path)
    assert public_split == ["", "lstm"]
    assert not (tmp_path / "ablation.json").exists()
    found = ablate(tmp_path)
    assert public_split == ["", "lstm", *(part for part in ablation.PARTS if part != "lstm")]
    saved = json.loads((tmp_path / "ablation.json").read_text())
    assert set(saved["groups"]) == {"hidden_random", "hidden_city"}
    rows = saved["groups"]["hidden_city"]["final"]["rows"]
    assert tuple(rows) == ("full", *ablation.PARTS)
    expected = evaluate.predict(
        evaluate.withhold(record(), np.arange(VISIBLE), np.arange(VISIBLE, STATIONS)),
        np.arange(TEST_START, HOURS, 5),
        {},
        {"full": partial(infer.estimate, trained(""), mode="final")},
    )["full"].columns(slice(3, None))
    truth = record().values[0, TEST_START:HOURS:5, VISIBLE + 3 :].astype(float)
    assert rows["full"]["crps"]["median"] == pytest.approx(score.scores(expected, truth)["crps"])
    text = (tmp_path / "ablation.md").read_text()
    assert text == found.to_markdown()
    assert text.count("| second_stage |") == 4


def test_what_is_done_is_read_again_but_not_of_another_recipe_or_record(
    tmp_path: Path, public_split: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table, "ROWS", ("full", "lstm"))
    first = ablate(tmp_path)
    assert len(public_split) == 2
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "predict", None)  # estimates are read, too
        again = ablate(tmp_path)
    assert len(public_split) == 2
    assert again.to_markdown().partition("## ")[2] == first.to_markdown().partition("## ")[2]
    ablate(tmp_path, replace(SHORT, steps=3))
    assert len(public_split) == 4
    hidden = record()
    hidden.values[:, :, VISIBLE:] *= 2
    monkeypatch.setattr(evaluate, "read_record", lambda *_: (hidden, CODES))
    ablate(tmp_path)
    later = record()
    later.values[0, TEST_START, 0] = 99.0
    monkeypatch.setattr(evaluate, "read_record", lambda *_: (later, CODES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "predict", None)
        with pytest.raises(TypeError):  # estimates depend on later hours
            ablate(tmp_path)
    assert len(public_split) == 4  # nothing that is learned depends on hidden stations or later hours
    changed = record()
    changed.values[0, 0, 0] = 99.0
    monkeypatch.setattr(table.training, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(evaluate, "read_record", lambda *_: (changed, CODES))
    with pytest.raises(KeyboardInterrupt):
        ablate(tmp_path)
