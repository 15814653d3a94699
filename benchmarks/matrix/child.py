"""Runs as processes: forked ones that have imported everything already, and `aqnet run` as a user starts it.

Of a forked run, Prefect is left out and pictures are one pixel: the processor time goes into faults. All else is what
`aqnet run` does, from the words of the command line to the exit status.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import dask
import torch
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

import pipeline.offer.publication
import pipeline.release.hold  # noqa: F401  so that a fork has it already
from benchmarks.matrix import points
from pipeline import cli, shards, stages
from pipeline.commands import run as run_command
from pipeline.cube import patience, store

#: Seconds that a forked run waits for a bucket: without an answer, in the middle of one (300 and 30 elsewhere).
PATIENCE, SILENCE = 30.0, 10

_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'

_WHOLE = """
from benchmarks.matrix import points
points.install()
from pipeline.cli import main
main()
"""


class Run:
    """A run that was started: its process and what it said on stderr."""

    def __init__(self, process: BaseProcess | subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def pid(self) -> int:
        """Process that is killed."""
        return int(self.process.pid or 0)

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it works."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL, to the run alone."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def sweep(self) -> None:
        """End what a killed `aqnet run` left: its ephemeral Prefect server, which outlives it."""
        if isinstance(self.process, subprocess.Popen):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self, patience: float = points.PATIENCE) -> int:
        """Wait for the end; the exit status."""
        points.wait(lambda: self.status is not None, f"the end of a run ({self.log})", patience)
        return int(self.status or 0)

    def said(self) -> str:
        """What it wrote to stderr."""
        return self.log.read_text(errors="replace")


def forked(words: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Start a run in a fork of a process that has imported everything and started no thread."""
    # Forks lose the threads of Icechunk, so they come from a process that never used it.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(list(words), folder, log, dict(environment or {})))
    process.start()
    return Run(process, log)


def _run(words: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ |= environment | {points.FOLDER: str(folder)}
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    FigureCanvasAgg.print_png = FigureCanvasSVG.print_svg = _print_a_pixel  # type: ignore[method-assign]
    patience.PATIENCE, store.SILENCE = PATIENCE, SILENCE
    run_command._run_flow = _without_prefect
    points.install()
    code = cli.run_command(["run", *words])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _without_prefect(config: Any, reason: str | None, workers: int | None) -> stages.Run:
    if workers is None:
        return stages.make(config, uuid4().hex, reason)
    dask.config.set({"distributed.worker.preload": [points.__name__]})
    with stages.begin(config, uuid4().hex, reason) as run:
        shards.make(run, workers)
        stages.outlook(run)
        stages.validate(run)
        stages.publish(run)
    return run


def _print_a_pixel(canvas: FigureCanvasBase, place: BinaryIO, **_named: Any) -> None:
    place.write(_SVG if isinstance(canvas, FigureCanvasSVG) else _PNG)


def whole(words: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> Run:
    """Start `aqnet run` in a Python of its own, Prefect and pictures included."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _WHOLE, "run", *words],
            stdout=file,
            stderr=file,
            env=inherited | {points.FOLDER: str(folder)} | dict(environment),
            start_new_session=True,
        )
    return Run(process, log)
