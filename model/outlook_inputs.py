"""What the outlook network reads: the 336 hours before an issue time as level, pattern, anomalies and blocks.

A station's history is taken apart into a level (its mean), a pattern (the mean deviation of each hour of the day) and
anomalies from both. The anomalies of the surroundings, near and far and up each quarter of the compass, tell what the
wind may bring; they are weighted means over the stations that may be seen.

Shapes: N targets (stations, perhaps of several issue times), S stations, L history hours, B blocks, C contexts,
F inputs a block, K anomalies, J decays, T leads. z = log(PM2.5 + 1), PM2.5 in ug m-3; distances in km.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.geometry import distance_matrix
from model.windows import CYCLES, POLLUTANTS, Float, Observations, cyclic

HISTORY, HORIZON, DAY = 336, 168, 24

#: Hours of each block of the history, oldest first: 264 h by 6, 48 h by 3 and the last day by the hour.
BLOCKS = (6,) * 44 + (3,) * 16 + (1,) * 24

#: Spans over which a station's own and its surroundings' recent anomalies are averaged, hours.
SPANS, AROUND_SPANS, SECTOR_SPANS, OTHER_SPANS = (1, 3, 6, 12, 24, 72), (3, 24, 72), (3, 24), (3, 24)

#: Scales of the surroundings and of the four sectors (E, N, W, S), km; a sector leaves out what is nearer than `NEAR`.
AROUND, SECTOR, NEAR = (60.0, 150.0, 400.0), 250.0, 30.0
CONTEXTS = len(AROUND) + 4

#: e-folding times of the decays with lead, hours; the last does not decay within the horizon.
DECAYS = (1.5, 4.0, 12.0, 30.0, 72.0, 200.0, 1e6)

#: Hours of prior mean that the level is shrunk by, and days of no pattern that the hour-of-day pattern is shrunk by.
LEVEL_PRIOR, PATTERN_PRIOR = 24.0, 4.0

OTHERS = len(POLLUTANTS) - 1
ANOMALIES = (
    len(SPANS) + len(AROUND) * len(AROUND_SPANS) + 4 * len(SECTOR_SPANS) + 1 + len(AROUND) + OTHERS * len(OTHER_SPANS)
)
CYCLIC = 2 * len(CYCLES)
BLOCK_FEATURES = 2 + 2 * OTHERS + CONTEXTS + 2 + CYCLIC
LEAD_FEATURES = len(DECAYS) + CYCLIC

#: Coldest day of the year (northern hemisphere) and length of the year, days: the season is even about that day.
COLDEST, YEAR = 15.0, 365.2425


class Record(NamedTuple):
    """A record as tensors: `z` (S, T) log(PM2.5 + 1), `others` (S, T, 5) scaled logarithms, both 0 where missing, and
    their marks `valid` (S, T), `marks` (S, T, 5) of 1 and 0; `hours` (T,) since 1970; `lon`, `lat` (S,) degrees;
    `prior` level of z where nothing is known.
    """  # noqa: D205

    z: Tensor
    valid: Tensor
    others: Tensor
    marks: Tensor
    hours: NDArray[np.int64]
    lon: Float
    lat: Float
    prior: float


class Inputs(NamedTuple):
    """What the network reads of N targets at T leads.

    `blocks` (N, B, F); `anomalies` (N, K); `base` (N, T) level + hour-of-day pattern; `season` (N, T) change of the
    season since the history; `lead` (T,) hours, 1 to 168; `cycles` (N, T, 4) local solar time of the target hours.
    """

    blocks: Tensor
    anomalies: Tensor
    base: Tensor
    season: Tensor
    lead: Tensor
    cycles: Tensor


def record_of(o: Observations, mean: tuple[float, ...], std: tuple[float, ...]) -> Record:
    """Scale a record once, so that every issue time only cuts it; `mean` and `std` as in `OutlookConfig`."""
    values = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(o.values, np.float32), 0, 2).swapaxes(0, 1)))
    known = torch.isfinite(values)
    logs = torch.where(known, values, 0.0).clamp(min=0).log1p()
    scaled = (logs - torch.tensor(mean)) / torch.tensor(std) * known
    mark = known.float()
    return Record(
        logs[..., 0] * mark[..., 0], mark[..., 0], scaled[..., 1:], mark[..., 1:], o.hours, o.lon, o.lat, mean[0]
    )


def contexts(lon: Float, lat: Float, to_lon: Float, to_lat: Float) -> Tensor:
    """Weights (C, N, S) of the stations in the surroundings of each target: Gaussian by `AROUND`, then E, N, W, S.

    A sector weighs a station by the square of the cosine of its bearing off the sector's axis.
    """
    km = distance_matrix(to_lon, to_lat, lon, lat)
    east = (np.asarray(lon)[None] - np.asarray(to_lon)[:, None] + 180) % 360 - 180
    east = east * np.cos(np.radians(np.asarray(to_lat)))[:, None]
    bearing = np.arctan2(np.asarray(lat)[None] - np.asarray(to_lat)[:, None], east)
    around = [np.exp(-0.5 * (km / scale) ** 2) for scale in AROUND]
    far = np.exp(-0.5 * (km / SECTOR) ** 2) * (km > NEAR)
    sectors = [far * np.cos(bearing - axis * np.pi / 2).clip(0) ** 2 for axis in range(4)]
    return torch.from_numpy(np.stack(around + sectors)).float()


def read(
    record: Record,
    issue: int,
    seen: NDArray[np.int64],
    targets: NDArray[np.int64],
    context_CNS: Tensor,
    lead: Tensor,
) -> Inputs:
    """Inputs of an issue time: hours `issue` - 336 to `issue` - 1 of the record, and nothing else of it.

    Parameters
    ----------
    issue : index of the first hour that is forecast; where the record begins too late, hours before it are missing.
    seen : stations whose history may be used; indices into the record.
    targets : positions in `seen` of the stations to forecast.
    context_CNS : from `contexts`, of the targets to the seen.
    lead : (T,) hours ahead; lead 1 is hour `issue`.
    """
    z_SL, valid_SL = (_history(part, issue, seen) for part in (record.z, record.valid))
    level_S, pattern_SD = level_and_pattern(z_SL, valid_SL, record.prior)
    anomaly_SL = (z_SL - level_S[:, None] - pattern_SD.repeat(1, HISTORY // DAY)) * valid_SL
    total_SB, count_SB = _blocked(anomaly_SL), _blocked(valid_SL)
    around_CNB = _weighted(context_CNS, total_SB, count_SB)
    others, marks = (_history(part, issue, seen[targets]) for part in (record.others, record.marks))
    deviation = (others - (others.sum(1) / (marks.sum(1) + LEVEL_PRIOR))[:, None]) * marks
    first = int(record.hours[0]) + issue
    lon, lat = record.lon[seen[targets]], record.lat[seen[targets]]
    own = _own(anomaly_SL[targets], valid_SL[targets])
    nearby = _nearby(context_CNS, total_SB, count_SB)
    levels = _levels(context_CNS, level_S, targets, record.prior)
    other = [deviation[:, -n:].sum(1) / (marks[:, -n:].sum(1) + 0.5) for n in OTHER_SPANS]
    blocks = [
        total_SB[targets] / count_SB[targets].clamp(min=1),
        count_SB[targets].clamp(max=1),
        *(_blocked(deviation[..., p]) / _blocked(marks[..., p]).clamp(min=1) for p in range(OTHERS)),
        *(_blocked(marks[..., p]).clamp(max=1) for p in range(OTHERS)),
        *around_CNB,
        (level_S[targets, None] - record.prior).expand(-1, len(BLOCKS)),
        torch.tensor(BLOCKS).log().expand(len(targets), -1) / 2,
    ]
    middle = first - np.cumsum(BLOCKS[::-1])[::-1] + np.array(BLOCKS) // 2
    ahead = first + lead.numpy() - 1
    return Inputs(
        torch.cat([torch.stack(blocks, dim=-1), _cycles(middle, lon)], dim=-1),
        torch.cat([own, nearby, levels, *other], dim=-1),
        level_S[targets, None] + pattern_SD[targets][:, (lead - 1) % DAY],
        _season(ahead, first, lat),
        lead,
        _cycles(ahead, lon),
    )


def level_and_pattern(z_SL: Tensor, valid_SL: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Mean (S,) of the history and smoothed mean deviation from it of each hour of the day (S, 24), both shrunk.

    Position 0 of the pattern is the hour of the day of the history's first hour, which is that of lead 1 too.
    """
    level = (z_SL.sum(1) + LEVEL_PRIOR * prior) / (valid_SL.sum(1) + LEVEL_PRIOR)
    days = ((z_SL - level[:, None]) * valid_SL).view(len(z_SL), -1, DAY), valid_SL.view(len(z_SL), -1, DAY)
    raw = days[0].sum(1) / (days[1].sum(1) + PATTERN_PRIOR)
    return level, 0.5 * raw + 0.25 * (raw.roll(1, dims=1) + raw.roll(-1, dims=1))


def _history(part: Tensor, issue: int, stations: NDArray[np.int64]) -> Tensor:
    """Cut (stations, 336, ...) before `issue`, zeros where the record begins later."""
    held = part[:, max(issue - HISTORY, 0) : issue][torch.from_numpy(stations)]
    lacking = HISTORY - held.shape[1]
    return torch.cat([held.new_zeros(len(held), lacking, *held.shape[2:]), held], dim=1) if lacking else held


def _blocked(part_SL: Tensor) -> Tensor:
    """Sums over each block, (S, B)."""
    edges = np.cumsum((0, *BLOCKS))
    total = F.pad(part_SL.cumsum(1), (1, 0))
    return total[:, edges[1:]] - total[:, edges[:-1]]


def _weighted(context_CNS: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """Weighted means (C, N, B) over the stations seen; 0 where none of them reports."""
    return (context_CNS @ total) / ((context_CNS @ count) + 1e-2)


def _own(anomaly: Tensor, valid: Tensor) -> Tensor:
    """Mean of the station's own anomaly over each of `SPANS` (N, 6); an empty span takes the next longer one's."""
    means = [torch.zeros(len(anomaly))]
    for span in reversed(SPANS):
        count = valid[:, -span:].sum(1)
        means.append(torch.where(count > 0, anomaly[:, -span:].sum(1) / count.clamp(min=1), means[-1]))
    return torch.stack(means[:0:-1], dim=-1)


def _nearby(context_CNS: Tensor, total_SB: Tensor, count_SB: Tensor) -> Tensor:
    """Mean anomaly of the surroundings over their spans, (N, 9 + 8)."""
    age = np.cumsum(BLOCKS[::-1])[::-1]
    spans = {n: int((age > n).sum()) for n in AROUND_SPANS}
    summed = {n: (total_SB[:, b:].sum(1, keepdim=True), count_SB[:, b:].sum(1, keepdim=True)) for n, b in spans.items()}
    n = len(AROUND)
    around = [_weighted(context_CNS[:n], *summed[span])[..., 0] for span in AROUND_SPANS]
    sectors = [_weighted(context_CNS[n:], *summed[span])[..., 0] for span in SECTOR_SPANS]
    return torch.cat(around + sectors).T


def _levels(context_CNS: Tensor, level_S: Tensor, targets: NDArray[np.int64], prior: float) -> Tensor:
    """The station's level, and that of its surroundings minus its own, (N, 1 + 3)."""
    own = level_S[targets]
    around = _weighted(context_CNS[: len(AROUND)], level_S[:, None] - prior, torch.ones(len(level_S), 1))[..., 0]
    return torch.cat([(own - prior)[None], around - (own - prior)]).T


def _cycles(hours: NDArray[np.int64], lon: Float) -> Tensor:
    return torch.cat([cyclic(hours, lon, period) for period in CYCLES], dim=-1)


def _season(ahead: NDArray[np.int64], first: int, lat: Float) -> Tensor:
    """Cosine of the season at the hours ahead minus its mean over the history, (N, T); turned round in the south."""

    def cosine(hours: NDArray[np.int64]) -> Float:
        return np.cos(2 * np.pi * (hours / DAY - COLDEST) / YEAR)

    change = cosine(ahead) - cosine(np.arange(first - HISTORY, first)).mean()
    return torch.from_numpy(np.sign(np.asarray(lat))[:, None] * change[None]).float()


def decays(lead: Tensor) -> Tensor:
    """exp(-(h - 1) / tau) of each of `DECAYS`, (T, J)."""
    return torch.exp(-(lead.float()[:, None] - 1) / torch.tensor(DECAYS))


def all_leads() -> Tensor:
    """Leads 1 to 168, hours."""
    return torch.arange(1, HORIZON + 1)
