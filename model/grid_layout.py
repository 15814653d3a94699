"""The layout of a grid: what AQ-Net makes of the places of its points and of the stations of a record.

The same numbers as `NeuralKNN` and `model.layout` give, for many points and stations that come and go. Weights of all
stations of the record are worked out once and hold from then on: a station that does not report is given, band by band,
what kriging from the others says of it, and estimates are then what they would be without it. What it adds to their
variance is worked out when it stops. All of this is float64: rounded to float32 after that, an estimate is the same,
bit by bit, whichever silent stations the record holds, and so whatever other hours are estimated with it.

Shapes: S stations of the record, M silent ones, Q points, K neighbours, A of attention, B bands, R covariances.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.aqnet import _ERROR, _LEVEL, FARTHEST, AQNet, Surroundings, widening
from model.compiled import alone, in_threads
from model.geometry import distance_matrix
from model.grid_loops import Cells, HeadWeights
from model.kriging import BANDS, WHOLE, Kriging, System, band_rows
from model.kriging_loops import WIDE, Covariances, covariances, solve
from model.layout import surroundings_of
from model.nearest import Finder
from model.windows import Observations, Points, cyclic, terrain_features

#: Nearest stations of a point without an observation from any of which an hour has no estimate.
NEIGHBOURS = 48

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
    """Weights of the stations at every point.

    Attributes
    ----------
    cells : what `grid_hours` reads.
    """

    cells: Cells

    def __init__(self, network: AQNet, observations: Observations, points: Points, mode: str) -> None:
        self.network, o, p = network, observations, points
        self.terrain, self.place = terrain_features(o), terrain_features(p)
        self.finder = Finder(p.lon, p.lat, o.lon, o.lat, NEIGHBOURS)
        self.between = torch.from_numpy(distance_matrix(o.lon, o.lat, o.lon, o.lat).astype(np.float32))
        self.stations = np.empty(0, np.int64)  # record indices of the reporting ones
        self._last = self.stations, Surroundings(torch.empty(0, 0), torch.empty(0, 0))
        self.cells = self._empty(0, len(o.lon))
        self.cells.cycle[:] = cyclic(_MIDNIGHT, p.lon, 24.0)[:, 0].numpy()
        self._solve(o, p, band_rows(mode))

    def _empty(self, k: int, S: int) -> Cells:
        config, Q = self.network.config, len(self.place)
        width = config.head_hidden + -config.head_hidden % 4
        sizes = [(k,), (min(config.near, k),), (width,), (), (), (2,)]
        every = (np.zeros((Q, *size), np.float32) for size in sizes)
        return Cells(np.zeros((Q, k), np.int32), np.zeros((BANDS, Q, S)), *every)

    @torch.no_grad()
    def _solve(self, observations: Observations, points: Points, rows: list[int]) -> None:
        """Weights and variances of the bands, of all stations of the record."""
        kriging, o = self.network.knn.kriging, observations
        self.rows, self.system = rows, kriging.system(self.between, self.terrain, [*rows, WHOLE])
        self.whole = _Whole(
            _covariances(kriging, [WHOLE], self.place, self.terrain),
            kriging.covariance(self.between.double(), *2 * (self.terrain.double(),), [WHOLE])[0].float().numpy(),
            np.float32(kriging.log_nugget[WHOLE].exp()),
        )
        nugget = kriging.log_nugget[rows].exp()[:, None]
        self.variance = kriging.variance(self.place.double(), rows) + nugget  # (B, Q)
        some = _covariances(kriging, rows, self.place, self.terrain)
        system = System(*(part[:BANDS] for part in self.system))
        weigh = partial(self._weigh_all, o, points, some, system)
        in_threads(lambda part: alone(partial(weigh, part)), len(self.place), _CHUNK)

    def _weigh_all(self, o: Observations, p: Points, some: Covariances, system: System, part: slice) -> None:
        """Weights of some points, a few at a time: their covariances should stay in the caches."""
        every = np.arange(len(o.lon), dtype=np.int32)
        for first in range(part.start, part.stop, _CHUNK):
            few = slice(first, min(first + _CHUNK, part.stop))
            km = distance_matrix(p.lon[few], p.lat[few], o.lon, o.lat).astype(np.float32)
            index, towards = np.broadcast_to(every, km.shape), np.empty((BANDS, *km.shape), np.float32)
            rows = np.arange(few.start, few.stop)
            covariances(some, index, km, rows, self.place.numpy(), self.terrain.numpy(), towards)
            self._weigh(few, torch.from_numpy(towards).double(), system)

    @torch.inference_mode()
    def _weigh(self, part: slice, towards: Tensor, system: System) -> None:
        """Weights of some points, whose covariances with the stations are `towards` (B, n, S)."""
        weight = torch.from_numpy(self.cells.bands[:, part])
        torch.baddbmm(system.mean[:, None], towards, system.precision, out=weight)
        multiplier = system.variance[:, None] - (towards @ system.mean[..., None])[..., 0]
        self.variance[:, part] += multiplier - torch.einsum("bns,bns->bn", weight, towards)

    # ---- stations that come and go ----

    def update(self, stations: NDArray[np.int64]) -> None:
        """Take `stations` (record indices) as the reporting ones; compute again what they change."""
        if np.array_equal(stations, self.stations):
            return
        self.stations = stations
        before, near = self.cells.station, min(self.network.config.near, len(stations))
        found = self.finder.reporting(stations, min(NEIGHBOURS, len(stations)))
        if found.station.shape == before.shape:
            changed = np.flatnonzero((found.station[:, :near] != before[:, :near]).any(axis=1))
        else:
            changed = np.arange(len(before))
            fresh = self._empty(found.station.shape[1], 0)
            self.cells = fresh._replace(bands=self.cells.bands, cycle=self.cells.cycle)
        self.cells = self.cells._replace(station=found.station, km=found.km)
        in_threads(partial(self._attend, changed), len(changed), _CHUNK)
        silent = np.setdiff1d(np.arange(len(self.terrain)), stations)
        root = torch.linalg.cholesky(self._among(silent)[:BANDS])
        in_threads(partial(self._place, silent, root), len(self.place), _CHUNK)

    def _attend(self, changed: NDArray[np.int64], part: slice) -> None:
        """Attention of some points over their nearest stations."""
        rows, cells = changed[part], self.cells
        near = cells.attention.shape[1]
        station, km = np.ascontiguousarray(cells.station[rows, :near]), np.ascontiguousarray(cells.km[rows, :near])
        towards, weight = np.empty((2, 1, *km.shape), np.float32)
        covariances(self.whole.some, station, km, rows, self.place.numpy(), self.terrain.numpy(), towards)
        solve(self.whole.between, station, towards[0], self.whole.nugget, weight[0], np.empty(len(rows), np.float32))
        place, terrain = self.place[rows], self.terrain[station.astype(np.int64)]
        args = torch.from_numpy(weight[0]), torch.from_numpy(km), place, terrain
        with torch.inference_mode():
            cells.attention[rows] = alone(partial(self.network.knn.attention, *args)).numpy()

    def _place(self, silent: NDArray[np.int64], root: Tensor, part: slice) -> None:
        """What the head is told of some points whatever the hour; `root` (B, M, M) is Cholesky's of `_among`."""
        alone(partial(self._tell, silent, root, part))

    @torch.inference_mode()
    def _tell(self, silent: NDArray[np.int64], root: Tensor, part: slice) -> None:
        kriging, total = self.network.knn.kriging, self.variance[:, part]
        if len(silent):
            weight = torch.from_numpy(self.cells.bands[:, part][:, :, silent])  # (B, n, M)
            total = total + torch.linalg.solve_triangular(root, weight.mT, upper=False).square().sum(1)
        variance = kriging.scaled(total, self.rows).T.float()
        self.cells.variance[part] = (variance.sum(1) / _ERROR).numpy()
        near = torch.from_numpy(self.cells.km[part][:, :1]).clamp(max=FARTHEST).log1p()
        self.cells.widen[part] = widening(near[:, 0], self.network.head.widen).numpy()
        self.cells.inflow[part] = self._inflow(variance, near)

    def _inflow(self, variance: Tensor, near: Tensor) -> NDArray[np.float32]:
        """What the inputs that do not change with the hour give the head's first layer, with its bias."""
        weight = self.network.head.mlp.state_dict()
        fixed = torch.cat([variance.log(), near], dim=-1)
        out = fixed @ weight["0.weight"][:, -fixed.shape[1] :].T + weight["0.bias"]
        return np.pad(out.numpy(), [(0, 0), (0, -out.shape[1] % 4)])

    def _among(self, silent: NDArray[np.int64]) -> Tensor:
        """Precision (R, M, M) of silent stations: its inverse is their covariance about what the others say."""
        at = torch.from_numpy(silent)
        return self.system.precision[:, at[:, None], at]

    def everywhere(self, bands: Tensor, stations: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bands (B, S, T) of all stations from those (n, T, B) of `stations`: the others get what kriging says."""
        out = torch.empty(BANDS, len(self.terrain), bands.shape[1], dtype=torch.float64)
        out[:, stations] = bands.permute(2, 0, 1).double()
        silent = np.setdiff1d(np.arange(len(self.terrain)), stations)
        if len(silent):
            towards = self.system.precision[:BANDS, silent][:, :, stations]
            root = torch.linalg.cholesky(self._among(silent)[:BANDS])
            out[:, silent] = -torch.cholesky_solve(towards @ out[:, stations], root)
        return out.numpy()

    # ---- what the stations say of each other ----

    def surroundings(self, stations: NDArray[np.int64]) -> Surroundings:
        """What reporting stations (record indices) say of one another. Keeps the last ones."""
        known, around = self._last
        if not np.array_equal(known, stations):
            around = self._surroundings(stations)
            self._last = stations, around
        return around

    def _surroundings(self, stations: NDArray[np.int64]) -> Surroundings:
        silent = np.setdiff1d(np.arange(len(self.terrain)), stations)
        at, away = torch.from_numpy(stations), torch.from_numpy(silent)
        whole = self.system.precision[BANDS]
        precision = whole.index_select(0, at).index_select(1, at)
        if len(silent):
            cross = whole[at[:, None], away]
            root = torch.linalg.cholesky(whole[away[:, None], away])
            precision = precision - cross @ torch.cholesky_solve(cross.T, root)
        return surroundings_of(precision, self.between.index_select(0, at).index_select(1, at))


class _Whole(NamedTuple):
    """Covariance of the whole value: its parameters, that of the stations (S, S) without the nugget, the nugget."""

    some: Covariances
    between: NDArray[np.float32]
    nugget: np.float32


def _covariances(kriging: Kriging, rows: list[int], place: Tensor, terrain: Tensor) -> Covariances:
    """Parameters of some covariances, for the compiled loops.

    Amplitudes are rounded from float64: torch's float32 exponential depends on where in an array a number stands.
    """
    parts = (
        2 * kriging.log_factor,
        kriging.log_drift,
        -2 * kriging.log_range,
        F.logsigmoid(kriging.shape).clamp(max=math.log(0.975)),
        kriging.log_sill,
    )
    amplitudes = (kriging._amplitude(x.double(), rows).float().numpy() for x in (place, terrain))
    return Covariances(*(part[rows].exp().numpy() for part in parts), *amplitudes)
