"""Layouts of stations: what the kriging layers of AQ-Net are given of places and their neighbours.

Shapes: S stations, Q queries, K neighbours, G terrain features. Distances in km.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.aqnet import Geometry, NeuralKNN, Surroundings
from model.windows import Float

#: Neighbours that say something of a station.
SAYING = 24

#: Stations nearer than this say nothing when the surroundings are judged without them, km: about a city.
APART_KM = 50.0

#: Stations whose systems are solved at once.
_CHUNK = 256


def geometry_of(
    index_QK: Tensor, km: Float | Tensor, between_SS: Tensor, terrain_SG: Tensor, place_QG: Tensor
) -> Geometry:
    """Gather a `Geometry` from station distances (km) and terrain features."""
    between = between_SS[index_QK[:, :, None], index_QK[:, None, :]]
    return Geometry(torch.as_tensor(km, dtype=torch.float32), between, place_QG, terrain_SG[index_QK])


def surroundings(knn: NeuralKNN, between_SS: Tensor, terrain_SG: Tensor) -> tuple[Surroundings, Surroundings]:
    """Kriging weights on the nearest other stations of each, and on the nearest that lie `APART_KM` or farther away.

    A station with too few others so far away is judged by its nearest ones both times.
    """
    k = min(SAYING, len(between_SS) - 1)
    others = between_SS.clone().fill_diagonal_(float("inf"))
    far = torch.where(others < APART_KM, float("inf"), others)
    enough = torch.isfinite(far).sum(1, keepdim=True) >= k
    return (
        _around(knn, others, between_SS, terrain_SG, k),
        _around(knn, torch.where(enough, far, others), between_SS, terrain_SG, k),
    )


def _around(knn: NeuralKNN, away_SS: Tensor, between_SS: Tensor, terrain_SG: Tensor, k: int) -> Surroundings:
    km, index = away_SS.topk(k, largest=False)
    parts = []
    for start in range(0, len(index) if k else 0, _CHUNK):
        rows = slice(start, start + _CHUNK)
        parts.append(knn.whole(geometry_of(index[rows], km[rows], between_SS, terrain_SG, terrain_SG[rows])))
    return Surroundings(index, torch.cat(parts) if parts else torch.empty(len(index), 0))
