"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: Bytes that a disk must take before a failure to write is somebody else's.
_PROBE = 1 << 20


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a hidden path beside `target` to write to; it takes `target`'s place when the block ends well.

    When the block raises, what it wrote goes and `target` stays as it was. A file is replaced in one step. A folder
    that replaces a folder takes two renames: a kill between them leaves the former one as ``.<name>.old``.

    Raises
    ------
    OSError
        What the disk says, where it refuses; libraries such as HDF5 raise something else instead.
    """
    part = target.with_name(f".{target.name}.part")
    remove(part)
    try:
        yield part
        if target.is_dir():
            _replace_folder(part, target)
        else:
            os.replace(part, target)
    except (RuntimeError, PermissionError) as error:
        if (refusal := _refusal(target)) is not None:
            raise refusal from error
        raise
    finally:
        remove(part)


def _refusal(target: Path) -> OSError | None:
    """What the disk says to a small file beside `target`; None where it takes it."""
    probe = target.with_name(f".{target.name}.probe")
    try:
        write_bytes(probe, bytes(_PROBE))
    except OSError as error:
        error.filename = str(target)
        return error
    finally:
        remove(probe)
    return None


def _replace_folder(part: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    remove(old)
    target.rename(old)
    try:
        part.rename(target)
    except OSError:
        old.rename(target)
        raise
    remove(old)


def write_bytes(target: Path, data: bytes) -> None:
    """Write a file whole and on the disk before it has its name; a power cut leaves the former one or this one."""
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError:
        remove(part)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock(path: Path, busy: Exception) -> IO[str]:
    """Hold the only writing place of `path` until the file is closed or the process ends; raise `busy` if it is taken.

    The lock is the file ``.<name>.lock`` beside it; the kernel drops it with the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = (path.parent / f".{path.name}.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise busy from error
    return file


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
