"""AQ-Net: cyclic time encoding -> LSTM -> multi-head attention -> temporal pooling -> neural kNN -> quantiles.

The whole network in one file. Three parts, each cheap where it runs often:

* `Encoder` reads the recent history of every station and gives it a few channels an hour: a value (the observation,
  slightly denoised, or an imputation where it is missing), a reliability and an embedding e(s, t).
* `NeuralKNN` reads the layout of the k nearest stations of a query and gives it, once, several sets of weights: sets
  that start as ordinary kriging with a learned covariance, and one attention set over the same neighbours.
* `Head` turns the weighted sums of the channels into a mean and quantiles, hour by hour.

Shapes: S stations, L window hours, T output hours, Q queries, K neighbours, H kriging heads, E embedding channels,
F input features. Concentrations are handled as z = log(PM2.5 + 1), PM2.5 in ug m-3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.windows import LEVELS

POLLUTANT_COUNT = 6
CYCLES = (24.0, 168.0)  # hours: day and week. No year: one year of record cannot tell a season from a trend.
FEATURE_COUNT = 2 * POLLUTANT_COUNT + 2 * len(CYCLES)
NEIGHBOUR_FEATURES = 6
MEDIAN = LEVELS.index(0.5)


@dataclass(frozen=True)
class AQNetConfig:
    """Sizes of the network; stored beside the weights."""

    neighbours: int = 32
    lead_hours: int = 48
    hidden: int = 32
    attention_heads: int = 4
    embedding: int = 4
    kriging_heads: int = 3
    head_hidden: int = 32


class Encoder(nn.Module):
    """Recent history of one station -> channels for the output hours. Looks back only."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        d = config.hidden
        self.lead = config.lead_hours
        self.heads = config.attention_heads
        self.inflow = nn.Linear(FEATURE_COUNT, d)
        self.lstm = nn.LSTM(d, d, batch_first=True)
        self.query, self.key_value = nn.Linear(d, d), nn.Linear(d, 2 * d)
        self.recency = nn.Parameter(torch.linspace(-1.0, -3.0, self.heads))  # log of the decay an hour, a head
        self.pool = nn.Sequential(nn.Linear(3 * d, d), nn.SiLU(), nn.Linear(d, 4 + config.embedding))
        nn.init.zeros_(self.pool[-1].bias)
        self.pool[-1].weight.data.mul_(0.1)

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

    def forward(self, x_SLF: Tensor, z_SL: Tensor, valid_SL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Channels of the last L - lead hours.

        Returns
        -------
        value (S, T): z, denoised or imputed; reliability (S, T) > 0 (0 where nothing was observed in the window);
        embedding (S, T, E).
        """
        state, _ = self.lstm(torch.tanh(self.inflow(x_SLF)))
        T = x_SLF.shape[1] - self.lead
        recent = state.cumsum(1)
        mean = (recent[:, self.lead :] - recent[:, : -self.lead]) / self.lead
        pooled = self.pool(torch.cat([state[:, self.lead :], self.attend(state), mean], dim=-1))
        z, valid = z_SL[:, self.lead :], valid_SL[:, self.lead :]
        last, age = last_valid(z_SL, valid_SL, T)
        value = torch.where(valid, z + 0.3 * torch.tanh(pooled[..., 0]), last + pooled[..., 1])
        reliability = torch.where(valid, pooled[..., 2].clamp(-4, 2).exp(), 0.3 * (pooled[..., 3] - age / 6).clamp(-9, 1).exp())
        seen = age < self.lead
        return torch.where(seen, value, 0.0), torch.where(seen, reliability, 0.0), pooled[..., 4:]


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
    d = sqrt(distance^2 + (factor * height difference)^2), in km. Its weights sum to 1 and may be negative.
    The attention set is a softmax that starts at the first head's positive weights.
    """

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        H = config.kriging_heads
        self.log_range = nn.Parameter(torch.log(torch.tensor([[20.0, 300.0]])).repeat(H, 1) + 0.5 * (torch.arange(H)[:, None] - (H - 1) / 2))
        self.log_sill = nn.Parameter(torch.log(torch.tensor([[0.1, 0.6]])).repeat(H, 1))
        self.log_nugget = nn.Parameter(torch.full((H,), 0.08).log())
        self.log_terrain = nn.Parameter(torch.full((H,), 300.0).log())
        self.score = nn.Sequential(nn.Linear(NEIGHBOUR_FEATURES + 2 * H, 24), nn.SiLU(), nn.Linear(24, 1))
        nn.init.zeros_(self.score[-1].weight)

    def kriging(self, d_QK: Tensor, dz_QK: Tensor, d_QKK: Tensor, dz_QKK: Tensor) -> tuple[Tensor, Tensor]:
        """Ordinary-kriging weights (Q, H, K) and variance of a new observation (Q, H)."""
        factor = self.log_terrain.exp()

        def covariance(d: Tensor, dz: Tensor) -> Tensor:  # (Q, ...) -> (Q, H, ...)
            shape = (1, -1) + (1,) * (d.dim() - 1)
            r = (d.unsqueeze(1) ** 2 + (factor.view(shape) * dz.unsqueeze(1)) ** 2 + 1e-6).sqrt()
            terms = [self.log_sill[:, j].exp().view(shape) * torch.exp(-r / self.log_range[:, j].exp().view(shape)) for j in range(2)]
            return terms[0] + terms[1]

        nugget = self.log_nugget.exp()
        K = covariance(d_QKK, dz_QKK) + nugget.view(1, -1, 1, 1) * torch.eye(d_QK.shape[1])
        c = covariance(d_QK, dz_QK)
        factorised = torch.linalg.cholesky(K)
        solved = torch.cholesky_solve(torch.stack([c, torch.ones_like(c)], dim=-1), factorised)
        plain, ones = solved[..., 0], solved[..., 1]
        multiplier = (1 - plain.sum(-1)) / ones.sum(-1)
        weight = plain + multiplier[..., None] * ones
        variance = self.log_sill.exp().sum(-1) + nugget - (weight * c).sum(-1) + multiplier
        return weight, variance

    def forward(self, d_QK: Tensor, dz_QK: Tensor, d_QKK: Tensor, dz_QKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention weights (Q, K) > 0 with sum 1, kriging weights (Q, H, K), kriging variance (Q, H).

        Parameters: distance in km and station-minus-query height in km (Q, K), and the same between the neighbours
        (Q, K, K), neighbours ordered by distance.
        """
        weight, variance = self.kriging(d_QK, dz_QK, d_QKK, dz_QKK)
        near = torch.log1p(d_QK)
        crowd = torch.log1p(d_QKK).sort(-1).values[..., 1:6].mean(-1)
        features = torch.stack(
            [near, near - near[:, :1], dz_QK, dz_QK.abs(), crowd, near[:, :1].expand_as(near)], dim=-1
        )
        stretched = torch.asinh(20 * weight).transpose(1, 2)
        spread = variance[:, None].expand(-1, d_QK.shape[1], -1)
        logit = self.score(torch.cat([features, stretched, spread], dim=-1))[..., 0]
        start = (weight[:, 0].clamp(min=0) + 2e-3).log()
        return torch.softmax(start + logit, dim=-1), weight, variance


class Head(nn.Module):
    """Weighted sums at a query and hour -> quantiles of z and the log of the mean."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        H, E = config.kriging_heads, config.embedding
        self.inputs = (H + 1) + 2 + E + H + 4 + 2
        self.outputs = (H + 1) + 1 + len(LEVELS) + 1
        n = config.head_hidden
        self.mlp = nn.Sequential(nn.Linear(self.inputs, n), nn.SiLU(), nn.Linear(n, n), nn.SiLU(), nn.Linear(n, self.outputs))
        nn.init.zeros_(self.mlp[-1].bias)
        self.mlp[-1].weight.data.mul_(0.1)
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(LEVELS))
        self.register_buffer("start", normal.diff().abs(), persistent=False)

    def forward(self, centre: Tensor, spread: Tensor, embedded: Tensor, variance: Tensor, static: Tensor, cycle: Tensor) -> tuple[Tensor, Tensor]:
        """Quantiles of z (..., L), non-decreasing, and log(mean + 1) (...).

        Parameters, all (..., n): `centre` the H + 1 weighted means of z; `spread` standard deviation of z among the
        neighbours and log support; `embedded` the E embedding sums; `variance` (H) kriging variances; `static` four
        features of the query; `cycle` sine and cosine of local solar time.
        """
        level = centre[..., :1]
        x = torch.cat([level - 3.5, centre[..., 1:] - level, spread, embedded, variance, static, cycle], dim=-1)
        out = self.mlp(x)
        n = centre.shape[-1]
        gate = torch.softmax(out[..., :n], dim=-1)
        median = (gate * centre).sum(-1) + 0.3 * out[..., n]
        scale = variance[..., :1].sqrt()
        step = self.start * scale * out[..., n + 1 : n + len(LEVELS)].clamp(-4, 4).exp()
        below = median[..., None] - step[..., :MEDIAN].flip(-1).cumsum(-1).flip(-1)
        above = median[..., None] + step[..., MEDIAN:].cumsum(-1)
        quantiles = torch.cat([below, median[..., None], above], dim=-1)
        mean = median + 0.5 * scale[..., 0] ** 2 * out[..., n + len(LEVELS)].clamp(-4, 4).exp() + 0.1 * out[..., -1]
        return quantiles, mean


class AQNet(nn.Module):
    """The three parts together; `forward` is the training path, `model.infer` the fast path for grids."""

    def __init__(self, config: AQNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.knn, self.head = Encoder(config), NeuralKNN(config), Head(config)

    def forward(self, channels: tuple[Tensor, Tensor, Tensor], index_QK: Tensor, geometry: tuple[Tensor, Tensor, Tensor, Tensor], static: Tensor, cycle_QT2: Tensor) -> tuple[Tensor, Tensor]:
        """Quantiles of z (Q, T, L) and log(mean + 1) (Q, T) at the queries."""
        value, reliability, embedding = channels
        attention, weight, variance = self.knn(*geometry)
        v, r, e = value[index_QK], reliability[index_QK], embedding[index_QK]  # (Q, K, T[, E])
        p = attention[..., None] * r
        support = p.sum(1) + 1e-6
        first = (p * v).sum(1) / support
        second = ((p * (v - first[:, None]) ** 2).sum(1) / support + 1e-6).sqrt()
        embedded = (p[..., None] * e).sum(1) / support[..., None]
        seen = (r > 0).float()
        kriged = first[:, None] + torch.einsum("qhk,qkt->qht", weight, seen * (v - first[:, None]))
        return self.head(*gathered(first, kriged, second, support, embedded, variance, static), cycle_QT2)


def gathered(first: Tensor, kriged: Tensor, second: Tensor, support: Tensor, embedded: Tensor, variance: Tensor, static: Tensor) -> tuple[Tensor, ...]:
    """Inputs of `Head` with hours in the second place: (Q, T, n) each."""
    T = first.shape[1]
    centre = torch.cat([first[:, None], kriged], dim=1).transpose(1, 2)
    spread = torch.stack([second, support.log().clamp(-5, 2)], dim=-1)
    return centre, spread, embedded, variance[:, None].expand(-1, T, -1), static[:, None].expand(-1, T, -1)
