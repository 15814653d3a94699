"""The layout of a grid: every point's neighbours among the reporting stations and what AQ-Net makes of them.

The same numbers as `NeuralKNN` and `model.layout` give, for many points and stations that come and go: what two
stations of the record have to do with each other is worked out once, and `model.kriging_loops` solves the systems.

Shapes: S stations of the record, Q points, K neighbours, R covariances (the bands', then that of the whole value).
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.aqnet import _ERROR, _LEVEL, _WHOLE, BANDS, FARTHEST, MODES, AQNet, Geometry, Surroundings
from model.compiled import alone, in_threads
from model.geometry import distance_matrix
from model.grid_loops import Cells, HeadWeights
from model.kriging_loops import WIDE, Covariances, choose, covariances, solve
from model.layout import APART_KM, SAYING
from model.nearest import Finder, Neighbours
from model.windows import Observations, Points, cyclic, terrain_features

#: Points whose systems are solved by a thread at a time, or multiples of it.
_CHUNK = 2 * WIDE

#: Longitude enters as the local solar time at this hour, 0 UTC on a Monday.
_MIDNIGHT = np.array([96])


def head_weights(network: AQNet) -> HeadWeights:
    """The head's weights for `grid_hours`, but those of inputs that do not change with the hour (see `Layout`)."""
    hourly, mlp = BANDS + 3 + network.config.embedding + 2, network.head.mlp.state_dict()
    return HeadWeights(
        first=_padded(mlp["0.weight"][:, :hourly]),
        second=_padded(mlp["2.weight"]),
        third=_padded(mlp["4.weight"]),
        second_bias=_padded(mlp["2.bias"]),
        third_bias=_padded(mlp["4.bias"]),
        steps=network.head.normal_steps.numpy(),
        level=np.float32(_LEVEL),
    )


def _padded(x: Tensor) -> NDArray[np.float32]:
    """Zeros behind, up to multiples of 4."""
    return np.pad(x.numpy(), [(0, -size % 4) for size in x.shape])


class Layout:
    """Neighbours of every point among the reporting stations, and their weights.

    Attributes
    ----------
    cells : what `grid_hours` reads.
    """

    cells: Cells

    def __init__(self, network: AQNet, observations: Observations, points: Points, mode: str) -> None:
        self.network, o, p = network, observations, points
        self.terrain, self.place = terrain_features(o), terrain_features(p)
        self.finder = Finder(p.lon, p.lat, o.lon, o.lat, network.config.neighbours)
        self.rows = [*range(first := BANDS * MODES.index(mode), first + BANDS), _WHOLE]
        between = distance_matrix(o.lon, o.lat, o.lon, o.lat).astype(np.float32)
        self._fix(torch.from_numpy(between))
        self.others = _others(between, 0.0), _others(between, APART_KM)
        self.stations = np.empty(0, np.int64)  # record indices of the reporting ones
        none = Surroundings(torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0))
        self._last = self.stations, (none, none)
        self.cells = self._empty(0)
        self.cells.cycle[:] = cyclic(_MIDNIGHT, p.lon, 24.0)[:, 0].numpy()

    @torch.no_grad()
    def _fix(self, between: Tensor) -> None:
        """What does not change with the stations that report."""
        kriging, rows = self.network.knn.kriging, self.rows
        self.covariance = kriging.covariance(between, self.terrain, self.terrain, rows).numpy()  # (R, S, S)
        nugget = kriging.log_nugget[rows].exp()
        self.nugget, self.prior = nugget.numpy(), kriging.variance(self.place, rows) + nugget[:, None]
        parts = (
            2 * kriging.log_factor,
            kriging.log_drift,
            -2 * kriging.log_range,
            F.logsigmoid(kriging.shape).clamp(max=math.log(0.975)),
            kriging.log_sill,
        )
        amplitudes = (kriging._amplitude(x, rows).numpy() for x in (self.place, self.terrain))
        self.some = Covariances(*(part[rows].exp().numpy() for part in parts), *amplitudes)

    def _empty(self, k: int) -> Cells:
        config, Q = self.network.config, len(self.place)
        width = config.head_hidden + -config.head_hidden % 4
        sizes = [(k,), (BANDS, k), (min(config.near, k),), (width,), (), (2,)]
        return Cells(np.zeros((Q, k), np.int32), *(np.zeros((Q, *size), np.float32) for size in sizes))

    def update(self, stations: NDArray[np.int64]) -> None:
        """Take `stations` (record indices) as the reporting ones; compute again what they change."""
        if np.array_equal(stations, self.stations):
            return
        self.stations = stations
        found = self.finder.reporting(stations, min(self.network.config.neighbours, len(stations)))
        if found.station.shape != self.cells.station.shape:
            self.cells = self._empty(found.station.shape[1])._replace(cycle=self.cells.cycle)
            changed = np.arange(len(found.station))
        else:
            changed = np.flatnonzero((found.station != self.cells.station).any(axis=1))
        in_threads(partial(self._compute, changed, found), len(changed), _CHUNK)

    def _compute(self, changed: NDArray[np.int64], found: Neighbours, part: slice) -> None:
        """Weights of some points."""
        alone(partial(self._fill, changed[part], found))

    @torch.inference_mode()
    def _fill(self, rows: NDArray[np.int64], found: Neighbours) -> None:
        knn, cells = self.network.knn, self.cells
        cells.station[rows], cells.km[rows] = found.station[rows], found.km[rows]
        weight, left = self._solve(rows, found.station[rows], found.km[rows])
        here, near = torch.from_numpy(rows), torch.from_numpy(found.station[rows, : knn.near].astype(np.int64))
        place, km = self.place[here], torch.from_numpy(found.km[rows, : knn.near])
        variance = self._variance(self.prior[:, here] + torch.from_numpy(left))
        cells.bands[rows] = weight[:BANDS].transpose(1, 0, 2)
        geometry = Geometry(km, torch.empty(0), place, self.terrain[near])
        cells.attention[rows] = knn.attention(geometry, torch.from_numpy(weight[BANDS])).numpy()
        cells.inflow[rows] = self._inflow(variance, place, km)
        cells.variance[rows] = (variance.sum(1) / _ERROR).numpy()

    def _solve(
        self, rows: NDArray[np.int64], index: NDArray[np.int32], km: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Kriging weights (R, n, K) of some points, and multiplier less what is explained (R, n)."""
        towards, weight = np.empty((2, len(self.rows), *index.shape), np.float32)
        left = np.empty(weight.shape[:2], np.float32)
        covariances(self.some, index, km, rows, self.place.numpy(), self.terrain.numpy(), towards)
        for r, nugget in enumerate(self.nugget):
            solve(self.covariance[r], index, towards[r], nugget, weight[r], left[r])
        return weight, left

    def _variance(self, total_RQ: Tensor) -> Tensor:
        """Variance of a new observation (Q, B), scaled as `Kriging.forward` has it."""
        scale = self.network.knn.kriging.log_scale[self.rows].exp()
        return (total_RQ * scale[:, None]).clamp(min=1e-4).T[:, :BANDS]

    def _inflow(self, variance: Tensor, place: Tensor, km: Tensor) -> NDArray[np.float32]:
        """What the inputs that do not change with the hour give the head's first layer, with its bias."""
        near, weight = km[:, :1].clamp(max=FARTHEST).log1p(), self.network.head.mlp.state_dict()
        fixed = torch.cat([variance.log(), place.clamp(-3, 3), near], dim=-1)
        out = fixed @ weight["0.weight"][:, -fixed.shape[1] :].T + weight["0.bias"]
        return np.pad(out.numpy(), [(0, 0), (0, -out.shape[1] % 4)])

    # ---- what the stations say of each other ----

    @property
    def around(self) -> tuple[Surroundings, Surroundings]:
        """What the encoder is told of the reporting stations' surroundings."""
        return self.surroundings(self.stations)

    def surroundings(self, stations: NDArray[np.int64]) -> tuple[Surroundings, Surroundings]:
        """As `model.layout.surroundings`, among stations that report: positions among these. Keeps the last ones."""
        known, around = self._last
        if not np.array_equal(known, stations):
            k = max(min(SAYING, len(stations) - 1), 0)
            mark = np.isin(np.arange(len(self.terrain)), stations)
            (alone, _), (apart, count) = (_first(others, mark, k) for others in self.others)
            apart = np.where(count[:, None] < k, alone, apart)
            around = self._around(stations, alone[stations]), self._around(stations, apart[stations])
            self._last = stations, around
        return around

    def _around(self, stations: NDArray[np.int64], index: NDArray[np.int32]) -> Surroundings:
        if not index.shape[1]:
            return Surroundings(torch.from_numpy(index.astype(np.int64)), torch.from_numpy(index.astype(np.float32)))
        weight, left = np.empty(index.shape, np.float32), np.empty(len(index), np.float32)
        towards = self.covariance[-1][stations[:, None], index]
        solve(self.covariance[-1], index, towards, self.nugget[-1], weight, left)
        return Surroundings(torch.from_numpy(np.searchsorted(stations, index)), torch.from_numpy(weight))


def _others(between: NDArray[np.float32], apart: float) -> NDArray[np.int32]:
    """Other stations of each that are `apart` km away or farther, nearest first, then -1; (S, S)."""
    away = np.where(between < apart, np.inf, between)
    np.fill_diagonal(away, np.inf)
    order = np.argsort(away, axis=1, kind="stable").astype(np.int32)
    return np.where(np.isfinite(np.take_along_axis(away, order, axis=1)), order, np.int32(-1))


def _first(others: NDArray[np.int32], mark: NDArray[np.bool_], k: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """First k marked ones of each list (S, k), and how many there are (S,)."""
    index, unused = np.zeros((len(others), k), np.int32), np.zeros((len(others), k), np.float32)
    return index, choose(others, np.zeros(others.shape, np.float32), mark, index, unused)
