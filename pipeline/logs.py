"""What a line of the log says beside its message: which run and stage it is of, as text or as one JSON object.

`about` says it for the lines of a block, in this thread and in those that the block starts. Nothing here sets logging
up: the command line (`pipeline.console`) and the flows (`flows.environment`) do.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from pipeline import redact

#: How lines are written: for people, or for programs.
FORMATS = ("text", "json")
ENVIRONMENT = "AQNET_LOG_FORMAT"

#: Fields of every JSON line, in this order; what else a record carries comes after them.
FIELDS = ("time", "level", "logger", "run_id", "stage", "period", "message")

Said = Mapping[str, str]

#: Attribute of an exception: what the innermost block that it left was about.
_RAISED = "aqnet_raised_in"

_here: ContextVar[Said | None] = ContextVar("aqnet_log", default=None)
_open: list[Said] = []
_lock = Lock()


@contextmanager
def about(**said: str) -> Iterator[None]:
    """Say of every line of a block, and of an error that leaves it, what it is about; inner blocks add to outer ones.

    Parameters
    ----------
    said : ``run_id``, ``stage``, ``period``, or fields of the caller's own.
    """
    context = {**current(), **said}
    token = _here.set(context)
    with _lock:
        _open.append(context)
    try:
        yield
    except BaseException as error:
        if not hasattr(error, _RAISED):
            setattr(error, _RAISED, context)
        raise
    finally:
        with _lock:
            _open[:] = [one for one in _open if one is not context]
        _here.reset(token)


def current() -> Said:
    """Return what lines are about here.

    A thread does not inherit the context of the one that started it. One that has none belongs to the only run of this
    process; where there are several, it must be started with `contextvars.copy_context`, or its lines name no run.
    """
    here = _here.get()
    if here is not None:
        return here
    with _lock:
        runs = {one.get("run_id") for one in _open}
        return _open[-1] if len(runs) == 1 else {}


@contextmanager
def in_worker(**said: str) -> Iterator[None]:
    """As `about`, in a process that a run started; where nobody set logging up there, lines go to its stderr."""
    logger = logging.getLogger("aqnet")
    if logger.hasHandlers():
        with about(**said):
            yield
        return
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(formatter(wanted()))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with about(**said):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def wanted() -> str:
    """Format that the environment asks for."""
    asked = os.environ.get(ENVIRONMENT, "").strip().lower()
    return asked if asked in FORMATS else FORMATS[0]


def _fitting(record: logging.LogRecord) -> logging.LogRecord:
    """A record whose message can be made: arguments that do not fit stand behind it."""
    try:
        record.getMessage()
    except Exception:
        other = logging.makeLogRecord(vars(record))
        other.msg, other.args = f"{record.msg} {record.args}", None
        return other
    return record


class JsonLines(JsonFormatter):
    """One JSON object a line: `FIELDS`, extras, and an exception as a field, without secrets."""

    def __init__(self) -> None:
        super().__init__(json_ensure_ascii=False)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, one whose arguments do not fit its message, too."""
        return str(super().format(_fitting(record)))

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Put the fields of a record in order; an extra cannot take the place of one of `FIELDS`."""
        extra: dict[str, Any] = {}
        super().add_fields(extra, record, {k: v for k, v in message_dict.items() if k != "exc_info"})
        error = record.exc_info[1] if record.exc_info else None
        context = {**getattr(error, _RAISED, {}), **current()}
        known = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **{name: context.get(name) for name in ("run_id", "stage", "period")},
            "message": record.getMessage(),
        }
        log_data.update(known | {**context, **extra} | known)
        if error is not None:
            log_data["exception"] = exception(error)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Take secrets out, and what JSON has no form for."""
        cleaned: dict[str, Any] = redact.value(log_data)
        return cleaned


class Hiding(logging.Formatter):
    """Another formatter's lines, without secrets."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Format a record and take secrets out; one that does not fit the form is said by its message alone.

        Logging itself would show such a record with all its arguments as they are.
        """
        record = _fitting(record)
        try:
            said = self.inner.format(record)
        except Exception:
            said = f"{record.levelname} {record.getMessage()}"
        return redact.text(said)


def exception(error: BaseException) -> dict[str, str]:
    """Return an exception as fields: its type, message and traceback."""
    lines = traceback.format_exception(error)
    return {"type": type(error).__name__, "message": str(error), "traceback": "".join(lines)}


def formatter(form: str) -> logging.Formatter:
    """Formatter of one of `FORMATS`; text has local time, level and message."""
    if form == "json":
        return JsonLines()
    return Hiding(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
