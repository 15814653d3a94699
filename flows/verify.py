"""Every night: whether what was published is still what it was."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import environment
from pipeline import redact
from pipeline import verify as verifying
from pipeline.errors import ProductError


@flow(name="verify")
def verify(out: Path) -> int:
    """Compare the files, revisions and values of an output folder with their digests.

    Returns
    -------
    How many things were looked at.

    Raises
    ------
    ProductError
        When any is not what was published; an artifact lists them.
    """
    with environment.discreet():
        found = list(verifying.verify(out))
        wrong = [one for one in found if one.problem]
        rows = [{"name": one.name, "problem": one.problem} for one in wrong]
        create_table_artifact(
            redact.value(rows), key="verify", description=f"{len(found)} looked at, {len(wrong)} wrong"
        )
        if wrong:
            said = f"{len(wrong)} of {len(found)} are not what was published; first: {wrong[0].name}"
            raise ProductError(f"{out}: {said}")
    return len(found)
