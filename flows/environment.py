"""Prefect's environment. It is read once, when prefect is first imported, so all of this must come before."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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


def _home() -> Path:
    """Make ``~/.cache/aqnet/prefect`` (the ephemeral server starts faster when it is kept), or a temporary folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aqnet" / "prefect"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="aqnet-prefect-"))
    return cache
