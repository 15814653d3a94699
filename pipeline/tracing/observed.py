"""What the stations said in the hours that an estimate depends on, and at which file and line each value stands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xarray as xr
from numpy.typing import NDArray

from pipeline import analyse, covariates, qc, sources
from pipeline.config import RunConfig
from pipeline.contract import HOUR, POLLUTANTS, line_column
from pipeline.harmonise import Origins, to_traced_cube
from pipeline.store import layout
from pipeline.store.ledger import state
from pipeline.tracing.runs import Made

#: Source whose files are partitions of an observation store, which know the raw files.
STORE = "store"


@dataclass(frozen=True)
class Observed:
    """A flagged StationCube and where its PM2.5 was read.

    Attributes
    ----------
    cube : the hours that an estimate depends on, and those before that its flags depend on.
    files : labels of the raw files.
    file, line : (T, S) int32 of the PM2.5; -1 and 0 where there is none.
    changed : what is no longer as the run read it, one text a file; empty when all is.
    known : whether the run left a list of its inputs, to tell.
    """

    cube: xr.Dataset
    files: list[str]
    file: NDArray[np.int32]
    line: NDArray[np.int32]
    changed: tuple[str, ...]
    known: bool

    @cached_property
    def time(self) -> NDArray[np.datetime64]:
        """Starts of the hours, UTC, (T,)."""
        return self.cube["time"].values.astype("M8[h]")

    @cached_property
    def pm2p5(self) -> NDArray[np.float32]:
        """As reported, ug m-3, (T, S)."""
        return self.cube["pm2p5"].values

    @cached_property
    def flags(self) -> NDArray[np.uint16]:
        """Bits of `pipeline.qc.FLAGS`, (T, S)."""
        return self.cube["qc_pm2p5"].values

    def where(self, hour: int, station: int) -> tuple[str, int] | None:
        """File and line of a value; None where there is no value."""
        file = int(self.file[hour, station])
        return None if file < 0 else (self.files[file], int(self.line[hour, station]))


@dataclass(frozen=True)
class Period:
    """Hours [first, last) to read, of which flags are wanted from `used` on."""

    first: np.datetime64
    last: np.datetime64
    used: np.datetime64


def period(hour: np.datetime64, stream: str, issue: np.datetime64) -> Period:
    """Hours that an hour of a stream depends on; `issue` is that of an outlook."""
    if stream == "outlook":
        return Period(analyse.outlook_first_hour(issue), issue, analyse.outlook_first_used(issue))
    last = hour + HOUR
    return Period(analyse.first_hour(hour), analyse.last_used(last, stream), analyse.first_used(hour))


def read(config: RunConfig, made: Made, hours: Period) -> Observed:
    """Read and flag the observations as the run did, and find the raw file and line of every PM2.5.

    Raises
    ------
    InputError
        When an input is not what was declared, or none covers the hours.
    """
    grid = config.grid()
    around = grid.surroundings(analyse.EXTRAPOLATED_KM)
    where = config.source, config.input, config.stations, hours.first, hours.last
    tables = sources.read(*where, grid.bbox, config.truncated, around)
    cube, origins = to_traced_cube(tables, hours.first, hours.last)
    if config.source == STORE:
        origins = _raw_files(config.input, origins)
    pm2p5 = POLLUTANTS.index("pm2p5")
    flagged = qc.flag(cube, hours.used)
    read_at = origins.files, origins.file[..., pm2p5], origins.line[..., pm2p5]
    return Observed(flagged, *read_at, _changed(config, made, hours), bool(made.inputs))


def _raw_files(store: Path, origins: Origins) -> Origins:
    """Raw files and their lines in place of the store's partitions and rows, of PM2.5 alone."""
    manifest, p = layout.require(store), POLLUTANTS.index("pm2p5")
    partitions = {Path(part.observations).name: part for part in manifest.partitions if part.observations}
    names: list[str] = []
    file, line = np.full_like(origins.file, -1), np.zeros_like(origins.line)
    for number, label in enumerate(origins.files):
        part = partitions[label]
        own = origins.file[..., p] == number
        row = origins.line[..., p][own] - 1
        digests, lines = _origins_of(store / part.observations)
        listed = layout.read_files(store, manifest, part.network).set_index("file")["name"]
        found, code = np.unique(digests[row], return_inverse=True)
        file[own, p], line[own, p] = len(names) + code, lines[row]
        names += [str(listed[digest]) for digest in found]
    return Origins(names, file, line)


def _origins_of(partition: Path) -> tuple[NDArray[np.object_], NDArray[np.int32]]:
    """SHA-256 of the raw file, and line in it, of the PM2.5 of each row of a partition."""
    columns = [layout.file_column("pm2p5"), line_column("pm2p5")]
    table = pq.read_table(partition, columns=columns)
    return table[columns[0]].to_numpy(), table[columns[1]].to_numpy()


# ---- are the inputs still those of the run? ----


def _changed(config: RunConfig, made: Made, hours: Period) -> tuple[str, ...]:
    """What differs between the files as they are now and those of the run, of the hours that are read."""
    now = sources.input_digests(config.source, config.input, hours.first, hours.last, config.stations)
    now |= covariates.digests(config.covariates)
    if not made.inputs:
        return ()
    found = [
        f"{name}: was {made.inputs[name][:12]} (SHA-256), is {digest[:12]}"
        if name in made.inputs
        else f"{name}: was not there"
        for name, digest in now.items()
        if made.inputs.get(name) != digest
    ]
    found += _gone(config, made, hours, set(now))
    return tuple([*found, *_store_state(config, made)] if found else [])


def _gone(config: RunConfig, made: Made, hours: Period, now: set[str]) -> list[str]:
    """Files of the run whose names say that they hold hours that are read, and which are not there any more."""
    spec, found = sources.find(config.source), []
    for name in sorted(set(made.inputs) - now):
        span = spec.span(name.rsplit("!", 1)[-1].rsplit("/", 1)[-1])
        if span is not None and span[0] < hours.last and span[1] > hours.first:
            found.append(f"{name}: is not there any more")
    return found


def _store_state(config: RunConfig, made: Made) -> list[str]:
    """Which ingests an observation store had then, and has now."""
    if config.source != STORE or not made.state:
        return []
    now = state(layout.require(config.input))
    name = "observation_store_ingest"
    if now == made.state:
        return []
    return [f"{config.input}: the store was at ingest {made.state.get(name)}, is at {now[name]}"]
