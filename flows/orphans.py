"""Servers of runs that were killed.

Prefect starts one for each `aqnet run`. kill -9, or the kernel for want of memory, leaves it behind with its 250 MB;
then the next run ends it.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import psutil

logger = logging.getLogger("aqnet")

#: Environment variable that tells a server whose it is: the process of its run.
RUN = "EPHEMERAL_SERVER_OF_AQNET"


def end(home: str) -> list[int]:
    """End the servers of this Prefect home whose run is gone; then mark those that this process starts.

    Returns
    -------
    Their process numbers. What other users, and other containers, started is left alone.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):
            if _is_orphan(process, home):
                process.terminate()
                found.append(process.pid)
                logger.info("ended the Prefect server of a run that was killed: process %d", process.pid)
    os.environ[RUN] = str(os.getpid())
    return found


def _is_orphan(process: psutil.Process, home: str) -> bool:
    said = process.environ()
    mine = said.get("PREFECT__SERVER_EPHEMERAL") == "1" and said.get("PREFECT_HOME") == home and RUN in said
    return mine and _numbers_are_ours(process.pid) and not psutil.pid_exists(int(said[RUN]))


def _numbers_are_ours(process: int) -> bool:
    """Whether a process counts processes as this one does, in no container of its own."""
    return os.readlink(f"/proc/{process}/ns/pid") == os.readlink("/proc/self/ns/pid")
