"""The public evaluation: every method on the same hours and hidden stations of the CNEMC record, one table.

Nothing but `withhold` divides observations into what methods see and what they are judged by: the values of hidden
stations never reach a method. `pipeline.release.skill` does the same with a run's own stations.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from model import baseline, checkpoint, geometry, infer, space_time
from model.baseline import Estimator
from model.geometry import TERRAIN_FACTOR
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points
from pipeline import provenance, score, sources
from pipeline.atomic import replacing
from pipeline.errors import InputError
from pipeline.evaluation import assess
from pipeline.evaluation.assess import AQNET, Evaluation
from pipeline.grid import relief
from pipeline.harmonise import to_cube
from pipeline.pages import score_figures

log = logging.getLogger("aqnet")

#: Hours of record before a UTC day that AQ-Net reads for it.
LEAD_HOURS = 72

#: Start (UTC) of hour 0 of splits.json: the file label 2019-01-01 hour 0 in Beijing time is the hour's end.
ORIGIN = np.datetime64("2018-12-31T15", "h")

#: Highest valid PM2.5 of the protocol, ug m-3; valid values are above 0.
HIGHEST_VALID = 1000.0

#: What AQ-Net is set against by the bootstrap.
REFERENCES = (
    "hourly_mean",
    "nearest",
    "idw_k8_p1",
    "idw_k20_p2",
    "log_kriging",
    "log_kriging_terrain",
    "gridpp_oi",
    "space_time",
    "space_time_two_sided",
)

#: Hours of record before a UTC day that space-time kriging reads: ten of its longest time scale.
LONG_LEAD_HOURS = 2400


@dataclass(frozen=True)
class Withheld:
    """Observations of visible stations, and the places and PM2.5 (T, Q) of the hidden ones."""

    visible: Observations
    points: Points
    truth: NDArray[np.float64]


@dataclass(frozen=True)
class Splits:
    """The public split, see splits.json: station codes a group, hours as indices from `ORIGIN`."""

    visible: list[str]
    hidden: dict[str, list[str]]
    bbox: tuple[float, float, float, float]
    train_end: int
    test_start: int
    hours: int

    @classmethod
    def read(cls, path: Path) -> Splits:
        """Read splits.json.

        Raises
        ------
        InputError
            When a key is missing.
        """
        try:
            found = json.loads(path.read_text())
            hidden = {name: found[name] for name in ("hidden_random", "hidden_city")}
            west, south, east, north = found["bbox_WSEN"]
            bounds = (found["train_end_hour_index"], found["test_start_hour_index"], found["hours"])
            return cls(found["visible"], hidden, (west, south, east, north), *bounds)
        except (KeyError, json.JSONDecodeError) as problem:
            raise InputError(f"{path}: not the public split; missing or unreadable: {problem}") from problem


# ---- the public evaluation ----


def evaluate(
    source_path: Path,
    stations: Path,
    splits: Path,
    out_dir: Path,
    weights: Sequence[Path] | None = None,
    stride: int = 6,
    methods: Mapping[str, Estimator] | None = None,
) -> Evaluation:
    """Score all methods and AQ-Net on the test hours of the public split; write ``evaluation.json``, ``.md``, pictures.

    Parameters
    ----------
    source_path, stations : CNEMC files and station list, as `pipeline.sources.read` takes them.
    splits : splits.json.
    out_dir : folder for the files; each is written whole or not at all.
    weights : AQ-Net weights, one file a seed; None takes the shipped ones.
    stride : every so many test hours are scored.
    methods : baselines that read each hour alone; None takes all, kriging with a variogram of the visible stations'
        training hours, and space-time kriging as tuned on the visible stations before the test hours.
    """
    split = Splits.read(splits)
    weights = sorted(checkpoint.SHIPPED.glob("*.safetensors")) if weights is None else weights
    record, codes = read_record(source_path, stations, split)
    visible = np.flatnonzero(np.isin(codes, split.visible))
    hidden = {group: np.flatnonzero(np.isin(codes, members)) for group, members in split.hidden.items()}
    parts = withhold(record, visible, np.concatenate(list(hidden.values())))
    baselines = fitted(take(parts.visible, slice(0, split.train_end))) if methods is None else dict(methods)
    scored = np.arange(split.test_start, split.hours, stride)
    predictions = predict(parts, scored, baselines, _networks(weights))
    predictions |= predict(parts, scored, {}, space_time.METHODS if methods is None else {}, LONG_LEAD_HOURS)
    about = described(baselines, len(scored), stride) | digests(source_path, [stations, splits, *weights], split)
    result = _assess(predictions, parts, scored, {group: len(members) for group, members in hidden.items()}, about)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in (("evaluation.json", result.to_json()), ("evaluation.md", result.to_markdown())):
        with replacing(out_dir / name) as part:
            part.write_text(text)
    for group, found in result.assessments.items():
        shown = [*assess.SHOWN, *assess.judged(found.scores)]
        title = f"{group}: {len(scored)} test hours of the public split"
        score_figures.draw_scores(found, out_dir / f"evaluation-{group}.png", shown, title)
    return result


def read_record(source_path: Path, stations: Path, split: Splits) -> tuple[Observations, NDArray[np.str_]]:
    """Read the stations of the split over its hours; PM2.5 outside (0, `HIGHEST_VALID`] is missing.

    Returns
    -------
    record : hours x stations, and the station codes (S,).

    Raises
    ------
    InputError
        When a station of the split is not in the data.
    """
    end = ORIGIN + np.timedelta64(split.hours, "h")
    wanted = {f"cnemc:{code}" for code in sum(split.hidden.values(), split.visible)}
    tables = sources.read("cnemc", source_path, stations, ORIGIN, end, split.bbox, truncated="keep")
    cube = to_cube((rows[rows["station"].isin(wanted)] for rows in tables), ORIGIN, end)
    absent = sorted(wanted - set(cube["station"].values))
    if absent:
        raise InputError(f"{source_path}: expected all stations of the split; {len(absent)} absent, first {absent[0]}")
    return record_of(cube), np.array([name.removeprefix("cnemc:") for name in cube["station"].values])


def cities(stations: Path, codes: NDArray[np.str_]) -> NDArray[np.str_]:
    """City of each station of a station list, (S,); empty where it names none.

    Raises
    ------
    InputError
        When the list has no column of cities.
    """
    listed = pd.read_csv(stations, dtype=str)
    if "city" not in listed.columns:
        raise InputError(f"{stations}: column 'city' is missing; found {', '.join(listed.columns)}")
    return listed.set_index("code")["city"].reindex(codes).fillna("").to_numpy(str)


def record_of(cube: xr.Dataset) -> Observations:
    """Arrays of a StationCube as the protocol takes them: PM2.5 outside (0, `HIGHEST_VALID`] is missing."""
    values = np.stack([cube[name].values for name in POLLUTANTS])
    pm2p5 = values[POLLUTANTS.index("pm2p5")]
    pm2p5[~((pm2p5 > 0) & (pm2p5 <= HIGHEST_VALID))] = np.nan
    hours = cube["time"].values.astype("datetime64[h]").astype(np.int64)
    lon, lat = cube["lon"].values, cube["lat"].values
    return Observations(hours, values, lon, lat, cube["elevation"].values, relief(lon, lat))


def fitted(training: Observations) -> dict[str, Estimator]:
    """Return all baselines, kriging with the variogram of these observations."""
    plain, terrain = (baseline.fit_variogram(training, factor) for factor in (0.0, TERRAIN_FACTOR))
    return baseline.METHODS | {
        "log_kriging": partial(baseline.log_kriging, variogram=plain),
        "log_kriging_terrain": partial(baseline.log_kriging, variogram=terrain),
    }


def own_kriging(observations: Observations) -> Estimator:
    """Log kriging with the variogram of these observations, or that of CNEMC 2019 where they are too few to fit one."""
    try:
        return partial(baseline.log_kriging, variogram=baseline.fit_variogram(observations))
    except ValueError:
        return baseline.METHODS["log_kriging"]


def _networks(weights: Sequence[Path]) -> dict[str, Estimator]:
    """AQ-Net of each weights file and mode, by a name that starts with `AQNET`."""
    return {
        start + Path(path).stem.removeprefix("aqnet-"): infer.estimator(path, mode)
        for mode, start in AQNET.items()
        for path in weights
    }


# ---- what methods see ----


def withhold(record: Observations, visible: NDArray[np.int64], hidden: NDArray[np.int64]) -> Withheld:
    """Divide a record by station index into what methods see, and the places and values they are judged by."""
    seen = Observations(record.hours, record.values[:, :, visible], *_places(record, visible))
    truth = record.values[POLLUTANTS.index("pm2p5")][:, hidden].astype(np.float64)
    return Withheld(seen, Points(*_places(record, hidden)), truth)


def _places(record: Observations, stations: NDArray[np.int64]) -> list[NDArray[np.floating]]:
    """Longitude, latitude, elevation and, where there is one, relief of some stations."""
    known = (part for part in (record.lon, record.lat, record.elevation, record.relief) if part is not None)
    return [part[stations] for part in known]


def take(observations: Observations, hours: slice | NDArray[np.int64]) -> Observations:
    """Select hours by index."""
    return replace(observations, hours=observations.hours[hours], values=observations.values[:, hours])


def predict(
    parts: Withheld,
    scored: NDArray[np.int64],
    hourly: Mapping[str, Estimator],
    sequential: Mapping[str, Estimator],
    lead: int = LEAD_HOURS,
    tail: int = 0,
) -> dict[str, score.Prediction]:
    """Estimate the scored hours at the hidden stations by every method.

    Parameters
    ----------
    scored : ascending hour indices into the record.
    hourly : methods that read each hour alone; they get the scored hours and no others.
    sequential : methods that need a continuous record; they get all hours from `lead` before the UTC day of the first
        scored hour to `tail` after the last.
    lead, tail : hours.
    """
    midnight = int(scored[0]) - int(parts.visible.hours[scored[0]] % 24)
    first = max(midnight - lead, 0)
    continuous = take(parts.visible, slice(first, int(scored[-1]) + 1 + tail))
    strided = take(parts.visible, scored)
    estimates = {name: _timed(name, method, strided, parts.points) for name, method in hourly.items()}
    predictions = {name: _prediction(estimate) for name, estimate in estimates.items()}
    for name, method in sequential.items():
        predictions[name] = _prediction(_timed(name, method, continuous, parts.points), scored - first)
    return predictions


def _timed(name: str, method: Estimator, observations: Observations, points: Points) -> Estimate:
    start = datetime.now(UTC)
    estimate = method(observations, points)
    seconds = (datetime.now(UTC) - start).total_seconds()
    log.info("%s: %d hours at %d points in %.1f s", name, len(observations.hours), len(points.lon), seconds)
    return estimate


def _prediction(estimate: Estimate, hours: NDArray[np.int64] | slice = slice(None)) -> score.Prediction:
    quantiles = None if estimate.quantiles is None else estimate.quantiles[:, hours]
    return score.Prediction(estimate.mean[hours], quantiles, LEVELS)


# ---- the tables ----


def _assess(
    predictions: dict[str, score.Prediction],
    parts: Withheld,
    scored: NDArray[np.int64],
    groups: dict[str, int],
    about: dict[str, Any],
) -> Evaluation:
    """Report on each group of hidden stations, which follow one another along the points."""
    assessments, seeds, end = {}, {}, 0
    hours, distance = parts.visible.hours[scored], nearest_km(parts)
    for group, count in groups.items():
        some, end = slice(end, end + count), end + count
        inside = {name: p.columns(some) for name, p in predictions.items()}
        truth = parts.truth[scored][:, some]
        rows = score.table(inside, truth)
        networks = assess.judged(rows)
        judged = networks or list(space_time.METHODS)
        assessments[group] = assess.assess(inside, truth, hours, distance[some], judged, REFERENCES)
        if networks:
            seeds[group] = assess.over_seeds(rows)
    return Evaluation(assessments, seeds, about)


def nearest_km(parts: Withheld) -> NDArray[np.float64]:
    """Distance from each hidden place to the nearest station that methods see, (Q,) km."""
    seen, points = parts.visible, parts.points
    return geometry.neighbours(points.lon, points.lat, seen.lon, seen.lat, 1)[1][:, 0]


# ---- how it came about ----


def described(methods: Mapping[str, Estimator], hours: int, stride: int) -> dict[str, Any]:
    """Date, code, command, hours scored and fitted variograms."""
    variograms = {
        name: asdict(method.keywords["variogram"])
        for name, method in methods.items()
        if isinstance(method, partial) and "variogram" in method.keywords
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": provenance.code_version(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hours": hours,
        "stride": stride,
        "variograms": variograms,
    }


def digests(source_path: Path, files: Sequence[Path], split: Splits) -> dict[str, Any]:
    """SHA-256 of every file that was read; of the observations, one over the manifest of all of theirs."""
    found = sources.input_digests("cnemc", source_path, ORIGIN, ORIGIN + np.timedelta64(split.hours, "h"))
    observations = hashlib.sha256(provenance.manifest(found).encode()).hexdigest()
    digests = {Path(path).name: provenance.digest_file(path) for path in files}
    return {"observation_files": len(found), "digests": {"observations": observations} | digests}
