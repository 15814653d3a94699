"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a hidden path beside `target` to write to; it takes `target`'s place when the block ends well.

    When the block raises, what it wrote goes and `target` stays as it was. A file is replaced in one step. A folder
    that replaces a folder takes two renames: a kill between them leaves the former one as ``.<name>.old``.
    """
    part = target.with_name(f".{target.name}.part")
    remove(part)
    try:
        yield part
        if target.is_dir():
            _replace_folder(part, target)
        else:
            os.replace(part, target)
    finally:
        remove(part)


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


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
