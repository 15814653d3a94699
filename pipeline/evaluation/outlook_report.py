"""The evaluation of the outlook mode as a page: one table a group, kind and window, and what the differences mean."""

from __future__ import annotations

import pandas as pd

from pipeline import score
from pipeline.evaluation.outlook_score import AQNET, COMPARED, OutlookEvaluation

_HEAD = """# Outlook

168 hours ahead from the 336 hours before; every method on the same pairs. Windows are cumulative: 24 h pools leads 1 to
24; scores at the last lead of each window alone are in outlook.json (`at`). Daily scores are of means over 24 leads.
MAE is of the median, RMSE and R2 are of the mean. Baselines have the distribution of their own errors in the validation
hours, and come to hidden stations by log kriging; what they are is said in `model/outlook_baselines.py`. Units are
ug m-3."""

_ABLATION = """Each ablation was trained as the whole network, three seeds, and is scored at the stations."""

_DIFFERENCES = """## AQ-Net minus baselines

95 % intervals of a bootstrap of blocks of issue days, each as long as the window (a day at least); AQ-Net is the seed
with the median CRPS. `ns`: the interval holds zero, the difference is not significant."""


def markdown(result: OutlookEvaluation) -> str:
    """The page."""
    about = [f"- {key}: {value}" for key, value in result.about.items() if isinstance(value, str | int)]
    parts = [_HEAD, "\n".join(about)]
    if len(result.differences):
        parts += ["## Where AQ-Net is better", _words(result.differences)]
    parts += ["## Scores", *_scores(result.scores)]
    if len(result.seeds):
        parts += ["## Seeds and ablation: median (min to max)", _ABLATION, *_seeds(result.seeds)]
    if len(result.differences):
        parts += [_DIFFERENCES, *_differences(result.differences)]
    return "\n\n".join(parts) + "\n"


def _scores(scores: pd.DataFrame) -> list[str]:
    """A table a group and kind: methods x (window, metric)."""
    parts = []
    pooled = scores[~scores["at"] & ~scores["method"].str.contains("without")]
    for (group, kind), rows in pooled.groupby(["group", "kind"], sort=False):
        wide = rows.pivot(index="method", columns="window", values=["mae", "rmse", "r2", "crps", "coverage_90"])
        wide = wide.loc[list(dict.fromkeys(rows["method"]))]
        for metric in ("mae", "rmse", "r2", "crps", "coverage_90"):
            table = wide[metric].set_axis(
                [f"{'' if metric in ('mae', 'rmse', 'crps') else metric} {w} h".strip() for w in wide[metric]], axis=1
            )
            parts += [f"### {group}, {kind}: {metric}", score.markdown(pd.DataFrame(table))]
    return parts


def _seeds(seeds: pd.DataFrame) -> list[str]:
    parts = []
    for group, rows in seeds[(seeds["kind"] == "hourly") & ~seeds["at"]].groupby("group", sort=False):
        for metric in COMPARED:
            cells = rows.assign(
                cell=[
                    f"{row[f'{metric}_median']:.2f} ({row[f'{metric}_min']:.2f} to {row[f'{metric}_max']:.2f})"
                    for _, row in rows.iterrows()
                ]
            )
            wide = cells.pivot(index="network", columns="window", values="cell")
            wide = wide.loc[list(dict.fromkeys(rows["network"]))].set_axis([f"{w} h" for w in wide], axis=1)
            parts += [f"### {group}, hourly: {metric}", score.markdown(wide)]
    return parts


def _differences(differences: pd.DataFrame) -> list[str]:
    parts = []
    for (group, kind, statistic), rows in differences.groupby(["group", "kind", "statistic"], sort=False):
        cells = rows.assign(cell=[_interval(row["value"], row["low"], row["high"]) for _, row in rows.iterrows()])
        wide = cells.pivot(index="minus", columns="window", values="cell")
        wide = wide.loc[list(dict.fromkeys(rows["minus"]))].set_axis([f"{w} h" for w in wide], axis=1)
        parts += [f"### {group}, {kind}: {statistic}", score.markdown(wide)]
    return parts


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]{'' if low > 0 or high < 0 else ' ns'}"


def _words(differences: pd.DataFrame) -> str:
    """One line a group, kind and statistic: where AQ-Net is not significantly better than every baseline."""
    lines = []
    baselines = differences[~differences["minus"].str.startswith(AQNET)]
    for (group, kind, statistic), rows in baselines.groupby(["group", "kind", "statistic"], sort=False):
        worse, unsure = rows[rows["low"] > 0], rows[(rows["low"] <= 0) & (rows["high"] >= 0)]
        exceptions = [f"worse than {_listed(worse)}"] * (len(worse) > 0)
        exceptions += [f"not significant against {_listed(unsure)}"] * (len(unsure) > 0)
        text = "significantly better than every baseline in every window"
        if exceptions:
            text = "significantly better, except: " + "; ".join(exceptions)
        lines.append(f"- {group}, {kind}, {statistic}: {text}.")
    return "\n".join(lines)


def _listed(rows: pd.DataFrame) -> str:
    """Baselines and their windows."""
    named = rows.groupby("minus", sort=False)["window"].agg(lambda hours: ", ".join(f"{h} h" for h in hours))
    return ", ".join(f"{name} ({hours})" for name, hours in named.items())
