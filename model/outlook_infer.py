"""The outlook network on a record: forecasts at stations, at points, and block by block for a cube.

A forecast depends on the 336 hours before its issue time and on nothing after. Stations without a PM2.5 value in those
hours have no forecast and are left out of the kNN.

Shapes as in `model.outlook`; points are the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from model.geometry import distance_matrix, neighbours
from model.infer import Block
from model.outlook import Layout, Outlook, OutlookConfig, OutlookNet, Weights
from model.outlook_inputs import DAY, HISTORY, HORIZON, Record, all_leads, contexts, read, record_of
from model.windows import LEVELS, Float, Observations, Points, cyclic

Index = NDArray[np.int64]

#: Points whose weights are computed at once, and points whose hours go through the head at once.
_LAYOUT_CHUNK, _HEAD_CHUNK = 512, 1024


@dataclass(frozen=True)
class Distribution:
    """PM2.5, ug m-3: `mean` (N, T) and `quantiles` (R, N, T) at the chosen levels, non-decreasing along R."""

    mean: Float
    quantiles: Float


def outlook_blocks(
    network: OutlookNet,
    observations: Observations,
    points: Points,
    levels: tuple[float, ...],
    issue_index: int,
    horizon: int = HORIZON,
) -> Iterator[Block]:
    """Forecast the hours from an issue time at points, one UTC day at a time.

    Parameters
    ----------
    observations : record of the stations; only its hours before `issue_index` are read, the last 336 of them.
    levels : a subset of `LEVELS`.
    issue_index : index of the first hour that is forecast; the length of the record for the hours after its end.
    horizon : hours to forecast, 1 to 168; an hour's forecast does not depend on it.

    Yields
    ------
    Block
        `hours` are indices that may lie beyond the record. `distance` is that to the nearest station with a forecast,
        `count` the number of these stations. Everything is NaN, and the count 0, where no station has one.

    Raises
    ------
    ValueError
        When the issue index lies outside the record, or the horizon outside what the network forecasts.
    """
    if not 0 < issue_index <= len(observations.hours):
        raise ValueError(
            f"issue_index: expected 1 to {len(observations.hours)}, the record's hours; found {issue_index}"
        )
    if not 0 < horizon <= HORIZON:
        raise ValueError(f"horizon: expected 1 to {HORIZON} hours; found {horizon}")
    record = record_of(_recent(observations, issue_index), network.config.mean, network.config.std)
    issue = min(issue_index, HISTORY)
    field = Field(network, record, observations.elevation, points, issue)
    chosen = [LEVELS.index(level) for level in levels]
    first = int(observations.hours[0]) + issue_index
    for start, stop in _days(first, horizon):
        made = field(slice(start, stop))
        shape = (stop - start, len(points.lon))
        yield Block(
            slice(issue_index + start, issue_index + stop),
            made.mean.T,
            made.quantiles[chosen].swapaxes(1, 2),
            np.broadcast_to(field.distance, shape).astype(np.float32),
            np.full(stop - start, len(field.seen)),
        )


def _recent(o: Observations, issue: int) -> Observations:
    """Cut out the history of an issue time."""
    start = max(issue - HISTORY, 0)
    return Observations(o.hours[start:issue], o.values[:, start:issue], o.lon, o.lat, o.elevation)


def _days(first: int, horizon: int) -> Iterator[tuple[int, int]]:
    """Runs of leads (from 0) that share a UTC day; `first` is the first hour since 1970."""
    start = 0
    while start < horizon:
        stop = min(start + DAY - (first + start) % DAY, horizon)
        yield start, stop
        start = stop


def seen_at(record: Record, issue: int) -> Index:
    """Stations with PM2.5 in the 336 hours before an issue time."""
    return np.flatnonzero(record.valid[:, max(issue - HISTORY, 0) : issue].sum(1).numpy() > 0)


@torch.inference_mode()
def channels_at(network: OutlookNet, record: Record, issue: int, seen: Index, lead: Tensor) -> Outlook:
    """Forecast of z at the stations `seen` from one another's history."""
    lon, lat = np.asarray(record.lon)[seen], np.asarray(record.lat)[seen]
    every = np.arange(len(seen))
    return network.forecaster(read(record, issue, seen, every, contexts(lon, lat, lon, lat), lead))


class Field:
    """Forecasts of one issue time, bound to points: the weights of every point's neighbours as sparse matrices."""

    def __init__(self, network: OutlookNet, record: Record, elevation: Float, points: Points, issue: int) -> None:
        self.network, self.points = network, points
        self.first = int(record.hours[0]) + issue
        self.seen = seen_at(record, issue)
        self.distance = np.full(len(points.lon), np.nan)
        self.channels = Outlook(*torch.zeros(4, 0, HORIZON))
        if len(self.seen):
            self.channels = channels_at(network, record, issue, self.seen, all_leads())
            here = (np.asarray(part)[self.seen] for part in (record.lon, record.lat, elevation))
            self.index, self.weights, self.distance = weigh(network, Points(*here), points)

    def at_stations(self) -> Distribution:
        """Forecast at the stations `seen`, (N, 168)."""
        return distribution(self.network, self.channels, between=False)

    @torch.inference_mode()
    def __call__(self, leads: slice) -> Distribution:
        """Forecast at the points of some leads, a slice of 0 to 168."""
        shape = len(self.points.lon), leads.stop - leads.start
        out = Distribution(np.full(shape, np.nan, np.float32), np.full((len(LEVELS), *shape), np.nan, np.float32))
        if not len(self.seen):
            return out
        for start in range(0, shape[0], _HEAD_CHUNK):
            rows = slice(start, min(start + _HEAD_CHUNK, shape[0]))
            part = distribution(self.network, self._combine(leads, rows), between=True)
            out.mean[rows], out.quantiles[:, rows] = part.mean, part.quantiles
        return out

    def _combine(self, leads: slice, rows: slice) -> Outlook:
        weights = Weights(*(part[rows] for part in self.weights))
        parts = [part[:, leads].numpy() for part in self.channels]
        attended = np.split(self._product(weights.attention, rows, np.concatenate(parts, 1)), len(parts), axis=1)
        kriged = [self._product(weights.kriging[:, h], rows, parts[0]) for h in range(weights.kriging.shape[1])]
        hours = self.first + np.arange(leads.start, leads.stop)
        return self.network.knn.combine(
            weights,
            torch.from_numpy(np.stack(kriged, -1)),
            Outlook(*(torch.from_numpy(np.ascontiguousarray(part)) for part in attended)),
            all_leads()[leads],
            cyclic(hours, np.asarray(self.points.lon)[rows], 24.0),
        )

    def _product(self, weight_QM: Tensor, rows: slice, dense: Float) -> Float:
        """Sparse (rows x stations) times dense (stations, columns)."""
        Q, M = weight_QM.shape
        start = np.arange(0, Q * M + 1, M)
        matrix = csr_array((weight_QM.numpy().ravel(), self.index[rows].ravel(), start), (Q, len(self.seen)))
        return np.asarray(matrix @ dense)


@torch.inference_mode()
def distribution(network: OutlookNet, forecast: Outlook, between: bool) -> Distribution:
    """PM2.5 of a forecast of z."""
    z, log_mean = network.distribution(forecast, between)
    quantiles = z.expm1().clamp(min=0).permute(2, 0, 1)
    return Distribution(log_mean.expm1().clamp(min=0).numpy(), quantiles.numpy())


@torch.inference_mode()
def weigh(network: OutlookNet, stations: Points, points: Points) -> tuple[Index, Weights, NDArray[np.float64]]:
    """Neighbours (Q, M) of each point, their weights, and the distance (Q,) km to the nearest."""
    index, parts, nearest = [], [], []
    for start in range(0, len(points.lon), _LAYOUT_CHUNK):
        rows = slice(start, start + _LAYOUT_CHUNK)
        some = Points(*(np.asarray(part)[rows] for part in (points.lon, points.lat, points.elevation)))
        chosen, layout = layout_of(stations, some, network.config)
        index.append(chosen)
        parts.append(network.knn.weigh(layout))
        nearest.append(layout.distance[:, 0].numpy())
    return np.concatenate(index), Weights(*map(torch.cat, zip(*parts, strict=True))), np.concatenate(nearest)


def layout_of(stations: Points, points: Points, config: OutlookConfig) -> tuple[Index, Layout]:
    """Find the nearest stations (Q, M) of each point, nearest first, and their layout."""
    index, km = neighbours(points.lon, points.lat, stations.lon, stations.lat, config.neighbours)
    between = distance_matrix(stations.lon, stations.lat, stations.lon, stations.lat)
    height = np.asarray(stations.elevation, np.float64) / 1000
    rise = height[index] - np.asarray(points.elevation, np.float64)[:, None] / 1000
    parts = km, rise, between[index[:, :, None], index[:, None, :]], rise[:, :, None] - rise[:, None, :]
    return index, Layout(*(torch.from_numpy(part).float() for part in parts))
