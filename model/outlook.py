"""AQ-Net's outlook mode: the 336 hours before an issue time -> PM2.5 of the 168 hours after it, with quantiles.

A forecast starts from simple things and learns corrections to them. Of z = log(PM2.5 + 1) at lead h of a station:

    centre = level + hour-of-day pattern of the last 14 days + sum_k beta_k(h) anomaly_k + network

The anomalies are those of the station over several spans, of the stations around it and up each quarter of the compass
(advection), and of the other pollutants; each beta_k is a sum of decays with lead, so that days ahead the forecast
falls back on a damped mean. The network reads the history as blocks that lengthen with age: cyclic encoding -> LSTM ->
multi-head attention from each lead over the blocks -> temporal pooling. Between stations the neural kNN spreads the
forecasts with weights that start as kriging with a learned covariance.

Shapes: N targets (stations, perhaps of several issue times), S stations seen, L history hours, B blocks, C contexts,
F inputs a block, K anomalies, J decays, T leads, Q queries, M neighbours, H kriging heads, R = len(LEVELS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.outlook_inputs import (
    ANOMALIES,
    BLOCK_FEATURES,
    BLOCKS,
    CYCLIC,
    DAY,
    DECAYS,
    LEAD_FEATURES,
    SPANS,
    Inputs,
    decays,
)
from model.windows import LEVELS

_STATIC = 4
_FARTHEST, _HIGHEST = 500.0, 4.0  # km: beyond these inputs stop


@dataclass(frozen=True)
class OutlookConfig:
    """Sizes, normalisation and parts of the network; stored beside the weights.

    `mean` and `std` are those of log(value + 1) of the six pollutants over the training hours. `cyclic`, `attention`
    and `lstm` switch a part off, for the ablation.
    """

    hidden: int = 32
    attention_heads: int = 4
    neighbours: int = 24
    kriging_heads: int = 3
    dropout: float = 0.1
    cyclic: bool = True
    attention: bool = True
    lstm: bool = True
    mean: tuple[float, ...] = (3.5, 4.2, 2.2, 3.2, 3.8, 0.6)
    std: tuple[float, ...] = (0.85, 0.75, 0.8, 0.7, 0.9, 0.35)


# ---- the network ----


class Outlook(NamedTuple):
    """Forecast of z: `centre` (N, T), `below` and `above` (N, T) log of the scale on either side of it, and `lift`
    (N, T) of the logarithm of the mean over the centre.
    """  # noqa: D205

    centre: Tensor
    below: Tensor
    above: Tensor
    lift: Tensor


class Forecaster(nn.Module):
    """History of one station and its surroundings -> forecast at the leads."""

    def __init__(self, config: OutlookConfig) -> None:
        super().__init__()
        d = config.hidden
        self.config = config
        self.beta = nn.Parameter(_damped_persistence())
        self.season = nn.Parameter(torch.tensor(0.3))
        self.inflow = nn.Linear(BLOCK_FEATURES, d)
        self.lstm = nn.LSTM(d, d, batch_first=True)
        self.query, self.key_value = nn.Linear(LEAD_FEATURES, d), nn.Linear(d, 2 * d)
        self.recency = nn.Parameter(torch.linspace(-1.5, -5.0, config.attention_heads))  # log of the decay an hour
        self.dropout = nn.Dropout(config.dropout)
        self.state, self.ahead = nn.Linear(3 * d + ANOMALIES, d), nn.Linear(d + LEAD_FEATURES, d)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(d, d), nn.SiLU(), quiet(nn.Linear(d, 5), 0.1))

    def forward(self, x: Inputs) -> Outlook:
        """Forecast (N, T) from the inputs."""
        keep = 1.0 if self.config.cyclic else 0.0
        blocks = torch.cat([x.blocks[..., :-CYCLIC], keep * x.blocks[..., -CYCLIC:]], dim=-1)
        basis_TJ = decays(x.lead)
        lead = torch.cat([basis_TJ.expand(len(x.base), -1, -1), keep * x.cycles], dim=-1)
        state = torch.tanh(self.inflow(blocks))
        state = self.lstm(state)[0] if self.config.lstm else state
        attended = (
            self.attend(state, lead) if self.config.attention else state.new_zeros(*lead.shape[:2], state.shape[-1])
        )
        pooled = torch.cat([state[:, -1], state.mean(1), state[:, -DAY:].mean(1), x.anomalies], dim=-1)
        out = self.head(self.state(self.dropout(pooled))[:, None] + self.ahead(torch.cat([attended, lead], dim=-1)))
        damped = x.base + (x.anomalies @ self.beta) @ basis_TJ.T + self.season * x.season
        scale = spread_at(x.lead)
        shift, below, above, stretch, offset = out.unbind(-1)
        below, above = scale.log() + below.clamp(-3, 2), scale.log() + above.clamp(-3, 2)
        lift = 0.5 * (below + above).exp() * stretch.clamp(-4, 2).exp() + 0.1 * offset
        return Outlook(damped + scale * shift, below, above, lift)

    def attend(self, state_NBD: Tensor, lead_NTF: Tensor) -> Tensor:
        """Attention (N, T, D) of each lead over the blocks; heads start with different memories."""
        N, B, D = state_NBD.shape
        heads = self.config.attention_heads
        q = self.query(lead_NTF).view(N, -1, heads, D // heads).transpose(1, 2)
        k, v = self.key_value(state_NBD).view(N, B, heads, -1).transpose(1, 2).chunk(2, dim=-1)
        age = torch.from_numpy(np.cumsum(BLOCKS[::-1])[::-1] - np.array(BLOCKS) / 2).float()
        bias = -self.recency.exp()[:, None, None] * age
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return out.transpose(1, 2).reshape(N, -1, D)


def spread_at(lead: Tensor) -> Tensor:
    """Scale of the error of z that a forecast starts with, about that of the damped persistence; (T,)."""
    return 0.2 + 0.46 * (1 - torch.exp(-lead.float() / 6))


def _damped_persistence() -> Tensor:
    """Coefficients (K, J) of the start: the last hours' anomaly with a memory of 12 h, the last day's of 72 h."""
    beta = torch.zeros(ANOMALIES, len(DECAYS))
    beta[SPANS.index(1), DECAYS.index(12.0)] = 0.7
    beta[SPANS.index(24), DECAYS.index(72.0)] = 0.3
    return beta


def quiet(last: nn.Linear, gain: float) -> nn.Linear:
    """Scale a last layer down, so that the network starts as what it corrects."""
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        last.weight.mul_(gain)
    return last


class Layout(NamedTuple):
    """The M nearest stations of each query: `distance`, `rise` (Q, M) km, `between`, `step` (Q, M, M) km among them."""

    distance: Tensor
    rise: Tensor
    between: Tensor
    step: Tensor


class Weights(NamedTuple):
    """Weights of the neighbours of each query: `attention` (Q, M) > 0 and `kriging` (Q, H, M), rows sum to 1;
    `variance` (Q, H) of a new observation, in z; `static` (Q, 4).
    """  # noqa: D205

    attention: Tensor
    kriging: Tensor
    variance: Tensor
    static: Tensor


class OutlookKNN(nn.Module):
    """Forecasts of the neighbours -> forecast between them: ordinary kriging heads, an attention set and a small head.

    The weights follow Cressie (1993), section 3.2, for the covariance ``sum_j sill_j exp(-d / range_j)`` plus a nugget
    with learned parameters, d = sqrt(distance^2 + (factor rise)^2). They are computed once a query.
    """

    def __init__(self, config: OutlookConfig) -> None:
        super().__init__()
        H, n = config.kriging_heads, config.hidden
        stretch = 0.5 * (torch.arange(H)[:, None] - (H - 1) / 2)
        self.log_range = nn.Parameter(torch.tensor([[20.0, 300.0]]).log() + stretch)
        self.log_sill = nn.Parameter(torch.tensor([[0.1, 0.6]]).log().repeat(H, 1))
        self.log_nugget = nn.Parameter(torch.full((H,), 0.08).log())
        self.log_terrain = nn.Parameter(torch.full((H,), 300.0).log())
        self.score = nn.Sequential(nn.Linear(3 + H, 16), nn.SiLU(), quiet(nn.Linear(16, 1), 0.0))
        inputs = 2 * H + _STATIC + 3 + len(DECAYS) + 2
        self.head = nn.Sequential(nn.Linear(inputs, n), nn.SiLU(), quiet(nn.Linear(n, H + 1 + 5), 0.1))

    def weigh(self, layout: Layout) -> Weights:
        """Weights of every neighbour of every query."""
        covariance = self._covariance(layout.between, layout.step)
        nugget = self.log_nugget.exp()
        system = covariance + nugget.view(1, -1, 1, 1) * torch.eye(covariance.shape[-1])
        towards = self._covariance(layout.distance, layout.rise)
        both = torch.stack([towards, torch.ones_like(towards)], dim=-1)
        plain, ones = torch.cholesky_solve(both, torch.linalg.cholesky(system)).unbind(-1)
        multiplier = (1 - plain.sum(-1)) / ones.sum(-1)
        weight = plain + multiplier[..., None] * ones
        variance = self.log_sill.exp().sum(-1) + nugget - (weight * towards).sum(-1) + multiplier
        near, rise = layout.distance.clamp(max=_FARTHEST).log1p(), layout.rise.clamp(-_HIGHEST, _HIGHEST)
        features = [near, near - near[:, :1], rise, *torch.asinh(20 * weight).unbind(1)]
        logit = self.score(torch.stack(features, dim=-1))[..., 0]
        attention = torch.softmax((weight[:, 0].clamp(min=0) + 2e-3).log() + logit, dim=-1)
        static = torch.stack([near[:, 0], near[:, :8].mean(1), rise[:, 0], rise[:, :8].mean(1)], dim=-1)
        return Weights(attention, weight, variance, static)

    def _covariance(self, distance: Tensor, rise: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (distance.dim() - 1)
        factor = self.log_terrain.exp().view(shape)
        d = (distance.unsqueeze(1) ** 2 + (factor * rise.unsqueeze(1)) ** 2 + 1e-6).sqrt()
        sill, rate = self.log_sill.exp(), (-self.log_range).exp()
        parts = [sill[:, j].view(shape) * torch.exp(-d * rate[:, j].view(shape)) for j in range(sill.shape[1])]
        return parts[0] + parts[1]

    def combine(
        self, weights: Weights, kriged_QTH: Tensor, attended: Outlook, lead: Tensor, cycle_QT2: Tensor
    ) -> Outlook:
        """Forecast (Q, T) from the weighted sums of the neighbours' forecasts.

        `kriged_QTH` is of their centres by each kriging head; `attended` is the attention mean of each part.
        """
        Q, T = attended.centre.shape
        static = torch.cat([weights.variance, weights.static], dim=-1)[:, None].expand(Q, T, -1)
        hourly = [kriged_QTH - attended.centre[..., None], torch.stack(attended[1:], dim=-1), cycle_QT2]
        out = self.head(torch.cat([*hourly, static, decays(lead).expand(Q, -1, -1)], dim=-1))
        gate, shift, below, above, stretch, offset = out.split([kriged_QTH.shape[-1] + 1, 1, 1, 1, 1, 1], dim=-1)
        centre = (torch.softmax(gate, -1) * torch.cat([attended.centre[..., None], kriged_QTH], dim=-1)).sum(-1)
        variance = weights.variance[:, None, 0]
        wider = [
            0.5 * ((2 * scale).exp() + variance * more[..., 0].clamp(-4, 2).exp()).log()
            for scale, more in ((attended.below, below), (attended.above, above))
        ]
        lift = attended.lift + 0.5 * variance * stretch[..., 0].clamp(-4, 2).exp() + 0.1 * offset[..., 0]
        return Outlook(centre + 0.3 * shift[..., 0], wider[0], wider[1], lift)


def gather(channels: Outlook, index_QM: Tensor, weights: Weights) -> tuple[Tensor, Outlook]:
    """Kriged centres (Q, T, H) and attended parts (Q, T) by gathering; `model.outlook_infer` has sparse products."""
    kriged = torch.einsum("qhm,qmt->qth", weights.kriging, channels.centre[index_QM])
    return kriged, Outlook(*(torch.einsum("qm,qmt->qt", weights.attention, part[index_QM]) for part in channels))


class OutlookNet(nn.Module):
    """The outlook network: a forecaster at stations and a neural kNN between them, with one shape of distribution."""

    def __init__(self, config: OutlookConfig) -> None:
        super().__init__()
        self.config = config
        self.forecaster, self.knn = Forecaster(config), OutlookKNN(config)
        normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(LEVELS))
        self.normal_steps: Tensor
        self.register_buffer("normal_steps", normal.diff(), persistent=False)
        self.shape = nn.Parameter(torch.zeros(2, len(LEVELS) - 1))  # log stretch of each step, at stations and between

    def distribution(self, forecast: Outlook, between: bool) -> tuple[Tensor, Tensor]:
        """Quantiles of z (N, T, R) at `LEVELS`, non-decreasing, and log(mean + 1) (N, T)."""
        middle = LEVELS.index(0.5)
        steps = self.normal_steps * self.shape[int(between)].exp()
        below, above = steps[:middle].flip(0).cumsum(0).flip(0), steps[middle:].cumsum(0)
        centre = forecast.centre[..., None]
        low = centre - forecast.below.exp()[..., None] * below
        high = centre + forecast.above.exp()[..., None] * above
        return torch.cat([low, centre, high], dim=-1), forecast.centre + forecast.lift
