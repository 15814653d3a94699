"""Revisions of a cube: what each commit says of its run, and why it was made.

The record of a run is the metadata of the commit that its tag names, so it moves with the values in one step. Commits
made before there were records, and by others, say less; what they leave out is None or empty here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import score
from pipeline.contract import STREAMS
from pipeline.cube import reader
from pipeline.cube.layout import FILL, Group
from pipeline.cube.repository import Entry
from pipeline.location import Location
from pipeline.release.gate import Check, Last
from pipeline.release.skill import KRIGING, NETWORK, Skill
from pipeline.tracing import runs as trace_runs

#: Columns of scores that a list of revisions shows.
SHOWN = ("mae_median", "rmse_mean", "coverage_90")


@dataclass(frozen=True)
class Counts:
    """Hours of a candidate beside the published revision.

    Attributes
    ----------
    appended : analysed hours where there was nothing, or an outlook.
    finalised : interim hours replaced by final ones.
    changed : other analysed hours whose values differ.
    outlook : hours of an outlook that are new or differ.
    withdrawn : outlook hours taken back.
    """

    appended: int = 0
    finalised: int = 0
    changed: int = 0
    outlook: int = 0
    withdrawn: int = 0


def count(new: Group, old: Group | None) -> Counts:
    """Count the hours of a candidate that differ from what is published, by what happened to them."""
    stream, revision = new["stream"][:], new["revision"][:]
    was, before = np.full_like(stream, FILL["stream"]), np.zeros_like(revision)
    if old is not None:
        known = old["stream"].shape[0]
        was[:known], before[:known] = old["stream"][:], old["revision"][:]
    differs, analysed, had = revision != before, _analysed(stream), _analysed(was)
    final = had & (was == STREAMS["interim"]) & (stream == STREAMS["final"])
    kinds = {
        "appended": analysed & ~had,
        "finalised": final,
        "changed": analysed & had & ~final,
        "outlook": stream == STREAMS["outlook"],
        "withdrawn": (stream == FILL["stream"]) & (was == STREAMS["outlook"]),
    }
    return Counts(**{name: int((differs & kind).sum()) for name, kind in kinds.items()})


def _analysed(stream: NDArray[np.int8]) -> NDArray[np.bool_]:
    return np.isin(stream, [STREAMS["interim"], STREAMS["final"]])


def reason(counts: Counts, first: bool) -> str:
    """Why a run was made, from what it did, for one that nobody gave a reason."""
    said = {
        "appended": "first publication" if first else "hours appended",
        "finalised": "interim hours replaced by final",
        "changed": "hours changed",
        "outlook": "hours of outlook",
        "withdrawn": "hours of outlook withdrawn",
    }
    parts = [f"{number} {said[name]}" for name, number in asdict(counts).items() if number]
    if first and counts.appended:
        parts[0] = f"first publication, {counts.appended} hours"
    return ", ".join(parts) or "nothing changed"


@dataclass(frozen=True)
class Revision:
    """A published revision or a held candidate.

    Attributes
    ----------
    name : tag such as ``r3``, or branch of a held candidate.
    snapshot, published : the commit and when it was made, UTC.
    held : whether the release gate stopped it; ``accepted`` says why it was published all the same.
    run_id, reason : of the run that made it.
    hours : ``start``, ``end`` and, with an outlook, ``last`` hour of the run, half open.
    counts : see `Counts`.
    scores : at withheld stations, a row a month and method.
    checks : of the release gate.
    config, config_digest : the run's configuration whole, and its digest.
    lineage : digests of inputs and weights, version of the code.
    """

    name: str
    snapshot: str
    published: str
    held: bool = False
    accepted: str | None = None
    run_id: str = ""
    reason: str = ""
    hours: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_digest: str = ""
    lineage: Mapping[str, str] = field(default_factory=dict)

    def score(self, method: str, name: str) -> float | None:
        """Mean over the months of a score of a method, weighted by pairs; None where it has none."""
        rows = [row for row in self.scores if row["method"] == method and row.get(name) is not None]
        pairs = sum(row["pairs"] for row in rows)
        return sum(row[name] * row["pairs"] for row in rows) / pairs if pairs else None

    def failed(self) -> list[Check]:
        """Return the checks that it did not pass."""
        return [Check(**check) for check in self.checks if check["passed"] is False]


def history(cube: Location, count: int | None = None) -> list[Revision]:
    """Published revisions, oldest first, then candidates that the release gate stopped.

    Parameters
    ----------
    count : the newest so many alone; all when None, a minute's reading after years of hours.

    Raises
    ------
    ProductError
        When there is no cube.
    """
    return [*(_revision(entry) for entry in reader.history(cube, count)), *held(cube)]


def held(cube: Location) -> list[Revision]:
    """Candidates that the release gate stopped, oldest first."""
    return [_revision(entry, True) for entry in reader.held(cube)]


def published(cube: Location, tag: str) -> Revision:
    """The revision of a tag that there is."""
    return _revision(next(reader.backwards(cube, tag)))


def newest(cube: Location) -> Revision | None:
    """The newest revision, None before the first."""
    entry = next(reader.backwards(cube), None)
    return None if entry is None else _revision(entry)


def _revision(entry: Mapping[str, Any], held: bool = False) -> Revision:
    said = entry["metadata"]
    made = said.get(trace_runs.KEY, {})
    words = entry["message"].split()
    return Revision(
        name=entry["revision"],
        snapshot=entry["snapshot"],
        published=entry["published"],
        held=held,
        accepted=said.get("accepted"),
        run_id=made.get("run_id") or (words[2].strip(":,") if len(words) > 2 else ""),
        config=made.get("config", {}),
        **{name: said[name] for name in _KEPT if name in said},
    )


_KEPT = ("reason", "hours", "counts", "scores", "checks", "config_digest", "lineage")


def last(entry: Entry | None, weights: str) -> Last:
    """What the release gate asks of the last revision.

    Parameters
    ----------
    entry : the newest published, None before the first.
    weights : digest of the weights that the published cube names.
    """
    if entry is None:
        return Last()
    said = entry.metadata
    places = {name: (float(lon), float(lat)) for name, (lon, lat) in said.get("stations", {}).items()}
    found = said.get("skill")
    return Last(entry.name, weights, places, said.get("observations"), Skill(**found) if found else None)


# ---- for people and scripts ----


def as_records(revisions: list[Revision]) -> list[dict[str, Any]]:
    """All there is, ready for JSON."""
    return [asdict(revision) for revision in revisions]


def as_text(revisions: list[Revision]) -> str:
    """A table of revisions with reason and scores; held candidates below it with the checks that they failed."""
    rows = [_row(revision) for revision in revisions if not revision.held]
    table = score.markdown(pd.DataFrame(rows).set_index("revision")) if rows else "nothing is published yet\n"
    held = [line for revision in revisions if revision.held for line in _held(revision)]
    return table + ("\nHeld by the release gate, not published:\n" + "\n".join(held) + "\n" if held else "")


def _row(revision: Revision) -> dict[str, Any]:
    hours = " to ".join(revision.hours[name] for name in ("start", "end")) if revision.hours else "-"
    why = revision.reason + (f"; accepted: {revision.accepted}" if revision.accepted else "")
    row: dict[str, Any] = {"revision": revision.name, "published": revision.published, "hours": hours}
    row |= {"reason": why or "-"}
    for name in SHOWN:
        found = revision.score(NETWORK, name)
        row[name] = np.nan if found is None else found
    beside = revision.score(KRIGING, SHOWN[0])
    return row | {"mae_kriging": np.nan if beside is None else beside}


def _held(revision: Revision) -> list[str]:
    return [f"{revision.name}  {revision.published}  {revision.reason}", *(f"  {one}" for one in revision.failed())]
