"""One report of how methods do at withheld stations: tables, conditions, skill with intervals, calibration.

Shapes: T hours, Q points, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import score, strata
from pipeline.score import Prediction, Statistic
from pipeline.strata import Pairs

#: Metrics of the table that people read; the JSON has them all.
SHOWN = ("mae_median", "rmse_mean", "r2_mean", "bias_mean", "mnmb_median", "fge_median", "crps")
SHOWN_INTERVALS = ("coverage_50", "coverage_90", "width_50", "width_90", "pairs")


@dataclass(frozen=True)
class Assessment:
    """How methods do on the same pairs.

    Attributes
    ----------
    scores : methods x metrics, see `pipeline.score.scores`.
    conditions : condition -> (label, method) x metrics, see `pipeline.strata.by_condition`.
    skill : a row for each method, reference and statistic, see `skill`.
    pit, spread_skill : see `pipeline.strata`.
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
        parts = [score.markdown(self.scores[list(SHOWN)]), score.markdown(self.scores[list(SHOWN_INTERVALS)])]
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
