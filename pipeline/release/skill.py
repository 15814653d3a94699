"""What a run's own stations say of its network: a tenth of them withheld, estimated from the rest, beside kriging.

The release gate asks whether the network is worse than kriging, or than in the last revision, by more than so few
stations can tell; so sampling errors are kept beside the scores. Stations are what is sampled: the hours of one station
share its local bias.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model import baseline
from model.baseline import Estimator
from model.windows import Observations
from pipeline import score
from pipeline.contract import POLLUTANTS
from pipeline.evaluation import evaluate

log = logging.getLogger("aqnet")

Float = NDArray[np.float64]

#: Share of the stations that are withheld at a time, and stations to be withheld in all: a small network is withheld
#: from in several parts, for a few stations tell little.
SHARE, WANTED = 0.1, 30
KRIGING, NETWORK = "log_kriging", "AQ-Net"


@dataclass(frozen=True)
class Sample:
    """Estimates at withheld stations of some hours.

    Attributes
    ----------
    stations : (H,) index of each into the record; `nearest_km` from each to the nearest that was left.
    hours : (T,) since 1970-01-01.
    truth : (T, H) observed PM2.5, ug m-3, NaN where missing.
    plain : (T, H) median of the stations that were left, the estimate of somebody who knows no place.
    predictions : by method, of shape (T, H).
    """

    stations: NDArray[np.int64]
    nearest_km: Float
    hours: NDArray[np.int64]
    truth: Float
    plain: Float
    predictions: dict[str, score.Prediction]

    def table(self) -> pd.DataFrame:
        """Methods x metrics, see `pipeline.score.scores`."""
        return score.table(self.predictions, self.truth)

    def errors(self, names: Sequence[str]) -> pd.DataFrame:
        """Sums of the CRPS over hours, a row a station by its `names`: each method, ``plain``, and ``pairs``.

        Only pairs count that all methods estimate.
        """
        each = {name: score.pair_scores(made, self.truth, "crps") for name, made in self.predictions.items()}
        each["plain"] = np.abs(self.plain - self.truth)
        known = np.isfinite(np.stack(list(each.values()))).all(axis=0)
        index = pd.Index([names[k] for k in self.stations], name="station")
        sums = {name: values.sum(axis=0, where=known) for name, values in each.items()}
        found = pd.DataFrame(sums | {"pairs": known.sum(axis=0)}, index)
        return found[found["pairs"] > 0]


def sample(
    observations: Observations, estimators: Mapping[str, Estimator], lead: int, stop: int, seed: int = 0
) -> Sample | None:
    """Withhold a tenth of the stations with valid PM2.5 and estimate them by each method, kriging and IDW.

    That is done with disjoint tenths until 30 stations were withheld, or half of them.

    Parameters
    ----------
    observations : a continuous record whose first `lead` hours, and those from index `stop`, are not scored.
    estimators : name -> method.

    Returns
    -------
    None where there are fewer than two stations or nothing to score. Kriging has the variogram of the stations that
    are left, or that of CNEMC 2019 where they are too few.
    """
    pm2p5 = observations.values[POLLUTANTS.index("pm2p5")]
    active = np.flatnonzero((~np.isnan(pm2p5[lead:stop])).any(axis=0))
    if len(active) < 2:
        return None
    parts = _parts(active, np.random.default_rng(seed))
    found = _joined([_withheld(observations, hidden, estimators, lead, stop) for hidden in parts])
    if found.errors([""] * pm2p5.shape[1]).empty:
        log.warning("withheld stations: no observation that %s estimate", ", ".join(found.predictions))
        return None
    return found


def _parts(active: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Disjoint draws of a tenth of the stations."""
    size = min(max(round(SHARE * len(active)), 1), len(active) - 1)
    number = max(min(-(-WANTED // size), len(active) // 2 // size), 1)
    drawn = rng.permutation(active)
    return [np.sort(drawn[k * size : (k + 1) * size]) for k in range(number)]


def _withheld(
    observations: Observations, hidden: NDArray[np.int64], estimators: Mapping[str, Estimator], lead: int, stop: int
) -> Sample:
    """Estimate the stations `hidden` from all others."""
    others = np.setdiff1d(np.arange(observations.values.shape[2]), hidden)
    parts = evaluate.withhold(observations, others, hidden)
    scored = np.arange(len(observations.hours))[lead:stop]
    seen = evaluate.take(parts.visible, scored)
    hourly = {KRIGING: evaluate.own_kriging(seen), "idw_k8_p1": baseline.METHODS["idw_k8_p1"]}
    made = evaluate.predict(parts, scored, hourly, estimators, tail=len(observations.hours))
    truth = parts.truth[scored]
    plain = np.broadcast_to(_median(seen.values[POLLUTANTS.index("pm2p5")])[:, None], truth.shape)
    return Sample(hidden, evaluate.nearest_km(parts), seen.hours, truth, plain, made)


def _joined(parts: Sequence[Sample]) -> Sample:
    """One sample of all stations."""
    stations, near = (np.concatenate([getattr(p, name) for p in parts]) for name in ("stations", "nearest_km"))
    truth, plain = (np.concatenate([getattr(p, name) for p in parts], axis=1) for name in ("truth", "plain"))
    made = {name: _beside([part.predictions[name] for part in parts]) for name in parts[0].predictions}
    return Sample(stations, near, parts[0].hours, truth, plain, made)


def _beside(made: Sequence[score.Prediction]) -> score.Prediction:
    """Predictions at other stations, side by side."""
    quantiles = [one.quantiles for one in made if one.quantiles is not None]
    joined = np.concatenate(quantiles, axis=2) if quantiles else None
    return score.Prediction(np.concatenate([one.mean for one in made], axis=1), joined, made[0].levels)


def _median(values: NDArray[np.float32]) -> Float:
    """Median over stations (T,), NaN where none reports."""
    found = np.full(len(values), np.nan)
    heard = ~np.isnan(values).all(axis=1)
    found[heard] = np.nanmedian(values[heard], axis=1)
    return found


# ---- what it says, with its sampling error ----


@dataclass(frozen=True)
class Skill:
    """The network at withheld stations.

    Attributes
    ----------
    stations, pairs : withheld stations, and their hours with an observation and all estimates.
    crps, crps_kriging : mean CRPS, ug m-3.
    excess, excess_error : CRPS over that of kriging, less 1, and its standard error.
    skill, skill_error : 1 less CRPS over that of the hourly median of the other stations, and its standard error.
    """

    stations: int
    pairs: int
    crps: float
    crps_kriging: float
    excess: float
    excess_error: float
    skill: float
    skill_error: float


def skill(errors: Sequence[pd.DataFrame]) -> Skill | None:
    """Pool the `Sample.errors` of a run's months; None where there are fewer than two stations."""
    every = pd.concat(errors).groupby(level=0).sum() if errors else pd.DataFrame()
    if len(every) < 2:
        return None
    pairs = int(every["pairs"].sum())
    beside, beside_error = ratio(every[NETWORK], every[KRIGING])
    plain, plain_error = ratio(every[NETWORK], every["plain"])
    crps, crps_kriging = (float(every[name].sum() / pairs) for name in (NETWORK, KRIGING))
    return Skill(len(every), pairs, crps, crps_kriging, beside - 1.0, beside_error, 1.0 - plain, plain_error)


def ratio(above: pd.Series, below: pd.Series) -> tuple[float, float]:
    """Ratio of two sums over sampled stations, and its standard error by linearisation.

    Cochran 1977, Sampling Techniques, eq. 6.13, for clusters (stations) of a population much larger than the sample.
    """
    total = float(below.sum())
    if total == 0:
        return 1.0, float("inf")
    found, count = float(above.sum()) / total, len(above)
    residual = np.asarray(above - found * below, np.float64)
    return found, float(np.sqrt(count / (count - 1) * (residual**2).sum()) / total)
