"""Ordinary kriging with learned covariances: the layer of AQ-Net that turns layouts of stations into weights.

Shapes: S stations, R sets of kriging parameters, G terrain features, B bands, Q queries, A nearest stations.
Distances in km, values as z (`model.windows.to_z`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.windows import TERRAIN_FEATURES

#: Time scales that part the bands, hours: e-folding times of means over the past, standard deviations about the hour.
SCALES = {"interim": (3.0, 12.0, 48.0), "final": (1.5, 6.0, 24.0)}
MODES = tuple(SCALES)
BANDS = 4

#: Rows of the kriging parameters: the bands of each mode, then the whole value, by which stations judge one another.
WHOLE = BANDS * len(MODES)
_SETS = WHOLE + 1


def band_rows(mode: str) -> list[int]:
    """Rows of the kriging parameters that a mode's bands have."""
    first = BANDS * MODES.index(mode)
    return list(range(first, first + BANDS))


class Geometry(NamedTuple):
    """Layout of I places and the K stations that tell of them; a batch of such layouts has more axes in front.

    `distance` (..., I, K), `between` (..., K, K) km; `place` (..., I, G), `stations` (..., K, G) terrain features.
    """

    distance: Tensor
    between: Tensor
    place: Tensor
    stations: Tensor


class System(NamedTuple):
    """Ordinary kriging of S stations, solved.

    With P the inverse of their covariance: `precision` (R, S, S) is P - P 1 1' P / 1' P 1, whose rows sum to 0; the
    mean is estimated with weights `mean` (R, S) and `variance` (R,). Weights for a place of covariances c with the
    stations are precision c + mean, the multiplier is variance - mean' c.
    """

    precision: Tensor
    mean: Tensor
    variance: Tensor


class Kriging(nn.Module):
    """Ordinary-kriging weights (Cressie 1993, section 3.2) for learned covariances, several sets at once.

    A set's covariance of two places is ``a_i a_j (sum_r sill_r exp(-(d / range_r)^power_r) + drift)``:
    d^2 = distance^2 + sum_g (factor_g difference of terrain feature g)^2, `drift` a linear kernel of the features (what
    universal kriging calls external drift, shrunk), a_i an amplitude that depends on them. Rows of the parameters are
    the bands of each mode, then the covariance of the whole value.
    """

    def __init__(self) -> None:
        super().__init__()
        one = [[25.0, 100.0], [80.0, 500.0], [300.0, 400.0], [300.0, 1000.0]]
        self.log_range = nn.Parameter(torch.tensor([*one, *one, [40.0, 1500.0]]).log())
        self.log_sill = nn.Parameter(torch.tensor([[0.6, 0.4]]).log().repeat(_SETS, 1))
        smooth = [[0.0, 0.0], [0.0, 0.0], [0.0, 0.5], [0.0, 2.0]]
        self.shape = nn.Parameter(torch.tensor([*smooth, *smooth, [0.0, 0.0]]))  # power = 2 sigmoid(shape)
        nugget = [0.6, 0.05, 0.03, 0.015]
        self.log_nugget = nn.Parameter(torch.tensor([*nugget, *nugget, 0.06]).log())
        self.log_scale = nn.Parameter(torch.tensor([0.05, 0.05, 0.1, 0.5] * len(MODES) + [1.0]).log())
        height, relief = [5.0], [1.5] * (TERRAIN_FEATURES - 1)
        self.log_factor = nn.Parameter(torch.tensor([height + relief] * _SETS))  # km a unit of each feature
        self.log_drift = nn.Parameter(torch.full((_SETS, TERRAIN_FEATURES), -6.0))
        self.amplitude = nn.Parameter(torch.zeros(_SETS, TERRAIN_FEATURES))

    def covariance(self, distance: Tensor, a: Tensor, b: Tensor, rows: list[int]) -> Tensor:
        """Covariance (R, ..., I, J) of z at places `distance` (..., I, J) apart, by R of the parameter sets.

        Their terrain features are a (..., I, G) and b (..., J, G).
        """
        lead = (-1,) + (1,) * distance.dim()
        factor = self.log_factor[rows].exp().view(len(rows), *(1,) * (a.dim() - 1), -1).to(a.dtype)
        d2 = distance**2 + 1e-6 + _squared_distance(factor * a, factor * b)
        out = torch.einsum("...ig,rg,...jg->r...ij", a, self.log_drift[rows].exp().to(a.dtype), b)
        for j in range(2):
            reach = self.log_range[rows, j].exp()
            half_power = torch.sigmoid(self.shape[rows, j]).clamp(max=0.975)
            decay = torch.exp(-((d2 / (reach**2).view(lead)) ** half_power.view(lead)))
            out = out + self.log_sill[rows, j].exp().view(lead) * decay
        return out * self._amplitude(a, rows)[..., :, None] * self._amplitude(b, rows)[..., None, :]

    def variance(self, features: Tensor, rows: list[int]) -> Tensor:
        """Variance (R, ...) of the field at places with features (..., G); the nugget is not part of it."""
        sill = self.log_sill[rows].exp().sum(1).view(-1, *(1,) * (features.dim() - 1))
        drift = torch.einsum("rg,...g->r...", self.log_drift[rows].exp().to(features.dtype), features**2)
        return (sill + drift) * self._amplitude(features, rows) ** 2

    def _amplitude(self, features: Tensor, rows: list[int]) -> Tensor:
        slope = torch.tanh(self.amplitude[rows]).to(features.dtype)
        return torch.exp(0.3 * torch.einsum("rg,...g->r...", slope, features.clamp(-3, 3)))

    def forward(self, geometry: Geometry, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Weights (R, ..., I, K), rows sum to 1 and may be negative, and variance of a new observation (R, ..., I)."""
        nugget = self.log_nugget[rows].exp()
        lead = (-1,) + (1,) * geometry.between.dim()
        matrix = self.covariance(geometry.between, geometry.stations, geometry.stations, rows)  # (R, ..., K, K)
        matrix = matrix + nugget.view(lead) * torch.eye(matrix.shape[-1], dtype=matrix.dtype)
        towards = self.covariance(geometry.distance, geometry.place, geometry.stations, rows)  # (R, ..., I, K)
        factorised, ones = torch.linalg.cholesky(matrix), torch.ones_like(matrix[..., :1])
        plain, spread = (torch.cholesky_solve(x, factorised).mT for x in (towards.mT, ones))  # (R, ..., I or 1, K)
        multiplier = (1 - plain.sum(-1, keepdim=True)) / spread.sum(-1, keepdim=True)
        weight = plain + multiplier * spread
        left = multiplier[..., 0] - (weight * towards).sum(-1) + nugget.view(lead[:-1])
        return weight, self.scaled(self.variance(geometry.place, rows) + left, rows)

    def scaled(self, variance: Tensor, rows: list[int]) -> Tensor:
        """Kriging variance (R, ...) -> that of the residuals in training."""
        scale = self.log_scale[rows].exp().to(variance.dtype)
        return (variance * scale.view(-1, *(1,) * (variance.dim() - 1))).clamp(min=1e-4)

    def system(self, between: Tensor, stations: Tensor, rows: list[int]) -> System:
        """Solve, in float64, for stations `between` (S, S) km apart with terrain features (S, G)."""
        terrain = stations.double()
        noise = self.log_nugget[rows].exp().view(-1, 1, 1) * torch.eye(len(terrain), dtype=torch.float64)
        root = torch.linalg.cholesky(self.covariance(between.double(), terrain, terrain, rows) + noise)
        inverse = torch.cholesky_inverse(root)
        ones = inverse.sum(2)
        variance = 1 / ones.sum(1)
        mean = ones * variance[:, None]
        return System(inverse - mean[:, :, None] * ones[:, None], mean, variance)


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distance (..., I, J) of rows of a (..., I, G) and b (..., J, G)."""
    product = torch.einsum("...ig,...jg->...ij", a, b)
    return ((a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :] - 2 * product).clamp(min=0)


def nearest_of(geometry: Geometry, index_QA: Tensor) -> Geometry:
    """Layout of each place and its nearest stations alone, in a batch of Q layouts of one place."""
    between = geometry.between[index_QA[:, :, None], index_QA[:, None, :]]
    distance = geometry.distance.gather(1, index_QA)
    return Geometry(distance[:, None], between, geometry.place[:, None], geometry.stations[index_QA])
