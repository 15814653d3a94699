"""The network's parts against closed forms and brute force: kriging, gaps, bands, causality, sums, quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from model import aqnet
from model.aqnet import (
    BANDS,
    MEDIAN,
    MODES,
    SCALES,
    AQNet,
    AQNetConfig,
    Channels,
    Geometry,
    Kriging,
    Sums,
    Surroundings,
    bands_of,
    fill,
    gather,
    kernel,
    recent_error,
)
from model.geometry import distance_matrix, neighbours
from model.layout import geometry_of, surroundings
from model.windows import FEATURES, LEVELS, TERRAIN_FEATURES, Window

TINY = AQNetConfig(
    neighbours=8,
    near=4,
    lead_hours=6,
    tail_hours=6,
    history=3,
    hidden=8,
    attention_heads=2,
    embedding=2,
    head_hidden=8,
)
WHOLE = BANDS * len(MODES)
seeds = st.integers(0, 2**31)
Array = NDArray[np.float64]


def network(seed: int = 0, config: AQNetConfig = TINY, noise: float = 0.3) -> AQNet:
    """Random weights, far from the quiet start: what must hold, must hold for any."""
    torch.manual_seed(seed)
    made = AQNet(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * torch.randn_like(weight)
        made.knn.kriging.log_drift.uniform_(-5, -1)  # at the start drift and amplitude are too small to be noticed
        made.knn.kriging.amplitude.uniform_(-1, 1)
    return made


def stations_at(seed: int, stations: int) -> tuple[Array, Array, Tensor]:
    """Longitudes, latitudes and terrain features of places in 4 by 3 degrees."""
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations)
    return lon, lat, torch.from_numpy(rng.uniform(-1, 1.5, (stations, TERRAIN_FEATURES))).float()


def layout(seed: int = 0, points: int = 6, k: int = 8, stations: int = 60) -> tuple[Tensor, Geometry]:
    """Neighbours (Q, K) of points among stations, and their geometry."""
    lon, lat, terrain = stations_at(seed, stations + points)
    index, km = neighbours(lon[stations:], lat[stations:], lon[:stations], lat[:stations], k)
    between = torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float()[:stations, :stations]
    return torch.from_numpy(index), geometry_of(torch.from_numpy(index), km, between, terrain, terrain[stations:])


def around(net: AQNet, seed: int = 0, stations: int = 30) -> tuple[Surroundings, Surroundings]:
    """What stations are told by their neighbours."""
    lon, lat, terrain = stations_at(seed, stations)
    with torch.no_grad():
        return surroundings(net.knn, torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float(), terrain)


def channels(seed: int = 0, stations: int = 60, hours: int = 5) -> Channels:
    torch.manual_seed(seed)
    bands = torch.randn(stations, hours, BANDS) * torch.tensor([0.2, 0.3, 0.4, 0.8])
    bands[..., -1] += 3.5
    error, heard = torch.rand(stations, hours), torch.rand(stations, hours)
    return Channels(bands, torch.randn(stations, hours, TINY.embedding), error * heard, heard)


def inputs(seed: int = 0, stations: int = 30, hours: int = 18, missing: float = 0.3) -> Window:
    torch.manual_seed(seed)
    valid = torch.rand(stations, hours) >= missing
    z = (3.5 + torch.randn(stations, hours)) * valid
    return Window(torch.randn(stations, hours, FEATURES), z, valid)


def length(mode: str, hours: int = 12) -> int:
    """Hours of a window with `hours` output hours."""
    return TINY.lead_hours + hours + (TINY.tail_hours if mode == "final" else 0)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...], atol: float = 1e-4) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=1e-4)


# ---- kriging ----


def covariance(kriging: Kriging, row: int, km: float, a: Array, b: Array) -> float:
    """The covariance of the docstring, a pair of places at a time and in float64."""
    take = lambda name: getattr(kriging, name)[row].detach().double().numpy()  # noqa: E731
    factor, drift, slope = np.exp(take("log_factor")), np.exp(take("log_drift")), np.tanh(take("amplitude"))
    d = np.sqrt(km**2 + 1e-6 + ((factor * (a - b)) ** 2).sum())
    power = 2 * np.minimum(1 / (1 + np.exp(-take("shape"))), 0.975)
    decay = np.exp(take("log_sill")) * np.exp(-((d / np.exp(take("log_range"))) ** power))
    amplitude = np.exp(0.3 * (slope * np.clip(a, -3, 3)).sum()), np.exp(0.3 * (slope * np.clip(b, -3, 3)).sum())
    return float((decay.sum() + (drift * a * b).sum()) * amplitude[0] * amplitude[1])


@torch.no_grad()
def krige(kriging: Kriging, row: int, geometry: Geometry, q: int) -> tuple[Array, float]:
    """Weights (K,) and unscaled variance of query q: the bordered system of Cressie 1993, (3.2.12), solved by numpy."""
    k = geometry.distance.shape[1]
    at, here = geometry.stations[q].double().numpy(), geometry.place[q].double().numpy()
    between, km = geometry.between[q].double().numpy(), geometry.distance[q].double().numpy()
    system, right = np.zeros((k + 1, k + 1)), np.ones(k + 1)
    system[k, :k] = system[:k, k] = 1
    for i in range(k):
        right[i] = covariance(kriging, row, km[i], here, at[i])
        system[i, :k] = [covariance(kriging, row, between[i, j], at[i], at[j]) for j in range(k)]
    nugget = float(kriging.log_nugget[row].exp())
    system[np.arange(k), np.arange(k)] += nugget
    solved = np.linalg.solve(system, right)
    return solved[:k], covariance(kriging, row, 0.0, here, here) + nugget - float(solved @ right)


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 9, 24])
@pytest.mark.parametrize("mode", MODES)
def test_each_band_is_kriged_with_its_own_covariance(k: int, mode: str):
    net, (_, geometry) = network(k), layout(k, points=3, k=k)
    kriging, first = net.knn.kriging, BANDS * MODES.index(mode)
    with torch.no_grad():
        weights = net.knn(geometry, mode)
    for q in range(3):
        for band in range(BANDS):
            expected, variance = krige(kriging, first + band, geometry, q)
            scale = float(kriging.log_scale[first + band].exp())
            np.testing.assert_allclose(weights.bands[q, band], expected, atol=2e-3)
            np.testing.assert_allclose(weights.variance[q, band], max(variance * scale, 1e-4), atol=2e-3)


def test_stations_are_judged_by_the_covariance_of_the_whole_value():
    net, (_, geometry) = network(), layout(points=3)
    with torch.no_grad():
        found = net.knn.whole(geometry)
    for q in range(3):
        np.testing.assert_allclose(found[q], krige(net.knn.kriging, WHOLE, geometry, q)[0], atol=1e-3)


def test_the_bands_of_a_mode_move_with_its_rows_alone():
    net, (_, geometry) = network(), layout()
    with torch.no_grad():
        before = {mode: net.knn(geometry, mode) for mode in MODES}
        net.knn.kriging.log_range[BANDS : 2 * BANDS] += 1.0
        after = {mode: net.knn(geometry, mode) for mode in MODES}
    same(before["interim"], after["interim"], atol=0)
    assert (before["final"].bands - after["final"].bands).abs().max() > 1e-3
    torch.testing.assert_close(before["final"].attention, after["final"].attention)


@settings(max_examples=25)
@given(seeds, st.integers(1, 48))
def test_weights_of_every_band_sum_to_1_and_attention_is_positive(seed: int, k: int):
    with torch.no_grad():
        weights = network(seed % 7).knn(layout(seed, k=k)[1], MODES[seed % 2])
    assert weights.bands.shape == (6, BANDS, k)
    assert weights.attention.shape == (6, min(k, TINY.near))
    torch.testing.assert_close(weights.bands.sum(-1), torch.ones(6, BANDS), atol=1e-3, rtol=0)
    torch.testing.assert_close(weights.attention.sum(-1), torch.ones(6))
    assert (weights.attention > 0).all()
    assert (weights.variance > 0).all()


@settings(max_examples=15)
@given(seeds)
def test_covariances_are_symmetric_and_positive_definite(seed: int):
    lon, lat, terrain = stations_at(seed, 25)
    km = torch.from_numpy(distance_matrix(lon, lat, lon, lat))
    kriging, rows = network(seed % 7).knn.kriging, list(range(WHOLE + 1))
    with torch.no_grad():
        matrix = kriging.covariance(km, terrain.double(), terrain.double(), rows)
        variance = kriging.variance(terrain.double(), rows)
    torch.testing.assert_close(matrix, matrix.transpose(1, 2))
    assert (torch.linalg.eigvalsh(matrix) > -1e-6).all()
    assert (matrix.diagonal(dim1=1, dim2=2) <= variance + 1e-9).all()


@pytest.mark.parametrize("feature", range(TERRAIN_FEATURES))
def test_other_terrain_makes_a_station_more_distant(feature: int):
    torch.manual_seed(0)
    kriging = AQNet(TINY).knn.kriging
    at = torch.zeros(3, TERRAIN_FEATURES)
    at[1, feature], at[2, feature] = 0.5, -0.5
    with torch.no_grad():
        level, above, below = kriging.covariance(torch.full((1, 3), 10.0), at[:1], at, [0])[0, 0]
    assert above < level
    assert above == pytest.approx(below.item(), rel=1e-5)


def test_attention_starts_at_the_positive_weights_of_the_nearest():
    torch.manual_seed(0)
    net, (_, geometry) = AQNet(TINY), layout()
    with torch.no_grad():
        weights, whole = net.knn(geometry), net.knn.whole(geometry)
    start = whole[:, : TINY.near].clamp(min=0) + 5e-3
    torch.testing.assert_close(weights.attention, start / start.sum(-1, keepdim=True))


# ---- gaps ----


def everyone(net: AQNet, seed: int, stations: int = 12) -> tuple[Surroundings, Tensor]:
    """Weights of every station on all others, and distances (S + 1, S + 1) of them and, last, a query."""
    lon, lat, terrain = stations_at(seed, stations + 1)
    between = torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float()
    with torch.no_grad():
        alone, _ = surroundings(net.knn, between[:-1, :-1], terrain[:-1])
    return alone, between


@pytest.mark.parametrize("gaps", [[4], [0], [2, 9]])
def test_a_filled_gap_changes_no_estimate_of_fixed_weights(gaps: list[int]):
    """Kriging from all stations with the gaps kriged is kriging from the others: gaps say nothing of their own."""
    net, S = network(2), 12
    alone, between = everyone(net, 3, S)
    terrain = stations_at(3, S + 1)[2]
    keep = [s for s in range(S) if s not in gaps]

    def weights(index: list[int]) -> Tensor:
        at = torch.tensor([index])
        with torch.no_grad():
            return net.knn.whole(geometry_of(at, between[-1:, index], between, terrain, terrain[-1:]))[0]

    z = torch.randn(S, 1) + 3.5
    valid = torch.ones(S, 1, dtype=torch.bool)
    valid[gaps] = False
    filled, _ = fill(Window(torch.zeros(S, 1, FEATURES), z * valid, valid), alone, two_sided=False)
    fixed, fewer = weights(list(range(S))) @ filled, weights(keep) @ z[keep]
    torch.testing.assert_close(fixed, fewer, atol=5e-3, rtol=0)
    assert (weights(list(range(S)))[gaps].abs() > 0.02).any()


@settings(max_examples=15)
@given(seeds, st.floats(0, 1), st.booleans())
def test_observed_values_stay_and_what_a_gap_holds_is_never_read(seed: int, missing: float, two_sided: bool):
    given_inputs, (alone, _) = inputs(seed, missing=missing), around(network())
    filled, departure = fill(given_inputs, alone, two_sided)
    valid = given_inputs.valid
    assert torch.equal(filled[valid], given_inputs.z[valid])
    assert (departure[~valid] == 0).all()
    other = given_inputs._replace(z=torch.where(valid, given_inputs.z, 99.0))
    for a, b in zip(fill(other, alone, two_sided), (filled, departure), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("missing", [0.2, 0.6, 0.9])
def test_gaps_stay_about_where_the_observations_are(missing: float):
    """Rounds of kriging among gaps settle, whatever the share of gaps."""
    torch.manual_seed(0)
    given_inputs, (alone, _) = inputs(stations=60, hours=40, missing=missing), around(AQNet(TINY), stations=60)
    filled, _ = fill(given_inputs, alone, two_sided=False)
    z = given_inputs.z[given_inputs.valid]
    assert filled.min() > z.min() - 2
    assert filled.max() < z.max() + 2


def test_the_departure_is_that_from_what_the_neighbours_say():
    given_inputs, (alone, _) = inputs(missing=0.0), around(network())
    _, departure = fill(given_inputs, alone, two_sided=False)
    for s in range(30):
        said = alone.weights[s] @ given_inputs.z[alone.index[s]]
        torch.testing.assert_close(departure[s], given_inputs.z[s] - said, atol=1e-4, rtol=1e-4)


def alone_with_a_gap(hours: int = 41) -> tuple[Window, Surroundings]:
    """Constant neighbours, and station 0 one unit above them at both ends of a gap of all hours between."""
    (surrounding, _) = around(network())
    given_inputs = inputs(hours=hours, missing=0.0)
    given_inputs.z[:] = 3.0
    given_inputs.z[0, 0], given_inputs.z[0, -1] = 4.0, 2.0
    given_inputs.valid[0, 1:-1] = False
    return given_inputs, surrounding


def test_a_departure_fades_into_a_gap():
    given_inputs, surrounding = alone_with_a_gap()
    filled, _ = fill(given_inputs, surrounding, two_sided=False)
    expected = 3 + torch.exp(-torch.arange(40.0) / 12)
    torch.testing.assert_close(filled[0, :-1], expected, atol=1e-3, rtol=0)


def test_seen_from_both_sides_a_gap_is_the_mean_of_an_ornstein_uhlenbeck_bridge():
    """Simple kriging in time with the covariance exp(-lag / 12 h), from the two ends of the gap."""
    given_inputs, surrounding = alone_with_a_gap()
    filled, _ = fill(given_inputs, surrounding, two_sided=True)
    hour = np.arange(41)
    c = lambda lag: np.exp(-np.abs(lag) / 12)  # noqa: E731
    weights = np.linalg.solve([[1, c(40)], [c(40), 1]], np.stack([c(hour), c(40 - hour)]))
    np.testing.assert_allclose(filled[0], 3 + np.array([1.0, -1.0]) @ weights, atol=1e-3)


def test_one_station_keeps_its_values_and_departs_from_nothing():
    given_inputs, (alone, _) = inputs(stations=1), around(network(), stations=1)
    filled, departure = fill(given_inputs, alone, two_sided=False)
    assert torch.equal(filled[given_inputs.valid], given_inputs.z[given_inputs.valid])
    assert (departure == 0).all()


# ---- bands ----


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_is_a_moving_mean_over_the_past_or_about_the_hour(mode: str):
    found = kernel(3.0, 9, mode)
    for t in range(9):
        for u in range(9):
            past = np.exp(-(t - u) / 3.0) if u <= t else 0.0
            assert found[t, u] == pytest.approx(past if mode == "interim" else np.exp(-((t - u) ** 2) / 18), abs=1e-6)


@settings(max_examples=15)
@given(seeds, st.sampled_from(MODES))
def test_bands_add_up_to_z_and_are_those_of_brute_force(seed: int, mode: str):
    torch.manual_seed(seed)
    filled, some = torch.randn(4, 15), torch.rand(15) > 0.2
    found = bands_of(filled, some, mode)
    assert found.shape == (4, 15, BANDS)
    torch.testing.assert_close(found.sum(-1), filled, atol=1e-4, rtol=0)
    smooth = [filled.double().numpy()]
    for scale in SCALES[mode]:
        weight = kernel(scale, 15, mode).double().numpy() * some.numpy()
        total = np.maximum(weight.sum(axis=1), 1e-9)
        smooth.append(np.stack([(smooth[0] * weight[t]).sum(axis=1) / total[t] for t in range(15)], axis=1))
    for band in range(BANDS - 1):
        np.testing.assert_allclose(found[..., band], smooth[band] - smooth[band + 1], atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_an_hour_without_data_counts_in_no_other_hour(mode: str):
    filled, some = torch.randn(4, 15), torch.ones(15, dtype=torch.bool)
    some[6:8] = False
    before = bands_of(filled, some, mode)
    filled[:, 6:8] = 50.0
    torch.testing.assert_close(bands_of(filled, some, mode)[:, some], before[:, some])


@pytest.mark.parametrize("mode", MODES)
def test_a_level_is_all_in_the_slowest_band(mode: str):
    found = bands_of(torch.full((2, 15), 3.0), torch.ones(15, dtype=torch.bool), mode)
    torch.testing.assert_close(found[..., -1], torch.full((2, 15), 3.0))
    torch.testing.assert_close(found[..., :-1], torch.zeros(2, 15, BANDS - 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_recent_error_is_the_weighted_mean_of_brute_force(mode: str):
    given_inputs, arounds = inputs(stations=8, hours=9), around(network(), stations=8)
    filled, _ = fill(given_inputs, arounds[0], two_sided=False)
    error, heard = recent_error(given_inputs, filled, arounds, mode)
    scale = {"interim": 2.0, "final": 1.5}[mode]
    for s in range(8):
        said = [a.weights[s] @ filled[a.index[s]] for a in arounds]
        off = sum((given_inputs.z[s] - x).abs() for x in said)
        for t in range(9):
            lag = t - np.arange(9)
            past = np.where(lag >= 0, np.exp(-lag / scale), 0)
            weight = past if mode == "interim" else np.exp(-0.5 * (lag / scale) ** 2)
            weight = weight / weight.sum()
            valid = given_inputs.valid[s].double().numpy()
            assert error[s, t] == pytest.approx(float((weight * valid * off.double().numpy()).sum()), abs=1e-4)
            assert heard[s, t] == pytest.approx(float((weight * valid).sum()), abs=1e-5)


def test_neighbours_that_are_right_make_no_error():
    given_inputs, arounds = inputs(), around(network())
    given_inputs.z[:] = 4.0 * given_inputs.valid
    filled, _ = fill(given_inputs, arounds[0], two_sided=False)
    error, heard = recent_error(given_inputs, filled, arounds, "interim")
    assert error.abs().max() < 0.02
    assert heard.min() >= 0
    assert heard.max() <= 1 + 1e-5


# ---- encoder ----


@settings(max_examples=15)
@given(seeds, st.integers(0, 10))
def test_the_encoder_looks_back_only(seed: int, hour: int):
    """Anything after an output hour may change: the channels up to it stay the same bit for bit."""
    net, before = network(), inputs(seed)
    after, other = Window(*(part.clone() for part in before)), inputs(seed + 1)
    for part, new in zip(after, other, strict=True):
        part[:, TINY.lead_hours + hour + 1 :] = new[:, TINY.lead_hours + hour + 1 :]
    arounds = around(net)
    with torch.no_grad():
        for a, b in zip(net.encoder(before, *arounds), net.encoder(after, *arounds), strict=True):
            assert torch.equal(a[:, : hour + 1], b[:, : hour + 1])
            assert not torch.equal(a[:, hour + 1 :], b[:, hour + 1 :])


@pytest.mark.parametrize("part", ["z", "features"])
def test_the_final_encoder_looks_ahead_too(part: str):
    """The last hour of the tail reaches every output hour through z; other pollutants reach as far as the history."""
    net, before = network(), inputs(hours=length("final"))
    changed = getattr(before, part).clone()
    changed[:, 12 + TINY.lead_hours + TINY.history - 1] += 1.0
    arounds = around(net)
    with torch.no_grad():
        a, b = (net.encoder(x, *arounds, "final") for x in (before, before._replace(**{part: changed})))
    assert (a.bands != b.bands).any(-1).any(0).all()
    assert a.bands.shape == (30, 12, BANDS)


@pytest.mark.parametrize("mode", MODES)
def test_other_pollutants_count_within_the_history_alone(mode: str):
    net, before = network(), inputs(hours=length(mode))
    arounds, lead, history = around(net), TINY.lead_hours, TINY.history
    far = [*range(lead - history), *range(lead + 12 + history, length(mode))]
    for hours, moved in ((far, False), ([lead - history], True)):
        features = before.features.clone()
        features[:, hours] = 3.0
        with torch.no_grad():
            a, b = (net.encoder(x, *arounds, mode) for x in (before, before._replace(features=features)))
        assert torch.equal(a.bands, b.bands) != moved


@pytest.mark.parametrize("mode", MODES)
def test_attention_reaches_all_that_was_read_but_the_future_in_interim_mode(mode: str):
    net, T, history = network(), 9, TINY.history
    torch.manual_seed(0)
    state = torch.randn(1, history + T + (history if mode == "final" else 0), 2 * TINY.hidden)
    with torch.no_grad():
        before = net.encoder.attend(state, T, mode)
        for hour in range(state.shape[1]):
            changed = state.clone()
            changed[:, hour] += 1.0
            moved = (net.encoder.attend(changed, T, mode) != before).any(-1)[0].nonzero()[:, 0]
            expected = [t for t in range(T) if mode == "final" or t + history >= hour]
            assert moved.tolist() == expected


def test_the_final_context_is_symmetric_in_time():
    """What gaps, bands and errors are made of, read backwards, is the same backwards."""
    given_inputs, arounds = inputs(hours=25), around(network())
    turned = Window(*(part.flip(1) for part in given_inputs))
    found, back = [], []
    for read, kept in ((given_inputs, found), (turned, back)):
        filled, departure = fill(read, arounds[0], two_sided=True)
        bands = bands_of(filled, read.valid.any(0), "final")
        kept += [filled, departure, bands, *recent_error(read, filled, arounds, "final")]
    same(tuple(found), tuple(x.flip(1) for x in back))
    one_sided = [
        bands_of(fill(read, arounds[0], False)[0], read.valid.any(0), "interim") for read in (given_inputs, turned)
    ]
    assert (one_sided[0] - one_sided[1].flip(1)).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_value_is_never_read(mode: str):
    net, before = network(), inputs(hours=length(mode))
    after, arounds = before._replace(z=torch.where(before.valid, before.z, 99.0)), around(net)
    with torch.no_grad():
        for a, b in zip(net.encoder(before, *arounds, mode), net.encoder(after, *arounds, mode), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_stations_in_another_order_have_the_same_channels(mode: str):
    net, before = network(), inputs(hours=length(mode))
    lon, lat, terrain = stations_at(0, 30)
    order = torch.randperm(30)
    between = torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float()
    with torch.no_grad():
        found = net.encoder(before, *surroundings(net.knn, between, terrain), mode)
        arounds = surroundings(net.knn, between[order][:, order], terrain[order])
        shuffled = net.encoder(Window(*(part[order] for part in before)), *arounds, mode)
    same(tuple(channel[order] for channel in found), shuffled, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_untrained_encoder_gives_back_about_what_was_observed(mode: str):
    torch.manual_seed(0)
    net, given_inputs = AQNet(TINY), inputs(hours=length(mode))
    with torch.no_grad():
        found = net.encoder(given_inputs, *around(net), mode)
    own = slice(TINY.lead_hours, TINY.lead_hours + 12)
    valid = given_inputs.valid[:, own]
    assert ((found.bands.sum(-1) - given_inputs.z[:, own])[valid].abs() < 0.2).all()


@pytest.mark.parametrize("stations", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_stations_has_channels(stations: int, mode: str):
    net = network()
    with torch.no_grad():
        found = net.encoder(inputs(stations=stations, hours=length(mode)), *around(net, stations=stations), mode)
    assert found.heard.shape == (stations, 12)
    assert all(torch.isfinite(channel).all() for channel in found)


# ---- sums ----


def test_gather_is_the_sums_of_its_definition():
    index, geometry = layout(points=3)
    given_channels, net = channels(), network()
    with torch.no_grad():
        weights = net.knn(geometry)
        found = gather(given_channels, index, weights)
    bands, embedding, error, heard = (c.double().numpy() for c in given_channels)
    for q in range(3):
        at = index[q].numpy()
        a, kriging = weights.attention[q].double().numpy(), weights.bands[q].double().numpy()
        for t in range(5):
            for band in range(BANDS):
                assert found.bands[q, t, band] == pytest.approx(kriging[band] @ bands[at, t, band], abs=1e-4)
            assert found.error[q, t] == pytest.approx(a @ error[at[: TINY.near], t], abs=1e-5)
            assert found.heard[q, t] == pytest.approx(a @ heard[at[: TINY.near], t], abs=1e-5)
            np.testing.assert_allclose(found.embedding[q, t], a @ embedding[at[: TINY.near], t], atol=1e-4)


def test_a_constant_in_a_band_comes_out_as_it_is():
    """Every value is traced to observations by weights that sum to 1."""
    index, geometry = layout()
    given_channels, net = channels(), network()
    with torch.no_grad():
        weights = net.knn(geometry)
        before = gather(given_channels, index, weights)
        after = gather(given_channels._replace(bands=given_channels.bands + 1.0), index, weights)
    torch.testing.assert_close(after.bands, before.bands + 1, atol=2e-3, rtol=0)


# ---- head ----


@settings(max_examples=25)
@given(seeds)
def test_quantiles_never_decrease(seed: int):
    index, geometry = layout(seed)
    torch.manual_seed(seed)
    net = network(seed, noise=1.0)
    with torch.no_grad():
        quantiles, mean = net(channels(seed), index, net.knn(geometry), torch.randn(6, 5, 2))
    assert quantiles.shape == (6, 5, len(LEVELS))
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.isfinite(mean).all()


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_head_is_kriging_with_a_normal_interval(seed: int):
    """Median: the sum of the bands. Width: the variances of the bands, times how far neighbours are off nearby."""
    torch.manual_seed(seed)
    net, (index, geometry) = AQNet(TINY), layout(seed)
    with torch.no_grad():
        weights = net.knn(geometry)
        sums = gather(channels(seed), index, weights)
        quantiles, mean = net.head(sums, weights, torch.zeros(6, 5, 2))
    torch.testing.assert_close(quantiles[..., MEDIAN], sums.bands.sum(-1), atol=0.1, rtol=0)
    error = sums.error / (sums.heard + 1e-3) + 1e-3
    variance = weights.variance.sum(1)[:, None] * error / aqnet._ERROR
    width = quantiles[..., -1] - quantiles[..., 0]
    torch.testing.assert_close(width, 2 * 1.645 * variance.sqrt(), rtol=0.25, atol=0)
    # z^3 of a normal has the mean z^3 + 3 z variance, whose cube root is z + variance / z where that is small
    lift = variance / quantiles[..., MEDIAN].clamp(min=1)
    torch.testing.assert_close(mean - quantiles[..., MEDIAN], lift, rtol=0.25, atol=0)


def test_neighbours_that_were_farther_off_widen_the_interval():
    torch.manual_seed(0)
    net, (index, geometry) = AQNet(TINY), layout()
    with torch.no_grad():
        weights = net.knn(geometry)
        sums = gather(channels(), index, weights)
        near, far = (
            net.head(sums._replace(error=share * sums.heard), weights, torch.zeros(6, 5, 2))[0] for share in (0.2, 1.0)
        )
    assert ((far[..., -1] - far[..., 0]) > 1.5 * (near[..., -1] - near[..., 0])).all()


def test_the_cycle_of_the_query_reaches_its_estimate():
    index, geometry = layout()
    net = network()
    with torch.no_grad():
        weights = net.knn(geometry)
        noon, night = (net(channels(), index, weights, torch.full((6, 5, 2), s))[0] for s in (1.0, -1.0))
    assert not torch.equal(noon, night)


def test_the_head_stays_finite_where_nothing_was_heard():
    net, (_, geometry) = network(), layout()
    with torch.no_grad():
        weights = net.knn(geometry)
        silent = Sums(torch.zeros(6, 5, BANDS), torch.zeros(6, 5), torch.zeros(6, 5), torch.zeros(6, 5, TINY.embedding))
        found = net.head(silent, weights, torch.zeros(6, 5, 2))
    assert all(torch.isfinite(part).all() for part in found)


# ---- the whole ----


@pytest.mark.parametrize("k", [1, 2, 5, 48])
def test_any_number_of_neighbours_works(k: int):
    index, geometry = layout(k=k)
    net = network()
    with torch.no_grad():
        quantiles, mean = net(channels(), index, net.knn(geometry), torch.randn(6, 5, 2))
    assert torch.isfinite(quantiles).all()
    assert torch.isfinite(mean).all()


def test_one_neighbour_gives_its_value():
    net, (index, geometry) = network(), layout(k=1)
    with torch.no_grad():
        sums = gather(channels(), index, net.knn(geometry))
    torch.testing.assert_close(sums.bands, channels().bands[index[:, 0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums.embedding, channels().embedding[index[:, 0]])


@pytest.mark.parametrize("km", [0.0, 3000.0, 19000.0])
def test_a_place_at_a_station_or_across_the_earth_has_weights(km: float):
    net, (_, geometry) = network(), layout()
    with torch.no_grad():
        weights = net.knn(geometry._replace(distance=torch.full_like(geometry.distance, km)))
    assert all(torch.isfinite(part).all() for part in weights)
    torch.testing.assert_close(weights.bands.sum(-1), torch.ones(6, BANDS), atol=1e-3, rtol=0)


def test_every_gradient_is_finite_where_stations_share_a_place_or_say_nothing():
    net = network()
    index, geometry = layout(k=8)
    geometry.distance[0] = 0.0
    geometry.between[0] = 0.0
    geometry.stations[0] = geometry.place[0]  # eight instruments at one place, and the query there too
    given_inputs = inputs(stations=60, hours=length("final"), missing=0.7)
    given_inputs.valid[index[1]] = False  # nothing at all near the second query
    total = torch.zeros(())
    for mode in MODES:
        read = given_inputs if mode == "final" else Window(*(part[:, : length(mode)] for part in given_inputs))
        read_channels = net.encoder(read, *around(net, stations=60), mode)
        quantiles, mean = net(read_channels, index, net.knn(geometry, mode), torch.randn(6, 12, 2))
        total = total + quantiles.sum() + mean.sum()
    total.backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
    assert net.knn.kriging.log_range.grad.abs().sum() > 0
    assert net.encoder.recency.grad.abs().sum() > 0
