"""One report of how methods do at withheld stations: tables, conditions, skill with intervals, calibration.

Shapes: T hours, Q points, N pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import score
from pipeline.evaluation import strata
from pipeline.evaluation.strata import Pairs
from pipeline.score import Prediction, Statistic

#: Metrics of the table that people read; the JSON has them all.
METRICS = ("mae_median", "rmse_mean", "r2_mean", "bias_mean", "mnmb_median", "fge_median", "crps")
INTERVALS = ("coverage_50", "coverage_90", "width_50", "width_90", "pairs")


#: Whose tables by condition are shown to readers; those of the others are in the JSON.
SHOWN = ("idw_k8_p1", "log_kriging", "space_time", "space_time_two_sided")

#: How the names of AQ-Net weights start, by mode.
AQNET = {"interim": "aqnet ", "final": "aqnet_final "}


@dataclass(frozen=True)
class Assessment:
    """How methods do on the same pairs.

    Attributes
    ----------
    scores : methods x metrics, see `pipeline.score.scores`.
    conditions : condition -> (label, method) x metrics, see `pipeline.evaluation.strata.by_condition`.
    skill : a row for each method, reference and statistic, see `skill`.
    pit, spread_skill : see `pipeline.evaluation.strata`.
    """

    scores: pd.DataFrame
    conditions: dict[str, pd.DataFrame]
    skill: pd.DataFrame
    pit: pd.DataFrame
    spread_skill: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """All of it in JSON's terms."""
        return {
            "scores": score.records(self.scores),
            "conditions": {name: records(rows) for name, rows in self.conditions.items()},
            "skill": score.records(self.skill),
            "pit": score.records(self.pit),
            "spread_skill": records(self.spread_skill),
        }

    def to_markdown(self, main: Sequence[str], heading: str = "##") -> str:
        """Tables with a heading each; those by condition show the `main` methods only."""
        shown = [m for m in main if m in self.scores.index]
        parts = [score.markdown(self.scores[list(METRICS)]), score.markdown(self.scores[list(INTERVALS)])]
        if len(self.skill):
            parts += [
                f"{heading} Difference in per cent, with its 95 % day-block bootstrap interval",
                _brief(self.skill),
            ]
        for name, rows in self.conditions.items():
            chosen = rows[rows.index.get_level_values("method").isin(shown)]
            parts += [f"{heading} By {name.replace('_', ' ')}", score.markdown(_flat(chosen))]
        if len(self.pit) > 1:
            chosen = self.pit[self.pit.index.isin(["calibrated", *shown])]
            parts += [f"{heading} PIT: share of the truth between neighbouring quantiles", _shares(chosen)]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Evaluation:
    """Scores and how they came about.

    Attributes
    ----------
    assessments : group -> report, see `assess`; the skill in it is that of the AQ-Net weights with the median
        CRPS, or of space-time kriging where there are no weights.
    seeds : group -> median, min and max over the AQ-Net weights, each mode, x metrics; empty without weights.
    about : date, commit, command, protocol, variograms, digests.
    """

    assessments: dict[str, Assessment]
    seeds: dict[str, pd.DataFrame]
    about: dict[str, Any]

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Methods x metrics of each group."""
        return {group: found.scores for group, found in self.assessments.items()}

    @property
    def differences(self) -> pd.DataFrame:
        """Skill of every group, see `pipeline.evaluation.assess.skill`."""
        found = [a.skill.assign(group=group) for group, a in self.assessments.items() if len(a.skill)]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    def to_json(self) -> str:
        """All of it as JSON; NaN becomes null."""
        found = {
            "about": self.about,
            "groups": {group: a.as_dict() for group, a in self.assessments.items()},
            "seeds": {group: score.records(rows) for group, rows in self.seeds.items()},
        }
        return json.dumps(found, indent=1, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The tables with a heading each, ready for the documentation."""
        about = [f"- {key}: {value}" for key, value in self.about.items() if isinstance(value, str | int)]
        parts = ["# Evaluation", "\n".join(about)]
        for group, found in self.assessments.items():
            parts += [f"## {group}", found.to_markdown([*SHOWN, *judged(found.scores)], "###")]
            if group in self.seeds:
                shown = self.seeds[group][[*METRICS, *INTERVALS]]
                count = len(networks_of(found.scores, "interim"))
                parts += [f"### AQ-Net over {count} weights", score.markdown(shown)]
        return "\n\n".join(parts)


def assess(
    predictions: Mapping[str, Prediction],
    truth: NDArray[np.float64],
    hours: NDArray[np.int64],
    distance: NDArray[np.float64],
    judged: Sequence[str] = (),
    references: Sequence[str] = (),
) -> Assessment:
    """Score methods on the pairs that all of them estimate.

    Parameters
    ----------
    predictions : method -> (T, Q).
    truth : (T, Q), NaN where missing.
    hours : (T,) since 1970-01-01T00 UTC.
    distance : (Q,) km from each point to the nearest station that the methods see.
    judged, references : methods whose skill is wanted, and what against; names that are not there are passed over.

    Raises
    ------
    ValueError
        When there is no such pair.
    """
    scores = score.table(predictions, truth)
    pairs = strata.common_pairs(predictions, truth, hours, distance)
    conditions = {name: strata.by_condition(pairs, name) for name in strata.CONDITIONS}
    found = skill(pairs, [m for m in judged if m in predictions], [r for r in references if r in predictions])
    return Assessment(scores, conditions, found, strata.pit(pairs), strata.spread_skill(pairs))


def skill(pairs: Pairs, judged: Sequence[str], references: Sequence[str]) -> pd.DataFrame:
    """Differences of MAE (median), RMSE (mean) and CRPS to references, with 95 % day-block bootstrap intervals.

    Returns
    -------
    DataFrame
        ``method``, ``minus`` (the reference), ``statistic``, ``value`` with ``low`` and ``high`` (difference, ug m-3),
        ``percent`` with ``percent_low`` and ``percent_high`` (of the reference), ``skill`` (1 - method / reference).
        Below zero, or a positive skill, the method is the better.
    """
    names = list(dict.fromkeys([*judged, *references]))
    rows: list[dict[str, object]] = []
    for statistic in get_args(Statistic) if judged and references else ():
        means = _resampled(pairs, names, statistic)
        rows += [
            {"method": a, "minus": b, "statistic": statistic} | _compared(means[a], means[b])
            for a in judged
            for b in references
            if a != b
        ]
    return pd.DataFrame(rows)


def _resampled(pairs: Pairs, names: Sequence[str], statistic: Statistic) -> dict[str, NDArray[np.float64]]:
    """Statistic of each method over all days, then over the resamples, (1 + n,)."""
    values = [score.pair_scores(pairs.predictions[name], pairs.truth, statistic) for name in names]
    means = score.resampled(values, pairs.day)
    return dict(zip(names, np.sqrt(means) if statistic == "rmse_mean" else means, strict=True))


def _compared(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, float]:
    percent = {f"percent_{key}": value for key, value in asdict(score.difference(a, b, relative=True)).items()}
    percent = {"percent" if key == "percent_value" else key: value for key, value in percent.items()}
    return asdict(score.difference(a, b)) | percent | {"skill": float(1.0 - a[0] / b[0])}


def networks_of(rows: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Rows of AQ-Net weights in a mode."""
    return rows[rows.index.str.startswith(AQNET[mode])]


def judged(rows: pd.DataFrame) -> list[str]:
    """Names of the middle weights of each mode; empty without weights."""
    return [name for mode in AQNET for name in middle(networks_of(rows, mode))]


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Median, lowest and highest of the weights of each mode x metrics."""
    found = [networks_of(rows, mode).agg(["median", "min", "max"]).T.add_prefix(AQNET[mode]).T for mode in AQNET]
    return pd.concat(found).dropna(how="all").rename_axis("aqnet")


def middle(networks: pd.DataFrame) -> list[str]:
    """Name of the weights with the median CRPS (the lower one of two), in a list; empty without weights."""
    order = networks["crps"].sort_values().index
    return [str(name) for name in order[(len(order) - 1) // 2 :][:1]]


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """`pipeline.score.records` of a table with several index columns."""
    return score.records(_flat(rows).reset_index())


def _flat(rows: pd.DataFrame) -> pd.DataFrame:
    """The first index column alone as the index, the others as columns."""
    return rows.reset_index().set_index(rows.index.names[0])


def _brief(skill: pd.DataFrame) -> str:
    """A row for each method and reference, a column for each statistic, as ``-3.7 [-4.5, -2.8]``."""
    text = [
        f"{row.percent:+.1f} [{row.percent_low:+.1f}, {row.percent_high:+.1f}]" for row in skill.itertuples(index=False)
    ]
    wide = skill.assign(text=text).set_index(["method", "minus", "statistic"])["text"].unstack(sort=False)
    return score.markdown(_flat(wide))


def _shares(rows: pd.DataFrame) -> str:
    return score.markdown(rows.rename(columns=str), digits=3)
