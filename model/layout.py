"""Layouts of stations: what they say of one another by kriging.

Shapes: S stations, M of them silent, R sets of kriging parameters, G terrain features. Distances in km.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.aqnet import Surroundings
from model.kriging import WHOLE, Kriging

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
    alone = -precision_SS / precision_SS.diagonal()[:, None]
    return Surroundings(alone.fill_diagonal_(0.0).float(), _apart(precision_SS, _blocks(between_SS)).float())


def _blocks(between_SS: Tensor) -> Tensor:
    """Whether a station (columns) is left out when another (rows) is judged by those farther away, (S, S)."""
    near = between_SS < APART_KM
    near[(~near).sum(1) < ENOUGH] = False
    return near.fill_diagonal_(True)


def _apart(precision: Tensor, block: Tensor) -> Tensor:
    """Weights (S, S), for each station, of those outside its block; blocks of one size are solved together."""
    weights, count = torch.empty_like(precision), block.sum(1)
    for size in count.unique().tolist():
        station = torch.nonzero(count == size)[:, 0]
        inside = block[station].nonzero()[:, 1].view(len(station), size)
        unit = (inside == station[:, None]).to(precision.dtype)[..., None]
        root = torch.linalg.cholesky(precision[inside[:, :, None], inside[:, None, :]])
        row = torch.cholesky_solve(unit, root).mT
        weights[station] = (row @ precision[inside])[:, 0]
    return (-weights).masked_fill(block, 0.0)
