"""A folder of products that readers see change in one step: built beside its place, then exchanged with it.

What a run or `aqnet publish` offers (files, catalogue, page, provenance, checksums) belongs together: a checksum of one
file beside another file is wrong for as long as it lasts. So all of it is written in a copy made of hard links, and
the kernel exchanges the two folders. See docs/adr/0020-catalogue.md.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import atomic

logger = logging.getLogger("aqnet")

#: Linux: `renameat2` with paths as they are, and its flag that makes two names change places (linux/fs.h).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

#: The file system or kernel has no exchange.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV}

#: The file system has no hard links, or no more of one file.
_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a hidden copy of a folder to change; it takes the folder's place in one step when the block ends well.

    The copy shares the bytes of its files with the folder, so a file in it must be replaced (`atomic.replacing`), never
    written into. When the block raises, or the process is killed in it, the folder stays as it was. Whoever comes
    second waits. Hidden files (what a kill left) are not taken over.

    Parameters
    ----------
    folder : need not exist yet.
    """
    copy = folder.with_name(f".{folder.name}.next")
    with _turn(folder):
        _recover(folder)
        atomic.remove(copy)
        try:
            _copy(folder, copy)
            yield copy
            _to_disk(copy)
            exchange(copy, folder)
        finally:
            atomic.remove(copy)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the only turn at changing a folder; the kernel ends it with the process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for another process that is publishing", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(folder: Path, copy: Path) -> None:
    if folder.is_dir():
        shutil.copytree(folder, copy, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
    else:
        copy.mkdir()


def _link(source: str, target: str) -> None:
    """Make a hard link; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copy2(source, target)


def _to_disk(folder: Path) -> None:
    """Bring new files (those that no other folder shares) and all folders on the disk, for a power cut."""
    for root, _, names in os.walk(folder):
        new = [path for name in names if os.stat(path := os.path.join(root, name)).st_nlink == 1]
        for path in [*new, root]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def exchange(new: Path, folder: Path) -> None:
    """Let two folders change places in one step.

    Where kernel or file system cannot, two renames do it; a kill between them leaves the former folder as
    ``.<name>.old``, which the next `staged` puts back.
    """
    if not folder.exists():
        new.rename(folder)
        return
    try:
        _renameat2(new, folder)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        logger.debug("%s: no exchange on this file system (%s); two renames instead", folder, error)
        folder.rename(_old(folder))
        new.rename(folder)
        atomic.remove(_old(folder))


def _renameat2(one: Path, other: Path) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, "this C library has no renameat2")
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def _recover(folder: Path) -> None:
    """Put back what a kill between two renames left aside."""
    if _old(folder).is_dir():
        if folder.exists():
            atomic.remove(_old(folder))
        else:
            _old(folder).rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
