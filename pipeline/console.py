"""What `aqnet` says while it works: a progress bar on a terminal, plain lines elsewhere, or JSON lines for programs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pipeline import logs, redact

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("aqnet")

#: What Python's warnings are logged by.
_WARNINGS = logging.getLogger("py.warnings")


@contextmanager
def logging_to_console(debug: bool, form: str = "text") -> Iterator[None]:
    """Send the log to stderr: with a progress bar on a terminal, as plain lines elsewhere. Put all back at the end.

    Parameters
    ----------
    form : one of `pipeline.logs.FORMATS`; JSON lines are the same on a terminal.
    """
    handler = Bar() if form == "text" and sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(logs.formatter(form))
    logging.captureWarnings(True)
    try:
        with (
            _environment(form),
            _taken(logger, handler, logging.DEBUG if debug else logging.INFO),
            _taken(_WARNINGS, handler, logging.WARNING if debug else logging.ERROR),
        ):
            yield
    finally:
        logging.captureWarnings(False)
        handler.close()


@contextmanager
def _environment(form: str) -> Iterator[None]:
    """Let the processes that a command starts speak as it does."""
    if form == logs.wanted():
        yield
        return
    before = os.environ.get(logs.ENVIRONMENT)
    os.environ[logs.ENVIRONMENT] = form
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(logs.ENVIRONMENT, None)
        else:
            os.environ[logs.ENVIRONMENT] = before


@contextmanager
def _taken(one: logging.Logger, handler: logging.Handler, level: int) -> Iterator[None]:
    """Let a logger speak by one handler alone: Prefect's, of the root logger, would say everything twice."""
    before = one.level, one.propagate
    one.addHandler(handler)
    one.setLevel(level)
    one.propagate = False
    try:
        yield
    finally:
        one.removeHandler(handler)
        one.setLevel(before[0])
        one.propagate = before[1]


def fail(said: str, form: str = "text", error: BaseException | None = None, traceback: bool = False) -> None:
    """Say on stderr why a command ends: one line, as JSON with the exception as a field where that was asked for.

    Parameters
    ----------
    traceback : show that of `error` in text, too.
    """
    if form == "json":
        about = (type(error), error, error.__traceback__) if error is not None else None
        said = logs.JsonLines().format(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, said, (), about))
    elif traceback and error is not None:
        said = redact.text(f"{logs.exception(error)['traceback']}{said}")
    else:
        said = redact.text(said)
    click.echo(said, err=True)


class Bar(logging.Handler):
    """Shows records that carry ``done`` and ``total`` as one progress bar, and the others as lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self.progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task: TaskID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Move the bar, or print the record above it."""
        done, total = (getattr(record, name, None) for name in ("done", "total"))
        if total is None:
            self.progress.console.print(self.format(record), highlight=False, markup=False)
            return
        if self.task is None:
            self.progress.start()
            self.task = self.progress.add_task("", total=total)
        said = redact.text(record.getMessage())
        self.progress.update(self.task, completed=done, total=total, description=said)

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()
        super().close()
