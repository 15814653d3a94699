"""AQ-Net: cyclic time encoding -> LSTM -> multi-head attention -> neural kNN -> quantiles.

The network. Four parts, each cheap where it runs often:

* `Kriging` (`model.kriging`) turns the layout of the stations around a place into ordinary-kriging weights of all of
  them, once a place: a set for each band of time scale, since hourly swings reach less far than the level of a week.
* `Encoder` reads the recent history of every station, what its neighbours say of it included, and gives it a few
  channels an hour: the bands of its own value, corrected, an embedding, and how far its neighbours were off there.
* `NeuralKNN` adds attention weights over the nearest few stations, which carry the latter to the place.
* `Head` turns the weighted sums into quantiles and a mean.

Gridding is then matrix products and a small pointwise network (`model.infer`).

Shapes: S stations, L window hours, T output hours, Q queries, A neighbours of attention, B bands, E embedding channels,
F input features, G terrain features, R sets of kriging parameters, N = len(LEVELS).
Concentrations are handled as z, see `model.windows.to_z`; distances in km.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.kriging import BANDS, SCALES, WHOLE, Geometry, Kriging, band_rows, nearest_of
from model.windows import FEATURES, LEVELS, TERRAIN_FEATURES, Window

MEDIAN = LEVELS.index(0.5)

#: Beyond this the network has seen nothing; inputs stop there so that it extrapolates flat, km.
FARTHEST = 500.0

#: Time scale over which the errors at the stations are averaged, hours (as `SCALES`).
_ERROR_SCALE = {"interim": 2.0, "final": 1.5}

#: Typical z, its summed errors left out alone and with the surroundings; starting points only.
_LEVEL, _ERROR = 3.4, 0.55

_STATION_FEATURES = 5

#: Distances to the nearest station at which the width of intervals is calibrated, km; in between it is interpolated.
WIDEN_KM = (2.0, 9.0, 25.0, 58.0, 107.0, 200.0)


@dataclass(frozen=True)
class AQNetConfig:
    """Sizes and normalisation of the network; stored beside the weights.

    `lead_hours` and `tail_hours` are read before and (final mode) after a UTC day, of which the LSTM reads the
    `history` next to the day. `mean` and `std` are those of log(value + 1) of the six pollutants over the training
    hours.
    """

    near: int = 16
    lead_hours: int = 48
    tail_hours: int = 48
    history: int = 24
    hidden: int = 24
    attention_heads: int = 4
    embedding: int = 3
    head_hidden: int = 32
    mean: tuple[float, ...] = (3.5, 4.2, 2.2, 3.2, 3.8, 0.6)
    std: tuple[float, ...] = (0.85, 0.75, 0.8, 0.7, 0.9, 0.35)


class Surroundings(NamedTuple):
    """What stations say of one another: kriging weights (S, S), rows of the station that is spoken of.

    `alone` has those of all others, `apart` those of the others that lie farther away; neither a station's own.
    """

    alone: Tensor
    apart: Tensor


class Channels(NamedTuple):
    """What the encoder gives each station an hour.

    `bands` (S, T, B) of z, gaps filled; `embedding` (S, T, E); `error` (S, T) of what the neighbours say, times `heard`
    (S, T) in [0, 1], the share of the last hours with an observation.
    """

    bands: Tensor
    embedding: Tensor
    error: Tensor
    heard: Tensor


class Weights(NamedTuple):
    """What `NeuralKNN` gives each query, once.

    `bands` (Q, B, S) of all stations, rows sum to 1, may be negative; `attention` (Q, A) > 0 of the nearest A, rows sum
    to 1; `variance` (Q, B) of a new observation, in z; `near` (Q, 1), log(1 + km) to the nearest station.
    """

    bands: Tensor
    attention: Tensor
    variance: Tensor
    near: Tensor


class Sums(NamedTuple):
    """Weighted sums over the stations around a query in an hour: what `Head` sees of the observations.

    `bands` (Q, T, B); `error` (Q, T) nearby; `heard` (Q, T); `embedding` (Q, T, E).
    """

    bands: Tensor
    error: Tensor
    heard: Tensor
    embedding: Tensor


class Encoder(nn.Module):
    """Recent history of the stations -> channels for the output hours. Looks back only, unless the mode is final.

    Gaps are filled with what the neighbours say, plus the station's own departure from that, which fades. LSTM and
    attention then correct the bands: for instance they take back a spike that neither neighbours nor other pollutants
    show.
    """

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        d = config.hidden
        self.config, self.heads = config, config.attention_heads
        self.inflow = nn.Linear(FEATURES + _STATION_FEATURES, d)
        self.forwards, self.backwards = nn.LSTM(d, d, batch_first=True), nn.LSTM(d, d, batch_first=True)
        self.query, self.key_value = nn.Linear(2 * d, d), nn.Linear(2 * d, 2 * d)
        self.recency = nn.Parameter(torch.linspace(-1.0, -3.0, self.heads))  # log of the decay an hour, a head
        self.correct = nn.Sequential(
            nn.Linear(3 * d, d), nn.SiLU(), _quiet(nn.Linear(d, BANDS + config.embedding), 0.1)
        )

    def forward(self, window: Window, around: Surroundings, mode: str = "interim") -> Channels:
        """Channels of the T hours between the lead and (final mode) the tail of a window."""
        lead, stop = self.config.lead_hours, window.z.shape[1] - self._tail(mode)
        with torch.no_grad():
            filled, departure = fill(window, around.alone, two_sided=mode == "final")
            bands = bands_of(filled, window.valid.any(0), mode)[:, lead:stop]
            error, heard = (x[:, lead:stop] for x in recent_error(window, filled, around, mode))
        corrected, embedding = self.read(window, filled, departure, mode)
        return Channels(bands + 0.3 * corrected, embedding, error, heard)

    def read(self, window: Window, filled: Tensor, departure: Tensor, mode: str) -> tuple[Tensor, Tensor]:
        """Correction of the bands (S, T, B) and embedding (S, T, E) by LSTM and attention."""
        c = self.config
        T = window.z.shape[1] - c.lead_hours - self._tail(mode)
        span = slice(c.lead_hours - c.history, c.lead_hours + T + min(self._tail(mode), c.history))
        said = [filled - _LEVEL, 2 * departure, 2 * departure.abs(), window.valid.float(), filled - departure - _LEVEL]
        x = torch.cat([window.features, torch.stack(said, dim=-1).clamp(-6, 6)], dim=-1)[:, span]
        x = torch.tanh(self.inflow(x))
        ahead = self.forwards(x)[0]
        behind = self.backwards(x.flip(1))[0].flip(1) if mode == "final" else torch.zeros_like(ahead)
        state, own = torch.cat([ahead, behind], dim=-1), slice(c.history, c.history + T)
        out = self.correct(torch.cat([state[:, own], self.attend(state, T, mode)], dim=-1))
        return out[..., :BANDS], out[..., BANDS:]

    def attend(self, state_SLD: Tensor, T: int, mode: str) -> Tensor:
        """Attention of each output hour over the hours that the LSTM read; near hours are favoured at the start."""
        S, L, _ = state_SLD.shape
        first = self.config.history
        q = self.query(state_SLD[:, first : first + T]).view(S, T, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(state_SLD).view(S, L, self.heads, -1).transpose(1, 2).chunk(2, dim=-1)
        age = torch.arange(first, first + T)[:, None] - torch.arange(L)[None]  # (T, L) hours
        bias = -self.recency.exp()[:, None, None] * age.abs()
        if mode != "final":
            bias = bias.masked_fill(age < 0, float("-inf"))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return out.transpose(1, 2).reshape(S, T, -1)

    def _tail(self, mode: str) -> int:
        return self.config.tail_hours if mode == "final" else 0


#: Rounds in which gaps are filled from neighbours that may be gaps themselves.
_ROUNDS = 8

#: Below this share of reporting stations an hour's gaps are filled along time and not across space.
_THIN = 0.1

#: e-folding time with which a station's departure from its neighbours is carried into a gap, hours.
_MEMORY = 12.0


def fill(window: Window, alone: Tensor, two_sided: bool) -> tuple[Tensor, Tensor]:
    """Fill the gaps of z by kriging from the others and the station's own departure from that.

    Parameters
    ----------
    alone : (S, S), see `Surroundings`; zeros of a station that is by itself.

    Returns
    -------
    filled : (S, L), the observation where there is one.
    departure : (S, L) of the observation from what the neighbours say, 0 in gaps.
    """
    z, valid = window.z, window.valid
    hour = (z * valid).sum(0) / valid.sum(0).clamp(min=1)
    x = torch.where(valid, z, hour)
    said = hour.expand_as(z)
    for _ in range(_ROUNDS if len(z) > 1 else 0):
        said = alone @ x
        x = torch.where(valid, z, said)
    departure = torch.where(valid, z - said, 0.0) if len(z) > 1 else torch.zeros_like(z)
    filled = torch.where(valid, z, said + _carried(departure, valid, two_sided))
    return torch.where(valid, z, _through_thin_hours(filled, valid)), departure


def _through_thin_hours(filled: Tensor, valid: Tensor) -> Tensor:
    """Keep each station's last value through hours in which hardly any station reports: those few say too little."""
    hour = torch.arange(filled.shape[1])
    dense = torch.where(valid.float().mean(0) >= _THIN, hour, -1).cummax(0).values
    return filled[:, torch.where(dense >= 0, dense, hour)]


def _carried(departure: Tensor, valid: Tensor, two_sided: bool) -> Tensor:
    """Departure of the last valid hour, faded; two-sided, the mean of an Ornstein-Uhlenbeck bridge to the next one."""
    past, fade = _last(departure, valid)
    if not two_sided:
        return fade * past
    future, rise = (x.flip(-1) for x in _last(departure.flip(-1), valid.flip(-1)))
    apart = (1 - (fade * rise) ** 2).clamp(min=1e-6)
    return (fade * (1 - rise**2) * past + rise * (1 - fade**2) * future) / apart


def _last(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Value of each station's last valid hour, and exp(-age / `_MEMORY`), 0 where there is none; (S, L) each."""
    hour = torch.arange(x.shape[-1])
    at = torch.where(valid, hour, -1).cummax(-1).values
    return x.gather(-1, at.clamp(min=0)), torch.where(at >= 0, torch.exp(-(hour - at) / _MEMORY), 0.0)


def kernel(scale: float, L: int, mode: str) -> Tensor:
    """Weights (L, L) of a moving mean: row t over the hours up to t (exponential) or, final, around it (Gaussian)."""
    lag = (torch.arange(L)[:, None] - torch.arange(L)[None]).float()
    if mode == "final":
        return torch.exp(-0.5 * (lag / scale) ** 2)
    return torch.where(lag >= 0, torch.exp(-lag / scale), 0.0)


def bands_of(filled_SL: Tensor, some_L: Tensor, mode: str) -> Tensor:
    """Part z into `BANDS` that add up to it, fastest first, (S, L, B); hours without any observation do not count."""
    smooth = [filled_SL]
    for scale in SCALES[mode]:
        weight = kernel(scale, filled_SL.shape[1], mode) * some_L
        smooth.append(filled_SL @ (weight / weight.sum(1, keepdim=True).clamp(min=1e-9)).T)
    bands = [fast - slow for fast, slow in pairwise(smooth)]
    return torch.stack([*bands, smooth[-1]], dim=-1)


def recent_error(window: Window, filled: Tensor, around: Surroundings, mode: str) -> tuple[Tensor, Tensor]:
    """How far the others were off at stations in recent hours, and the share of these with an observation; (S, L)."""
    off = sum((window.z - weights @ filled).abs() for weights in around) * window.valid
    recent = kernel(_ERROR_SCALE[mode], filled.shape[1], mode)
    recent = (recent / recent.sum(1, keepdim=True)).T
    return off @ recent, window.valid.float() @ recent


class NeuralKNN(nn.Module):
    """Layout of the stations around a place -> weights of each; computed once a query, not once an hour.

    The attention set is a softmax over the nearest A that starts at their positive kriging weights and learns a
    correction from distances and terrain.
    """

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        self.near = config.near
        self.kriging = Kriging()
        self.score = nn.Sequential(nn.Linear(4 + TERRAIN_FEATURES, 16), nn.SiLU(), _quiet(nn.Linear(16, 1), 0.0))

    def forward(self, geometry: Geometry, index_QA: Tensor, mode: str = "interim") -> Weights:
        """Weights of every station, and of the nearest A `index_QA`, for every query; `geometry` has no batch axes."""
        weight, variance = self.kriging(Geometry(*(part.double() for part in geometry)), band_rows(mode))
        nearest = nearest_of(geometry, index_QA)
        distance, whole = nearest.distance[:, 0], self.kriging(nearest, [WHOLE])[0][0, :, 0]
        near = distance[:, :1].clamp(max=FARTHEST).log1p()
        attention = self.attention(whole, distance, geometry.place, nearest.stations)
        return Weights(weight.transpose(0, 1).float(), attention, variance.T.float(), near)

    def attention(self, whole_QA: Tensor, distance_QA: Tensor, place_QG: Tensor, stations_QAG: Tensor) -> Tensor:
        """Attention (Q, A) over the nearest stations, from the kriging weights that they have among themselves."""
        near = distance_QA.clamp(max=FARTHEST).log1p()
        layout = [near, near - near[:, :1], torch.asinh(20 * whole_QA), near[:, :1].expand_as(near)]
        terrain = (stations_QAG - place_QG[:, None]).clamp(-3, 3)
        logit = self.score(torch.cat([torch.stack(layout, dim=-1), terrain], dim=-1))[..., 0]
        return torch.softmax((whole_QA.clamp(min=0) + 5e-3).log() + logit, dim=-1)


class Head(nn.Module):
    """Weighted sums at a query and hour -> quantiles of z and the mean, as z."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        E, n, N = config.embedding, config.head_hidden, len(LEVELS)
        self.mlp = nn.Sequential(
            nn.Linear(BANDS + 3 + E + 2 + BANDS + 1, n),
            nn.SiLU(),
            nn.Linear(n, n),
            nn.SiLU(),
            _quiet(nn.Linear(n, 1 + (N - 1) + 1), 0.1),  # shift, steps between quantiles, mean
        )
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(LEVELS))
        self.normal_steps: Tensor
        self.register_buffer("normal_steps", normal.diff(), persistent=False)
        self.widen: Tensor  # factors of the width at `WIDEN_KM`, not learned: `model.calibration`
        self.register_buffer("widen", torch.ones(len(WIDEN_KM)))

    def forward(self, sums: Sums, weights: Weights, cycle_QT2: Tensor) -> tuple[Tensor, Tensor]:
        """Quantiles of z (Q, T, N), non-decreasing, and the z of the mean (Q, T).

        `cycle_QT2` is sine and cosine of local solar time at the query. The median is the sum of the kriged bands plus
        a shift. Quantiles step away from it, starting as a normal of the kriging variance, scaled by the errors nearby;
        last they are widened by what the distance of the nearest station asks for.
        """
        total = sums.bands.sum(-1)
        error = sums.error / (sums.heard + 1e-3) + 1e-3
        out = self.mlp(self.inputs(sums, total, error, weights, cycle_QT2))
        shift, steps, lift = out.split([1, len(LEVELS) - 1, 1], dim=-1)
        median = total[..., None] + 0.3 * shift
        spread = (weights.variance.sum(1)[:, None] * (error / _ERROR)).clamp(1e-4, 4.0).sqrt()
        step = self.normal_steps * spread[..., None] * steps.clamp(-4, 4).exp()
        step = step * widening(weights.near, self.widen)[..., None]
        below = median - step[..., :MEDIAN].flip(-1).cumsum(-1).flip(-1)
        above = median + step[..., MEDIAN:].cumsum(-1)
        mean = median[..., 0] + spread**2 / median[..., 0].clamp(min=1) * lift[..., 0].clamp(-4, 4).exp()
        return torch.cat([below, median, above], dim=-1), mean

    def inputs(self, sums: Sums, total: Tensor, error: Tensor, weights: Weights, cycle_QT2: Tensor) -> Tensor:
        """Inputs of the pointwise network, (Q, T, n)."""
        Q, T = total.shape
        hourly = [
            (total - _LEVEL).clamp(-4, 4)[..., None],
            sums.bands[..., : BANDS - 1].clamp(-4, 4),
            torch.stack([error.log(), sums.heard, total.clamp(min=0.3).log()], dim=-1),
            sums.embedding,
            cycle_QT2,
        ]
        static = torch.cat([weights.variance.log(), weights.near], dim=-1)
        return torch.cat([*hourly, static[:, None].expand(Q, T, -1)], dim=-1)


def widening(near_log1p: Tensor, widen: Tensor) -> Tensor:
    """Factor of the width for log(1 + km) to the nearest station: linear between `WIDEN_KM`, level beyond."""
    knots = torch.tensor(WIDEN_KM).log1p()
    above = torch.searchsorted(knots, near_log1p.contiguous()).clamp(1, len(knots) - 1)
    along = (near_log1p - knots[above - 1]) / (knots[above] - knots[above - 1])
    return widen[above - 1] + along.clamp(0, 1) * (widen[above] - widen[above - 1])


def _quiet(last: nn.Linear, gain: float) -> nn.Linear:
    """Scale a last layer down, so that the network starts as what it corrects: kriging, a normal."""
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        last.weight.mul_(gain)
    return last


class AQNet(nn.Module):
    """The parts together; `forward` is the training path, `model.infer` the fast path for grids."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.knn, self.head = Encoder(config), NeuralKNN(config), Head(config)

    def forward(
        self, channels: Channels, index_QA: Tensor, weights: Weights, cycle_QT2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantiles of z (Q, T, N) and z of the mean (Q, T) at queries whose nearest stations are `index_QA`."""
        return self.head(gather(channels, index_QA, weights), weights, cycle_QT2)


def gather(channels: Channels, index_QA: Tensor, weights: Weights) -> Sums:
    """Weighted sums over the stations; `model.infer` has the same compiled."""
    attend = lambda channel: torch.einsum("qa,qat...->qt...", weights.attention, channel[index_QA])  # noqa: E731
    return Sums(
        torch.einsum("qbs,stb->qtb", weights.bands, channels.bands),
        attend(channels.error),
        attend(channels.heard),
        attend(channels.embedding),
    )
