"""New weights beside those in use: trained, judged at hidden stations, and put in their place when they are as good.

Weights that are judged must not have seen the hidden stations and test hours, and weights in use should have seen
everything. So each renewal trains both: the first is judged beside the former first one and log kriging, on the test
hours of a split; the second takes its place only when the first passed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from model import baseline, checkpoint
from pipeline import train
from pipeline.atomic import replacing
from pipeline.evaluation import evaluate
from pipeline.evaluation.assess import AQNET
from pipeline.release.gate import Check, failed

logger = logging.getLogger("aqnet")

#: Names in the folder of weights: in use, judged, the former ones in use, and what the last renewal found.
USED, JUDGED, FORMER, REPORT = "aqnet.safetensors", "judged.safetensors", "former", "renewal.json"

#: How much worse than the former weights new ones may be in CRPS: the spread between seeds of one recipe is 1 %.
EXCESS = 0.02
#: Share of observations that the 90 % interval must hold.
COVERAGE = (0.82, 0.96)
KRIGING = "log_kriging"


@dataclass(frozen=True)
class Renewal:
    """What a renewal found: the checks, and the weights that are in use now with their SHA-256."""

    checks: list[Check]
    weights: Path
    digest: str

    @property
    def passed(self) -> bool:
        """Whether the new weights took the place of the former."""
        return not failed(self.checks)


def renew(
    source_path: Path,
    stations: Path,
    splits: Path,
    weights: Path,
    seed: int = 0,
    steps: int | None = None,
    work: Path | None = None,
    stride: int = 6,
) -> Renewal:
    """Train new weights and put them in use when they pass.

    Parameters
    ----------
    source_path, stations, splits : see `pipeline.train.train`.
    weights : folder of the weights in use; a run takes ``aqnet.safetensors`` of it. As long as it holds none, new ones
        are judged beside those that are shipped.
    seed, steps, work : see `pipeline.train.train`; `work` calibrates the weights that are put in use.
    stride : every so many test hours are scored.
    """
    data = source_path, stations, splits
    weights.mkdir(parents=True, exist_ok=True)
    with replacing(weights / "candidate") as folder:
        folder.mkdir()
        judged = train.train(*data, folder, seed, steps)
        old = weights / JUDGED if (weights / JUDGED).exists() else sorted(checkpoint.SHIPPED.glob("*.safetensors"))[0]
        tables = _scores(data, {"new": judged, "old": old}, folder, stride)
        checks = [check for group, table in tables.items() for check in _judge(group, table)]
        if not failed(checks):
            _put(train.train(*data, folder, seed, steps, everything=True, work=work), judged, weights)
    with replacing(weights / REPORT) as part:
        part.write_text(json.dumps([asdict(check) for check in checks], indent=1) + "\n")
    for check in failed(checks):
        logger.warning("new weights are not put in use: %s", check)
    used = weights / USED if (weights / USED).exists() else checkpoint.DEFAULT
    return Renewal(checks, used, checkpoint.digest(used))


def _scores(
    data: tuple[Path, Path, Path], networks: dict[str, Path], folder: Path, stride: int
) -> dict[str, pd.DataFrame]:
    """Scores of new and old weights, interim, and of log kriging: a table a group of hidden stations."""
    rows: dict[str, dict[str, pd.Series]] = {}
    for name, path in networks.items():
        kriging = {KRIGING: partial(baseline.log_kriging, variogram=baseline.CNEMC_2019)}
        for group, table in evaluate.evaluate(*data, folder / name, [path], stride, kriging).tables.items():
            mine = [row for row in table.index if str(row).startswith(AQNET["interim"])]
            rows.setdefault(group, {}).update({name: table.T[mine[0]], KRIGING: table.T[KRIGING]})
    return {group: pd.DataFrame(found).T for group, found in rows.items()}


def _judge(group: str, scores: pd.DataFrame) -> Iterator[Check]:
    """Checks of one group of hidden stations."""
    crps, coverage = scores["crps"].astype(float), float(scores["coverage_90"].astype(float)["new"])
    for other, name, limit in ((KRIGING, "log kriging", 1.0), ("old", "the former weights", 1 + EXCESS)):
        expected = f"CRPS of at most {limit * crps[other]:.3f} ug m-3, {limit:g} times that of {name}"
        yield Check(f"{group}: {name}", expected, f"{crps['new']:.3f}", bool(crps["new"] <= limit * crps[other]))
    low, high = COVERAGE
    expected = f"{low:.0%} to {high:.0%} of the observations in the 90 % interval"
    yield Check(f"{group}: coverage", expected, f"{coverage:.1%}", low <= coverage <= high)


def _put(used: Path, judged: Path, weights: Path) -> None:
    """Put new weights in use, each file in one step, and keep the former."""
    former = weights / FORMER
    former.mkdir(exist_ok=True)
    for source, name in ((judged, JUDGED), (used, USED)):
        for suffix in (".json", ".safetensors"):  # a reader that finds the weights finds what describes them
            target = (weights / name).with_suffix(suffix)
            if target.exists():
                shutil.copy2(target, former / target.name)
            os.replace(source.with_suffix(suffix), target)
