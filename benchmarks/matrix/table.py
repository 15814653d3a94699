"""Outcomes of the matrix as text: a line each, and a table of faults and stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from benchmarks.matrix.cell import Outcome

_COLUMNS = ("fault", "stage", "runs", "readings", "went on", "next run", "hours lost", "hours wrong", "not as promised")


def line(outcome: Outcome) -> str:
    """One outcome, with what was wrong on lines below."""
    cell = outcome.cell
    how = f"exit {outcome.status}, {outcome.readings} readings, {outcome.recovered or 'not recovered'}"
    word = "WRONG" if outcome.problems else "ok"
    first = f"{word:5} {cell.fault} | {cell.stage} | {cell.seed}: {how}, {outcome.seconds:.0f} s"
    first += f" ({outcome.fault})" if outcome.fault else ""
    said = [f"      said: {outcome.said[:300]}"] if outcome.status > 0 else []
    return "\n".join([first, *said, *(f"      {problem}" for problem in outcome.problems)])


def markdown(outcomes: Iterable[Outcome]) -> str:
    """Table of faults and stages: runs, readings, recovered how, hours lost and wrong, cells not as promised."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.cell.fault, outcome.cell.stage].append(outcome)
    rows = [_row(fault, stage, some) for (fault, stage), some in groups.items()]
    every = [outcome for some in groups.values() for outcome in some]
    return "\n".join([f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|", *rows, _row("all", "", every)])


def _row(fault: str, stage: str, some: list[Outcome]) -> str:
    alone = sum(outcome.recovered == "by itself" for outcome in some)
    lost, wrong = sum(outcome.lost for outcome in some), sum(outcome.wrong for outcome in some)
    bad, readings = sum(bool(o.problems) for o in some), sum(o.readings for o in some)
    counts = (len(some), readings, alone, len(some) - alone, lost, wrong, bad)
    return f"| {fault} | {stage} | " + " | ".join(map(str, counts)) + " |"
