"""The observation store as a source: its partitions, of every network in it, as StationTables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract import POLLUTANTS, line_column
from pipeline.sources.archive import Member, RawFile
from pipeline.sources.csvfile import Truncated
from pipeline.sources.sites import SiteList
from pipeline.sources.source import CONVENTIONS, Source, Span
from pipeline.store import layout, ledger

_MONTH = re.compile(r"-(\d{4}-\d{2})-[0-9a-f]{16}\.parquet")
_COLUMNS = ["time", "station", "lon", "lat", "elevation", *POLLUTANTS]


def members(path: Path) -> list[Member]:
    """List the partitions that the store's manifest names; InputError where `path` is no store."""
    partitions = layout.require(path).partitions
    return [Member(path / part.observations) for part in partitions if part.observations]


def span(name: str) -> Span | None:
    """UTC hours of the month that a partition's name tells."""
    found = _MONTH.search(name)
    if found is None:
        return None
    month = np.datetime64(found[1], "M")
    return month.astype("M8[h]"), (month + 1).astype("M8[h]")


def parse(raw: RawFile, _sites: SiteList | None, _truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield a StationTable a row group; see `pipeline.sources.source.Source`. Lines are rows of the partition."""
    file = pq.ParquetFile(pa.BufferReader(raw.data))
    done = 0
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns=_COLUMNS)
        frame = table.set_column(0, "time", table["time"].cast(pa.timestamp("ns"))).to_pandas()
        row = np.arange(done + 1, done + 1 + len(frame), dtype="int32")
        yield frame.assign(**{line_column(n): np.where(frame[n].isna(), 0, row).astype("int32") for n in POLLUTANTS})
        done += len(frame)


def state(path: Path) -> dict[str, str]:
    """Ingest and digest of the store, so that the ledger can tell what came later."""
    return ledger.state(layout.require(path))


SOURCE = Source(
    conventions=(CONVENTIONS["store"],),
    parse=parse,
    suffixes=(".parquet",),
    span=span,
    members=members,
    state=state,
)
