"""A reader beside a run: whatever it sees of cube and products, at any moment, must be one whole revision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import xarray as xr

from pipeline import output
from pipeline.cube import reader

#: Seconds between two readings: a reader in a tight loop would take the processor from the run.
PAUSE = 0.4


@dataclass
class Readings:
    """How often a reader looked, and what it saw that was not whole."""

    count: int = 0
    wrong: list[str] = field(default_factory=list)


def digest(cube: xr.Dataset) -> str:
    """SHA-256 of all values of a cube, coordinates too."""
    found = hashlib.sha256()
    for name in sorted(map(str, cube.variables)):
        found.update(name.encode() + cube[name].values.tobytes())
    return found.hexdigest()


class Reader:
    """A process that reads until it is told to stop."""

    def __init__(self, out: Path, whole: set[str], environment: Mapping[str, str]) -> None:
        context = get_context("forkserver")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_keep_reading, args=(out, whole, there, dict(environment)), daemon=True)
        self._process.start()
        there.close()
        self._here.recv()  # its first reading

    def stop(self) -> Readings:
        """End it after one more reading; what it saw."""
        self._here.send("stop")
        found = self._here.recv() if self._here.poll(60) else Readings(0, ["the reader did not answer"])
        self._process.join(10)
        return found  # type: ignore[no-any-return]


def _keep_reading(out: Path, whole: set[str], pipe: Connection, environment: dict[str, str]) -> None:
    os.environ |= environment
    seen = Readings()
    seen.wrong += look(out, whole)
    pipe.send("reading")
    while True:
        stop = pipe.poll(PAUSE)
        seen.wrong += look(out, whole)
        seen.count += 1
        if stop:
            pipe.send(seen)
            return


def look(out: Path, whole: set[str]) -> list[str]:
    """What is wrong with what a reader sees now."""
    try:
        found = reader.open_cube(output.cube(out)).load()
    except Exception as error:  # whatever a reader meets is what this is to tell
        return [f"cube: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
    problems = [] if digest(found) in whole else [f"cube: {found.attrs.get('revision')} is none of the whole revisions"]
    return problems + list(_products(out / output.PRODUCTS))


def _products(folder: Path) -> Iterator[str]:
    """What is wrong with a folder of products, seen through one handle: the folder may be exchanged meanwhile."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        problems = list(_unlike_sums(handle))
        if problems and os.fstat(handle).st_ino == os.stat(folder).st_ino:
            yield from problems
    finally:
        os.close(handle)


def _unlike_sums(handle: int) -> Iterator[str]:
    try:
        sums = dict(reversed(line.split("  ", 1)) for line in _read(handle, output.SUMS).decode().splitlines())
        shown = set(_visible(handle))
        for name in sorted(shown ^ {*sums, output.SUMS}):
            yield f"products: {name} is not both there and in {output.SUMS}"
        for name in sorted(shown & set(sums)):
            if hashlib.sha256(_read(handle, name)).hexdigest() != sums[name]:
                yield f"products: {name} is not the file of {output.SUMS}"
    except FileNotFoundError as error:
        yield f"products: {error.filename} is gone"


def _read(handle: int, name: str) -> bytes:
    with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=handle)) as file:
        return file.read()


def _visible(handle: int, below: str = ".") -> Iterator[str]:
    for where, folders, names, _ in os.fwalk(below, dir_fd=handle):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield os.path.normpath(os.path.join(where, name))
