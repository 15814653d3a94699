"""The outlook mode's training and evaluation: 168 hours ahead of issue times, at visible and hidden stations.

Every method forecasts the same pairs: the issue times from the first midnight UTC of the test hours whose 168 hours
lie in them, all stations with a value then. The 336 hours before the first ones reach into the validation hours.
Baselines are fitted to the training hours, chosen and given a distribution by the validation hours, and carried to
hidden stations by kriging. The values of hidden stations never reach a method.

Shapes: I issue times, N stations, T = 168 leads, R levels.
"""

from __future__ import annotations

import importlib.util
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import checkpoint, outlook_baselines, outlook_infer, outlook_train
from model.outlook_inputs import DAY, HISTORY, HORIZON, record_of
from model.windows import LEVELS, Float, Observations
from pipeline import provenance
from pipeline.atomic import replacing
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluate as public
from pipeline.evaluation import outlook_report, outlook_score
from pipeline.evaluation.evaluate import Splits, Withheld
from pipeline.evaluation.outlook_score import AQNET, OutlookEvaluation, Sums

log = logging.getLogger("aqnet")

Array = NDArray[np.float32]
Index = NDArray[np.int64]

#: What can be left out of the network, by the name of its table row.
ABLATIONS = {"without cyclic": "cyclic", "without attention": "attention", "without lstm": "lstm"}

SEEDS = (0, 1, 2)

#: The group of the visible stations; the others are hidden.
VISIBLE = "visible"

#: (mean, quantiles) at the visible stations and at the points of an issue time, (N, T) and (R, N, T) each.
Pair = tuple[Array, Array]
Method = Callable[[int], tuple[Pair, Pair]]


# ---- training ----


def train(
    source_path: Path,
    stations: Path,
    splits: Path,
    out: Path,
    seed: int,
    steps: int | None = None,
    without: str | None = None,
) -> Path:
    """Train the outlook mode on the visible stations and training hours; write ``outlook-seed<seed>.safetensors``.

    Parameters
    ----------
    source_path, stations : CNEMC files and station list, as `pipeline.sources.read` takes them.
    splits : splits.json.
    out : folder for the weights and the JSON that describes them.
    seed : the same seed gives the same weights on the same machine and package versions.
    steps : shorter training, for tests; None is the recipe's.
    without : part to leave out (``cyclic``, ``attention`` or ``lstm``); its name goes into the file's.
    """
    split = Splits.read(splits)
    record, codes = public.read_record(source_path, stations, split)
    index = np.flatnonzero(np.isin(codes, split.visible))
    visible = public.withhold(record, index, index[:0]).visible
    digests = public.digests(source_path, [stations, splits], split)
    return _train(visible, public.cities(stations, codes[index]), split, out, seed, steps, without, digests)


def _train(
    visible: Observations,
    city: NDArray[np.str_],
    split: Splits,
    out: Path,
    seed: int,
    steps: int | None,
    without: str | None,
    digests: dict[str, Any],
) -> Path:
    recipe = outlook_train.OutlookRecipe()
    if steps is not None:
        fewer = min(recipe.backbone_issues, 20 * steps)
        recipe = replace(recipe, steps=steps, knn_steps=steps, backbone_issues=fewer)
    if without:
        recipe = replace(recipe, knn_steps=0)  # the ablation is judged at the stations
    hours = slice(0, split.train_end), slice(split.train_end, split.test_start)
    parts = {without: False} if without else {}
    result = outlook_train.train(visible, *hours, city, seed, recipe, parts)
    path = out / f"outlook-{f'without-{without}-' if without else ''}seed{seed}.safetensors"
    described = {"seed": seed, "recipe": result.recipe, "history": result.history}
    described |= {"visible_stations": len(visible.lon), "train_hours": split.train_end} | digests
    checkpoint.save(result.network, path, described)
    log.info("wrote %s (SHA-256 %s)", path, checkpoint.digest(path))
    return path


# ---- evaluation ----


def evaluate(
    source_path: Path,
    stations: Path,
    splits: Path,
    out_dir: Path,
    weights: Sequence[Path] | None = None,
    ablations: Path | None = None,
    step: int = 12,
    baselines: Sequence[str] | None = None,
) -> OutlookEvaluation:
    """Score AQ-Net's outlook and every baseline on the test hours; write ``outlook.json`` and ``outlook.md``.

    Parameters
    ----------
    source_path, stations : CNEMC files and station list, as `pipeline.sources.read` takes them.
    splits : splits.json.
    out_dir : folder for the two files; each is written whole or not at all.
    weights : one file a seed; None takes the shipped ones.
    ablations : folder with the weights of the ablations; those it lacks are trained into it. None leaves them out.
    step : hours between issue times, from the first midnight UTC of the test hours.
    baselines : names in `model.outlook_baselines.METHODS`; None takes all.

    Raises
    ------
    ConfigError
        When a baseline needs a package that is not installed.
    """
    names = list(outlook_baselines.METHODS if baselines is None else baselines)
    _check_installed(names)
    split = Splits.read(splits)
    weights = sorted(checkpoint.SHIPPED_OUTLOOK.glob("outlook-seed*.safetensors")) if weights is None else weights
    record, codes = public.read_record(source_path, stations, split)
    visible = np.flatnonzero(np.isin(codes, split.visible))
    hidden = {group: np.flatnonzero(np.isin(codes, members)) for group, members in split.hidden.items()}
    parts = public.withhold(record, visible, np.concatenate(list(hidden.values())))
    digests = public.digests(source_path, [stations, splits], split)
    city = public.cities(stations, codes[visible])
    files = {AQNET + path.stem.removeprefix("outlook-"): path for path in weights}
    if ablations is not None:
        files |= _ablated(parts.visible, city, split, ablations, digests)
    methods = _networks(files, parts) | _fitted(names, parts, city, split)
    issues = issue_times(record.hours, split, step)
    groups = {VISIBLE: len(visible)} | {group: len(members) for group, members in hidden.items()}
    stations_only = {VISIBLE: groups[VISIBLE]}
    sums = {
        name: _sums(name, method, parts, issues, stations_only if "without" in name else groups)
        for name, method in methods.items()
    }
    about = _about(issues, step) | digests | {"weights": {k: checkpoint.digest(p) for k, p in files.items()}}
    result = outlook_score.assess(sums, about, record.hours[issues] // DAY)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in (("outlook.json", result.to_json()), ("outlook.md", outlook_report.markdown(result))):
        with replacing(out_dir / name) as part:
            part.write_text(text)
    return result


def _check_installed(names: Sequence[str]) -> None:
    for name in names:
        package = outlook_baselines.NEEDS.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"baseline '{name}': expected the package {package}, a development extra; it is not installed "
                "(pip install -e '.[dev]', or leave the baseline out)"
            )


def issue_times(hours: Index, split: Splits, step: int) -> Index:
    """Issue times whose 168 hours lie in the test hours, from the first midnight UTC in them."""
    first = split.test_start + int(-hours[split.test_start] % DAY)
    return np.arange(first, split.hours - HORIZON + 1, step)


def _ablated(
    visible: Observations, city: NDArray[np.str_], split: Splits, folder: Path, digests: dict[str, Any]
) -> dict[str, Path]:
    """Weights of every ablation and seed; what the folder lacks is trained."""
    found = {}
    for name, part in ABLATIONS.items():
        for seed in SEEDS:
            path = folder / f"outlook-without-{part}-seed{seed}.safetensors"
            if not path.exists():
                _train(visible, city, split, folder, seed, None, part, digests)
            found[f"{AQNET}{name} seed{seed}"] = path
    return found


def _networks(files: Mapping[str, Path], parts: Withheld) -> dict[str, Method]:
    return {name: _network(path, parts) for name, path in files.items()}


def _network(path: Path, parts: Withheld) -> Method:
    """AQ-Net; a visible station without a value in the history has no forecast."""
    network = checkpoint.load_outlook(path)
    record = record_of(parts.visible, network.config.mean, network.config.std)

    def forecast(issue: int) -> tuple[Pair, Pair]:
        field = outlook_infer.Field(network, record, parts.visible.elevation, parts.points, issue)
        made = field.at_stations()
        mean = np.full((len(record.z), HORIZON), np.nan, np.float32)
        quantiles = np.full((len(LEVELS), *mean.shape), np.nan, np.float32)
        mean[field.seen], quantiles[:, field.seen] = made.mean, made.quantiles
        between = field(slice(0, HORIZON))
        return (mean, quantiles), (between.mean, between.quantiles)

    return forecast


def _fitted(names: Sequence[str], parts: Withheld, city: NDArray[np.str_], split: Splits) -> dict[str, Method]:
    """Fit the baselines, and give them a distribution by their errors in the validation hours."""
    data = outlook_baselines.series(parts.visible, split.train_end, split.test_start)
    folds = [np.flatnonzero(np.isin(city, part)) for part in np.array_split(np.unique(city), 5)]
    methods: dict[str, Method] = {}
    for name in names:
        start = datetime.now(UTC)
        forecast = outlook_baselines.METHODS[name](data)
        dressed = outlook_baselines.dressed(forecast, data, parts.visible, folds)
        log.info("%s: fitted in %.0f s", name, (datetime.now(UTC) - start).total_seconds())
        methods[name] = _baseline(forecast, dressed, parts)
    return methods


def _baseline(forecast: outlook_baselines.Forecast, dressed: outlook_baselines.Dress, parts: Withheld) -> Method:
    def method(issue: int) -> tuple[Pair, Pair]:
        z = forecast(np.array([issue]))
        kriged, variance = outlook_baselines.spread(z, parts.visible, parts.points)
        return dressed(z[0]), dressed(kriged[0], variance)

    return method


def _sums(name: str, method: Method, parts: Withheld, issues: Index, groups: Mapping[str, int]) -> dict[str, Sums]:
    """Sums of every group; the hidden ones follow one another along the points."""
    start = datetime.now(UTC)
    hourly: dict[str, list[NDArray[np.float64]]] = {group: [] for group in groups}
    daily: dict[str, list[NDArray[np.float64]]] = {group: [] for group in groups}
    for issue in issues:
        for group, (mean, quantiles), truth in _by_group(method(int(issue)), truths(parts, int(issue)), groups):
            hourly[group].append(outlook_score.statistics(mean, quantiles, truth, LEVELS))
            daily[group].append(outlook_score.statistics(*outlook_score.daily(mean, quantiles, truth), LEVELS))
    log.info("%s: %d issue times in %.0f s", name, len(issues), (datetime.now(UTC) - start).total_seconds())
    return {group: outlook_score.sums(hourly[group], daily[group]) for group in groups}


def truths(parts: Withheld, issue: int) -> tuple[Float, Float]:
    """PM2.5 of the 168 hours at the visible and at the hidden stations, (N, T).

    A visible station that reported nothing in the 336 hours before has no history to forecast from and is left out.
    """
    visible = parts.visible.values[0].T
    seen = np.isfinite(visible[:, issue - HISTORY : issue]).any(1)
    ahead = slice(issue, issue + HORIZON)
    return np.where(seen[:, None], visible[:, ahead], np.nan), parts.truth[ahead].T


def _by_group(
    made: tuple[Pair, Pair], truth: tuple[Float, Float], groups: Mapping[str, int]
) -> Iterator[tuple[str, Pair, Float]]:
    end = 0
    for group, count in groups.items():
        which, rows = (0, slice(None)) if group == VISIBLE else (1, slice(end, end + count))
        end = 0 if group == VISIBLE else end + count
        mean, quantiles = made[which]
        yield group, (mean[rows], quantiles[:, rows]), truth[which][rows]


def _about(issues: Index, step: int) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": provenance.code_version(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "issue_times": len(issues),
        "hours_between_issue_times": step,
    }
