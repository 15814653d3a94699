"""One estimate taken apart: kriging of which observations, what the network changes, and what it heeds.

The estimate of a place and hour is made again by the network's reference path (`model.aqnet`), from the stations that
report alone, and differentiated by autograd. Two sorts of numbers come out:

* `Parts.weight` is exact. Before the network's corrections the estimate of z is linear in the observations of the
  window, gaps filled included, so its derivative is the weight of each; over all observations weights sum to 1, and
  weights times observations give `Parts.kriged`. `Parts.correction`, `shift` and `lift` are what the network adds, and
  the four add up to the z of the mean.
* `Parts.response` is a tangent: by how much the mean would rise, corrections included, had a station reported 1 ug m-3
  more in every hour. It holds for small changes and sums to nothing in particular.

Shapes: S stations that report in the window, L hours of the window, B bands, N levels. Values as z, see
`model.windows.to_z`, unless a unit is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.aqnet import MEDIAN, AQNet, Channels, Surroundings, Weights, bands_of, fill, gather, recent_error
from model.geometry import distance_matrix
from model.kriging import Geometry
from model.layout import surroundings
from model.train import without_others
from model.windows import Float, Observations, Points, Window, cyclic, from_z, terrain_features, to_z, window

DAY = 24


@dataclass(frozen=True)
class Parts:
    """An estimate and what it is made of.

    Attributes
    ----------
    stations : (S,) indices into the record of those with a valid PM2.5 in the window.
    hours : slice of the record, the window.
    km : (S,) distance of each station.
    weight : (S, L) of the z of each observation, 0 where there is none; sums to 1.
    bands, band_weight : (B, S) value of each band, uncorrected, at the hour, and its kriging weight; the weights of a
        band sum to 1.
    correction : (S,) what the encoder's correction of a station's bands adds to the estimate.
    attention : (S,) weight of the error nearby, share heard and embedding of the nearest; sums to 1.
    response : (S,) rise of the mean where a station reports 1 ug m-3 more in all hours, ug m-3.
    kriged : sum of weight times observation.
    shift, lift : what the head adds to the kriged bands for the median, and to the median for the mean.
    mean : ug m-3.
    quantiles : (N,) ug m-3 at `LEVELS`.
    alone : mean had the stations reported PM2.5 alone: other pollutants count in the corrections only, ug m-3.
    """

    stations: NDArray[np.int64]
    hours: slice
    km: Float
    weight: Float
    bands: Float
    band_weight: Float
    correction: Float
    attention: Float
    response: Float
    kriged: float
    shift: float
    lift: float
    mean: float
    quantiles: Float
    alone: float

    @property
    def corrected(self) -> float:
        """Kriged bands with the encoder's corrections."""
        return self.kriged + float(self.correction.sum())

    @property
    def median(self) -> float:
        """The median, as z."""
        return self.corrected + self.shift


class _Layout(NamedTuple):
    """Weights of the reporting stations at the place, their nearest, distances (S,) and what they say of another."""

    weights: Weights
    nearest: Tensor
    km: Float
    around: Surroundings


class _Read(NamedTuple):
    """What the encoder reads, and where in its output the wanted hour is."""

    window: Window
    around: Surroundings
    mode: str
    hour: int
    lead: int


def window_of(network: AQNet, observations: Observations, at: int, mode: str = "interim") -> slice:
    """Hours of a record that the estimate of hour `at` depends on: see `model.infer`."""
    config = network.config
    midnight = at - int(observations.hours[at] % DAY)
    stop = at + 1 if mode == "interim" else midnight + DAY + config.tail_hours
    return slice(midnight - config.lead_hours, stop)


def take_apart(
    network: AQNet, observations: Observations, place: Points, at: int, mode: str = "interim"
) -> Parts | None:
    """Take the estimate at one place in hour `at` of a record apart.

    Parameters
    ----------
    observations : record that holds all of the hour's window.
    place : one point.
    at : index of the hour in the record.

    Returns
    -------
    Parts, or None where no station reports in the window.

    Raises
    ------
    ValueError
        When the record does not hold the window.
    """
    hours = window_of(network, observations, at, mode)
    if hours.start < 0 or hours.stop > len(observations.hours):
        raise ValueError(f"record: expected hours {hours.start} to {hours.stop}; found 0 to {len(observations.hours)}")
    stations = np.flatnonzero(np.isfinite(observations.values[0, hours]).any(axis=0))
    if not len(stations):
        return None
    layout = _lay(network, observations, place, stations, mode)
    inputs = window(observations, hours, stations, network.config.mean, network.config.std)
    lead = network.config.lead_hours
    read = _Read(inputs, layout.around, mode, at - hours.start - lead, lead)
    cycle = cyclic(observations.hours[at : at + 1], place.lon, 24.0)
    return _parts(network, layout, read, cycle, stations, hours)


def _lay(network: AQNet, o: Observations, place: Points, stations: NDArray[np.int64], mode: str) -> _Layout:
    """Weights of the place from the reporting stations alone."""
    lon, lat, terrain = o.lon[stations], o.lat[stations], terrain_features(o)[stations]
    km = distance_matrix(place.lon, place.lat, lon, lat)
    between = torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float()
    near = torch.from_numpy(km).float().topk(min(network.config.near, len(stations)), largest=False)[1]
    geometry = Geometry(torch.from_numpy(km).float(), between, terrain_features(place), terrain)
    with torch.no_grad():
        weights = network.knn(geometry, near, mode)
        around = surroundings(network.knn.kriging, between, terrain)
    return _Layout(weights, near, km[0], around)


def _parts(
    network: AQNet, layout: _Layout, read: _Read, cycle: Tensor, stations: NDArray[np.int64], hours: slice
) -> Parts:
    z = read.window.z.clone().requires_grad_()
    channels, plain = _encode(network, read._replace(window=read.window._replace(z=z)))
    sums = gather(channels, layout.nearest, layout.weights)
    quantiles, mean = network.head(sums, layout.weights, cycle)
    with torch.no_grad():
        lonely = read.window._replace(features=without_others(read.window.features))
        heard = _encode(network, read._replace(window=lonely))[0]
        alone = network(heard, layout.nearest, layout.weights, cycle)[1]
    band_weight = layout.weights.bands[0].double()  # (B, S)
    kriged = (band_weight * plain.double().T).sum()
    (weight,) = torch.autograd.grad(kriged, z, retain_graph=True)
    published = from_z(mean).sum()
    (slope,) = torch.autograd.grad(published, z)
    median = float(quantiles[0, 0, MEDIAN].detach())
    return Parts(
        stations=stations,
        hours=hours,
        km=layout.km,
        weight=(weight * read.window.valid).double().numpy(),
        bands=plain.detach().T.double().numpy(),
        band_weight=band_weight.numpy(),
        correction=_corrections(channels, plain, band_weight),
        attention=_spread(layout, len(stations)),
        response=(slope * read.window.valid * _z_per_ug(read.window.z)).sum(1).double().numpy(),
        kriged=float(kriged.detach()),
        shift=median - float(sums.bands.detach().double().sum()),
        lift=float(mean.detach()[0, 0]) - median,
        mean=float(published.detach()),
        quantiles=from_z(quantiles.detach())[0, 0].double().numpy(),
        alone=float(from_z(alone)),
    )


def _encode(network: AQNet, read: _Read) -> tuple[Channels, Tensor]:
    """Channels of the one hour, as `Encoder.forward` makes them but with gradients; the bands (S, B) uncorrected."""
    window, around, mode, hour, lead = read
    filled, departure = fill(window, around.alone, two_sided=mode == "final")
    own = lead + hour
    plain = bands_of(filled, window.valid.any(0), mode)[:, own]
    error, heard = (x[:, own : own + 1] for x in recent_error(window, filled, around, mode))
    corrected, embedding = (x[:, hour : hour + 1] for x in network.encoder.read(window, filled, departure, mode))
    return Channels(plain[:, None] + 0.3 * corrected, embedding, error, heard), plain


def _corrections(channels: Channels, plain: Tensor, band_weight: Tensor) -> Float:
    off = (channels.bands[:, 0] - plain).detach().double()  # (S, B)
    return (off * band_weight.T).sum(1).numpy()


def _spread(layout: _Layout, stations: int) -> Float:
    """Attention of the nearest, of all stations (S,)."""
    every = torch.zeros(stations, dtype=torch.float64)
    every[layout.nearest[0]] = layout.weights.attention[0].double()
    return every.numpy()


def _z_per_ug(z: Tensor) -> Tensor:
    """Derivative of z by PM2.5; below 1 ug m-3, where it grows without bound, that of 1 ug m-3."""
    return 1 / (3 * z.clamp(min=1.0) ** 2)


def in_ug(z: float) -> float:
    """PM2.5 (ug m-3) of z, not below 0."""
    return max(z, 0.0) ** 3


def as_z(pm2p5: Float) -> Float:
    """Observations (ug m-3) as the network sees them."""
    return to_z(torch.from_numpy(np.asarray(pm2p5, np.float32))).numpy().astype(np.float64)
