"""AQ-Net without each of its parts, trained anew with several seeds: `aqnet evaluate --ablation`.

All trainings of a seed share the first stage and its draws, so that a row differs from the whole network by its part
alone. Weights and estimates are kept on disk: a run that was cut off goes on where it was, and seeds may be worked on
by several runs.

Shapes: T hours, S stations, Q hidden stations, L quantile levels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from model import ablation, checkpoint, infer
from model import train as training
from model.kriging import MODES
from model.train import Recipe
from model.windows import LEVELS, Observations, Points
from pipeline import score
from pipeline.atomic import replacing
from pipeline.evaluation import assess, evaluate, folds, strata
from pipeline.evaluation.evaluate import Splits, Withheld
from pipeline.score import Prediction, Statistic

log = logging.getLogger("aqnet")

#: Name of the row of the whole network.
FULL = "full"

#: Rows of the table: the whole network, then what it is without each part.
ROWS = (FULL, *ablation.PARTS)

SEEDS = (0, 1, 2)

#: Metrics of the table that people read; the JSON has them all.
METRICS = ("mae_median", "rmse_mean", "crps", "coverage_90")


@dataclass(frozen=True)
class Task:
    """What every row is trained on and judged by.

    Attributes
    ----------
    parts : observations of the visible stations, places and values of the hidden ones.
    split : hours to train on, and cities of the visible stations (S,).
    scored : (T,) ascending hour indices.
    recipe : of the whole network.
    work : folder of weights and estimates that are done; those of other code, recipe or data are left alone.
    """

    parts: Withheld
    split: training.Split
    scored: NDArray[np.int64]
    recipe: Recipe
    work: Path

    @cached_property
    def learned(self) -> str:
        """SHA-256 of what is trained on: nothing of the hidden stations, nor of later hours."""
        seen = evaluate.take(self.parts.visible, self.split.train)
        return _digest([*_arrays(seen), self.split.city], str(self.split.train))

    @cached_property
    def read(self) -> str:
        """SHA-256 of what estimates are made from, and for."""
        return _digest([*_arrays(self.parts.visible), *_arrays(self.parts.points), self.scored], "")


@dataclass(frozen=True)
class Comparison:
    """Rows of one group of stations in one mode, on the pairs that all of them estimate.

    Attributes
    ----------
    scores : (row, seed) x metrics, see `pipeline.score.scores`.
    differences : from the whole network of the same seed, a line for each row, seed and statistic, see
        `pipeline.evaluation.assess.skill`; `middle` marks the seed with the median difference of CRPS.
    """

    scores: pd.DataFrame
    differences: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """All of it in JSON's terms."""
        rows = self.scores.groupby(level="row", sort=False)
        over = {row: {metric: _spread(values) for metric, values in some.items()} for row, some in rows}
        return {
            "rows": over,
            "seeds": score.records(self.scores.reset_index()),
            "differences": score.records(self.differences),
        }

    def to_markdown(self) -> str:
        """One table: median and range of the seeds, then the difference from the whole network in per cent."""
        shown = self.scores.groupby(level="row", sort=False)[list(METRICS)].agg(_as_text)
        middle = self.differences[self.differences["middle"]]
        for statistic in get_args(Statistic):
            some = middle[middle["statistic"] == statistic]
            text = [f"{d.percent:+.1f} [{d.percent_low:+.1f}, {d.percent_high:+.1f}]" for d in some.itertuples()]
            shown[f"{statistic}, %"] = pd.Series(text, some["row"]).reindex(shown.index, fill_value="-")
        return score.markdown(shown.rename_axis("without").rename(index={FULL: "nothing"}))


@dataclass(frozen=True)
class Ablation:
    """The table, by group of hidden stations and mode, and how it came about."""

    found: dict[str, dict[str, Comparison]]
    about: dict[str, Any]

    def to_json(self) -> str:
        """All of it as JSON; NaN becomes null."""
        groups = {group: {mode: c.as_dict() for mode, c in modes.items()} for group, modes in self.found.items()}
        return json.dumps({"about": self.about, "groups": groups}, indent=1, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Render a table for each group and mode."""
        about = [f"- {key}: {value}" for key, value in self.about.items() if isinstance(value, str | int)]
        tables = [
            f"## {group}, {mode}\n\n{comparison.to_markdown()}"
            for group, modes in self.found.items()
            for mode, comparison in modes.items()
        ]
        return "\n\n".join(["# Ablation", "\n".join(about), _READING, *tables])


_READING = (
    "Scores are the median of the seeds with [lowest, highest]. Columns with % are the difference from the whole "
    "network of the same seed, with its 95 % day-block bootstrap interval, for the seed with the median difference of "
    "CRPS; above zero, the part is worth having."
)


def ablate(
    source_path: Path,
    stations: Path,
    splits: Path,
    out_dir: Path,
    work: Path,
    seeds: Sequence[int] = SEEDS,
    stride: int = 6,
    recipe: Recipe | None = None,
) -> Ablation:
    """Train and score all rows on the public split; write ``ablation.json`` and ``ablation.md``.

    Stations and hours are those of `pipeline.train.train` and of `pipeline.evaluation.evaluate.evaluate`.

    Parameters
    ----------
    source_path, stations : CNEMC files and station list, as `pipeline.sources.read` takes them.
    splits : splits.json.
    out_dir : folder for the files; each is written whole or not at all.
    work : folder of what is done, see `Task`.
    seeds : of weights and draws, each row once with each.
    stride : every so many test hours are scored.
    recipe : how the whole network is trained; None takes the shipped one.
    """
    split = Splits.read(splits)
    task, sizes = prepare(source_path, stations, split, work, stride, recipe or Recipe())
    found = {(row, seed): estimates(task, row, seed) for seed in seeds for row in ROWS}
    about = {"seeds": ", ".join(map(str, seeds)), "recipe": asdict(task.recipe)}
    about |= evaluate.described({}, len(task.scored), stride)
    about |= evaluate.digests(source_path, [stations, splits], split)
    result = Ablation(_compare_groups(task, found, sizes), about)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in (("ablation.json", result.to_json()), ("ablation.md", result.to_markdown())):
        with replacing(out_dir / name) as part:
            part.write_text(text)
    return result


def prepare(
    source_path: Path, stations: Path, split: Splits, work: Path, stride: int, recipe: Recipe
) -> tuple[Task, dict[str, int]]:
    """Read what the rows need, as `ablate` has it, and the number of hidden stations in each group."""
    record, codes = evaluate.read_record(source_path, stations, split)
    groups = {group: np.flatnonzero(np.isin(codes, members)) for group, members in split.hidden.items()}
    visible = np.flatnonzero(np.isin(codes, split.visible))
    city = evaluate.cities(stations, codes)
    learned = training.Split(slice(0, split.train_end), np.where(city == "", codes, city)[visible])
    parts = evaluate.withhold(record, visible, np.concatenate(list(groups.values())))
    task = Task(parts, learned, np.arange(split.test_start, split.hours, stride), recipe, work)
    return task, {group: len(members) for group, members in groups.items()}


# ---- training and estimates, once each ----


def weights(task: Task, row: str, seed: int) -> Path:
    """Weights of a row, read or trained on the first stage of the whole network and written."""
    recipe = _recipe(task.recipe, row)
    code = folds.network_key() + folds.code_key(training, ablation, **asdict(recipe))
    path = task.work / f"{row}-seed{seed}-{_key(task.learned, code, seed)}.safetensors"
    if not path.with_suffix(".json").exists():  # the last to be written
        covariances = _covariances(task, seed) if recipe.without else None
        log.info("%s, seed %d: training", row, seed)
        result = training.train(task.parts.visible, task.split, seed, recipe, covariances)
        described = {"seed": seed, "recipe": result.recipe, "history": result.history}
        checkpoint.save(result.network, path, described)
    return path


def _covariances(task: Task, seed: int) -> dict[str, Tensor]:
    """What the first stage fitted: the second leaves it as it is in the whole network."""
    return checkpoint.load(weights(task, FULL, seed)).knn.kriging.state_dict()


def _recipe(recipe: Recipe, row: str) -> Recipe:
    """Recipe of a row; without the second stage it has no steps."""
    if row == FULL:
        return recipe
    return replace(recipe, without=row, steps=0 if row == "second_stage" else recipe.steps)


def estimates(task: Task, row: str, seed: int) -> dict[str, Prediction]:
    """Estimates (T, Q) of a row at the hidden stations in each mode, read or made and written."""
    path = weights(task, row, seed)
    kept = path.with_name(f"{path.stem}-{_key(task.read, checkpoint.digest(path))}.npz")
    if not kept.exists():
        log.info("%s, seed %d: estimating %d hours", row, seed, len(task.scored))
        methods = {mode: infer.estimator(path, mode) for mode in MODES}
        _save(kept, evaluate.predict(task.parts, task.scored, {}, methods))
    with np.load(kept) as saved:
        return {mode: Prediction(saved[f"{mode}_mean"], saved[f"{mode}_quantiles"], LEVELS) for mode in MODES}


def _save(path: Path, found: Mapping[str, Prediction]) -> None:
    arrays = {f"{mode}_mean": p.mean for mode, p in found.items()}
    arrays |= {f"{mode}_quantiles": p.quantiles for mode, p in found.items() if p.quantiles is not None}
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _key(*parts: object) -> str:
    """Part of a file's name that tells what its contents depend on."""
    return _digest([], " ".join(map(str, parts)))[:16]


def _arrays(held: Observations | Points) -> list[NDArray[Any]]:
    return [array for array in vars(held).values() if array is not None]


def _digest(arrays: Iterable[NDArray[Any]], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


# ---- the tables ----


def _compare_groups(
    task: Task, found: Mapping[tuple[str, int], Mapping[str, Prediction]], sizes: Mapping[str, int]
) -> dict[str, dict[str, Comparison]]:
    """Compare each group of hidden stations, which follow one another along the points, in each mode."""
    truth, hours = task.parts.truth[task.scored], task.parts.visible.hours[task.scored]
    distance, compared, end = evaluate.nearest_km(task.parts), {}, 0
    for group, size in sizes.items():
        some, end = slice(end, end + size), end + size
        place = truth[:, some], hours, distance[some]
        of_mode = {mode: {key: made[mode].columns(some) for key, made in found.items()} for mode in MODES}
        compared[group] = {mode: compare(inside, *place) for mode, inside in of_mode.items()}
    return compared


def compare(
    found: Mapping[tuple[str, int], Prediction],
    truth: NDArray[np.float64],
    hours: NDArray[np.int64],
    distance: NDArray[np.float64],
) -> Comparison:
    """Compare rows, each with the whole network of its seed.

    Parameters
    ----------
    found : (row, seed) -> (T, Q); of every seed the row `FULL`.
    truth : (T, Q), NaN where missing.
    hours : (T,) since 1970-01-01T00 UTC.
    distance : (Q,) km to the nearest visible station.
    """
    named = {f"{row} {seed}": prediction for (row, seed), prediction in found.items()}
    scores = score.table(named, truth)
    scores.index = pd.MultiIndex.from_tuples(list(found), names=["row", "seed"])
    pairs = strata.common_pairs(named, truth, hours, distance)
    each = [_from_full(pairs, seed, [row for row, own in found if own == seed]) for seed in {s: 0 for _, s in found}]
    return Comparison(scores, _marked(pd.concat(each, ignore_index=True)))


def _from_full(pairs: strata.Pairs, seed: int, rows: Sequence[str]) -> pd.DataFrame:
    """Difference of a seed's rows from its whole network."""
    names = {f"{row} {seed}": row for row in rows if row != FULL}
    skill = assess.skill(pairs, list(names), [f"{FULL} {seed}"]).drop(columns=["minus"])
    return skill.assign(seed=seed, row=skill["method"].map(names)).drop(columns=["method"])


def _marked(differences: pd.DataFrame) -> pd.DataFrame:
    """Mark, for each row, the seed with the median difference of CRPS (the lower one of two)."""
    crps = differences[differences["statistic"] == "crps"].sort_values("percent")
    middle = crps.groupby("row")["seed"].agg(lambda seeds: seeds.iloc[(len(seeds) - 1) // 2])
    marked = differences.assign(middle=differences["row"].map(middle) == differences["seed"])
    return marked[["row", "seed", "middle", *marked.columns.difference(["row", "seed", "middle"], sort=False)]]


def _spread(values: pd.Series) -> dict[str, float]:
    return {"median": float(values.median()), "min": float(values.min()), "max": float(values.max())}


def _as_text(values: pd.Series) -> str:
    digits = 3 if str(values.name).startswith("coverage") else 2
    middle, low, high = (f"{value:.{digits}f}" for value in _spread(values).values())
    return f"{middle} [{low}, {high}]"
