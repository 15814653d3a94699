"""Where a value of the store came from: file and line, and what else was said of the same station and hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline.contract import POLLUTANTS, UNITS, line_column
from pipeline.errors import InputError
from pipeline.harmonise import utc_hour
from pipeline.store.layout import file_column, read_files, require


@dataclass(frozen=True)
class Origin:
    """One value and the place it was read at; `counts` says whether it is the store's value.

    `value` is in `unit`; `file` is the SHA-256 of the file's bytes, `name` its label in lineage, `line` as
    `pipeline.sources.source.Source` says.
    """

    value: float
    unit: str
    name: str
    line: int
    file: str
    counts: bool


def trace(store: Path, station: str, time: np.datetime64 | datetime, pollutant: str = "pm2p5") -> list[Origin]:
    """Say where the value of a station, hour and pollutant came from.

    Parameters
    ----------
    store : folder of the store.
    station : ``network:code``.
    time : start of the hour, UTC.
    pollutant : one of `pipeline.contract.POLLUTANTS`.

    Returns
    -------
    The value that counts, then those that other files or lines gave of the same cell; empty where there is none.

    Raises
    ------
    InputError
        When there is no store, no such network in it, or no such pollutant.
    """
    if pollutant not in POLLUTANTS:
        raise InputError(f"pollutant: expected one of {', '.join(POLLUTANTS)}; found '{pollutant}'")
    manifest, network, hour = require(store), station.partition(":")[0], utc_hour(time)
    if network not in manifest.files:
        held = ", ".join(sorted(manifest.files)) or "none"
        raise InputError(f"{store}: expected a station of a network in the store ({held}); found '{station}'")
    part = manifest.find(network, str(hour.astype("M8[M]")))
    if part is None:
        return []
    names = read_files(store, manifest, network).set_index("file")["name"]
    found = _cells(store / part.observations, station, hour, pollutant, file_column(pollutant)) if part.rows else []
    said = _cells(store / part.contested, station, hour, pollutant, "file") if part.contested else []
    others = [cell for cell in said if cell not in found]
    return [
        Origin(value, UNITS[pollutant], str(names[file]), line, file, counts)
        for cells, counts in ((found, True), (others, False))
        for value, line, file in cells
    ]


def _cells(path: Path, station: str, hour: np.datetime64, pollutant: str, file: str) -> list[tuple[float, int, str]]:
    """Value, line and file of the rows of a station and hour that hold the pollutant."""
    at = pd.Timestamp(hour).tz_localize("UTC")
    columns = [pollutant, line_column(pollutant), file]
    table = pq.read_table(path, columns=columns, filters=[("station", "==", station), ("time", "==", at)])
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return [(value, line, str(name)) for value, line, name in rows if value is not None]
