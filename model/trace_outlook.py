"""One forecast between stations taken apart: the weights of the forecasts at the stations around, and what is added.

Values as z of the outlook, log(PM2.5 + 1). Shapes: M neighbours, N levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.geometry import distance_matrix
from model.outlook import Outlook, OutlookNet, Weights, gather
from model.outlook_infer import Field, distribution
from model.outlook_inputs import HISTORY, all_leads, record_of
from model.windows import Float, Observations, Points, cyclic


@dataclass(frozen=True)
class OutlookParts:
    """A forecast and what it is made of.

    Attributes
    ----------
    stations : (M,) indices into the record, nearest first.
    seen : stations with a valid PM2.5 in the 336 hours; each may count in the forecasts at the neighbours.
    km : (M,) distance.
    weight : (M,) of the forecast at each neighbour: kriging heads and attention, mixed by their gates; sums to 1.
    centre : (M,) median of the forecast at each neighbour.
    combined : sum of weight times centre.
    shift, lift : what the head adds for the median, and to the median for the mean.
    mean : ug m-3.
    quantiles : (N,) ug m-3 at `model.windows.LEVELS`.
    """

    stations: NDArray[np.int64]
    seen: int
    km: Float
    weight: Float
    centre: Float
    combined: float
    shift: float
    lift: float
    mean: float
    quantiles: Float


def take_apart(network: OutlookNet, observations: Observations, place: Points, lead: int) -> OutlookParts | None:
    """Take the forecast at one place for `lead` (1 to 168) hours ahead of a record's end apart.

    Returns
    -------
    OutlookParts, or None where no station reports in the last 336 hours of the record.
    """
    o = observations
    recent = Observations(o.hours[-HISTORY:], o.values[:, -HISTORY:], o.lon, o.lat, o.elevation)
    record = record_of(recent, network.config.mean, network.config.std)
    field = Field(network, record, o.elevation, place, len(recent.hours))
    if not len(field.seen):
        return None
    return _parts(network, field, observations, place, lead)


@torch.inference_mode()
def _parts(network: OutlookNet, field: Field, o: Observations, place: Points, lead: int) -> OutlookParts:
    index, at = field.index[0], slice(lead - 1, lead)
    channels = Outlook(*(part[:, at] for part in field.channels))
    cycle = cyclic(np.array([field.first + lead - 1]), place.lon, 24.0)
    forecast, gate = _combine(network, channels, field, lead, cycle)
    weights, centre = field.weights, channels.centre[index, 0].double()
    weight = _mixed(weights, gate)
    made = distribution(network, forecast, between=True)
    combined, median = float(weight @ centre), float(forecast.centre[0, 0])
    stations = field.seen[index]
    return OutlookParts(
        stations=stations,
        seen=len(field.seen),
        km=_km(place, o, stations),
        weight=weight.numpy(),
        centre=centre.numpy(),
        combined=combined,
        shift=median - combined,
        lift=float(forecast.lift[0, 0]),
        mean=float(made.mean[0, 0]),
        quantiles=made.quantiles[:, 0, 0].astype(np.float64),
    )


def _combine(network: OutlookNet, channels: Outlook, field: Field, lead: int, cycle: Tensor) -> tuple[Outlook, Tensor]:
    """Forecast at the place, and the gates (1 + H,) by which attention and kriging heads are mixed."""
    said: list[Tensor] = []
    hook = network.knn.head.register_forward_hook(lambda _module, _inputs, out: said.append(out))
    try:
        kriged, attended = gather(channels, torch.from_numpy(field.index), field.weights)
        forecast = network.knn.combine(field.weights, kriged, attended, all_leads()[lead - 1 : lead], cycle)
    finally:
        hook.remove()
    return forecast, torch.softmax(said[0][0, 0, : kriged.shape[-1] + 1], dim=-1)


def _mixed(weights: Weights, gate: Tensor) -> Tensor:
    """Weight (M,) of each neighbour, over attention and kriging heads."""
    each = torch.cat([weights.attention[0][None], weights.kriging[0]])  # (1 + H, M)
    return gate.double() @ each.double()


def _km(place: Points, o: Observations, stations: NDArray[np.int64]) -> Float:
    return distance_matrix(place.lon, place.lat, o.lon[stations], o.lat[stations])[0]
