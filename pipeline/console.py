"""What `aqnet` says while it works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("aqnet")


@contextmanager
def logging_to_console(debug: bool) -> Iterator[None]:
    """Send the log to stderr: with a progress bar on a terminal, as plain lines elsewhere. Put all back at the end."""
    handler = Bar() if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False  # Prefect's handler of the root logger would say everything twice
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.ERROR)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        handler.close()


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
        self.progress.update(self.task, completed=done, total=total, description=record.getMessage())

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()
        super().close()
