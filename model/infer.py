"""AQ-Net on a record of observations: day by day, at any number of points.

An hour's estimate depends on a window anchored to its UTC day: the hours of the day up to it and the `lead_hours`
before the day, and on the stations with a valid PM2.5 value in that window. So it never depends on where a record
begins (given its lead) or on what comes later. In an hour in which none of its neighbours reports a point has no
estimate: the network was never judged on such hours, and its interval would not know.

Shapes: T hours, S stations, Q points, K neighbours, H kriging heads, E embedding channels, N levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from model.aqnet import NO_SUPPORT, AQNet, Channels, Geometry, Sums, Weights
from model.baseline import Estimator
from model.checkpoint import DEFAULT, load
from model.geometry import distance_matrix, neighbours
from model.windows import LEVELS, Estimate, Float, Observations, Points, cyclic, window

DAY = 24

#: Points whose weights are computed at once (48 x 48 systems), and points whose hours go through the head at once.
#: Larger chunks are slower: their temporary arrays are given back to the system, and cleared by it, each time.
_LAYOUT_CHUNK = 256
_HEAD_CHUNK = 1024


@dataclass(frozen=True)
class Block:
    """Estimates of the hours of one UTC day (T <= 24).

    Attributes
    ----------
    hours : slice of the observation record.
    mean : (T, Q) float32, ug m-3; NaN where none of the point's neighbours reports in the hour.
    quantiles : (N, T, Q) float32 at `LEVELS`.
    distance : (T, Q) float32, km to the nearest station with a valid PM2.5 in the hour (NaN without any).
    count : (T,) valid PM2.5 observations.
    """

    hours: slice
    mean: Float
    quantiles: Float
    distance: Float
    count: NDArray[np.int64]


def estimator(path: Path = DEFAULT) -> Estimator:
    """AQ-Net with the weights at `path`, as an estimator like those of `model.baseline`."""
    return partial(estimate, load(path))


def estimate(network: AQNet, observations: Observations, points: Points) -> Estimate:
    """Estimate every hour of a record at `points`.

    The first `lead_hours` of the record have a shorter history than the network was trained with.
    """
    blocks = list(day_blocks(network, observations, points, LEVELS))
    return Estimate(
        np.concatenate([block.mean for block in blocks]), np.concatenate([block.quantiles for block in blocks], axis=1)
    )


def day_blocks(
    network: AQNet, observations: Observations, points: Points, levels: tuple[float, ...], start: int = 0
) -> Iterator[Block]:
    """Estimates one UTC day at a time, from index `start` of the record; earlier hours serve as history only.

    Yields
    ------
    Block
        With `levels` (a subset of `LEVELS`) as its quantiles.
    """
    field = Interpolator(network, observations, points, levels)
    for hours in utc_days(observations.hours, start):
        yield field(hours)


def utc_days(hours: NDArray[np.int64], start: int) -> Iterator[slice]:
    """Slices of `hours`, from index `start`, one a UTC day."""
    while start < len(hours):
        stop = min(start + DAY - int(hours[start] % DAY), len(hours))
        yield slice(start, stop)
        start = stop


class Interpolator:
    """A network bound to a record and to points.

    Holds the weights of every point's neighbours as sparse matrices; when a station starts or stops reporting only
    the points that have it among their neighbours are computed again.
    """

    def __init__(
        self, network: AQNet, observations: Observations, points: Points, levels: tuple[float, ...] = LEVELS
    ) -> None:
        self.network, self.observations, self.points = network, observations, points
        self.levels = [LEVELS.index(level) for level in levels]
        self.layout = _Layout(network, observations, points)

    @torch.inference_mode()
    def __call__(self, hours: slice) -> Block:
        """Estimate the hours of one UTC day, a slice of the record that does not cross midnight UTC."""
        valid = np.isfinite(self.observations.values[0, hours])
        shape = len(valid), len(self.points.lon)
        mean, quantiles = np.full(shape, np.nan, np.float32), np.full((len(self.levels), *shape), np.nan, np.float32)
        distance = np.full(shape, np.nan, np.float32)
        for piece, stations, channels in self._pieces(hours):
            self.layout.update(stations)
            for rows in self.layout.chunks():
                distance[piece, rows], heard = self.layout.nearest_valid(valid[piece], rows)
                estimate = self._estimate(channels, hours.start, piece, rows)
                quantiles[:, piece, rows], mean[piece, rows] = (np.where(heard, part, np.nan) for part in estimate)
        return Block(hours, mean, quantiles, distance, valid.sum(axis=1))

    def _pieces(self, hours: slice) -> Iterator[tuple[slice, NDArray[np.int64], Channels]]:
        """Cut a day into runs of hours (slices of it) with the same stations, their indices and channels.

        A station belongs to an hour once its window holds a valid PM2.5, so one that first reports at 15 UTC leaves the
        hours before as they were. Most days are one piece; hours before any observation belong to none.
        """
        span = self._window(hours)
        seen = np.isfinite(self.observations.values[0, max(span.start, 0) : span.stop])
        reporting = np.logical_or.accumulate(seen, axis=0)[hours.start - hours.stop :]  # (T, S)
        stations = np.flatnonzero(reporting[-1])
        if not len(stations):
            return
        channels = self._encode(hours, stations)
        cuts = np.flatnonzero((reporting[1:] != reporting[:-1]).any(axis=1)) + 1
        for first, stop in pairwise([0, *cuts.tolist(), len(reporting)]):
            known = reporting[first, stations]
            if known.any():
                own = Channels(*(channel[torch.from_numpy(known), first:stop] for channel in channels))
                yield slice(first, stop), stations[known], own

    def _window(self, hours: slice) -> slice:
        """The hours and their lead; negative where the record begins later than that."""
        midnight = hours.start - int(self.observations.hours[hours.start] % DAY)
        return slice(midnight - self.network.config.lead_hours, hours.stop)

    def _encode(self, hours: slice, stations: NDArray[np.int64]) -> Channels:
        """Channels of some stations, (stations, T[, E])."""
        span, config = self._window(hours), self.network.config
        read = slice(max(span.start, 0), span.stop)
        inputs = window(self.observations, read, stations, config.mean, config.std)
        missing = read.start - span.start
        padded = [torch.cat([part.new_zeros(part.shape[0], missing, *part.shape[2:]), part], dim=1) for part in inputs]
        channels = self.network.encoder(type(inputs)(*padded))
        wanted = hours.stop - hours.start
        return Channels(*(channel[:, -wanted:] for channel in channels))

    def _estimate(self, channels: Channels, start: int, piece: slice, rows: slice) -> tuple[Float, Float]:
        """Quantiles (N, T, rows) and mean (T, rows), ug m-3."""
        weights, sums = self.layout.weights(rows), self.layout.sums(channels, rows)
        hours = self.observations.hours[start + piece.start : start + piece.stop]
        z, log_mean = self.network.head(sums, weights, cyclic(hours, self.points.lon[rows], 24.0))
        quantiles = z[..., self.levels].expm1_().clamp_(min=0).permute(2, 1, 0)
        return quantiles.numpy(), log_mean.expm1_().clamp_(min=0).T.numpy()


class _Layout:
    """Neighbours of every point among the reporting stations, their weights, and the sparse products with them."""

    def __init__(self, network: AQNet, observations: Observations, points: Points) -> None:
        self.network, self.observations, self.points = network, observations, points
        self.stations = np.empty(0, np.int64)  # record indices of the reporting stations
        self.index = np.empty((len(points.lon), 0), np.int64)  # (Q, K) record indices, nearest first
        self.column = self.index.astype(np.int32)  # the same, as positions in `stations`
        self.km = np.empty(self.index.shape)
        self.parts: Weights | None = None

    def update(self, stations: NDArray[np.int64]) -> None:
        """Take `stations` as the reporting ones; compute again what they change."""
        if np.array_equal(stations, self.stations):
            return
        k = min(self.network.config.neighbours, len(stations))
        rows = self._changed(stations) if k == self.index.shape[1] else np.arange(len(self.points.lon))
        if len(rows) == len(self.points.lon):
            self.index, self.km = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
            self.parts = _empty_weights(self.network, len(rows), k)
        self.stations = stations
        if k:
            self._compute(rows, k)
        self.column = np.searchsorted(stations, self.index).astype(np.int32)

    def _changed(self, stations: NDArray[np.int64]) -> NDArray[np.int64]:
        """Points that lose a neighbour, or have a new station nearer than their farthest neighbour."""
        lost, new = np.setdiff1d(self.stations, stations), np.setdiff1d(stations, self.stations)
        touched = np.isin(self.index, lost).any(axis=1)
        for s in new:
            here = self.observations.lon[s : s + 1], self.observations.lat[s : s + 1]
            km = distance_matrix(self.points.lon, self.points.lat, *here)[:, 0]
            touched |= km < 1.01 * self.km[:, -1]
        return np.flatnonzero(touched)

    def _compute(self, rows: NDArray[np.int64], k: int) -> None:
        assert self.parts is not None
        o, p, chosen = self.observations, self.points, self.stations
        nearest, self.km[rows] = neighbours(p.lon[rows], p.lat[rows], o.lon[chosen], o.lat[chosen], k)
        self.index[rows] = chosen[nearest]
        between = torch.from_numpy(distance_matrix(o.lon[chosen], o.lat[chosen], o.lon[chosen], o.lat[chosen])).float()
        height = torch.from_numpy(np.asarray(o.elevation[chosen], np.float32) / 1000)
        for start in range(0, len(rows), _LAYOUT_CHUNK):
            part = slice(start, start + _LAYOUT_CHUNK)
            ground = torch.from_numpy(np.asarray(p.elevation[rows[part]], np.float32) / 1000)
            geometry = geometry_of(torch.from_numpy(nearest[part]), self.km[rows[part]], between, height, ground)
            for whole, piece in zip(self.parts, self.network.knn(geometry), strict=True):
                whole[rows[part]] = piece

    def chunks(self) -> Iterator[slice]:
        """Slices of the points that fit the head."""
        for start in range(0, len(self.points.lon), _HEAD_CHUNK):
            yield slice(start, min(start + _HEAD_CHUNK, len(self.points.lon)))

    def weights(self, rows: slice) -> Weights:
        """Weights of some points."""
        assert self.parts is not None
        return Weights(*(part[rows] for part in self.parts))

    def sums(self, channels: Channels, rows: slice) -> Sums:
        """`model.aqnet.gather` as sparse products: the same sums, without a (Q, K, T, E) array."""
        value, reliability, trust, embedded_ST = channels
        T, E = embedded_ST.shape[1:]
        weights = self.weights(rows)
        carried = [reliability, reliability * value, reliability * value**2]
        carried += [reliability * embedded_ST[..., e] for e in range(E)]
        attention = self._product(weights.attention, rows, torch.cat(carried, dim=1))
        support, first, second, *embedded = attention.split(T, 1)
        support = support + NO_SUPPORT
        attended = first / support
        spread = ((second - 2 * attended * first + attended**2 * support).clamp(min=0) / support + 1e-6).sqrt()
        trusted = torch.cat([trust, trust * value], dim=1)
        kriged = []
        for h in range(weights.kriging.shape[1]):
            share, total = self._product(weights.kriging[:, h].contiguous(), rows, trusted).split(T, 1)
            kriged.append(attended + total - share * attended)
        embedding = torch.stack(embedded, dim=-1) / support[..., None]
        return Sums(attended, torch.stack(kriged, dim=-1), spread, support, embedding)

    def _product(self, weight_QK: Tensor, rows: slice, dense: Tensor) -> Tensor:
        """Sparse (rows x reporting stations) times dense (reporting stations, columns)."""
        Q, K = weight_QK.shape
        matrix = csr_array(
            (weight_QK.numpy().ravel(), self.column[rows].ravel(), np.arange(0, Q * K + 1, K, dtype=np.int32)),
            (Q, len(self.stations)),
        )
        return torch.from_numpy(matrix @ dense.numpy())

    def nearest_valid(self, valid: NDArray[np.bool_], rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Distance to the nearest station valid in each hour, and whether it is one of the point's neighbours.

        Returns
        -------
        (T, rows) km, NaN in an hour without any; (T, rows) bool.
        """
        index, km = self.index[rows], self.km[rows]
        out, heard = np.empty((len(valid), len(index)), np.float32), np.empty((len(valid), len(index)), bool)
        for hour, mark in enumerate(valid):
            known = mark[index]
            heard[hour] = known.any(axis=1)
            out[hour] = km[np.arange(len(km)), known.argmax(axis=1)]
            beyond = np.flatnonzero(~heard[hour])
            if len(beyond):
                out[hour, beyond] = self._farther(np.flatnonzero(mark), beyond + rows.start)
        return out, heard

    def _farther(self, stations: NDArray[np.int64], points: NDArray[np.int64]) -> Float:
        """Distance km to the nearest of some stations, for points that have none of them among their neighbours."""
        if not len(stations):
            return np.full(len(points), np.nan)
        o, p = self.observations, self.points
        return neighbours(p.lon[points], p.lat[points], o.lon[stations], o.lat[stations], 1)[1][:, 0]


def geometry_of(
    index_QK: Tensor, km: Float | Tensor, between_SS: Tensor, height_S: Tensor, ground_Q: Tensor
) -> Geometry:
    """Gather a `Geometry` from station distances (km) and heights (km)."""
    rise = height_S[index_QK] - ground_Q[:, None]
    between = between_SS[index_QK[:, :, None], index_QK[:, None, :]]
    distance = torch.as_tensor(km, dtype=torch.float32)
    return Geometry(distance, rise, between, rise[:, :, None] - rise[:, None, :], ground_Q)


def _empty_weights(network: AQNet, q: int, k: int) -> Weights:
    H = network.config.kriging_heads
    return Weights(torch.empty(q, k), torch.empty(q, H, k), torch.empty(q, H), torch.empty(q, 4))
