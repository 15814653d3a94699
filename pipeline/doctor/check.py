"""One check of `aqnet doctor`: what was looked at, how it is, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline import redact

if TYPE_CHECKING:
    from pipeline.config import RunConfig

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """What a check found, and what to do where it is not ok."""

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes
    ----------
    config : configuration of the runs; None where none was given, or it is broken.
    out : output folder of the runs, which need not exist.
    timeout : seconds to wait for an answer from the network.
    scheduled : whether the configuration says no end, as one that a schedule runs.
    """

    config: RunConfig | None
    out: Path
    timeout: float = 3.0
    scheduled: bool = False


Look = Callable[[Subject], Iterable[Check]]


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, "ok", redact.text(found))


def warning(name: str, found: str, advice: str) -> Check:
    """Runs work, but somebody should look."""
    return Check(name, "warning", redact.text(found), redact.text(advice))


def failure(name: str, found: str, advice: str) -> Check:
    """Runs fail, or what they make cannot be trusted."""
    return Check(name, "failure", redact.text(found), redact.text(advice))


def looked(look: Look, subject: Subject) -> list[Check]:
    """Return what a check finds; one that breaks is a failure, too, and stops no other."""
    try:
        return list(look(subject))
    except Exception as error:
        name = look.__name__.replace("_", " ")
        found = f"the check itself broke: {type(error).__name__}: {' '.join(str(error).split())}"
        return [failure(name, found, "report this with the output of `aqnet --debug doctor`")]
