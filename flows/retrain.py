"""Now and then: new weights, which take the place of those in use when they are as good at hidden stations."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import environment
from pipeline import redact, renew
from pipeline.errors import ProductError
from pipeline.release.gate import failed


@flow(name="retrain")
def retrain(
    observations: Path,
    stations: Path,
    splits: Path,
    weights: Path,
    seed: int = 0,
    steps: int | None = None,
    calibration: Path | None = None,
) -> str:
    """Train weights and put them in use when they pass.

    Parameters
    ----------
    observations, stations, splits : what to train on and to judge by.
    weights : folder that runs take ``aqnet.safetensors`` from; the former ones are kept in it.
    seed, steps : of the training; None takes the recipe's steps.
    calibration : folder of the folds that interval widths are calibrated by; None leaves widths as trained.

    Returns
    -------
    SHA-256 of the weights in use. The next run with them states "retrain" as its reason.

    Raises
    ------
    ProductError
        Which checks the new weights did not pass; the former ones stay in use.
    """
    with environment.discreet():
        found = renew.renew(observations, stations, splits, weights, seed, steps, calibration)
        rows = [{"check": c.name, "expected": c.expected, "found": c.found, "passed": c.passed} for c in found.checks]
        create_table_artifact(redact.value(rows), key="retrain", description="New weights at hidden stations")
        if not found.passed:
            wrong = "; ".join(map(str, failed(found.checks)))
            raise ProductError(f"{weights}: new weights are not put in use: {wrong}")
    return found.digest
