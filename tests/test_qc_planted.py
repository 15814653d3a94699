"""A small seeded share of ``python -m benchmarks.planted``: known faults in a real week."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import planted
from benchmarks.faults import KINDS

START = np.datetime64("2019-12-10", "h")
#: Smaller than the benchmark's box, so that a round takes two seconds.
BOX = (112.0, 34.0, 120.0, 41.0)


@pytest.fixture(scope="module")
def result(shared_data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    cube = planted.read_week(shared_data / "cnemc", START, BOX)
    return planted.run(cube, START, {kind: [0.0] * 20 for kind in KINDS}, seed=5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_planted_faults_are_found(result: tuple[pd.DataFrame, pd.DataFrame], kind: str) -> None:
    found = planted.recall(result[0], ["kind"]).loc[kind]
    assert found["faults"] == 20
    assert found["found"] >= 90


def test_clean_values_stay_valid(result: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    share = planted.false_share(result[1])
    assert share.loc["pm2p5", "clean"] > 40_000
    assert 0 < share.loc["pm2p5", "flagged"] < 1
    assert share.loc["all", "flagged"] < 1
