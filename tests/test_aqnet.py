"""The network's parts against closed forms and brute force: attention, kriging, causality, missing stations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.aqnet import MEDIAN, AQNet, AQNetConfig, Channels, Geometry, Sums, crowding, gather, last_valid
from model.baseline import Variogram, krige
from model.geometry import distance_matrix, neighbours, terrain_distance
from model.infer import geometry_of
from model.windows import FEATURES, LEVELS, Window

TINY = AQNetConfig(neighbours=8, lead_hours=6, hidden=8, attention_heads=2, embedding=2, kriging_heads=2, head_hidden=8)
seeds = st.integers(0, 2**31)


def network(seed: int = 0, config: AQNetConfig = TINY, noise: float = 0.3) -> AQNet:
    """Random weights, far from the quiet start: what must hold, must hold for any."""
    torch.manual_seed(seed)
    made = AQNet(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * torch.randn_like(weight)
    return made


def layout(seed: int = 0, points: int = 6, k: int = 8, stations: int = 60) -> tuple[Tensor, Geometry]:
    """Neighbours (Q, K) of points among stations, and their geometry."""
    rng = np.random.default_rng(seed)
    lon, lat, height = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations), rng.uniform(0, 1.5, stations)
    at_lon, at_lat, ground = rng.uniform(113, 117, points), rng.uniform(36, 39, points), rng.uniform(0, 1.5, points)
    index, km = neighbours(at_lon, at_lat, lon, lat, k)
    between = torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float()
    heights = torch.from_numpy(height).float(), torch.from_numpy(ground).float()
    return torch.from_numpy(index), geometry_of(torch.from_numpy(index), km, between, *heights)


def channels(seed: int = 0, stations: int = 60, hours: int = 5, missing: float = 0.0) -> Channels:
    torch.manual_seed(seed)
    seen = torch.rand(stations, hours) >= missing
    value = 3.5 + 0.8 * torch.randn(stations, hours)
    embedding = torch.randn(stations, hours, TINY.embedding)
    return Channels(value * seen, torch.rand(stations, hours) * seen, torch.rand(stations, hours) * seen, embedding)


def inputs(seed: int = 0, stations: int = 4, hours: int = 20, missing: float = 0.3) -> Window:
    torch.manual_seed(seed)
    valid = torch.rand(stations, hours) >= missing
    z = (3.5 + torch.randn(stations, hours)) * valid
    return Window(torch.randn(stations, hours, FEATURES), z, valid)


# ---- neural kNN ----


@settings(max_examples=25)
@given(seeds, st.integers(1, 48))
def test_weights_of_every_set_sum_to_1_and_attention_is_positive(seed: int, k: int):
    with torch.no_grad():
        weights = network(seed % 7).knn(layout(seed, k=k)[1])
    torch.testing.assert_close(weights.attention.sum(-1), torch.ones(6))
    torch.testing.assert_close(weights.kriging.sum(-1), torch.ones(6, 2), atol=1e-4, rtol=0)
    assert (weights.attention > 0).all()
    assert (weights.variance > 0).all()


@pytest.mark.parametrize("k", [1, 3, 48])
def test_a_kriging_head_is_ordinary_kriging_with_its_covariance(k: int):
    """Weights and variance against `model.baseline.krige`, which solves the same system in float64 its own way."""
    knn = network(3).knn
    rng = np.random.default_rng(k)
    lon, lat, height = rng.uniform(113, 117, k + 4), rng.uniform(36, 39, k + 4), rng.uniform(0, 1500, k + 4)
    d, dz = distance_matrix(lon, lat, lon, lat), height[:, None] - height[None]
    z = rng.normal(3.5, 0.8, (7, k))
    index = torch.arange(k).expand(4, k)
    high = torch.from_numpy(height / 1000).float()
    geometry = geometry_of(index, d[k:, :k], torch.from_numpy(d[:k, :k]).float(), high[:k], high[k:])
    with torch.no_grad():
        weights = knn(geometry)
        sills, ranges = knn.log_sill.exp().double().numpy(), knn.log_range.exp().double().numpy()
        nuggets, factors = knn.log_nugget.exp().double().numpy(), knn.log_terrain.exp().double().numpy()
    for h in range(TINY.kriging_heads):
        apart = terrain_distance(d, dz, factors[h])
        variogram = Variogram(nuggets[h], tuple(sills[h]), tuple(ranges[h]), factors[h])
        expected, variance = krige(z, apart[:k, :k], apart[k:, :k], variogram, k)
        found = z @ weights.kriging[:, h].double().numpy().T
        np.testing.assert_allclose(found, expected, atol=2e-3)
        np.testing.assert_allclose(weights.variance[:, h].numpy(), variance[0], atol=1e-3)


def test_attention_starts_at_the_positive_weights_of_the_first_kriging_head():
    torch.manual_seed(0)
    with torch.no_grad():
        weights = AQNet(TINY).knn(layout()[1])
    start = weights.kriging[:, 0].clamp(min=0) + 2e-3
    torch.testing.assert_close(weights.attention, start / start.sum(-1, keepdim=True))


def test_higher_ground_makes_a_station_more_distant():
    torch.manual_seed(0)
    knn = AQNet(TINY).knn
    with torch.no_grad():
        level, above, below = knn.covariance(torch.tensor([[10.0, 10.0, 10.0]]), torch.tensor([[0.0, 0.5, -0.5]]))[0, 0]
    assert above < level
    assert above == below


@settings(max_examples=25)
@given(seeds, st.integers(1, 12))
def test_crowding_is_the_mean_log_distance_to_five_fellow_neighbours(seed: int, k: int):
    between = layout(seed, k=k)[1].between
    found = crowding(between).numpy()
    for q, matrix in enumerate(between.numpy()):
        for i, row in enumerate(matrix):
            others = np.sort(np.delete(row, i))[:5]
            expected = np.log1p(np.minimum(others, 500)).mean() if len(others) else 0.0
            assert found[q, i] == pytest.approx(expected, abs=1e-4)


# ---- sums ----


def test_gather_is_the_sums_of_its_definition():
    index, geometry = layout(points=3)
    given_channels, net = channels(missing=0.3), network()
    with torch.no_grad():
        weights = net.knn(geometry)
        found = gather(given_channels, index, weights)
    value, reliability, trust, embedding = (c.double().numpy() for c in given_channels)
    for q in range(3):
        at = index[q].numpy()
        a, kriging = weights.attention[q].double().numpy(), weights.kriging[q].double().numpy()
        for t in range(5):
            p = a * reliability[at, t]
            attended = (p * value[at, t]).sum() / p.sum()
            anomaly = value[at, t] - attended
            assert found.support[q, t] == pytest.approx(p.sum(), rel=1e-4)
            assert found.attended[q, t] == pytest.approx(attended, rel=1e-4)
            assert found.spread[q, t] == pytest.approx(np.sqrt((p * anomaly**2).sum() / p.sum()), rel=1e-3)
            expected = attended + kriging @ (trust[at, t] * anomaly)
            np.testing.assert_allclose(found.kriged[q, t], expected, atol=1e-3)
            np.testing.assert_allclose(found.embedding[q, t], p @ embedding[at, t] / p.sum(), atol=1e-4)


def test_sums_move_with_a_constant_whatever_is_trusted():
    """Every value is traced to observations by weights that sum to 1, those of stations without trust included."""
    index, geometry = layout()
    given_channels, net = channels(), network()
    with torch.no_grad():
        weights = net.knn(geometry)
        before = gather(given_channels, index, weights)
        after = gather(given_channels._replace(value=given_channels.value + 1.0), index, weights)
    torch.testing.assert_close(after.attended, before.attended + 1, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.kriged, before.kriged + 1, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.spread, before.spread, atol=1e-3, rtol=0)


def test_a_station_without_reliability_changes_nothing_whatever_its_channels():
    index, geometry = layout()
    net, given_channels = network(), channels()
    gone = index[:, 1].unique()
    for channel in (given_channels.reliability, given_channels.trust):
        channel[gone] = 0
    other = Channels(*(channel.clone() for channel in given_channels))
    other.value[gone], other.embedding[gone] = -50.0, 1e3
    cycle = torch.randn(6, 5, 2)
    with torch.no_grad():
        before, after = (net(c, index, geometry, cycle) for c in (given_channels, other))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


# ---- encoder ----


@settings(max_examples=15)
@given(seeds, st.integers(0, 12))
def test_the_encoder_looks_back_only(seed: int, hour: int):
    """Anything after an output hour may change: the channels up to it stay the same bit for bit."""
    encoder, before = network().encoder, inputs(seed)
    after, other = Window(*(part.clone() for part in before)), inputs(seed + 1)
    for part, new in zip(after, other, strict=True):
        part[:, TINY.lead_hours + hour + 1 :] = new[:, TINY.lead_hours + hour + 1 :]
    with torch.no_grad():
        for a, b in zip(encoder(before), encoder(after), strict=True):
            assert torch.equal(a[:, : hour + 1], b[:, : hour + 1])
            assert not torch.equal(a[:, hour + 1 :], b[:, hour + 1 :])


def test_attention_reaches_the_lead_hours_and_no_further():
    encoder, lead = network().encoder, TINY.lead_hours
    torch.manual_seed(0)
    state = torch.randn(1, 20, TINY.hidden)
    with torch.no_grad():
        before = encoder.attend(state)
        for hour in range(20):
            changed = state.clone()
            changed[:, hour] += 1.0
            moved = (encoder.attend(changed) != before).any(-1)[0].nonzero()[:, 0] + lead
            expected = [t for t in range(lead, 20) if 0 <= t - hour <= lead]
            assert moved.tolist() == expected


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(1, 9))
def test_last_valid_is_that_of_brute_force(marks: list[list[bool]], hours: int):
    valid = torch.tensor(marks)
    z = torch.arange(valid.numel()).view(valid.shape).float()
    last, age = last_valid(z, valid, hours)
    assert last.shape == age.shape == (len(marks), hours)
    for s, row in enumerate(marks):
        for t in range(9 - hours, 9):
            back = [n for n in range(t + 1) if row[t - n]]
            column = t - (9 - hours)
            assert age[s, column] == (back[0] if back else 9)
            if back:
                assert last[s, column] == z[s, t - back[0]]


def test_a_missing_value_is_never_read():
    encoder, before = network().encoder, inputs()
    after = before._replace(z=torch.where(before.valid, before.z, 99.0))
    with torch.no_grad():
        for a, b in zip(encoder(before), encoder(after), strict=True):
            assert torch.equal(a, b)


def test_a_station_has_no_say_once_its_last_value_is_as_old_as_the_lead():
    given_inputs = inputs(missing=1.0)
    given_inputs.valid[1:, 3] = True
    given_inputs.z[1:, 3] = 4.0
    with torch.no_grad():
        found = network().encoder(given_inputs)
    last = 3 + TINY.lead_hours - 1  # the last hour with a value younger than the lead
    for channel in (found.value, found.reliability, found.trust):
        assert (channel[0] == 0).all()
        assert (channel[1:, : last + 1 - TINY.lead_hours] != 0).all()
        assert (channel[1:, last + 1 - TINY.lead_hours :] == 0).all()


def test_the_untrained_encoder_is_persistence_of_the_last_value_and_trusts_it_less_with_age():
    torch.manual_seed(0)
    given_inputs = inputs(stations=30, missing=0.5)
    with torch.no_grad():
        found = AQNet(TINY).encoder(given_inputs)
    valid = given_inputs.valid[:, TINY.lead_hours :]
    last, age = last_valid(given_inputs.z, given_inputs.valid, valid.shape[1])
    seen = age < TINY.lead_hours
    assert ((found.value - last)[seen].abs() < 0.3).all()
    assert (found.trust[valid] == 1).all()
    assert found.reliability[valid].min() > found.reliability[seen & ~valid].max()
    assert found.trust[(age == 1)].mean() > found.trust[(age == 4)].mean() > 0


# ---- head ----


@settings(max_examples=25)
@given(seeds)
def test_quantiles_never_decrease(seed: int):
    index, geometry = layout(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        quantiles, mean = network(seed, noise=1.0)(channels(seed, missing=0.5), index, geometry, torch.randn(6, 5, 2))
    assert quantiles.shape == (6, 5, len(LEVELS))
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.isfinite(mean).all()


@pytest.mark.parametrize("seed", range(4))
def test_an_untrained_median_is_between_attention_and_kriging(seed: int):
    torch.manual_seed(seed)
    net, (index, geometry) = AQNet(TINY), layout(seed)
    given_channels = channels(seed)._replace(trust=torch.ones(60, 5), reliability=torch.ones(60, 5))
    with torch.no_grad():
        weights = net.knn(geometry)
        sums = gather(given_channels, index, weights)
        quantiles, mean = net.head(sums, weights, torch.zeros(6, 5, 2))
    centre = torch.cat([sums.attended[..., None], sums.kriged], dim=-1)
    assert (quantiles[..., MEDIAN] > centre.min(-1).values - 0.1).all()
    assert (quantiles[..., MEDIAN] < centre.max(-1).values + 0.1).all()
    width = quantiles[..., -1] - quantiles[..., 0]
    torch.testing.assert_close(width, 2 * 1.645 * weights.variance[:, :1].sqrt().expand(6, 5), rtol=0.2, atol=0)
    lift = 0.5 * weights.variance[:, :1].expand(6, 5)
    torch.testing.assert_close(mean - quantiles[..., MEDIAN], lift, rtol=0.2, atol=0.02)


def test_the_median_is_a_mixture_of_the_attended_and_kriged_values_and_a_shift():
    """The gates sum to 1: adding a constant to every centre adds it to all quantiles and the mean."""
    net = network()
    with torch.no_grad():
        weights = net.knn(layout()[1])
        sums = Sums(*(torch.rand(6, 5, *tail) + 3 for tail in ((), (2,), (), (), (2,))))
        level = net.head.level
        net.head.level = 0.0  # the pointwise network sees the level, clamped to (-level, level): to 0 here
        before = net.head(sums, weights, torch.zeros(6, 5, 2))
        moved = sums._replace(attended=sums.attended + 2, kriged=sums.kriged + 2)
        after = net.head(moved, weights, torch.zeros(6, 5, 2))
        net.head.level = level
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b + 2, atol=1e-4, rtol=0)


# ---- the whole ----


@pytest.mark.parametrize("k", [1, 2, 5, 48])
def test_any_number_of_neighbours_works(k: int):
    index, geometry = layout(k=k)
    with torch.no_grad():
        quantiles, mean = network()(channels(), index, geometry, torch.randn(6, 5, 2))
    assert torch.isfinite(quantiles).all()
    assert torch.isfinite(mean).all()


def test_one_neighbour_gives_its_value():
    torch.manual_seed(0)
    net, (index, geometry) = AQNet(TINY), layout(k=1)
    given_channels = channels()._replace(trust=torch.ones(60, 5), reliability=torch.ones(60, 5))
    with torch.no_grad():
        sums = gather(given_channels, index, net.knn(geometry))
    torch.testing.assert_close(sums.attended, given_channels.value[index[:, 0]], rtol=1e-4, atol=0)
    torch.testing.assert_close(sums.kriged[..., 1], given_channels.value[index[:, 0]], rtol=1e-4, atol=0)


def test_every_gradient_is_finite_where_stations_share_a_place_or_say_nothing():
    net = network()
    index, geometry = layout(k=8)
    geometry.distance[0] = 0.0
    geometry.rise[0] = 0.0
    geometry.between[0] = geometry.step[0] = 0.0  # eight instruments at one place, and the query there too
    given_inputs = inputs(stations=60, hours=11, missing=0.7)
    given_inputs.valid[index[1]] = False  # nothing at all near the second query
    quantiles, mean = net(net.encoder(given_inputs), index, geometry, torch.randn(6, 5, 2))
    (quantiles.sum() + mean.sum()).backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
    assert net.knn.log_range.grad.abs().sum() > 0
    assert net.encoder.recency.grad.abs().sum() > 0


def test_the_cycle_of_the_query_reaches_its_estimate():
    index, geometry = layout()
    net = network()
    with torch.no_grad():
        noon, night = (net(channels(), index, geometry, torch.full((6, 5, 2), s))[0] for s in (1.0, -1.0))
    assert not torch.equal(noon, night)
