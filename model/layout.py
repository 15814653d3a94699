"""Layouts of stations: what they say of one another by kriging.

Shapes: S stations, M of them silent, R sets of kriging parameters, G terrain features. Distances in km.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.aqnet import WHOLE, Kriging, Surroundings

#: Stations nearer than this say nothing when the surroundings are judged without them, km: about a city.
APART_KM = 50.0

#: With fewer stations than these, those farther away do not make surroundings.
ENOUGH = 24


def surroundings(kriging: Kriging, between_SS: Tensor, terrain_SG: Tensor) -> Surroundings:
    """What the stations say of one another by the covariance of the whole value."""
    return surroundings_of(kriging.system(between_SS, terrain_SG, [WHOLE]).precision[0], between_SS)


def surroundings_of(precision_SS: Tensor, between_SS: Tensor) -> Surroundings:
    """Kriging weights of all other stations, and of those that lie `APART_KM` or farther away.

    They follow from the precision Q of all: without a block g, its values are estimated as x_g - inverse(Q[g, g])
    (Q x)[g] (Dubrule 1983, doi:10.1007/BF01033240). A station with fewer than `ENOUGH` others so far away is judged by
    all of them both times.
    """
    if len(precision_SS) < 2:
        return Surroundings(torch.zeros_like(between_SS), torch.zeros_like(between_SS))
    near = between_SS < APART_KM
    near[(~near).sum(1) < ENOUGH] = False
    near.fill_diagonal_(True)
    alone = _without(precision_SS, torch.arange(len(near)), torch.arange(len(near))[:, None])
    count, apart = near.sum(1), torch.empty_like(alone)
    for size in count.unique().tolist():
        rows = torch.nonzero(count == size)[:, 0]
        apart[rows] = _without(precision_SS, rows, near[rows].nonzero()[:, 1].view(len(rows), size))
    return Surroundings(alone.float(), apart.float())


def _without(precision: Tensor, station_N: Tensor, block_NI: Tensor) -> Tensor:
    """Weights (N, S), for each station, of those outside the block (which it belongs to)."""
    own = (block_NI == station_N[:, None]).int().argmax(1)
    inner = precision[block_NI[:, :, None], block_NI[:, None, :]]
    row = torch.cholesky_inverse(torch.linalg.cholesky(inner))[torch.arange(len(own)), own]  # (N, I)
    weights = -torch.einsum("ni,nis->ns", row, precision[block_NI])
    return weights.scatter(1, block_NI, 0.0)
