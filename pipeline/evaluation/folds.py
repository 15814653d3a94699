"""Leave-city-out and leave-station-out: every station of the split is estimated by methods that never saw it.

The stations are dealt to folds by a seed. For each fold every method is fitted on the others, stations of the split's
`visible` and hidden groups alike, over the whole record, and estimates the fold's own; the estimates of all folds
make one table. A fold's estimates are kept on disk, so that a run that was cut off goes on where it was.

Shapes: P pollutants, T hours, S stations, Q stations of a fold, L quantile levels.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model import (
    aqnet,
    baseline,
    compiled,
    gaps,
    geometry,
    grid_layout,
    grid_loops,
    infer,
    kriging,
    kriging_loops,
    layout,
    nearest,
    space_time,
    space_time_fit,
    windows,
)
from model import train as training
from model.aqnet import AQNet
from model.baseline import Estimator
from model.windows import LEVELS, POLLUTANTS, Observations
from pipeline.atomic import replacing
from pipeline.evaluation import assess, evaluate
from pipeline.evaluation.assess import Assessment
from pipeline.evaluation.evaluate import Withheld
from pipeline.pages import score_figures
from pipeline.score import Prediction

log = logging.getLogger("aqnet")

#: Fit a method: (record of the other stations, their cities (S,), seed) -> estimator.
TrainFold = Callable[[Observations, NDArray[np.str_], int], Estimator]

#: Every so many hours are scored in the folds; 7 is prime to 24.
STRIDE = 7

#: Names of AQ-Net in the folds, and its modes.
NETWORKS = {"aqnet": "interim", "aqnet_final": "final"}

#: Hours of record before a scored hour that methods of a continuous record get: all of it.
_ALL = 10**6


@dataclass(frozen=True)
class Protocol:
    """How stations are left out, and which hours are scored.

    Attributes
    ----------
    leave : what goes to a fold as one: all stations of a city, or a single station.
    stride : every so many hours are scored; prime to 24, so that all hours of the day and all months occur.
    seed : of the assignment to folds, and passed on to what is trained.
    """

    leave: Literal["city", "station"]
    folds: int = 10
    seed: int = 0
    stride: int = STRIDE


@dataclass(frozen=True)
class Method:
    """A method that is fitted anew for each fold.

    Attributes
    ----------
    train : fits it, see `TrainFold`.
    key : what its estimates depend on beside the record and the fold: recipe, code; see `code_key`.
    sequential : whether it needs a continuous record; else it gets the scored hours and no others.
    """

    train: TrainFold
    key: str
    sequential: bool = False


@dataclass(frozen=True)
class Pooled:
    """Estimates of all folds together.

    Attributes
    ----------
    predictions : method -> (T, S), each station's from the fold that left it out.
    truth : (T, S).
    hours : (T,) since 1970-01-01T00 UTC.
    distance : (S,) km to the nearest station that is not in the station's fold.
    fold : (S,).
    """

    predictions: dict[str, Prediction]
    truth: NDArray[np.float64]
    hours: NDArray[np.int64]
    distance: NDArray[np.float64]
    fold: NDArray[np.int64]

    def assess(self, judged: Sequence[str], references: Sequence[str] = evaluate.REFERENCES) -> Assessment:
        """Report on all of it, see `pipeline.evaluation.assess.assess`."""
        return assess.assess(self.predictions, self.truth, self.hours, self.distance, judged, references)


# ---- folds ----


def assign(labels: NDArray[np.str_], folds: int, seed: int) -> NDArray[np.int64]:
    """Deal the units that labels name to folds of nearly as many stations; (S,) labels give (S,) folds.

    Units come in a seeded order of their sorted names, and each goes to the fold with the fewest stations so far.

    Raises
    ------
    ValueError
        When there are fewer units than folds.
    """
    units, unit, size = np.unique(labels, return_inverse=True, return_counts=True)
    if len(units) < folds:
        raise ValueError(f"{folds} folds need as many units to leave out; found {len(units)}")
    count, fold = np.zeros(folds, np.int64), np.empty(len(units), np.int64)
    for index in np.random.default_rng(seed).permutation(len(units)):
        fold[index] = np.argmin(count)
        count[fold[index]] += size[index]
    return fold[unit]


def fold_of(protocol: Protocol, codes: NDArray[np.str_], cities: NDArray[np.str_]) -> NDArray[np.int64]:
    """Fold of each station, (S,); a station without a city is a city of its own."""
    own = np.where(cities == "", codes, cities)
    return assign(own if protocol.leave == "city" else codes, protocol.folds, protocol.seed)


def run(
    record: Observations,
    codes: NDArray[np.str_],
    cities: NDArray[np.str_],
    protocol: Protocol,
    methods: Mapping[str, Method],
    work: Path,
) -> Pooled:
    """Estimate every station by every method fitted without its fold.

    Parameters
    ----------
    record : consecutive hours of all stations.
    codes, cities : (S,).
    work : folder of the estimates that are done; those of another record, protocol or `Method.key` are left alone.
    """
    fold = fold_of(protocol, codes, cities)
    scored = np.arange(0, len(record.hours), protocol.stride)
    done: dict[str, list[Prediction]] = {name: [] for name in methods}
    divided = _parts(fold, protocol.folds)
    distance = np.empty(len(codes))
    for number, (seen, hidden) in enumerate(divided):
        parts = evaluate.withhold(record, seen, hidden)
        distance[hidden] = evaluate.nearest_km(parts)
        task = _Fold(f"{protocol.leave}-fold{number}", parts, cities[seen], scored, protocol.seed + number, work)
        for name, method in methods.items():
            done[name].append(task.estimate(name, method))
    order = np.argsort(np.concatenate([hidden for _, hidden in divided]))
    predictions = {name: _together(found, order) for name, found in done.items()}
    truth = record.values[POLLUTANTS.index("pm2p5")][scored].astype(np.float64)
    return Pooled(predictions, truth, record.hours[scored], distance, fold)


def _parts(fold: NDArray[np.int64], folds: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices of the stations that are seen and hidden in each fold."""
    return [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(folds)]


def _together(found: Sequence[Prediction], order: NDArray[np.int64]) -> Prediction:
    """Estimates of the folds' stations one after another, then in the order of the record."""
    mean = np.concatenate([p.mean for p in found], axis=1)[:, order]
    quantiles = [p.quantiles for p in found if p.quantiles is not None]
    return Prediction(mean, np.concatenate(quantiles, axis=2)[:, :, order] if quantiles else None, LEVELS)


# ---- one fold ----


@dataclass(frozen=True)
class _Fold:
    """What a method gets in one fold: observations and places, cities (S,), scored hours and seed; where it is kept."""

    name: str
    parts: Withheld
    cities: NDArray[np.str_]
    scored: NDArray[np.int64]
    seed: int
    work: Path

    def estimate(self, name: str, method: Method) -> Prediction:
        """Read a method's estimates, or make them and write them whole."""
        key = hashlib.sha256(f"{self.digest} {method.key} {method.sequential} {LEVELS}".encode()).hexdigest()
        path = self.work / f"{self.name}-{name.replace(' ', '-')}-{key[:16]}.npz"
        if not path.exists():
            _save(path, self._make(name, method))
        with np.load(path) as saved:
            return Prediction(saved["mean"], saved.get("quantiles"), LEVELS)

    def _make(self, name: str, method: Method) -> Prediction:
        log.info("%s: fitting %s to %d stations", self.name, name, len(self.parts.visible.lon))
        fitted = {name: method.train(self.parts.visible, self.cities, self.seed)}
        split = ({}, fitted) if method.sequential else (fitted, {})
        return evaluate.predict(self.parts, self.scored, *split, lead=_ALL)[name]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a method reads: nothing of the fold's own stations but where they are.

        Relief is left out: it follows from the place.
        """
        seen, points = vars(self.parts.visible), vars(self.parts.points)
        found = hashlib.sha256(f"{self.seed} {self.cities.tolist()}".encode())
        read = [array for held in (seen, points) for name, array in held.items() if name != "relief"]
        for array in (*read, self.scored):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def _save(path: Path, found: Prediction) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"mean": found.mean} | ({} if found.quantiles is None else {"quantiles": found.quantiles})
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def code_key(*modules: ModuleType, **settings: object) -> str:
    """Key of a method (`Method.key`): digest of the source of its modules and its settings."""
    text = "".join(inspect.getsource(module) for module in modules) + json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- baselines ----


def baselines(evaluations: int = 20) -> dict[str, Method]:
    """All baselines; kriging is fitted on all hours of the fold's other stations, the rest have nothing to fit.

    Parameters
    ----------
    evaluations : of the objective, for each band of space-time kriging, see `model.space_time_fit.fit_space_time`.
    """
    hourly = code_key(baseline, geometry)
    fixed = {name: Method(_fixed(method), f"{hourly} {name}") for name, method in baseline.METHODS.items()}
    fitted = {
        "log_kriging": Method(_log_kriging(0.0), f"{hourly} 0"),
        "log_kriging_terrain": Method(_log_kriging(geometry.TERRAIN_FACTOR), f"{hourly} terrain"),
    }
    key = code_key(space_time, space_time_fit, gaps, geometry, evaluations=evaluations)
    models = {"space_time": space_time.CNEMC_2019_CAUSAL, "space_time_two_sided": space_time.CNEMC_2019_TWO_SIDED}
    joint = {name: Method(_space_time(model, evaluations), key + name, True) for name, model in models.items()}
    return fixed | fitted | joint


def _fixed(method: Estimator) -> TrainFold:
    return lambda _others, _cities, _seed: method


def _log_kriging(terrain_factor: float) -> TrainFold:
    def train(others: Observations, _cities: NDArray[np.str_], _seed: int) -> Estimator:
        return partial(baseline.log_kriging, variogram=baseline.fit_variogram(others, terrain_factor))

    return train


def _space_time(start: space_time.SpaceTime, evaluations: int) -> TrainFold:
    def train(others: Observations, _cities: NDArray[np.str_], _seed: int) -> Estimator:
        model = space_time_fit.fit_space_time(others, start, evaluations=evaluations)
        return partial(space_time.space_time_kriging, model=model)

    return train


# ---- AQ-Net ----


def network_key() -> str:
    """Digest of the code of the network (`Method.key`)."""
    network = aqnet, kriging, infer, layout, windows, geometry
    return code_key(*network, grid_layout, grid_loops, kriging_loops, nearest, compiled)


def networks(recipe: training.Recipe | None = None) -> dict[str, Method]:
    """AQ-Net in both modes, trained once for each fold on all hours of the fold's other stations."""
    recipe = recipe or training.Recipe()
    key = network_key() + code_key(training, **asdict(recipe))
    trained: dict[int, AQNet] = {}  # of the fold at hand, by its seed

    def fit(mode: str) -> TrainFold:
        def train(others: Observations, cities: NDArray[np.str_], seed: int) -> Estimator:
            if seed not in trained:
                trained.clear()
                own = np.where(cities == "", [f"alone {n}" for n in range(len(cities))], cities)
                split = training.Split(slice(0, len(others.hours)), own)
                trained[seed] = training.train(others, split, seed, recipe).network
            return partial(infer.estimate, trained[seed], mode=mode)

        return train

    return {name: Method(fit(mode), f"{key} {mode}", True) for name, mode in NETWORKS.items()}


# ---- reports ----


def write(
    found: Mapping[str, Assessment], about: Mapping[str, Any], out_dir: Path, shown: Sequence[str], name: str
) -> None:
    """Write reports as ``<name>.json`` and ``<name>.md``, and a picture of each."""
    result = {"about": about} | {group: a.as_dict() for group, a in found.items()}
    text = "\n\n".join(
        f"# {group.replace('_', ' ').capitalize()}\n\n{a.to_markdown(shown)}" for group, a in found.items()
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    for file, content in (
        (f"{name}.json", json.dumps(result, indent=1, allow_nan=False) + "\n"),
        (f"{name}.md", text),
    ):
        with replacing(out_dir / file) as part:
            part.write_text(content)
    for group, a in found.items():
        title = f"{group.replace('_', ' ')}: every station estimated without it"
        score_figures.draw_scores(a, out_dir / f"{name}-{group}.png", shown, title)
