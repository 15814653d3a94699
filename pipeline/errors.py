"""The errors a user may see. Each message is one line: what was read, where, expected, found, what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AqnetError(Exception):
    """Base of every error whose message is fit for the user; the command line prints it and exits 1."""


class ConfigError(AqnetError):
    """The configuration cannot be run; raised before any work."""


class InputError(AqnetError):
    """An input file, line, column or variable is not what was declared."""


class ProductError(AqnetError):
    """A product failed its contract and was not published."""


class StorageError(AqnetError):
    """A disk or store refused to be read or written: nothing is wrong with configuration, input or code."""


#: Answers of a disk that an operator can mend, and how.
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or ask for more",
    errno.EROFS: "let it be written again",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EIO: "look at the system's log: the disk may be failing",
}

#: How Icechunk, whose errors have no number of their own, tells the system's.
_OS_ERROR = re.compile(r"os error (\d+)")


@contextmanager
def telling_storage(place: Path) -> Iterator[None]:
    """Raise a `StorageError` in place of whatever a refusing disk made a block raise.

    Parameters
    ----------
    place : named where the error names no file.
    """
    try:
        yield
    except (ConfigError, InputError):
        raise  # what was read, which these name better
    except Exception as error:
        refusal = _refusal(error, place)
        if refusal is None:
            raise
        remedy = f"{_REMEDIES[refusal.errno or 0]}, then run it again"
        raise StorageError(f"{refusal.filename}: {refusal.strerror}; {remedy}") from refusal


def _refusal(error: BaseException, place: Path) -> OSError | None:
    """What the system said that led to an error, if it is one of `_REMEDIES`."""
    for one in _chain(error):
        if isinstance(one, OSError):
            named = str(one.filename or "")  # without its folder where one was removed
            code, where = one.errno, named if os.sep in named else place
        else:
            found = _OS_ERROR.search(str(one))
            code, where = int(found[1]) if found else None, place
        if code in _REMEDIES:
            refusal = OSError(code, os.strerror(code), str(where))
            refusal.__cause__ = error
            return refusal
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__
