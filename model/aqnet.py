"""AQ-Net: cyclic time encoding -> LSTM -> multi-head attention -> temporal pooling -> neural kNN -> quantiles.

The whole network in one file. Three parts, each cheap where it runs often:

* `Encoder` reads the recent history of every station and gives it a few channels an hour: a value (the observation,
  slightly denoised, or an imputation where it is missing), a reliability and an embedding e(s, t).
* `NeuralKNN` reads the layout of the K nearest stations of a query and gives it, once, several sets of weights: sets
  that start as ordinary kriging with a learned covariance, and one attention set over the same neighbours.
* `Head` turns the weighted sums of the channels into quantiles and a mean, hour by hour.

Gridding is then a sparse (queries x stations) product and a small pointwise network (`model.infer`).

Shapes: S stations, L window hours, T output hours, Q queries, K neighbours, H kriging heads, E embedding channels,
F input features, N = len(LEVELS). Concentrations are handled as z = log(PM2.5 + 1), PM2.5 in ug m-3; distances in km,
heights in km.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.windows import FEATURES, LEVELS, Window

MEDIAN = LEVELS.index(0.5)

#: Beyond these the network has seen nothing; inputs stop there so that it extrapolates flat.
FARTHEST = 500.0  # km
HIGHEST = 4.0  # km

#: Added to the summed reliability of the neighbours, which is 0 where none of them has reported.
NO_SUPPORT = 1e-6

_NEIGHBOUR_FEATURES = 6
_STATIC_FEATURES = 4


@dataclass(frozen=True)
class AQNetConfig:
    """Sizes and normalisation of the network; stored beside the weights.

    `mean` and `std` are those of log(value + 1) of the six pollutants over the training hours.
    """

    neighbours: int = 48
    lead_hours: int = 48
    hidden: int = 32
    attention_heads: int = 4
    embedding: int = 4
    kriging_heads: int = 3
    head_hidden: int = 32
    mean: tuple[float, ...] = (3.5, 4.2, 2.2, 3.2, 3.8, 0.6)
    std: tuple[float, ...] = (0.85, 0.75, 0.8, 0.7, 0.9, 0.35)


class Channels(NamedTuple):
    """What the encoder gives each station an hour.

    `value` (S, T) z, denoised or imputed; `reliability` (S, T) >= 0 scales the attention; `trust` (S, T) in [0, 1]
    scales the anomaly that kriging sees, 1 where observed; both are 0 where the window holds no observation;
    `embedding` (S, T, E).
    """

    value: Tensor
    reliability: Tensor
    trust: Tensor
    embedding: Tensor


class Geometry(NamedTuple):
    """Layout of the K nearest stations of each query, nearest first; heights are station minus query, km.

    `distance`, `rise` (Q, K); `between`, `step` (Q, K, K) the same between the neighbours; `height` (Q,).
    """

    distance: Tensor
    rise: Tensor
    between: Tensor
    step: Tensor
    height: Tensor


class Weights(NamedTuple):
    """What `NeuralKNN` gives each query, once.

    `attention` (Q, K) > 0, rows sum to 1; `kriging` (Q, H, K), rows sum to 1, may be negative; `variance` (Q, H) of a
    new observation, in z; `static` (Q, 4) features of the query.
    """

    attention: Tensor
    kriging: Tensor
    variance: Tensor
    static: Tensor


class Sums(NamedTuple):
    """Weighted sums over the neighbours of a query and hour: what `Head` sees of the observations.

    `attended` (Q, T) mean of z by attention; `kriged` (Q, T, H); `spread` (Q, T) standard deviation of z about
    `attended`; `support` (Q, T) summed weight; `embedding` (Q, T, E).
    """

    attended: Tensor
    kriged: Tensor
    spread: Tensor
    support: Tensor
    embedding: Tensor


class Encoder(nn.Module):
    """Recent history of one station -> channels for the output hours. Looks back only."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        d = config.hidden
        self.lead = config.lead_hours
        self.heads = config.attention_heads
        self.inflow = nn.Linear(FEATURES, d)
        self.lstm = nn.LSTM(d, d, batch_first=True)
        self.query, self.key_value = nn.Linear(d, d), nn.Linear(d, 2 * d)
        self.recency = nn.Parameter(torch.linspace(-1.0, -3.0, self.heads))  # log of the decay an hour, a head
        self.pool = nn.Sequential(nn.Linear(3 * d, d), nn.SiLU(), _quiet(nn.Linear(d, 4 + config.embedding), 0.1))

    def attend(self, state_SLD: Tensor) -> Tensor:
        """Attention of each output hour over the `lead` hours up to it; recent hours are favoured at the start."""
        S, L, D = state_SLD.shape
        T = L - self.lead
        q = self.query(state_SLD[:, self.lead :]).view(S, T, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(state_SLD).view(S, L, self.heads, -1).transpose(1, 2).chunk(2, dim=-1)
        age = torch.arange(self.lead, L)[:, None] - torch.arange(L)[None]  # (T, L) hours
        bias = -self.recency.exp()[:, None, None] * age
        bias = bias.masked_fill((age < 0) | (age > self.lead), float("-inf"))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return out.transpose(1, 2).reshape(S, T, D)

    def forward(self, window: Window) -> Channels:
        """Channels of the last T = L - lead hours of a window."""
        x_SLF, z_SL, valid_SL = window
        state_SLD = self.lstm(torch.tanh(self.inflow(x_SLF)))[0]
        total = state_SLD.cumsum(1)
        mean = (total[:, self.lead :] - total[:, : -self.lead]) / self.lead
        pooled = self.pool(torch.cat([state_SLD[:, self.lead :], self.attend(state_SLD), mean], dim=-1))
        z, valid = z_SL[:, self.lead :], valid_SL[:, self.lead :]
        last, age = last_valid(z_SL, valid_SL, z.shape[1])
        value = torch.where(valid, z + 0.3 * torch.tanh(pooled[..., 0]), last + pooled[..., 1])
        observed = pooled[..., 2].clamp(-4, 2).exp()
        imputed = 0.3 * (pooled[..., 3] - age / 6).clamp(-9, 1).exp()
        seen = age < self.lead
        reliability = torch.where(valid, observed, imputed) * seen
        trust = torch.where(valid, 1.0, imputed.clamp(max=1)) * seen
        return Channels(value * seen, reliability, trust, pooled[..., 4:])


def last_valid(z_SL: Tensor, valid_SL: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Last valid value up to each of the last T hours (S, T), and its age in hours (the window's length if none)."""
    L = z_SL.shape[1]
    hour = torch.arange(L)
    at = torch.where(valid_SL, hour, -1).cummax(dim=1).values
    last = z_SL.gather(1, at.clamp(min=0))
    age = torch.where(at >= 0, hour - at, L)
    return last[:, L - T :], age[:, L - T :].float()


class NeuralKNN(nn.Module):
    """Layout of the K nearest stations -> weights of each; computed once a query, not once an hour.

    A kriging head solves the ordinary-kriging system (Cressie 1993, section 3.2) for the covariance
    ``sum_j sill_j exp(-d / range_j)`` plus a nugget, with learned sills, ranges, nugget and terrain factor;
    d = sqrt(distance^2 + (factor * height difference)^2). Its weights sum to 1 and may be negative.
    The attention set is a softmax that starts at the first head's positive weights.
    """

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        H = config.kriging_heads
        stretch = 0.5 * (torch.arange(H)[:, None] - (H - 1) / 2)  # heads start with different ranges
        self.log_range = nn.Parameter(torch.tensor([[20.0, 300.0]]).log() + stretch)
        self.log_sill = nn.Parameter(torch.tensor([[0.1, 0.6]]).log().repeat(H, 1))
        self.log_nugget = nn.Parameter(torch.full((H,), 0.08).log())
        self.log_terrain = nn.Parameter(torch.full((H,), 300.0).log())
        self.score = nn.Sequential(nn.Linear(_NEIGHBOUR_FEATURES + 2 * H, 24), nn.SiLU(), _quiet(nn.Linear(24, 1), 0.0))

    def covariance(self, distance: Tensor, rise: Tensor) -> Tensor:
        """Covariance (Q, H, ...) of z at places `distance` km and `rise` km of height apart, (Q, ...) each."""
        shape = (1, -1) + (1,) * (distance.dim() - 1)
        factor = self.log_terrain.exp().view(shape)
        d = (distance.unsqueeze(1) ** 2 + (factor * rise.unsqueeze(1)) ** 2 + 1e-6).sqrt()
        sill, rate = self.log_sill.exp(), (-self.log_range).exp()
        return sum(sill[:, j].view(shape) * torch.exp(-d * rate[:, j].view(shape)) for j in range(sill.shape[1]))  # type: ignore[return-value]

    def krige(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Ordinary-kriging weights (Q, H, K) and variance of a new observation (Q, H)."""
        nugget = self.log_nugget.exp()
        K_QHKK = self.covariance(geometry.between, geometry.step)
        K_QHKK = K_QHKK + nugget.view(1, -1, 1, 1) * torch.eye(K_QHKK.shape[-1])
        c = self.covariance(geometry.distance, geometry.rise)
        factorised = torch.linalg.cholesky(K_QHKK)
        solved = torch.cholesky_solve(torch.stack([c, torch.ones_like(c)], dim=-1), factorised)
        plain, ones = solved.unbind(-1)
        multiplier = (1 - plain.sum(-1)) / ones.sum(-1)
        weight = plain + multiplier[..., None] * ones
        return weight, self.log_sill.exp().sum(-1) + nugget - (weight * c).sum(-1) + multiplier

    def forward(self, geometry: Geometry) -> Weights:
        """Weights of every neighbour of every query."""
        weight, variance = self.krige(geometry)
        near = geometry.distance.clamp(max=FARTHEST).log1p()
        rise = geometry.rise.clamp(-HIGHEST, HIGHEST)
        features = [near, near - near[:, :1], rise, rise.abs(), crowding(geometry.between), near[:, :1].expand_as(near)]
        stretched = torch.asinh(20 * weight).transpose(1, 2)
        uncertain = variance[:, None].expand(-1, near.shape[1], -1)
        logit = self.score(torch.cat([torch.stack(features, dim=-1), stretched, uncertain], dim=-1))[..., 0]
        start = (weight[:, 0].clamp(min=0) + 2e-3).log()
        static = [near[:, 0], near[:, :8].mean(1), geometry.height.clamp(-HIGHEST, HIGHEST), rise[:, :8].mean(1)]
        return Weights(torch.softmax(start + logit, dim=-1), weight, variance, torch.stack(static, dim=-1))


def crowding(between_QKK: Tensor) -> Tensor:
    """Mean log distance (Q, K) of each neighbour to its five nearest fellow neighbours: small in a cluster."""
    nearest = between_QKK.topk(min(6, between_QKK.shape[-1]), largest=False).values  # the first is itself, 0 km
    return nearest.clamp(max=FARTHEST).log1p().sum(-1) / max(nearest.shape[-1] - 1, 1)


class Head(nn.Module):
    """Weighted sums at a query and hour -> quantiles of z and the log of the mean."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        H, E, n, N = config.kriging_heads, config.embedding, config.head_hidden, len(LEVELS)
        self.level = config.mean[0]
        self.mlp = nn.Sequential(
            nn.Linear((H + 1) + 2 + E + H + _STATIC_FEATURES + 2, n),
            nn.SiLU(),
            nn.Linear(n, n),
            nn.SiLU(),
            _quiet(nn.Linear(n, (H + 1) + 1 + (N - 1) + 2), 0.1),  # gates, shift, steps between quantiles, mean
        )
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(LEVELS))
        self.normal_steps: Tensor
        self.register_buffer("normal_steps", normal.diff(), persistent=False)

    def forward(self, sums: Sums, weights: Weights, cycle_QT2: Tensor) -> tuple[Tensor, Tensor]:
        """Quantiles of z (Q, T, N), non-decreasing, and log(mean + 1) (Q, T).

        `cycle_QT2` is sine and cosine of local solar time at the query. The median is a mixture, gated hour by hour, of
        the attended and the kriged values, plus a shift; quantiles step away from it, starting as a normal of the first
        head's kriging variance.
        """
        out = self.mlp(self.inputs(sums, weights, cycle_QT2))
        centre = torch.cat([sums.attended[..., None], sums.kriged], dim=-1)
        gate, shift, steps, lift = out.split([centre.shape[-1], 1, len(LEVELS) - 1, 2], dim=-1)
        median = (torch.softmax(gate, dim=-1) * centre).sum(-1, keepdim=True) + 0.3 * shift
        variance = weights.variance[:, None, :1]
        step = self.normal_steps * variance.sqrt() * steps.clamp(-4, 4).exp()
        below = median - step[..., :MEDIAN].flip(-1).cumsum(-1).flip(-1)
        above = median + step[..., MEDIAN:].cumsum(-1)
        mean = median + 0.5 * variance * lift[..., :1].clamp(-4, 4).exp() + 0.1 * lift[..., 1:]
        return torch.cat([below, median, above], dim=-1), mean[..., 0]

    def inputs(self, sums: Sums, weights: Weights, cycle_QT2: Tensor) -> Tensor:
        """Inputs of the pointwise network, (Q, T, n)."""
        Q, T = sums.attended.shape
        hourly = [
            (sums.attended[..., None] - self.level).clamp(-self.level, self.level),
            sums.kriged - sums.attended[..., None],
            sums.spread[..., None],
            sums.support.log().clamp(-5, 2)[..., None],
            sums.embedding,
            cycle_QT2,
        ]
        static = torch.cat([weights.variance, weights.static], dim=-1)
        return torch.cat([*hourly, static[:, None].expand(Q, T, -1)], dim=-1)


def _quiet(last: nn.Linear, gain: float) -> nn.Linear:
    """Scale a last layer down, so that the network starts as what it corrects: persistence, kriging, a normal."""
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        last.weight.mul_(gain)
    return last


class AQNet(nn.Module):
    """The three parts together; `forward` is the training path, `model.infer` the fast path for grids."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.knn, self.head = Encoder(config), NeuralKNN(config), Head(config)

    def forward(
        self, channels: Channels, index_QK: Tensor, geometry: Geometry, cycle_QT2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantiles of z (Q, T, N) and log(mean + 1) (Q, T) at queries whose neighbours are `index_QK`."""
        weights = self.knn(geometry)
        return self.head(gather(channels, index_QK, weights), weights, cycle_QT2)


def gather(channels: Channels, index_QK: Tensor, weights: Weights) -> Sums:
    """Weighted sums over the neighbours by gathering; `model.infer` has the same as sparse products.

    A kriging head leaves what it does not trust at the attended mean, so its effective weights still sum to 1.
    """
    value, reliability, trust, embedding = (channel[index_QK] for channel in channels)  # (Q, K, T[, E])
    p = weights.attention[..., None] * reliability
    support = p.sum(1) + NO_SUPPORT
    attended = (p * value).sum(1) / support
    anomaly = value - attended[:, None]
    kriged = attended[..., None] + torch.einsum("qhk,qkt->qth", weights.kriging, trust * anomaly)
    spread = ((p * anomaly**2).sum(1) / support + 1e-6).sqrt()
    return Sums(attended, kriged, spread, support, torch.einsum("qkt,qkte->qte", p, embedding) / support[..., None])
