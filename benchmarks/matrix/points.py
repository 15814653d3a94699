"""Places in a run where it can be stopped to be disturbed, whichever process makes it.

A run in which the points are installed looks at each for the file ``plan`` in the folder that `FOLDER` names. Where
``plan`` holds the point's name the run writes its process to ``reached`` and waits for the file ``go``. The first
process that comes to a planned point takes it; later ones pass.
"""

from __future__ import annotations

import functools
import importlib
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def pause(seconds: float) -> None:
    """As `time.sleep`, whose system call libfaketime breaks."""
    select.select([], [], [], seconds)


if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    time.sleep = pause

#: Environment variable with the folder of ``plan``, ``reached`` and ``go``.
FOLDER = "MATRIX_FOLDER"

#: Stage -> the function whose call is its point.
POINTS = {
    "ingest": "pipeline.stages:_read",
    "quality control": "pipeline.qc:flag",
    "analyse": "pipeline.cube.write:write_block",
    "score": "pipeline.release.skill:sample",
    "outlook": "pipeline.analyse:outlook_fields",
    "validate": "pipeline.stages:_changed_inputs",
    "publish: cube": "pipeline.cube.write:publish",
    "publish: main moves": "pipeline.cube.repository:move_main",
    "publish: main moved": "icechunk:Repository.create_tag",
    "publish: downloads": "pipeline.products.downloads:cut",
    "publish: papers": "pipeline.stages:_write_papers",
    "publish: catalogue": "pipeline.offer.publication:complete",
    "publish: exchange": "pipeline.offer.staging:exchange",
}

#: Seconds that a run waits at a point, and that whoever planned one waits for it.
PATIENCE = 600.0


def install() -> None:
    """Let the functions of `POINTS` look for a plan first, in this process."""
    for name, where in POINTS.items():
        module, _, path = where.partition(":")
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, attribute, _stopping(name, getattr(owner, attribute)))


def dask_setup(_worker: object) -> None:
    """Install the points in a Dask worker, which preloads this module."""
    install()


def _stopping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def stopping(*given: Any, **named: Any) -> Any:
        if folder := os.environ.get(FOLDER):
            _stop(name, Path(folder))
        return function(*given, **named)

    return stopping


def _stop(name: str, folder: Path) -> None:
    taken = folder / f"taken-{os.getpid()}"
    try:
        if (folder / "plan").read_text() != name:
            return
        (folder / "plan").rename(taken)
    except FileNotFoundError:
        return
    taken.write_text(str(os.getpid()))
    taken.rename(folder / "reached")
    wait(lambda: (folder / "go").exists(), f"word to go on from {name}")


def plan(folder: Path, name: str) -> None:
    """Plan the next stop."""
    for old in ("reached", "go"):
        (folder / old).unlink(missing_ok=True)
    for kept in ("plan", "stage"):
        part = folder / f"{kept}.part"
        part.write_text(name)
        part.rename(folder / kept)


def planned(folder: Path) -> str:
    """The stage of the last plan, reached or not."""
    return (folder / "stage").read_text()


def reached(folder: Path) -> int | None:
    """Process that waits at the planned point, or None."""
    try:
        return int((folder / "reached").read_text())
    except FileNotFoundError:
        return None


def go(folder: Path) -> None:
    """Let it go on."""
    (folder / "go").touch()


def wait(what: Callable[[], object], name: str, patience: float = PATIENCE) -> None:
    """Wait until something holds; TimeoutError, with its name, when it does not in time."""
    end = time.monotonic() + patience
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {patience:g} s for {name}")
        time.sleep(0.01)
