"""Observations of a month, read and flagged, kept until their run is published.

Reading and flagging is most of what a month takes before it is estimated. A run of several months that was killed and
is given again does not do it again: each month lies in the output folder, hidden, under the SHA-256 of all that it
follows from (`key`). What files hold counts, and what their own names tell a reader, never where they lie. A result
whose own digest is wrong is thrown away. See docs/adr/0023-schedules-and-shards.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import xarray as xr

from pipeline import analyse, atomic, provenance, sources
from pipeline.config import Month, RunConfig

logger = logging.getLogger("aqnet")

#: Folder of an output folder that they lie in; no reader is led to it.
FOLDER = ".results"

#: Results of runs that nobody gave again go after this.
LONGEST = timedelta(days=7)

#: Of `pipeline.provenance`, packages that change no flag are left out, and one that does is added.
_PACKAGES = ("numpy", "pandas", "scipy", "xarray", "titanlib", "pyarrow")

#: A file: this, the SHA-256 of what follows, then a Dataset, pickled and compressed. Whoever can write to the output
#: folder can change the cube itself, so a pickle is trusted there.
_MAGIC = b"aqnet results 1\n"
_CODEC = "zstd"


def wanted(config: RunConfig) -> bool:
    """Whether a run keeps its results: one of a single month would begin again with that month in any case."""
    return len(config.months()) > 1


def key(config: RunConfig, month: Month) -> str | None:
    """SHA-256 of all that a month's flagged observations follow from.

    That is: names (without folders and archives) and digests of the files that are read for it, the site list's digest,
    the hours, the stations' box, how cut files are taken, the code and the packages.

    Returns
    -------
    None where nothing is kept: of a single month, and where not all of it is known, since the code differs from its
    commit or the network's reader is a plug-in.
    """
    code = provenance.code_version()
    if not wanted(config) or code.endswith("-dirty") or config.source not in sources.BUILT_IN:
        return None
    first, end = analyse.first_hour(month[0]), analyse.last_used(month[1], config.stream)
    digests = sources.input_digests(config.source, config.input, first, end, config.stations)
    files = [[_inner(label, config), digest] for label, digest in digests.items()]
    grid = config.grid()
    what = {
        "files": sorted(files) if config.source == "table" else files,
        "source": [config.source, config.truncated],
        "hours": [str(hour) for hour in (first, end, analyse.first_used(month[0]))],
        "boxes": [grid.bbox, grid.surroundings(analyse.EXTRAPOLATED_KM)],
        "code": [code, *(f"{name} {version(name)}" for name in _PACKAGES)],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _inner(label: str, config: RunConfig) -> str:
    """What a reader may see of a file's name: in an archive the path in it, of a table nothing."""
    return "" if config.source == "table" else label.partition("!")[2] or label


def find(out: Path, name: str | None) -> xr.Dataset | None:
    """Return the flagged StationCube that an earlier run kept under a `key`, if there is one and it is whole."""
    if name is None:
        return None
    path = out / FOLDER / name
    try:
        found = _unpacked(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as problem:
        logger.warning("%s: %s; the month is read again", path, problem)
        path.unlink(missing_ok=True)
        return None
    logger.info("observations as an earlier run flagged them: %s", name)
    return found


def flagged(cube: xr.Dataset) -> bool:
    """Whether a StationCube has its flags already."""
    return "qc_pm2p5" in cube


def keep(config: RunConfig, month: Month, before: str | None, cube: xr.Dataset) -> None:
    """Keep the flagged StationCube of a month; a disk that refuses costs a later run its time, this one nothing.

    Parameters
    ----------
    before : its `key` before it was read. Where that is another by now, a file changed meanwhile, and nothing is kept.
    """
    if before is None or before != key(config, month):
        return
    try:
        (config.out / FOLDER).mkdir(exist_ok=True)
        atomic.write_bytes(config.out / FOLDER / before, _packed(cube))
    except OSError as problem:
        logger.warning("%s: cannot be kept for a later run: %s", config.out / FOLDER, problem.strerror)


def clear(config: RunConfig) -> None:
    """Remove the results of a run that is published; of other runs', those that are old."""
    folder = config.out / FOLDER
    if wanted(config):
        atomic.remove(folder)
        return
    oldest = time.time() - LONGEST.total_seconds()
    for path in folder.glob("*"):
        if path.stat().st_mtime < oldest:
            path.unlink()


def _packed(cube: xr.Dataset) -> bytes:
    raw = pickle.dumps(cube.load(), protocol=5)
    body = len(raw).to_bytes(8, "big") + pa.compress(raw, _CODEC, asbytes=True)
    return _MAGIC + hashlib.sha256(body).digest() + body


def _unpacked(data: bytes) -> xr.Dataset:
    """Read what `_packed` wrote; ValueError where it is not whole."""
    head, digest, body = data[: len(_MAGIC)], data[len(_MAGIC) :][:32], data[len(_MAGIC) + 32 :]
    if head != _MAGIC or hashlib.sha256(body).digest() != digest:
        raise ValueError("expected a result whose digest is right; found another file or a part of one")
    raw = pa.decompress(body[8:], int.from_bytes(body[:8], "big"), _CODEC, asbytes=True)
    cube: xr.Dataset = pickle.loads(raw)
    return cube
