"""The outlook mode: what it reads, where it starts from, that nothing leaks, and its scores, against brute force."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint, outlook_infer, outlook_inputs, outlook_train
from model.outlook import Outlook, OutlookConfig, OutlookNet, Weights, gather
from model.outlook_inputs import BLOCKS, DAY, HISTORY, HORIZON, all_leads, contexts, read, record_of
from model.windows import LEVELS, Observations, Points
from pipeline import score
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluate as public
from pipeline.evaluation import outlook as pipeline_outlook
from pipeline.evaluation import outlook_report, outlook_score

TINY = OutlookConfig(hidden=8, attention_heads=2, neighbours=5, kriging_heads=2)
FIRST = 420_000  # hours since 1970, a midnight UTC


def network(seed: int = 0, noise: float = 0.1) -> OutlookNet:
    """Random weights, away from the quiet start: what must hold, must hold for any."""
    torch.manual_seed(seed)
    made = OutlookNet(TINY).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * torch.randn_like(weight)
    return made


def observed(seed: int = 0, hours: int = 620, stations: int = 12, missing: float = 0.2) -> Observations:
    rng = np.random.default_rng(seed)
    values = np.exp(3.5 + 0.7 * rng.standard_normal((6, hours, stations))).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    lon, lat = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations)
    return Observations(FIRST + np.arange(hours), values, lon, lat, rng.uniform(0, 900, stations))


def points(n: int = 7) -> Points:
    rng = np.random.default_rng(5)
    return Points(rng.uniform(113, 117, n), rng.uniform(36, 39, n), rng.uniform(0, 900, n))


def inputs(o: Observations, issue: int = 400) -> outlook_inputs.Inputs:
    every = np.arange(len(o.lon))
    record = record_of(o, TINY.mean, TINY.std)
    return read(record, issue, every, every, contexts(o.lon, o.lat, o.lon, o.lat), all_leads())


def ar1(hours: int = 900, stations: int = 40, memory: float = 12.0) -> tuple[Observations, np.ndarray]:
    """SIMULATED independent stations: 3.5 + a daily cycle + an AR(1) anomaly of 0.5; and the anomalies (T, S)."""
    rng = np.random.default_rng(1)
    phi, anomaly = np.exp(-1 / memory), np.empty((hours, stations))
    anomaly[0] = 0.5 * rng.standard_normal(stations)
    for t in range(1, hours):
        anomaly[t] = phi * anomaly[t - 1] + 0.5 * np.sqrt(1 - phi**2) * rng.standard_normal(stations)
    cycle = 0.4 * np.cos(2 * np.pi * np.arange(hours) / DAY)
    values = np.full((6, hours, stations), np.nan, np.float32)
    values[0] = np.expm1(3.5 + cycle[:, None] + anomaly)
    lon, lat = np.arange(stations) % 8 * 3.0 + 100, np.arange(stations) // 8 * 3.0 + 30
    return Observations(FIRST + np.arange(hours), values, lon, lat, np.zeros(stations)), anomaly


# ---- what the network reads ----


def test_blocks_cover_the_history_once_and_lengthen_with_age() -> None:
    assert sum(BLOCKS) == HISTORY
    assert list(BLOCKS) == sorted(BLOCKS, reverse=True)


def test_level_and_pattern_are_shrunk_means() -> None:
    o = observed()
    z = np.log1p(o.values[0, :HISTORY].T)
    known = np.isfinite(z)
    level, pattern = outlook_inputs.level_and_pattern(
        torch.from_numpy(np.nan_to_num(z)), torch.from_numpy(known).float(), 3.5
    )
    expected = np.array([(row[mark].sum() + 24 * 3.5) / (mark.sum() + 24) for row, mark in zip(z, known, strict=True)])
    np.testing.assert_allclose(level, expected, rtol=1e-5)
    raw = np.array(
        [
            [np.nansum(row[h::24] - m) / (np.isfinite(row[h::24]).sum() + 4) for h in range(24)]
            for row, m in zip(z, expected, strict=True)
        ]
    )
    smooth = (np.roll(raw, 1, 1) + 2 * raw + np.roll(raw, -1, 1)) / 4
    np.testing.assert_allclose(pattern, smooth, atol=1e-5)


def test_blocks_are_means_of_the_anomalies_in_them() -> None:
    o = observed()
    x = inputs(o)
    z = np.log1p(o.values[0, 400 - HISTORY : 400].T)
    level, pattern = outlook_inputs.level_and_pattern(
        torch.from_numpy(np.nan_to_num(z)), torch.from_numpy(np.isfinite(z)).float(), TINY.mean[0]
    )
    anomaly = z - level.numpy()[:, None] - np.tile(pattern.numpy(), 14)
    ends = np.cumsum(BLOCKS)
    for b in (0, 43, 44, 60, 83):
        part = anomaly[:, ends[b] - BLOCKS[b] : ends[b]]
        count = np.isfinite(part).sum(1)
        expected = np.where(count > 0, np.nansum(part, 1) / np.maximum(count, 1), 0)
        np.testing.assert_allclose(x.blocks[:, b, 0], expected, atol=1e-5)
        np.testing.assert_array_equal(x.blocks[:, b, 1], count > 0)


def test_own_anomalies_are_span_means_and_an_empty_span_takes_the_longer() -> None:
    anomaly, valid = torch.zeros(1, HISTORY), torch.zeros(1, HISTORY)
    anomaly[0, -5], valid[0, -5] = 0.6, 1.0
    found = outlook_inputs._own(anomaly, valid)[0]
    np.testing.assert_allclose(found, [0.6] * 6, rtol=1e-6)  # 1 and 3 h are empty and take that of 6 h
    anomaly[0, -1], valid[0, -1] = -0.2, 1.0
    np.testing.assert_allclose(outlook_inputs._own(anomaly, valid)[0], [-0.2, -0.2, 0.2, 0.2, 0.2, 0.2], rtol=1e-6)


def test_a_sector_looks_its_way_and_the_surroundings_fade_with_distance() -> None:
    lon, lat = np.array([116.0, 115.0, 114.0, 115.0, 118.0]), np.array([36.0, 37.0, 36.0, 35.0, 36.0])
    weight = contexts(lon, lat, np.array([115.0]), np.array([36.0]))[:, 0]
    for sector in range(4):  # E, N, W, S
        assert int(weight[3 + sector, :4].argmax()) == sector
        assert weight[3 + sector, (sector + 2) % 4] == 0
    assert (weight[:3, 0] > weight[:3, 4]).all()


def test_season_turns_round_in_the_south_and_is_even_about_the_coldest_day() -> None:
    ahead = FIRST + np.arange(HORIZON)
    north, south = outlook_inputs._season(ahead, FIRST, np.array([40.0, -40.0]))
    np.testing.assert_allclose(north, -south)
    winter = int((365.2425 * 40 + 15) * 24)  # the coldest day of a year: colder before than a week after
    assert (outlook_inputs._season(winter - 900 + np.arange(24), winter - 900, np.array([40.0])) > 0).all()
    assert (outlook_inputs._season(winter + 900 + np.arange(24), winter + 900, np.array([40.0])) < 0).all()


# ---- where it starts from ----


def errors(centre: np.ndarray, o: Observations, issue: int) -> np.ndarray:
    truth = np.log1p(o.values[0, issue : issue + HORIZON].T)
    return (centre - truth) ** 2


def test_untrained_network_starts_near_the_best_forecast_of_an_ar1_with_a_daily_cycle() -> None:
    o, anomaly = ar1()
    torch.manual_seed(0)
    start = OutlookNet(TINY).eval().forecaster
    lead = np.arange(1, HORIZON + 1)
    found: dict[str, list[np.ndarray]] = {"network": [], "best": [], "persistence": []}
    for issue in range(HISTORY, 900 - HORIZON, 24):
        with torch.no_grad():
            found["network"].append(errors(start(inputs(o, issue)).centre.numpy(), o, issue))
        best = (
            3.5 + 0.4 * np.cos(2 * np.pi * (issue + lead - 1) / DAY) + np.exp(-lead / 12) * anomaly[issue - 1, :, None]
        )
        found["best"].append(errors(best, o, issue))
        found["persistence"].append(errors(np.log1p(o.values[0, issue - 1])[:, None], o, issue))
    rmse = {name: np.sqrt(np.mean(parts, axis=(0, 1))) for name, parts in found.items()}
    assert (rmse["network"][5:] < 1.2 * rmse["best"][5:]).all()
    assert (rmse["network"][:5] < 1.6 * rmse["best"][:5]).all()
    assert (rmse["network"][5:] < rmse["persistence"][5:]).all()


def test_least_squares_finds_the_memory_of_the_ar1() -> None:
    o, anomaly = ar1(1800)
    recipe = outlook_train.OutlookRecipe(stations=20, backbone_issues=60, ridge=1.0)
    net = OutlookNet(replace(TINY, mean=(3.5, *TINY.mean[1:]))).eval()
    city = np.arange(40).astype(str)
    task = outlook_train._Task(net, o, slice(0, 1400), slice(1400, 1800), city, np.random.default_rng(0), recipe)
    task.fit_backbone()
    torch.nn.init.zeros_(net.forecaster.head[-1].weight)
    lead, squares = np.arange(1, 25), []
    for issue in range(1400, 1600, 10):
        with torch.no_grad():
            centre = net.forecaster(inputs(o, issue)).centre.numpy()
        best = (
            3.5 + 0.4 * np.cos(2 * np.pi * (issue + lead - 1) / DAY) + np.exp(-lead / 12) * anomaly[issue - 1, :, None]
        )
        truth = np.log1p(o.values[0, issue : issue + 24].T)
        squares.append([((centre[:, :24] - truth) ** 2).mean(), ((best - truth) ** 2).mean()])
    network_mse, best_mse = np.mean(squares, 0)
    assert network_mse < 1.12 * best_mse


# ---- the network ----


def test_quantiles_do_not_cross_and_the_median_is_the_centre() -> None:
    net = network(noise=0.3)
    with torch.no_grad():
        for between in (False, True):
            forecast = net.forecaster(inputs(observed()))
            z, mean = net.distribution(forecast, between)
            assert z.shape == (12, HORIZON, len(LEVELS))
            assert mean.shape == (12, HORIZON)
            assert (z.diff(dim=-1) > 0).all()
            torch.testing.assert_close(z[..., LEVELS.index(0.5)], forecast.centre)


def test_each_part_can_be_left_out_and_then_does_nothing() -> None:
    x = inputs(observed())
    later = x._replace(cycles=x.cycles.roll(5, dims=1))
    for part, moved in (("cyclic", ("cycles",)), ("attention", ("query", "key_value")), ("lstm", ("lstm",))):
        torch.manual_seed(0)
        net = OutlookNet(replace(TINY, **{part: False})).eval().forecaster
        with torch.no_grad():
            before = net(x).centre
            if part == "cyclic":
                torch.testing.assert_close(net(later).centre, before)
                continue
            for name in moved:
                for weight in getattr(net, name).parameters():
                    weight += 1.0
            torch.testing.assert_close(net(x).centre, before)


def test_kriging_weights_solve_the_ordinary_kriging_system_and_attention_sums_to_one() -> None:
    net, o = network(), observed()
    index, layout = outlook_infer.layout_of(Points(o.lon, o.lat, o.elevation), points(), TINY)
    with torch.no_grad():
        weights = net.knn.weigh(layout)
        H = TINY.kriging_heads
        system = net.knn._covariance(layout.between, layout.step) + net.knn.log_nugget.exp().view(
            1, H, 1, 1
        ) * torch.eye(5)
        towards = net.knn._covariance(layout.distance, layout.rise)
    whole = np.ones((len(index), H, 6, 6))
    whole[..., :5, :5], whole[..., 5, 5] = system, 0
    right = np.concatenate([towards.numpy(), np.ones((len(index), H, 1))], -1)
    solved = np.linalg.solve(whole.astype(np.float64), right[..., None])[..., :5, 0]
    np.testing.assert_allclose(weights.kriging, solved, atol=2e-3)
    np.testing.assert_allclose(weights.kriging.sum(-1), 1, atol=1e-3)
    np.testing.assert_allclose(weights.attention.sum(-1), 1, atol=1e-5)
    assert (weights.attention > 0).all()


# ---- leaks ----


def spoiled(o: Observations, hours: slice) -> Observations:
    values = o.values.copy()
    values[:, hours] = 777.0
    return replace(o, values=values)


def test_values_after_the_issue_time_change_nothing_and_values_before_do() -> None:
    net, o = network(), observed()
    places, issue = points(), 400

    def made(record: Observations) -> np.ndarray:
        return np.concatenate([b.mean for b in outlook_infer.outlook_blocks(net, record, places, LEVELS, issue)])

    whole = made(o)
    np.testing.assert_array_equal(made(spoiled(o, slice(issue, None))), whole)
    np.testing.assert_array_equal(made(spoiled(o, slice(0, issue - HISTORY))), whole)
    np.testing.assert_array_equal(made(replace(o, hours=o.hours[:issue], values=o.values[:, :issue])), whole)
    assert not np.array_equal(made(spoiled(o, slice(issue - 1, issue))), whole)
    assert not np.array_equal(made(spoiled(o, slice(issue - HISTORY, issue - HISTORY + 1))), whole)


def test_training_reads_no_hour_after_the_validation_hours() -> None:
    o = observed(hours=1300, stations=14)
    recipe = outlook_train.OutlookRecipe(
        steps=2, knn_steps=2, issues=1, stations=6, leads=4, backbone_issues=2, folds=2, fold_issues=2, knn_queries=4,
        check_every=1,
    )  # fmt: skip

    def weights(record: Observations) -> dict[str, torch.Tensor]:
        city = np.array([f"c{s // 2}" for s in range(14)])
        made = outlook_train.train(record, slice(0, 800), slice(800, 1100), city, 0, recipe)
        assert len(made.history) == 3
        return made.network.state_dict()

    first, again, spoilt = (weights(r) for r in (o, spoiled(o, slice(1100, None)), spoiled(o, slice(1090, None))))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first.keys() == spoilt.keys()


def test_targets_of_training_and_validation_stay_in_their_hours() -> None:
    o = observed(hours=1300)
    city = np.array([str(s) for s in range(12)])
    task = outlook_train._Task(
        network(), o, slice(0, 800), slice(800, 1100), city, np.random.default_rng(0), outlook_train.OutlookRecipe()
    )
    assert task.issues[0] == HISTORY
    assert task.issues[-1] + HORIZON == 800
    assert task.checks[0] == 800
    assert task.checks[-1] + HORIZON <= 1100
    with pytest.raises(ValueError, match="validation: expected more than 168 hours"):
        outlook_train.train(o, slice(0, 800), slice(800, 900), city, 0)


def test_hidden_values_do_not_reach_the_network(tmp_path: Path) -> None:
    checkpoint.save(network(), tmp_path / "outlook-seed0.safetensors", {})
    o = observed()
    visible, hidden = np.arange(9), np.arange(9, 12)
    changed = o.values.copy()
    changed[:, :, hidden] = 777.0
    made = []
    for record in (o, replace(o, values=changed)):
        method = pipeline_outlook._network(
            tmp_path / "outlook-seed0.safetensors", public.withhold(record, visible, hidden)
        )
        made.append(method(400))
    for before, after in zip(made[0], made[1], strict=True):
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)


# ---- on a record ----


def test_blocks_hold_the_168_hours_a_utc_day_at_a_time_and_equal_the_gathered_forecast() -> None:
    net, o, places, issue = network(), observed(), points(), 401
    blocks = list(outlook_infer.outlook_blocks(net, o, places, (0.05, 0.5, 0.95), issue))
    hours = np.concatenate([np.arange(b.hours.start, b.hours.stop) for b in blocks])
    np.testing.assert_array_equal(hours, issue + np.arange(HORIZON))
    assert all(len({(FIRST + h) // 24 for h in range(b.hours.start, b.hours.stop)}) == 1 for b in blocks)
    with torch.no_grad():
        channels = net.forecaster(inputs(o, issue))
        index, layout = outlook_infer.layout_of(Points(o.lon, o.lat, o.elevation), places, TINY)
        weights = net.knn.weigh(layout)
        cycle = outlook_inputs.cyclic(FIRST + issue + np.arange(HORIZON), places.lon, 24.0)
        kriged, attended = gather(channels, torch.from_numpy(index), weights)
        z, mean = net.distribution(net.knn.combine(weights, kriged, attended, all_leads(), cycle), between=True)
    found = np.concatenate([b.mean for b in blocks])
    np.testing.assert_allclose(found, mean.expm1().clamp(min=0).numpy().T, rtol=1e-3, atol=1e-3)
    quantiles = np.concatenate([b.quantiles for b in blocks], axis=1)
    expected = z.expm1().clamp(min=0).numpy()[..., [LEVELS.index(level) for level in (0.05, 0.5, 0.95)]]
    np.testing.assert_allclose(quantiles, expected.transpose(2, 1, 0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(blocks[0].distance[0], layout.distance[:, 0], rtol=1e-5)
    assert (blocks[0].count == 12).all()


def test_a_station_without_a_value_is_left_out_and_none_at_all_gives_no_forecast() -> None:
    net, o, places = network(), observed(), points()
    values = o.values.copy()
    values[0, :, 3] = np.nan
    kept = np.delete(np.arange(12), 3)
    lacking = next(outlook_infer.outlook_blocks(net, replace(o, values=values), places, (0.5,), 400))
    fewer = Observations(o.hours, o.values[:, :, kept], o.lon[kept], o.lat[kept], o.elevation[kept])
    alone = next(outlook_infer.outlook_blocks(net, fewer, places, (0.5,), 400))
    np.testing.assert_allclose(lacking.mean, alone.mean, rtol=1e-5)
    assert (lacking.count == 11).all()
    values[0] = np.nan
    empty = next(outlook_infer.outlook_blocks(net, replace(o, values=values), places, (0.5,), 400))
    assert np.isnan(empty.mean).all()
    assert np.isnan(empty.distance).all()
    assert (empty.count == 0).all()
    nothing = outlook_infer.Field(
        net, record_of(replace(o, values=values), TINY.mean, TINY.std), o.elevation, places, 400
    )
    assert nothing.at_stations().mean.shape == (0, HORIZON)


def test_a_record_that_begins_late_is_a_history_with_missing_hours() -> None:
    net, o, places = network(), observed(), points()
    late = replace(o, hours=o.hours[300:], values=o.values[:, 300:])
    values = o.values.copy()
    values[:, :300] = np.nan
    short = next(outlook_infer.outlook_blocks(net, late, places, (0.5,), 100))
    padded = next(outlook_infer.outlook_blocks(net, replace(o, values=values), places, (0.5,), 400))
    np.testing.assert_allclose(short.mean, padded.mean, rtol=1e-4)
    with pytest.raises(ValueError, match="issue_index: expected 1 to 620"):
        next(outlook_infer.outlook_blocks(net, o, places, (0.5,), 621))


def test_weights_come_back_as_they_were_saved_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outlook-seed0.safetensors"
    net = network()
    checkpoint.save(net, path, {"seed": 0})
    back = checkpoint.load_outlook(path)
    assert back.config == net.config
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), net.state_dict().values(), strict=True))
    described = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(described | {"sha256": "0"}))
    with pytest.raises(ValueError, match="SHA-256 expected 0"):
        checkpoint.load_outlook(path)
    with pytest.raises(ValueError, match=r"nothing.safetensors: expected outlook weights"):
        checkpoint.load_outlook(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("path", sorted(checkpoint.SHIPPED_OUTLOOK.glob("*.safetensors")), ids=lambda path: path.stem)
def test_shipped_weights_forecast_sensibly_and_are_small(path: Path) -> None:
    o, anomaly = ar1()
    field = outlook_infer.Field(
        checkpoint.load_outlook(path), record_of(o, *_scaling(path)), o.elevation, points(), 500
    )  # fmt: skip
    made = field.at_stations()
    assert path.stat().st_size < 300_000
    assert (np.abs(np.log1p(made.quantiles[LEVELS.index(0.5)][:, -1]) - 3.5) < 1.0).all()
    first = np.log1p(made.quantiles[LEVELS.index(0.5)][:, 0])
    assert np.corrcoef(first, anomaly[499])[0, 1] > 0.9


def _scaling(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = checkpoint.load_outlook(path).config
    return config.mean, config.std


# ---- scores ----


def forecasts(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.gamma(2.0, 20.0, (5, 48))
    truth[rng.random(truth.shape) < 0.2] = np.nan
    quantiles = np.sort(rng.gamma(2.0, 20.0, (len(LEVELS), 5, 48)), axis=0)
    return quantiles.mean(0), quantiles, truth


def test_metrics_of_sums_are_those_of_the_pairs() -> None:
    mean, quantiles, truth = forecasts()
    found = outlook_score.metrics(outlook_score.statistics(mean, quantiles, truth, LEVELS).sum(0))
    median = quantiles[LEVELS.index(0.5)]
    expected = {
        "mae": score.mae(median, truth),
        "rmse": score.rmse(mean, truth),
        "r2": score.r2(mean, truth),
        "bias": score.bias(mean, truth),
        "crps": score.crps(quantiles, truth, LEVELS),
        "coverage_90": score.coverage(quantiles[0], quantiles[-1], truth),
        "pairs": np.isfinite(truth).sum(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_a_day_is_the_mean_of_its_known_hours_and_needs_18_of_them() -> None:
    mean, quantiles, truth = forecasts()
    truth[0, :7], truth[0, 7:24] = np.nan, 1.0
    truth[1, :6], truth[1, 6:24] = np.nan, 1.0
    day_mean, day_quantiles, day_truth = outlook_score.daily(mean, quantiles, truth)
    assert day_truth.shape == (5, 2)
    assert np.isnan(day_truth[0, 0])
    assert day_truth[1, 0] == pytest.approx(1.0)
    assert day_mean[1, 0] == pytest.approx(mean[1, 6:24].mean())
    assert day_quantiles[3, 1, 0] == pytest.approx(quantiles[3, 1, 6:24].mean())


@pytest.mark.parametrize("statistic", ["mae", "rmse"])
def test_bootstrap_of_sums_is_the_day_block_bootstrap_of_the_pairs(statistic: str) -> None:
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(9), 4)
    errors_IN = rng.standard_normal((2, 36, 5)) * np.array([1.0, 1.2])[:, None, None]
    sums = np.zeros((2, 36, len(outlook_score.STATISTICS)))
    sums[..., 0] = 5
    sums[..., outlook_score.STATISTICS.index("absolute")] = np.abs(errors_IN).sum(-1)
    sums[..., outlook_score.STATISTICS.index("squared")] = (errors_IN**2).sum(-1)
    found = outlook_score.block_bootstrap(sums[0], sums[1], day, statistic, n=500)
    expected = score.day_block_bootstrap(
        errors_IN[0].ravel(), errors_IN[1].ravel(), np.repeat(day, 5), statistic, n=500  # type: ignore[arg-type]
    )  # fmt: skip
    assert found == pytest.approx((expected.value, expected.low, expected.high))


def sums_of(shift: float, issues: int = 28) -> outlook_score.Sums:
    rng = np.random.default_rng(3)
    hourly, daily = [], []
    for _ in range(issues):
        truth = rng.gamma(2.0, 20.0, (4, HORIZON))
        centre = truth + rng.normal(0, 3.0, truth.shape) + shift * rng.choice([-1, 1], truth.shape)
        quantiles = centre + np.linspace(-15, 15, len(LEVELS))[:, None, None]
        hourly.append(outlook_score.statistics(centre, quantiles, truth, LEVELS))
        daily.append(outlook_score.statistics(*outlook_score.daily(centre, quantiles, truth), LEVELS))
    return outlook_score.sums(hourly, daily)


def test_assessment_tells_better_from_worse_and_windows_pool() -> None:
    found = {
        "aqnet seed0": {"visible": sums_of(0)},
        "aqnet seed1": {"visible": sums_of(1)},
        "aqnet without lstm seed0": {"visible": sums_of(2)},
        "poor": {"visible": sums_of(9)},
    }
    result = outlook_score.assess(found, {"step": 12}, np.arange(28) // 2)
    rows = result.scores.set_index(["kind", "window", "at", "method"])
    poor = sums_of(9).hourly[:, :24].sum((0, 1))
    assert rows.loc[("hourly", 24, False, "poor"), "mae"] == pytest.approx(poor[1] / poor[0])
    at = sums_of(9).hourly[:, 23].sum(0)
    assert rows.loc[("hourly", 24, True, "poor"), "mae"] == pytest.approx(at[1] / at[0])
    hourly = result.differences.query("kind == 'hourly' and statistic == 'mae'")
    assert (hourly["high"] < 0).all()
    assert set(result.seeds["network"]) == {"aqnet", "aqnet without lstm"}
    assert set(result.differences["minus"]) == {"poor", "aqnet without lstm"}
    assert set(result.differences["network"]) == {"aqnet seed0"}
    page = outlook_report.markdown(result)
    assert "visible, hourly, mae: significantly better than every baseline in every window" in page
    json.loads(result.to_json())


def test_methods_on_different_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="same pairs"):
        outlook_score.assess({"aqnet seed0": {"g": sums_of(0)}, "b": {"g": sums_of(0, 27)}}, {}, np.arange(28))


def test_issue_times_begin_at_midnight_and_end_within_the_test_hours() -> None:
    split = public.Splits([], {}, (0, 0, 0, 0), 100, 130, 620)
    issues = pipeline_outlook.issue_times(FIRST + np.arange(620), split, 12)
    assert issues[0] == 144
    assert set(np.diff(issues)) == {12}
    assert issues[-1] + HORIZON <= 620 < issues[-1] + 12 + HORIZON


def test_a_station_without_history_is_not_scored() -> None:
    o = observed()
    values = o.values.copy()
    values[0, 400 - HISTORY : 400, 2] = np.nan
    parts = public.withhold(replace(o, values=values), np.arange(9), np.arange(9, 12))
    visible, hidden = pipeline_outlook.truths(parts, 400)
    assert np.isnan(visible[2]).all()
    np.testing.assert_array_equal(visible[1], values[0, 400:568, 1])
    np.testing.assert_array_equal(hidden[0], values[0, 400:568, 9])


def test_gather_is_a_weighted_sum() -> None:
    channels = Outlook(*(torch.randn(6, 4) for _ in range(4)))
    weights = Weights(torch.rand(2, 3), torch.randn(2, 2, 3), torch.rand(2, 2), torch.rand(2, 4))
    index = torch.tensor([[0, 1, 2], [5, 3, 1]])
    kriged, attended = gather(channels, index, weights)
    expected = sum(weights.kriging[1, 0, m] * channels.centre[index[1, m]] for m in range(3))
    torch.testing.assert_close(kriged[1, :, 0], expected)
    expected = sum(weights.attention[1, m] * channels.lift[index[1, m]] for m in range(3))
    torch.testing.assert_close(attended.lift[1], expected)


# ---- the whole evaluation ----


@pytest.fixture
def public_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """SIMULATED record in place of the public one: 14 visible stations, 2 hidden of each kind, 1,500 hours."""
    o = ar1(1500, 18)[0]
    codes = np.array([f"{s:04d}A" for s in range(18)])
    hidden = {"hidden_random": codes[14:16].tolist(), "hidden_city": codes[16:].tolist()}
    split = public.Splits(codes[:14].tolist(), hidden, (0, 0, 0, 0), 800, 1100, 1500)
    monkeypatch.setattr(public.Splits, "read", classmethod(lambda cls, path: split))
    monkeypatch.setattr(public, "read_record", lambda *_: (o, codes))
    monkeypatch.setattr(public, "digests", lambda *_: {"digests": {}})
    rows = "\n".join(f"{code},city{s // 2}" for s, code in enumerate(codes))
    (tmp_path / "stations.csv").write_text("code,city\n" + rows + "\n")
    return {"source_path": tmp_path, "stations": tmp_path / "stations.csv", "splits": tmp_path / "splits.json"}


def test_evaluation_scores_every_group_and_writes_the_page(public_record: dict[str, Path], tmp_path: Path) -> None:
    ablations = tmp_path / "ablations"
    for seed in pipeline_outlook.SEEDS:
        checkpoint.save(network(seed, 0.0), tmp_path / f"outlook-seed{seed}.safetensors", {})
        for part in pipeline_outlook.ABLATIONS.values():
            checkpoint.save(network(seed, 0.1), ablations / f"outlook-without-{part}-seed{seed}.safetensors", {})
    result = pipeline_outlook.evaluate(
        **public_record,
        out_dir=tmp_path / "out",
        weights=sorted(tmp_path.glob("*.safetensors")),
        ablations=ablations,
        step=36,
        baselines=["persistence", "climatology"],
    )
    rows = result.scores.query("kind == 'hourly' and window == 12 and not at").set_index(["group", "method"])
    assert set(rows.index.get_level_values("group")) == {"visible", "hidden_random", "hidden_city"}
    assert rows.loc[("visible", "aqnet seed0"), "mae"] < rows.loc[("visible", "climatology"), "mae"]
    issues = pipeline_outlook.issue_times(np.arange(1500) + FIRST, public.Splits.read(tmp_path), 36)
    assert rows.loc[("hidden_city", "persistence"), "pairs"] == len(issues) * 12 * 2
    assert ("visible", "aqnet without lstm seed1") in rows.index
    assert ("hidden_city", "aqnet without lstm seed1") not in rows.index
    assert json.loads((tmp_path / "out" / "outlook.json").read_text())["about"]["issue_times"] == len(issues)
    assert "# Outlook" in (tmp_path / "out" / "outlook.md").read_text()


def test_a_baseline_whose_package_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="baseline 'ridge': expected the package sklearn"):
        pipeline_outlook.evaluate(tmp_path, tmp_path, tmp_path, tmp_path, baselines=["persistence", "ridge"])


def test_training_writes_weights_that_say_how(public_record: dict[str, Path], tmp_path: Path) -> None:
    path = pipeline_outlook.train(**public_record, out=tmp_path / "w", seed=3, steps=1, without="attention")
    assert path.name == "outlook-without-attention-seed3.safetensors"
    assert not checkpoint.load_outlook(path).config.attention
    described = json.loads(path.with_suffix(".json").read_text())["training"]
    assert described["seed"] == 3
    assert described["visible_stations"] == 14
    assert described["recipe"]["steps"] == 1


def test_scaling_is_that_of_the_logarithms_and_a_default_for_what_was_never_measured() -> None:
    values = observed().values
    values[4] = np.nan
    mean, std = outlook_train.scaling(values)
    logs = np.log1p(values[0][np.isfinite(values[0])])
    assert (mean[0], std[0]) == pytest.approx((logs.mean(), logs.std()), rel=1e-5)
    assert (mean[4], std[4]) == (OutlookConfig.mean[4], OutlookConfig.std[4])
