"""Prefect's environment, read once, when prefect is first imported, so it must come before; and what watches a run."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows import credentials, orphans
from pipeline import logs, redact

if TYPE_CHECKING:
    from pipeline.config import RunConfig

#: No telemetry anywhere; and a cold machine may need more than Prefect's 20 seconds to start the ephemeral server.
ALWAYS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
}

#: On the command line `aqnet` reports errors itself, in one line, so Prefect's log with its tracebacks stays silent.
COMMAND_LINE = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_LOGGING_TO_API_ENABLED": "false"}


def prepare() -> None:
    """Set what every use of the flows needs; a variable that is set already stays as it is."""
    for name, value in ALWAYS.items():
        os.environ.setdefault(name, value)


def prepare_command_line() -> None:
    """Set what `aqnet` needs: quiet logs, and a home of its own, so that no other Prefect on the machine is touched."""
    for name, value in COMMAND_LINE.items():
        os.environ.setdefault(name, value)
    if "PREFECT_HOME" not in os.environ:
        os.environ["PREFECT_HOME"] = str(_home())
    orphans.end(os.environ["PREFECT_HOME"])


def _home() -> Path:
    """Make ``~/.cache/aqnet/prefect`` (the ephemeral server starts faster when it is kept), or a temporary folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aqnet" / "prefect"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="aqnet-prefect-"))
    return cache


# ---- watching ----


@contextmanager
def watched(config: RunConfig, run_id: str) -> Iterator[None]:
    """Watch a run: its log names it, goes to Prefect, holds no secret; at the end, well or not, metrics are left."""
    from pipeline import metrics

    with discreet(), _logged(run_id), logs.about(run_id=run_id), metrics.recorded(config):
        yield


@contextmanager
def discreet() -> Iterator[None]:
    """Lend the store's credentials; neither Prefect's log nor an error that leaves the block holds a secret.

    Prefect keeps an error's text, and the error itself, pickled.
    """
    _make_safe(logs.wanted())
    redact.know_files()
    with redact.errors(), credentials.lent():
        yield


@contextmanager
def _logged(run_id: str) -> Iterator[None]:
    """Send our log where Prefect's goes, unless the command line took it; other libraries speak as we do."""
    logger = logging.getLogger("aqnet")
    if not logger.propagate:
        yield
        return
    handler, level = _to_prefect(run_id), logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _to_prefect(run_id: str) -> logging.Handler:
    """Handler for Prefect's API; it says of each record which run it is of, for a thread cannot tell."""
    from prefect.logging.handlers import APILogHandler

    def known(record: logging.LogRecord) -> bool:
        record.flow_run_id = run_id
        return True

    handler = APILogHandler()
    handler.addFilter(known)
    handler.setFormatter(logs.Hiding(logging.Formatter("%(message)s")))
    return handler


def _make_safe(form: str) -> None:
    """Take secrets out of what Prefect's handlers say, and let those of the console write JSON where that is wanted."""
    for logger in (logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))):
        for handler in list(logger.handlers):
            if not type(handler).__module__.startswith("prefect."):
                continue
            if form == "json" and isinstance(handler, logging.StreamHandler):
                logger.removeHandler(handler)
                logger.addHandler(_json_to(handler))
            elif not isinstance(handler.formatter, logs.Hiding):
                handler.setFormatter(logs.Hiding(handler.formatter or logging.Formatter()))


def _json_to(handler: logging.Handler) -> logging.Handler:
    """Write JSON lines to the stream of a handler, past its colours."""
    plain = logging.StreamHandler(getattr(handler, "stream", None))
    plain.setLevel(handler.level)
    plain.setFormatter(logs.JsonLines())
    return plain
