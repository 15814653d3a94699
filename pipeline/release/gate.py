"""The release gate: what must hold before readers see a run, each check with what was expected and what was found.

Every check is a function of what the run found (`Findings`) and of the last revision; one that has nothing to judge by
passes as not judged. Limits, and the record they come from, are in docs/reference/release-gate.md; why a run is
stopped rather than published with a warning is in docs/adr/0019-release-gate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import Geod
from scipy import stats

from pipeline.contract import POLLUTANTS, STREAMS
from pipeline.errors import ProductError
from pipeline.qc.flags import FLAGS
from pipeline.qc.flags import INVALID as INVALID_BITS
from pipeline.release.agreement import Agreement
from pipeline.release.skill import Skill

#: Hours without any observation: at the end of a run, and in one piece. CNEMC was silent for 24 h at most in 2019.
SILENT_AT_END, SILENT = 6, 24
#: Share of the last revision's stations that must report. On every day of 2019, 95 % of the day before's did.
REPORTING = 0.75
#: Hours from which it is judged: its limit is of days, and in an hour part of a network may be late.
DAY = 24
#: Share of the last revision's median count of observations an hour that must be reached.
OBSERVATIONS = 0.6
#: Share of the reported values of a pollutant that may be invalid, when there are so many.
MOST_INVALID, LEAST_VALUES = 0.3, 100
#: Share of the stations known before that may stand elsewhere, and the distance (km) that counts.
MOVED, MOVED_KM, LEAST_KNOWN = 0.1, 2.0, 5
#: Agreement with what is published of the same hours, see `pipeline.release.agreement`.
LATE_HOURS, LATE_MARGIN, LEVEL, PATTERN = 2, 0.1, 1.4, 0.3
#: Largest steps, as factors: of the mean of land from hour to hour, and where the run meets published hours; and of the
#: 95th percentile over cells.
STEPS = {"mean": 3.5, "seam": 1.7, "cells": 12.0}
#: How much worse than kriging, and than in the last revision, the network may be, and the one-sided confidence of it.
EXCESS, SKILL_DROP, CONFIDENCE = 0.05, 0.2, 0.995


@dataclass(frozen=True)
class Check:
    """One check; `passed` is None where there was nothing to judge by. Nobody may overrule a `final` one."""

    name: str
    expected: str
    found: str
    passed: bool | None
    final: bool = False

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}; found {self.found}"


Places = Mapping[str, tuple[float, float]]
#: By pollutant, values reported and those of them that are invalid.
Invalid = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Last:
    """What the last revision said of itself, as far as it did; empty for the first.

    ``stations`` are those that reported, with longitude and latitude; ``observations`` the median number an hour.
    """

    revision: str = ""
    weights: str = ""
    stations: Places = field(default_factory=dict)
    observations: float | None = None
    skill: Skill | None = None


@dataclass(frozen=True)
class Findings:
    """What a run found, for the checks.

    Attributes
    ----------
    broken : what breaks the contract, its metadata or its inputs, by check; such checks are final.
    observed : valid PM2.5 of the run's hours, (time, station) a month, with ``lon`` and ``lat``.
    alarms : of quality control, a line each.
    invalid : see `invalid`.
    agreements : with the last revision, a month each.
    steps : see `Steps`.
    skill : at withheld stations, None where they are too few.
    weights, reason : digest of the weights; why the run was made, where somebody said so.
    """

    broken: Mapping[str, str | None]
    observed: Sequence[xr.DataArray]
    alarms: Sequence[str]
    invalid: Invalid
    agreements: Sequence[Agreement]
    steps: Steps
    skill: Skill | None
    weights: str
    reason: str | None


def judge(found: Findings, last: Last) -> list[Check]:
    """All checks, in the order of the reference page."""
    return [
        *_final(found.broken),
        _weights(found, last),
        *_silence(found.observed),
        _reporting(found.observed, last),
        _observations(found.observed, last),
        _invalid(found.invalid),
        _clock(found),
        _level(found.agreements),
        _places(found, last),
        *found.steps.checks(),
        _kriging(found.skill),
        _skill(found.skill, last),
    ]


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that did not pass."""
    return [check for check in checks if check.passed is False]


def _final(broken: Mapping[str, str | None]) -> Iterator[Check]:
    expected = {
        "inputs": "inputs that stay as they are while a run reads them",
        "metadata": "CF and ACDD attributes that are whole and say what is there",
        "contract": "every variable, hour, range and interval in order, and land covered",
        "axes": "every published cell and hour where it was",
    }
    for name, problem in broken.items():
        yield Check(name, expected[name], problem or "so", problem is None, final=True)


# ---- observations ----


def _weights(found: Findings, last: Last) -> Check:
    name, expected = "weights", "the weights of the last revision, or a stated reason"
    if not last.weights:
        return Check(name, expected, "no earlier revision", None)
    if found.weights == last.weights:
        return Check(name, expected, f"the weights of {last.revision}", True)
    digests = f"weights {found.weights[:12]} after {last.weights[:12]} in {last.revision}"
    return Check(name, expected, f"{digests}, reason: {found.reason or 'none'}", bool(found.reason))


#: Why those who report are not judged; how long nobody may is for `_silence` to say.
UNHEARD = "no observation in these hours"


def _silence(observed: Sequence[xr.DataArray]) -> Iterator[Check]:
    heard = np.concatenate([np.isfinite(part.values).any(axis=1) for part in observed])
    ends = np.flatnonzero(np.concatenate([[True], heard, [True]]))
    gaps = np.diff(ends) - 1
    yield Check(
        "end of the input",
        f"observations up to {SILENT_AT_END} hours before the end or later",
        f"none in the last {gaps[-1]} of {len(heard)} hours",
        bool(gaps[-1] <= SILENT_AT_END),
    )
    expected = f"no more than {SILENT} hours on end without an observation"
    yield Check("silence", expected, f"{gaps.max()} hours", bool(gaps.max() <= SILENT))


def stations(observed: Sequence[xr.DataArray]) -> dict[str, tuple[float, float]]:
    """Stations with a valid value, and where they stand (longitude, latitude)."""
    found: dict[str, tuple[float, float]] = {}
    for part in observed:
        heard = part.isel(station=np.flatnonzero(np.isfinite(part.values).any(axis=0)))
        at = (np.round(heard[name].values, 4).tolist() for name in ("lon", "lat"))
        found |= dict(zip(heard["station"].values.tolist(), zip(*at, strict=True), strict=True))
    return found


def observation_count(observed: Sequence[xr.DataArray]) -> float:
    """Median number of valid values in the hours that have any."""
    counts = np.concatenate([np.isfinite(part.values).sum(axis=1) for part in observed])
    return float(np.median(counts[counts > 0])) if (counts > 0).any() else 0.0


def _reporting(observed: Sequence[xr.DataArray], last: Last) -> Check:
    name, expected = "stations", f"at least {REPORTING:.0%} of the last revision's stations to report"
    if len(last.stations) < LEAST_KNOWN:
        return Check(name, expected, "too few known before", None)
    now = {_base(station) for station in stations(observed)}
    if not now:
        return Check(name, expected, UNHEARD, None)
    if (hours := sum(part.sizes["time"] for part in observed)) < DAY:
        return Check(name, expected, f"{hours} hours, of which observations are judged", None)
    before = sorted({_base(station) for station in last.stations})
    absent = [station for station in before if station not in now]
    share = 1 - len(absent) / len(before)
    such = f", without {absent[0]} for one" if absent else ""
    return Check(name, expected, f"{share:.0%} of {len(before)} in {last.revision}{such}", share >= REPORTING)


def _base(station: str) -> str:
    """Identifier of a station without the day of its last move."""
    return station.partition("@")[0]


def _observations(observed: Sequence[xr.DataArray], last: Last) -> Check:
    name, expected = "observations", f"at least {OBSERVATIONS:.0%} of the last revision's observations an hour"
    if not last.observations:
        return Check(name, expected, "no earlier count", None)
    now = observation_count(observed)
    if not now:
        return Check(name, expected, UNHEARD, None)
    found = f"{now:.0f} (median) after {last.observations:.0f} in {last.revision}"
    return Check(name, expected, found, now >= OBSERVATIONS * last.observations)


def invalid(flagged: xr.Dataset) -> Invalid:
    """Count what a flagged StationCube holds: by pollutant, values reported and those of them that are invalid."""
    found = {}
    for name in POLLUTANTS:
        bits = flagged[f"qc_{name}"].to_numpy()
        reported = bits & FLAGS["missing"] == 0
        found[name] = int(reported.sum()), int((reported & (bits & INVALID_BITS != 0)).sum())
    return found


def total(parts: Sequence[Invalid]) -> Invalid:
    """Add up months."""
    return {name: (sum(p[name][0] for p in parts), sum(p[name][1] for p in parts)) for name in POLLUTANTS}


def _invalid(counts: Invalid) -> Check:
    expected = f"at most {MOST_INVALID:.0%} of the values of a pollutant to be invalid"
    shares = {name: bad / of for name, (of, bad) in counts.items() if of >= LEAST_VALUES}
    if not shares:
        return Check("quality", expected, "too few values", None)
    worst = max(shares, key=lambda name: shares[name])
    return Check("quality", expected, f"{shares[worst]:.1%} of {worst}", shares[worst] <= MOST_INVALID)


# ---- agreement with what is published ----


def _clock(found: Findings) -> Check:
    expected = "a clock that fits the sun and what is published of the same hours"
    if found.alarms:
        return Check("clock", expected, "; ".join(found.alarms), False)
    late = [one for one in found.agreements if _is_late(one)]
    if late:
        one = late[0]
        when = f"{abs(one.lag)} h {'late' if one.lag > 0 else 'early'}"
        fits = f"correlation {one.fit:.2f}, unshifted {one.fit_unshifted:.2f}"
        return Check("clock", expected, f"observations that run {when} beside what is published ({fits})", False)
    return Check("clock", expected, "so" if found.agreements else "no alarm; no hour in common", True)


def _is_late(one: Agreement) -> bool:
    return abs(one.lag) > LATE_HOURS and one.fit - one.fit_unshifted > LATE_MARGIN


def _level(agreements: Sequence[Agreement]) -> Check:
    expected = f"observations within a factor {LEVEL} of what is published of the same hours (median)"
    if not agreements:
        return Check("level", expected, "no hour in common", None)
    worst = max((one.level for one in agreements), key=lambda level: abs(np.log(level)))
    return Check("level", expected, f"a factor {worst:.3g}", bool(1 / LEVEL <= worst <= LEVEL))


def _places(found: Findings, last: Last) -> Check:
    expected = f"at most {MOVED:.0%} of the known stations elsewhere, and the pattern of what is published"
    moved, known = _moved(stations(found.observed), last.stations)
    if known >= LEAST_KNOWN and len(moved) > MOVED * known:
        text = f"{len(moved)} of {known} stations of {last.revision} more than {MOVED_KM:g} km away, such as {moved[0]}"
        return Check("places", expected, text, False)
    patterns = [one.pattern for one in found.agreements]
    if patterns and min(patterns) < PATTERN:
        return Check("places", expected, f"correlation in space {min(patterns):.2f}, at least {PATTERN}", False)
    if known < LEAST_KNOWN and not patterns:
        return Check("places", expected, "nothing known before", None)
    return Check("places", expected, f"{len(moved)} of {known} elsewhere", True)


def _moved(now: Places, before: Places) -> tuple[list[str], int]:
    """Stations of the same identifier that stand elsewhere, and how many are known of both."""
    both = sorted(set(now) & set(before))
    if not both:
        return [], 0
    (x, y), (u, v) = (np.array([places[name] for name in both]).T for places in (now, before))
    _, _, metres = Geod(ellps="WGS84").inv(x, y, u, v)
    return [name for name, far in zip(both, metres, strict=True) if far > 1000 * MOVED_KM], len(both)


# ---- fields ----


_STEPS = {
    "mean": "of the mean of land from hour to hour",
    "seam": "of the mean of land from and to published hours",
    "cells": "of the 95th percentile over cells from hour to hour",
}


@dataclass
class Steps:
    """Largest steps from hour to hour of analysed fields, as they pass by day by day.

    Attributes
    ----------
    land : cells that count, of the shape of a field.
    largest : of each of `STEPS`, the step in log(PM2.5 + 1) and the hour that had it.
    """

    land: NDArray[np.bool_]
    largest: dict[str, tuple[float, np.datetime64]] = field(default_factory=dict)
    _before: NDArray[np.float64] | None = None

    def watch(self, blocks: Iterable[xr.Dataset]) -> Iterator[xr.Dataset]:
        """Hand a run's blocks of consecutive hours on and note the steps into, in and between them."""
        seam = True
        for block in blocks:
            self.see(block, seam)
            seam = False
            yield block

    def see(self, block: xr.Dataset, seam: bool = False) -> None:
        """Note the steps of some hours, and from the last hour seen before; an hour never produced ends that.

        Parameters
        ----------
        seam : whether the hour seen before was the published revision's, or the block is.
        """
        for time, stream, pm2p5 in zip(
            block["time"].values, block["stream"].values, block["pm2p5"].values, strict=True
        ):
            analysed = stream in (STREAMS["interim"], STREAMS["final"])
            values = np.log1p(pm2p5[self.land].astype(np.float64)) if analysed else None
            if values is not None and self._before is not None:
                self._note(values, self._before, time, seam)
            self._before, seam = values, False

    def _note(self, now: NDArray[np.float64], before: NDArray[np.float64], time: np.datetime64, seam: bool) -> None:
        cells = np.abs(now - before)
        cells = cells[np.isfinite(cells)]
        if not len(cells):
            return
        mean = abs(_log_mean(now) - _log_mean(before))
        sizes = {"mean": mean, "cells": float(np.quantile(cells, 0.95))} | ({"seam": mean} if seam else {})
        for name, size in sizes.items():
            if name not in self.largest or size > self.largest[name][0]:
                self.largest[name] = size, time

    def checks(self) -> Iterator[Check]:
        """Judge the steps."""
        for name, limit in STEPS.items():
            expected = f"steps {_STEPS[name]} within a factor {limit:g}"
            if name not in self.largest:
                yield Check(f"step of {name}", expected, "no two hours to compare", None)
                continue
            size, time = self.largest[name]
            factor = float(np.exp(size))
            yield Check(f"step of {name}", expected, f"{factor:.2f} at {time.astype('M8[h]')}", factor <= limit)


def _log_mean(values: NDArray[np.float64]) -> float:
    """log1p of the mean of the cells that hold a value."""
    return float(np.log1p(np.nanmean(np.expm1(values))))


# ---- skill ----


def _kriging(skill: Skill | None) -> Check:
    expected = f"a CRPS at withheld stations of at most {1 + EXCESS:.2f} that of kriging, sampling error aside"
    if skill is None:
        return Check("kriging", expected, "too few withheld stations", None)
    error = _quantile(skill.stations) * skill.excess_error
    text = f"{1 + skill.excess:.3f} (at least {1 + skill.excess - error:.3f}; {skill.stations} stations)"
    return Check("kriging", expected, text, skill.excess - error <= EXCESS)


def _skill(skill: Skill | None, last: Last) -> Check:
    expected = f"a skill at withheld stations of at least the last revision's less {SKILL_DROP}, sampling error aside"
    if skill is None or last.skill is None:
        return Check("skill", expected, "no two skills to compare", None)
    count = min(skill.stations, last.skill.stations)
    error = _quantile(count) * float(np.hypot(skill.skill_error, last.skill.skill_error))
    text = f"{skill.skill:.2f} (at most {skill.skill + error:.2f}) after {last.skill.skill:.2f} in {last.revision}"
    return Check("skill", expected, text, skill.skill + error >= last.skill.skill - SKILL_DROP)


def _quantile(count: int) -> float:
    """Student's t for means of so many stations."""
    return float(stats.t.ppf(CONFIDENCE, count - 1))


def stopped(path: object, run_id: str, checks: Sequence[Check], branch: str) -> ProductError:
    """Build the error of a run that may not be published."""
    why = "; ".join(str(check) for check in failed(checks))
    return ProductError(
        f"{path}: run {run_id} is not published: {why}; the former revision stays; look at {branch} (`aqnet history`)"
    )
