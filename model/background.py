"""AQ-Net with gridded covariates: what a field knows of a place beyond what the stations around say of it.

A covariate x (boundary-layer height, a chemistry model's PM2.5 ...) enters as external drift, added to an unchanged
network. The network, linear in z but for small corrections, makes of the stations' z an estimate z^; the same sums make
of their x an x^. The estimate then moves by beta (x - x^), in z. For a linear interpolator that is regression kriging:
interpolate what beta x leaves of z, add beta x back (Hengl et al. 2007, doi:10.1016/j.cageo.2007.05.001); here the
network sees the measurements that it was trained on, and with beta = 0 its estimate stays as it is, to the bit.

beta is what would have served at the stations: the ridge regression of their departures from what their neighbours say,
on those of x. Departures are near to white in space, so this is near to the generalised least squares of kriging with
external drift. The strength of the ridge is that which served stations of other places (1 degree boxes left out) best,
no covariate at all among the choices. It is done twice, with the nearest neighbours of a station and with those at
least `APART_KM` away; a place near a station takes the first beta, one far from any the second.

An hour's beta comes from its window: the hours up to it (interim mode) or all (final mode), so never from what comes
later, nor from where the record begins.

Shapes: T hours, S stations, Q points, J covariates, L window hours, G groups of stations, N levels, W = 2 surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.aqnet import AQNet, Channels, bands_of, fill
from model.geometry import neighbours
from model.infer import Block, Interpolator, utc_days
from model.layout import APART_KM
from model.windows import LEVELS, Estimate, Float, Observations, Points, Window, to_z

#: Strengths of the ridge that are tried, as parts of the regressors' sums of squares.
STRENGTHS = (1e-3, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

#: Side of the boxes whose stations are left out together, degrees: a city's stations err together.
BOX_DEGREES = 1.0

#: Standard errors, over the groups, by which what a covariate gains must be above nothing. With 1, static noise of long
#: waves, which agrees with a week's weather by chance, still cost up to 3 %; 2 takes nothing from fields that help.
CAUTION = 2.0

#: Groups of stations below which nothing can be said of other places: no covariate is used.
FEWEST_GROUPS = 4

#: Largest departure of a covariate that counts, in standard deviations of the departures at stations.
FARTHEST_DEPARTURE = 3.0

_SMALLEST_Z = 0.3


@dataclass(frozen=True)
class Covariates:
    """Fields that may help, where they are known; in any unit, best one in which z is linear in them.

    Attributes
    ----------
    stations : (J, T, S) at the stations of a record, NaN where unknown.
    points : gives (J, hours, Q) at the points for hours of the record (a slice), NaN where unknown.
    """

    stations: Float
    points: Callable[[slice], Float]


class Fit(NamedTuple):
    """Coefficients of the covariates, (W, T, J), and how much smaller errors are with them, (W, T) in [0, 1]."""

    beta: Float
    ratio: Float


class _Drift(NamedTuple):
    """What a piece of a day needs: `bands` are of each covariate less `centre` (J,); `limit` (J, T); `reach` km."""

    fit: Fit
    bands: list[Tensor]
    centre: Float
    limit: Float
    reach: float


def estimate(
    network: AQNet, observations: Observations, points: Points, covariates: Covariates, mode: str = "interim"
) -> Estimate:
    """Estimate every hour of a record at `points`, as `model.infer.estimate`, with covariates."""
    blocks = list(day_blocks(network, observations, points, LEVELS, covariates, mode=mode))
    return Estimate(
        np.concatenate([block.mean for block in blocks]), np.concatenate([block.quantiles for block in blocks], axis=1)
    )


def day_blocks(
    network: AQNet,
    observations: Observations,
    points: Points,
    levels: tuple[float, ...],
    covariates: Covariates,
    start: int = 0,
    stop: int | None = None,
    mode: str = "interim",
) -> Iterator[Block]:
    """Estimates one UTC day at a time, as `model.infer.day_blocks`, with covariates.

    A point where any covariate is unknown in an hour has the estimate that it has without covariates.

    Raises
    ------
    ValueError
        When `levels` lack the median, about which the interval moves.
    """
    field = Drifting(network, observations, points, levels, covariates, mode)
    for hours in utc_days(observations.hours[:stop], start):
        yield field(hours)


class Drifting(Interpolator):
    """The interpolator with covariates as external drift."""

    def __init__(
        self,
        network: AQNet,
        observations: Observations,
        points: Points,
        levels: tuple[float, ...],
        covariates: Covariates,
        mode: str = "interim",
    ) -> None:
        if 0.5 not in levels:
            raise ValueError(f"expected levels with the median, 0.5, among them; found {levels}")
        super().__init__(network, observations, points, levels, mode)
        self.covariates, self.middle = covariates, levels.index(0.5)
        self._moves: list[tuple[slice, Float, Float]] = []  # of the pieces of a day

    def __call__(self, hours: slice) -> Block:
        """Estimate the hours of one UTC day, as `Interpolator` does, and move them."""
        self._moves.clear()
        block = super().__call__(hours)
        mean, quantiles = block.mean.copy(), block.quantiles.copy()
        for piece, shift, ratio in self._moves:
            moved, at = move(quantiles[:, piece], mean[piece], shift, ratio, self.middle), np.isfinite(shift)
            quantiles[:, piece] = np.where(at, moved[0], quantiles[:, piece])
            mean[piece] = np.where(at, moved[1], mean[piece])
        return replace(block, mean=mean, quantiles=quantiles)

    def _encode(self, hours: slice, piece: slice, stations: NDArray[np.int64]) -> Channels:
        """As `Interpolator`; the layout, which is told of the piece's stations, also moves the covariates' bands."""
        self.layout.update(stations)
        here = self.covariates.points(slice(hours.start + piece.start, hours.start + piece.stop))
        self._moves.append((piece, *self._move(self._fit(hours, piece, stations), here, stations)))
        return super()._encode(hours, piece, stations)

    def _fit(self, hours: slice, piece: slice, stations: NDArray[np.int64]) -> _Drift:
        """Fit the coefficients on the window of a piece, and prepare the covariates at stations."""
        span = self._window(hours)
        end = span.stop if self.mode == "final" else hours.start + piece.stop
        z, x, centre = self._read(slice(span.start, end), stations)
        own = slice(hours.start - span.start + piece.start, hours.start - span.start + piece.stop)
        sums, limit = self._regress(z, x, stations, own)
        return _Drift(fit(sums), [self._bands(w, stations, own) for w in x], centre, limit, self._reach(stations))

    def _read(self, hours: slice, stations: NDArray[np.int64]) -> tuple[Window, list[Window], Float]:
        """Windows (S, L) of z and, where z is valid and they are known, of covariates less `centre` (J,).

        Hours may leave the record. A covariate is centred on its first known value, so that what differs from place to
        place is not lost in the rounding of a large number (a pressure in Pa) and a constant is 0.
        """
        inside = slice(max(hours.start, 0), min(hours.stop, len(self.observations.hours)))
        edge = (inside.start - hours.start, hours.stop - inside.stop)

        def read(values_TS: Float, centre: float = 0.0) -> Tensor:
            part = (values_TS[inside][:, stations] - centre).T.astype(np.float32)
            return torch.from_numpy(np.pad(part, ((0, 0), edge), constant_values=np.nan))

        z = to_z(read(self.observations.values[0]))
        centre = np.array([_first(x[inside][:, stations]) for x in self.covariates.stations])
        given = [read(x, c) for x, c in zip(self.covariates.stations, centre, strict=True)]
        return _window(z), [_window(torch.where(z.isfinite(), x, np.nan)) for x in given], centre

    def _regress(self, z: Window, x: list[Window], stations: NDArray[np.int64], own: slice) -> tuple[Float, Float]:
        """Sums of products (W, T, G, M, M) of departures, and the largest of the covariates' that count, (J, T)."""
        two_sided, known, sums = self.mode == "final", torch.stack([w.valid for w in x]).all(0), []
        groups = boxes(*self._where(stations))
        for weights in self.layout.surroundings(stations):
            departures = torch.stack([fill(w, weights, two_sided)[1] for w in (*x, z)], dim=-1)
            sums.append(_over_time(_products(departures, known, groups), own, two_sided))
        count = _over_time(known.sum(0).double().numpy(), own, two_sided)
        squares = np.einsum("tgii->it", sums[-1])[:-1] / np.maximum(count, 1.0)
        return np.stack(sums), FARTHEST_DEPARTURE * np.sqrt(squares)

    def _bands(self, x: Window, stations: NDArray[np.int64], own: slice) -> Tensor:
        """A covariate as if it were z, (S, T, B): gaps filled, parted into bands."""
        filled = fill(x, self.layout.surroundings(stations).alone, self.mode == "final")[0]
        return bands_of(filled, x.valid.any(0), self.mode)[:, own]

    def _reach(self, stations: NDArray[np.int64]) -> float:
        """Median distance of a station to the next, km."""
        here = self._where(stations)
        return float(np.median(neighbours(*here, *here, 2)[1][:, -1]))

    def _where(self, stations: NDArray[np.int64]) -> tuple[Float, Float]:
        return self.observations.lon[stations], self.observations.lat[stations]

    def _move(self, drift: _Drift, here: Float, stations: NDArray[np.int64]) -> tuple[Float, Float]:
        """By how much z moves (T, Q), NaN where it does not, and the factor of the interval's width (T, Q)."""
        far = farness(self.layout.cells.km[:, 0], drift.reach)
        beta, ratio = (part[0] * (1 - far) + part[1] * far for part in _points_last(drift.fit))
        shift = np.zeros(here.shape[1:])
        for j, bands in enumerate(drift.bands):
            away, limit = here[j] - drift.centre[j] - self._said(bands, stations), drift.limit[j][:, None]
            shift += beta[j] * np.clip(away, -limit, limit)
        return np.where((beta == 0).all(axis=0), np.nan, shift), ratio[0]

    def _said(self, bands_STB: Tensor, stations: NDArray[np.int64]) -> Float:
        """What the network's weights make of bands at the reporting stations, (T, Q)."""
        every = self.layout.everywhere(bands_STB, stations)
        said: Float = (self.layout.cells.bands @ every).sum(axis=0)
        return said.T


def _points_last(fitted: Fit) -> tuple[Float, Float]:
    """Coefficients (W, J, T, 1) and ratios (W, 1, T, 1), to be blended along the points."""
    return fitted.beta.transpose(0, 2, 1)[..., None], fitted.ratio[:, None, :, None]


def _first(x: Float) -> float:
    """First known value, hour by hour; 0 without any."""
    known = np.flatnonzero(np.isfinite(x.ravel()))
    return float(x.flat[known[0]]) if len(known) else 0.0


def _window(x: Tensor) -> Window:
    known = x.isfinite()
    return Window(x.new_empty(0), torch.where(known, x, 0.0), known)


def farness(km: Float, reach: float) -> Float:
    """Where a place lies between the two surroundings, in [0, 1]: 0 at `reach`, as stations do, 1 from `APART_KM`."""
    low, high = np.log1p(min(reach, 0.5 * APART_KM)), np.log1p(APART_KM)
    return np.clip((np.log1p(km) - low) / (high - low), 0.0, 1.0)


def move(quantiles: Float, mean: Float, shift: Float, ratio: Float, middle: int) -> tuple[Float, Float]:
    """Move an estimate by `shift` in z and scale its width in z by `ratio`.

    Parameters
    ----------
    quantiles, mean : (N, T, Q) and (T, Q), ug m-3.
    shift, ratio : (T, Q).
    middle : index of the median.

    Notes
    -----
    For z normal about m, E[z^3] = m^3 + 3 m s^2: the excess of the mean over the median's cube goes with m s^2.
    """
    z = np.cbrt(quantiles)
    before, after = z[middle], np.maximum(z[middle] + shift, 0.0)
    moved = np.maximum(after + ratio * (z - before), 0.0) ** 3
    excess = (mean - quantiles[middle]) * ratio**2 * np.clip(after / np.maximum(before, _SMALLEST_Z), 0.0, 3.0)
    return moved.astype(np.float32), np.maximum(after**3 + excess, 0.0).astype(np.float32)


# ---- regression ----


def boxes(lon: Float, lat: Float) -> NDArray[np.int64]:
    """Group (S,) of each station, 0 to G - 1: those in one box of `BOX_DEGREES`."""
    corner = np.floor(np.stack([np.asarray(lon) % 360, lat], axis=-1) / BOX_DEGREES)
    return np.unique(corner, axis=0, return_inverse=True)[1].ravel()


def _products(v: Tensor, known: Tensor, groups: NDArray[np.int64]) -> Float:
    """Sums of products (L, G, J + 1, J + 1) over the stations of a group; `v` (S, L, J + 1), what is fitted last."""
    L, M = v.shape[1:]
    outer = torch.einsum("sli,slj->slij", v.double(), v.double()) * known[..., None, None]
    total = torch.zeros(int(groups.max()) + 1, L, M, M, dtype=torch.float64)
    return total.index_add_(0, torch.from_numpy(groups), outer).transpose(0, 1).numpy()


def _over_time(terms: Float, own: slice, two_sided: bool) -> Float:
    """Sums of `terms` (L, ...) over the window for each of its own hours (T, ...): up to the hour, or all of it."""
    if two_sided:
        return np.repeat(terms.sum(axis=0)[None], own.stop - own.start, axis=0)
    return terms.cumsum(axis=0)[own]


def fit(products: Float) -> Fit:
    """Ridge regression whose strength is chosen by leaving out groups of stations, in closed form.

    Parameters
    ----------
    products : (..., G, M, M) sums of products of the J = M - 1 regressors and, last, of what they are to explain.

    Returns
    -------
    Fit
        Coefficients (..., J), and the root of the ratio (...) of squared errors at groups left out to those without
        covariates; 0 and 1 where no covariate helped.
    """
    A, b, c = products[..., :-1, :-1], products[..., :-1, -1], products[..., -1, -1]
    total_A, total_b = A.sum(axis=-3), b.sum(axis=-2)
    rest_A, rest_b = total_A[..., None, :, :] - A, total_b[..., None, :] - b
    best_beta, best_gain, least = np.zeros(total_b.shape), np.zeros(total_b.shape[:-1]), c.sum(axis=-1)
    none = least.copy()
    enough = (np.einsum("...ii->...", A) > 0).sum(axis=-1) >= FEWEST_GROUPS
    for strength in STRENGTHS:
        out = _ridge(rest_A, rest_b, strength)
        gain = 2 * (out * b).sum(-1) - np.einsum("...i,...ij,...j->...", out, A, out)  # (..., G)
        sure = gain.sum(axis=-1) - CAUTION * np.sqrt(gain.shape[-1]) * gain.std(axis=-1)
        better = (sure > best_gain) & enough
        best_gain = np.where(better, sure, best_gain)
        least = np.where(better, none - gain.sum(axis=-1), least)
        best_beta = np.where(better[..., None], _ridge(total_A, total_b, strength), best_beta)
    ratio = np.sqrt(np.clip(least / np.where(none > 0, none, 1.0), 0.0, 1.0))
    return Fit(best_beta, np.where(none > 0, ratio, 1.0))


def _ridge(A: Float, b: Float, strength: float) -> Float:
    """Solve (A + strength diag(A)) beta = b; a regressor without variance gets 0."""
    diagonal = np.einsum("...ii->...i", A)
    J = A.shape[-1]
    penalty = np.where(diagonal > 0, strength * diagonal, 1.0)
    return np.linalg.solve(A + penalty[..., None] * np.eye(J), b[..., None])[..., 0]
