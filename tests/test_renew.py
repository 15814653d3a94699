"""New weights are put in use when they are as good as the former and than kriging, and only then."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from model import checkpoint
from pipeline import renew
from tests.test_train import archive, tiny  # noqa: F401 - a fixture, for small networks

CRPS = {"new": 9.9, "old": 10.0, "log_kriging": 10.5}


def scores(coverage: float = 0.9, **crps: float) -> pd.DataFrame:
    found = pd.Series(CRPS | crps)
    return pd.DataFrame({"crps": found, "coverage_90": 0.9}).assign(coverage_90=coverage)


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, None),
        ({"new": 10.19}, None),
        ({"new": 10.21}, "the former weights"),
        ({"old": 11.0, "new": 10.51}, "log kriging"),
        ({"coverage": 0.8}, "coverage"),
        ({"coverage": 0.97}, "coverage"),
    ],
)
def test_what_passes(change: dict[str, float], fails: str | None) -> None:
    checks = list(renew._judge("hidden_city", scores(**change)))
    assert [check.name for check in checks if not check.passed] == ([f"hidden_city: {fails}"] if fails else [])


def renewed(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, seed: int, **crps: float) -> renew.Renewal:
    """A renewal with real training, whose scores are given: the networks are too small to earn any."""
    monkeypatch.setattr(renew, "_scores", lambda *_: {"hidden_city": scores(**crps)})
    return renew.renew(**archive(folder), weights=weights, seed=seed, steps=2)


def test_good_weights_take_the_place_of_the_former_which_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    first = renewed(tmp_path / "a", weights, monkeypatch, seed=1)
    assert first.passed
    assert first.weights == weights / "aqnet.safetensors"
    assert checkpoint.load(first.weights).config.near == 4
    second = renewed(tmp_path / "b", weights, monkeypatch, seed=2)
    assert second.digest != first.digest
    assert checkpoint.digest(weights / "former" / "aqnet.safetensors") == first.digest
    held = renewed(tmp_path / "c", weights, monkeypatch, seed=3, new=12.0)
    assert not held.passed
    assert held.digest == second.digest == checkpoint.digest(weights / "aqnet.safetensors")
    assert "hidden_city: log kriging" in (weights / "renewal.json").read_text()
    assert {path.name for path in weights.iterdir()} == {
        *(f"{name}.{kind}" for name in ("aqnet", "judged") for kind in ("json", "safetensors")),
        "former",
        "candidate",
        "renewal.json",
    }


def test_bad_first_weights_leave_those_that_are_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = renewed(tmp_path / "a", tmp_path / "weights", monkeypatch, seed=1, new=12.0)
    assert (found.passed, found.weights) == (False, checkpoint.DEFAULT)


def test_scores_are_of_new_and_former_weights_and_kriging_at_both_groups(tmp_path: Path) -> None:
    files = archive(tmp_path / "a")
    shipped = sorted(checkpoint.SHIPPED.glob("*.safetensors"))
    data = files["source_path"], files["stations"], files["splits"]
    tables = renew._scores(data, {"new": shipped[0], "old": shipped[1]}, tmp_path, 20)
    assert set(tables) == {"hidden_random", "hidden_city"}
    for table in tables.values():
        assert list(table.index) == ["new", "log_kriging", "old"]
        assert (table["crps"].astype(float) > 0).all()
        assert table.loc["new", "crps"] != table.loc["old", "crps"]
