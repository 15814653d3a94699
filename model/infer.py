"""AQ-Net on a record of observations: day by day, at any number of points.

An hour's estimate depends on a window anchored to its UTC day: the hours of the day up to it and the `lead_hours`
before the day, in final mode also the rest of the day and the `tail_hours` after it, and on the stations with a valid
PM2.5 value in that window. So it never depends on where a record begins (given its lead) nor, in interim mode, on what
comes later. In an hour in which none of its neighbours reports a point has no estimate: the network was never judged on
such hours, and its interval would not know.

Shapes: T hours, S stations, Q points, N levels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.aqnet import AQNet, Channels
from model.baseline import Estimator
from model.checkpoint import DEFAULT, load
from model.compiled import alone, in_threads
from model.grid_layout import Layout, head_weights
from model.grid_loops import HOURS, Day, Out, Sums, grid_hours
from model.kriging import BANDS
from model.windows import LEVELS, Estimate, Float, Observations, Points, cyclic, window

DAY = 24

#: Cells that a thread takes at once.
_BLOCK = 192

#: Days whose weighted sums are taken together, so that the weights of a cell come from memory once for all of them.
#: They begin at a multiple of so many days since 1970: an hour has one column whatever it is estimated with.
_TOGETHER = 4
_COLUMNS = _TOGETHER * DAY


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


def estimator(path: Path = DEFAULT, mode: str = "interim") -> Estimator:
    """AQ-Net with the weights at `path`, as an estimator like those of `model.baseline`."""
    return partial(estimate, load(path), mode=mode)


def estimate(network: AQNet, observations: Observations, points: Points, mode: str = "interim") -> Estimate:
    """Estimate every hour of a record at `points`.

    The first `lead_hours` of the record have a shorter history than the network was trained with, and in final mode
    the last `tail_hours` a shorter future.
    """
    blocks = list(day_blocks(network, observations, points, LEVELS, mode=mode))
    return Estimate(
        np.concatenate([block.mean for block in blocks]), np.concatenate([block.quantiles for block in blocks], axis=1)
    )


def day_blocks(
    network: AQNet,
    observations: Observations,
    points: Points,
    levels: tuple[float, ...],
    start: int = 0,
    stop: int | None = None,
    mode: str = "interim",
) -> Iterator[Block]:
    """Estimates one UTC day at a time, of the hours from index `start` to `stop` of the record.

    Other hours serve as history, and in final mode as future.

    Yields
    ------
    Block
        With `levels` (a subset of `LEVELS`) as its quantiles.
    """
    field = Interpolator(network, observations, points, levels, mode)
    yield from field.run(list(utc_days(observations.hours[:stop], start)))


def utc_days(hours: NDArray[np.int64], start: int) -> Iterator[slice]:
    """Slices of `hours`, from index `start`, one a UTC day."""
    while start < len(hours):
        stop = min(start + DAY - int(hours[start] % DAY), len(hours))
        yield slice(start, stop)
        start = stop


class _Piece(NamedTuple):
    """Hours of a day (a slice of it) in which the same stations (record indices) report, and what they say.

    ``column`` is that of the first hour among those of `_TOGETHER` days.
    """

    hours: slice
    stations: NDArray[np.int64]
    day: Day
    column: int


class Interpolator:
    """A network bound to a record and to points.

    Holds the weights of every point's neighbours; when a station starts or stops reporting only the points that have it
    among their neighbours are computed again. Uses as many threads as torch.
    """

    def __init__(
        self,
        network: AQNet,
        observations: Observations,
        points: Points,
        levels: tuple[float, ...] = LEVELS,
        mode: str = "interim",
    ) -> None:
        self.network, self.observations, self.points, self.mode = network, observations, points, mode
        self.levels = np.array([LEVELS.index(level) for level in levels])
        self.head = head_weights(network)
        self.layout = Layout(network, observations, points, mode)

    def __call__(self, hours: slice) -> Block:
        """Estimate the hours of one UTC day, a slice of the record that does not cross midnight UTC."""
        return self._estimate(hours, ((piece, self._sum([piece])[0]) for piece in self._hear(hours)))

    def run(self, days: list[slice]) -> Iterator[Block]:
        """Estimate UTC days in order, some at once; meanwhile a thread of its own reads the stations' next days."""
        heard = self._ahead(days) if torch.get_num_threads() > 1 else map(list, map(self._hear, days))
        for _, some in groupby(zip(days, heard, strict=True), self._group):
            hours, pieces = zip(*some, strict=True)
            sums = iter(self._sum([piece for day in pieces for piece in day]))
            for day, own in zip(hours, pieces, strict=True):
                yield self._estimate(day, zip(own, sums, strict=False))

    def _group(self, day: tuple[slice, list[_Piece]]) -> int:
        """Number of the `_TOGETHER` days that a day belongs to."""
        return int(self.observations.hours[day[0].start] // _COLUMNS)

    def _ahead(self, days: list[slice]) -> Iterator[list[_Piece]]:
        """What the stations say on each day, read `_TOGETHER` days ahead."""
        with ThreadPoolExecutor(1) as reader:
            coming = deque(reader.submit(self._hear_alone, hours) for hours in days[:_TOGETHER])
            for hours in days[_TOGETHER:]:
                coming.append(reader.submit(self._hear_alone, hours))
                yield coming.popleft().result()
            yield from (day.result() for day in coming)

    def _hear_alone(self, hours: slice) -> list[_Piece]:
        return alone(lambda: list(self._hear(hours)))

    @torch.inference_mode()
    def _hear(self, hours: slice) -> Iterator[_Piece]:
        """What the stations say in each piece of a day."""
        for piece, stations in self._pieces(hours):
            column = int(self.observations.hours[hours.start + piece.start] % _COLUMNS)
            yield _Piece(piece, stations, self._day(hours, piece, stations), column)

    @torch.inference_mode()
    def _sum(self, pieces: list[_Piece]) -> list[Sums]:
        """Weighted sums of the bands at every cell in some pieces of days, all at once.

        Always the hours of `_TOGETHER` days: products of one shape are rounded alike, so that an hour's sums do not
        depend on which hours it is estimated with.
        """
        Q = len(self.points.lon)
        said = torch.zeros(BANDS, len(self.observations.lon), _COLUMNS, dtype=torch.float64)
        for piece in pieces:
            said[..., piece.column : piece.column + piece.day.bands.shape[-1]] = torch.from_numpy(piece.day.bands)
        sums = torch.empty(BANDS, Q * _COLUMNS + HOURS)
        sums[:, Q * _COLUMNS :] = 0
        cells = sums[:, : Q * _COLUMNS].view(BANDS, Q, _COLUMNS)
        in_threads(lambda part: alone(partial(self._weigh, said, cells, part)), Q, _BLOCK)
        return [Sums(sums.numpy(), _COLUMNS, piece.column) for piece in pieces]

    @torch.inference_mode()
    def _estimate(self, hours: slice, pieces: Iterable[tuple[_Piece, Sums]]) -> Block:
        """Estimate a day from what the stations say in its pieces."""
        valid = np.isfinite(self.observations.values[0, hours])
        shape = len(valid), len(self.points.lon)
        out = Out(*(np.full(size, np.nan, np.float32) for size in (shape, (len(self.levels), *shape), shape)))
        for piece, sums in pieces:
            self.layout.update(piece.stations)
            in_threads(partial(self._grid, piece.day, sums, out, piece.hours.start), shape[1], _BLOCK)
        self._reach_farther(out.distance, valid)
        return Block(hours, out.mean, out.quantiles, out.distance, valid.sum(axis=1))

    def _pieces(self, hours: slice) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """Cut a day into runs of hours (slices of it) with the same stations, and their indices.

        A station belongs to an hour once its window holds a valid PM2.5, so one that first reports at 15 UTC leaves the
        hours before as they were. Most days are one piece, all are in final mode; hours before any observation belong
        to none.
        """
        span = self._window(hours)
        seen = np.isfinite(self.observations.values[0, max(span.start, 0) : span.stop])
        reporting = np.logical_or.accumulate(seen, axis=0)
        if self.mode == "final":
            reporting[:] = reporting[-1]
        first = hours.start - max(span.start, 0)
        reporting = reporting[first : first + hours.stop - hours.start]  # (T, S)
        cuts = np.flatnonzero((reporting[1:] != reporting[:-1]).any(axis=1)) + 1
        for start, stop in pairwise([0, *cuts.tolist(), len(reporting)]):
            if reporting[start].any():
                yield slice(start, stop), np.flatnonzero(reporting[start])

    def _window(self, hours: slice) -> slice:
        """The whole day of some hours, its lead and (final mode) tail; it may reach out of the record at both ends."""
        config = self.network.config
        midnight = hours.start - int(self.observations.hours[hours.start] % DAY)
        tail = config.tail_hours if self.mode == "final" else 0
        return slice(midnight - config.lead_hours, midnight + DAY + tail)

    def _encode(self, hours: slice, piece: slice, stations: NDArray[np.int64]) -> Channels:
        """Channels of some stations in a piece of the day, (stations, T[, E]).

        The encoder always sees a whole day, hours to come as unknown ones: products of one shape are rounded alike.
        """
        span, config = self._window(hours), self.network.config
        end = span.stop if self.mode == "final" else hours.start + piece.stop
        read = slice(max(span.start, 0), min(end, len(self.observations.hours)))
        inputs = window(self.observations, read, stations, config.mean, config.std)
        padded = type(inputs)(*(_pad(part, read.start - span.start, span.stop - read.stop) for part in inputs))
        channels = self.network.encoder(padded, self.layout.surroundings(stations), self.mode)
        first = hours.start - span.start - config.lead_hours  # hours of the day before the first that is wanted
        return Channels(*(channel[:, first + piece.start : first + piece.stop] for channel in channels))

    def _day(self, hours: slice, piece: slice, stations: NDArray[np.int64]) -> Day:
        """What the stations say in a piece of the day, as `grid_hours` reads it."""
        channels, valid = self._encode(hours, piece, stations), np.isfinite(self.observations.values[0, hours])
        scalar = torch.stack([channels.error, channels.heard], dim=-1)
        near = torch.cat([scalar, channels.embedding], dim=-1)  # (stations, T, C)
        padded = torch.zeros(valid.shape[1], near.shape[2], HOURS).numpy()  # torch aligns to cache lines
        padded[stations, :, : near.shape[1]] = near.transpose(1, 2).numpy()
        now = self.observations.hours[hours][piece]
        cycle = np.zeros((2, HOURS), np.float32)
        cycle[:, : len(now)] = cyclic(now, np.zeros(1), 24.0)[0].numpy().T
        bands = self.layout.everywhere(channels.bands, stations)
        return Day(bands, padded, np.ascontiguousarray(valid[piece].T), cycle)

    @torch.inference_mode()
    def _weigh(self, said: Tensor, out: Tensor, part: slice) -> None:
        """Weighted sums (B, Q, T) of what is said (B, S, T), of some cells, a block after the other.

        They are float64 and rounded last, so that they do not depend on the order in which stations are added up.
        """
        for first in range(part.start, part.stop, _BLOCK):
            block = slice(first, min(first + _BLOCK, part.stop))
            for b in range(BANDS):
                out[b, block] = torch.from_numpy(self.layout.cells.bands[b, block]) @ said[b]

    def _grid(self, day: Day, sums: Sums, out: Out, start: int, part: slice) -> None:
        """Estimate some cells, a block after the other: the same blocks whatever the threads."""
        for first in range(part.start, part.stop, _BLOCK):
            last = min(first + _BLOCK, part.stop)
            grid_hours(first, last, sums, self.layout.cells, day, self.head, self.levels, out, start)

    def _reach_farther(self, distance: Float, valid: NDArray[np.bool_]) -> None:
        """Fill in distances to stations beyond the neighbours of a point, where none of these is valid."""
        for hour, mark in enumerate(valid):
            points = np.flatnonzero(np.isnan(distance[hour]))
            if len(points) and mark.any():
                distance[hour, points] = self.layout.finder.search(points, np.flatnonzero(mark), 1).km[:, 0]


def _pad(part: Tensor, before: int, after: int) -> Tensor:
    """Hours (second axis) of zeros before and after."""
    edge = [part.new_zeros(part.shape[0], count, *part.shape[2:]) for count in (before, after)]
    return torch.cat([edge[0], part, edge[1]], dim=1)
