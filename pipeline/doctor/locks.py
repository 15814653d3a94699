"""Who holds the lock of a cube or store, asked without taking it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Holder:
    """A process, its command line and when it began."""

    pid: int
    command: str
    since: datetime | None


def holder(path: Path) -> Holder | None:
    """Return the process of this machine that holds ``.<name>.lock`` beside a path, see `pipeline.atomic.lock`.

    proc(5): a line of ``/proc/locks`` has the process and ``major:minor:inode`` (hexadecimal, decimal) of the file.
    """
    try:
        found = (path.parent / f".{path.name}.lock").stat()
        lines = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    wanted = (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
    for line in lines:
        words = line.split()
        if "->" in words or "FLOCK" not in words:
            continue
        major, minor, inode = words[5].split(":")
        if (int(major, 16), int(minor, 16), int(inode)) == wanted:
            return _process(int(words[4]))
    return None


def _process(pid: int) -> Holder:
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        since = datetime.fromtimestamp((_PROC / str(pid)).stat().st_mtime, UTC)
    except OSError:
        return Holder(pid, "unknown command", None)
    return Holder(pid, command, since)


def describe(held: Holder) -> str:
    """One line."""
    since = f", since {held.since:%Y-%m-%dT%H:%MZ}" if held.since else ""
    return f"process {held.pid} ({held.command[:100]}){since}"
