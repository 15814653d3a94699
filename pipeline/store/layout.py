"""The store on disk: Parquet partitions named by their content, and one manifest that says which of them count.

STORE/manifest.json                                       the only file that is ever replaced
STORE/observations/network=N/month=M/N-M-<digest>.parquet     one row a station and hour
STORE/contested/network=N/month=M/N-M-<digest>.parquet        every file's own rows where several files speak
STORE/files/network=N/N-<digest>.parquet                      the files that were put in, with SHA-256 and precedence
STORE/ledger/<ingest>.parquet                                 hours that each ingest changed
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.atomic import write_bytes
from pipeline.contract import POLLUTANTS, line_column
from pipeline.errors import InputError
from pipeline.store.rows import PLACE, Rows

FORMAT = 1
MANIFEST = "manifest.json"

#: Rows of a Parquet row group: about a week of a national network, so that a day is read without its month.
GROUP_ROWS = 1 << 17

#: Columns of the table of files; what they hold, `pipeline.store.ingest.File` says.
FILE_TYPES = {
    "file": "str",
    "name": "str",
    "published": "datetime64[s]",
    "rank": "int64",
    "superseded": "bool",
    "bytes": "int64",
    "values": "int64",
    "first": "datetime64[s]",
    "last": "datetime64[s]",
    "sites": "str",
}


@dataclass(frozen=True, order=True)
class Partition:
    """One network's calendar month (UTC); `observations` and `contested` are paths in the store."""

    network: str
    month: str
    observations: str
    contested: str | None
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What the store holds.

    Attributes
    ----------
    ingest : number of the last ingest that changed anything; 0 when empty.
    partitions : sorted by network and month.
    files : path of the table of files by network.
    """

    ingest: int = 0
    partitions: tuple[Partition, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 of all content, the same whatever the order in which it came."""
        paths = [*(path for p in self.partitions for path in (p.observations, p.contested) if path)]
        return hashlib.sha256("\n".join(sorted([*paths, *self.files.values()])).encode()).hexdigest()

    def find(self, network: str, month: str) -> Partition | None:
        """Partition of a network and month, None where there is none."""
        return next((p for p in self.partitions if (p.network, p.month) == (network, month)), None)

    def with_partition(self, new: Partition) -> Manifest:
        """The manifest with a partition added or replaced."""
        kept = [p for p in self.partitions if (p.network, p.month) != (new.network, new.month)]
        return replace(self, partitions=tuple(sorted([*kept, new])))


def load(store: Path) -> Manifest:
    """Read the manifest; an empty one where there is no store yet.

    Raises
    ------
    InputError
        When the folder holds a manifest that is none, or one of a newer format.
    """
    path = store / MANIFEST
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return Manifest()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the manifest of an observation store; found: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        held = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{path}: expected the manifest of an observation store, format {FORMAT}; found {held}")
    parts = tuple(Partition(**part) for part in found["partitions"])
    return Manifest(found["ingest"], parts, found["files"])


def require(store: Path) -> Manifest:
    """Read the manifest of a store that must be there.

    Raises
    ------
    InputError
        When there is none.
    """
    if not (store / MANIFEST).is_file():
        raise InputError(f"{store}: expected an observation store (made by `aqnet ingest`); found no {MANIFEST}")
    return load(store)


def commit(store: Path, manifest: Manifest) -> None:
    """Let readers see a manifest whose files are all written, in one step."""
    text = json.dumps(asdict(manifest) | {"digest": manifest.digest}, indent=1)
    write_bytes(store / MANIFEST, (text + "\n").encode())


def collect(store: Path, manifest: Manifest) -> None:
    """Remove what the manifest does not name: leavings of a killed ingest, and former partitions."""
    named = {store / path for p in manifest.partitions for path in (p.observations, p.contested) if path}
    named |= {store / path for path in manifest.files.values()}
    named |= {ledger_path(store, number) for number in range(1, manifest.ingest + 1)}
    for folder in ("observations", "contested", "files", "ledger"):
        for path in (store / folder).rglob("*"):
            if path.is_file() and path not in named:
                path.unlink(missing_ok=True)


def ledger_path(store: Path, ingest: int) -> Path:
    """Path of the ledger of one ingest."""
    return store / "ledger" / f"{ingest:08d}.parquet"


# ---- partitions ----


def write_partition(store: Path, network: str, month: str, observed: Rows, contested: Rows) -> Partition:
    """Write both tables of a partition, whole before they have their names; return what the manifest says of it."""
    where = f"network={network}/month={month}"
    stem = f"{network}-{month}"
    kept = _write(store, f"observations/{where}", stem, _arrow(observed)) if len(observed) else ""
    held = _write(store, f"contested/{where}", stem, _arrow(contested)) if len(contested) else None
    return Partition(network, month, kept, held, len(observed))


def read_partition(store: Path, partition: Partition | None) -> tuple[Rows, Rows]:
    """Read `observed` and `contested` of a partition; none of either where there is no partition."""
    if partition is None:
        return EMPTY_OBSERVED, EMPTY
    observed = _rows(pq.read_table(store / partition.observations)) if partition.observations else EMPTY_OBSERVED
    contested = _rows(pq.read_table(store / partition.contested)) if partition.contested else EMPTY
    return observed, contested


def _empty(file: tuple[int, ...]) -> Rows:
    wide = (0, len(POLLUTANTS))
    hour, station, files = np.zeros(0, "int64"), np.zeros(0, "int32"), np.zeros(file, "int32")
    return Rows([], [], hour, station, files, np.zeros((0, 3)), np.zeros(wide, "float32"), np.zeros(wide, "int32"))


EMPTY, EMPTY_OBSERVED = _empty((0,)), _empty((0, len(POLLUTANTS)))


def file_column(pollutant: str) -> str:
    """Column of the observations with the SHA-256 of the file that the pollutant's value came from."""
    return f"file_{pollutant}"


def _arrow(rows: Rows) -> pa.Table:
    """Rows as an Arrow table; names are dictionaries of those in use only, so that equal rows give equal bytes."""
    columns: dict[str, object] = {
        "time": pa.array(rows.hour * 3600, pa.timestamp("s", tz="UTC")),
        "station": _dictionary(rows.station, rows.stations),
    }
    columns |= {name: rows.place[:, i] for i, name in enumerate(PLACE)}
    columns |= {name: rows.values[:, i] for i, name in enumerate(POLLUTANTS)}
    if rows.file.ndim == 1:
        columns["file"] = _dictionary(rows.file, rows.files)
    else:
        columns |= {file_column(name): _dictionary(rows.file[:, i], rows.files) for i, name in enumerate(POLLUTANTS)}
    columns |= {line_column(name): rows.lines[:, i] for i, name in enumerate(POLLUTANTS)}
    return pa.table({name: _nan_to_null(name, column) for name, column in columns.items()})


def _nan_to_null(name: str, column: object) -> object:
    return pa.array(column, from_pandas=True) if name in (*POLLUTANTS, "elevation") else column


def _dictionary(codes: NDArray[np.int32], names: list[str]) -> pa.DictionaryArray:
    used = np.flatnonzero(np.bincount(codes + 1, minlength=len(names) + 1)[1:])
    number = np.zeros(len(names) + 1, dtype="int32")
    number[used] = np.arange(len(used))
    indices = pa.array(number[codes], mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array([names[i] for i in used], pa.string()))


def _rows(table: pa.Table) -> Rows:
    stations, station = _codes(table["station"])
    if "file" in table.column_names:
        files, file = _codes(table["file"])
    else:
        each = [_codes(table[file_column(name)]) for name in POLLUTANTS]
        files = sorted(set().union(*(names for names, _ in each)))
        at = {name: i for i, name in enumerate(files)}
        file = np.column_stack([np.array([*(at[n] for n in names), -1])[codes] for names, codes in each])
    return Rows(
        stations,
        files,
        table["time"].cast(pa.timestamp("s", tz="UTC")).cast(pa.int64()).to_numpy() // 3600,
        station,
        file.astype("int32"),
        np.column_stack([table[name].to_numpy() for name in PLACE]),
        np.column_stack([table[name].to_numpy() for name in POLLUTANTS]),
        np.column_stack([table[line_column(name)].to_numpy() for name in POLLUTANTS]),
    )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    """Names and codes of a column of strings; -1 for null."""
    encoded = column.combine_chunks().dictionary_encode() if not pa.types.is_dictionary(column.type) else column
    whole = encoded.unify_dictionaries().combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return whole.dictionary.to_pylist(), whole.indices.fill_null(-1).to_numpy().astype("int32")


# ---- files ----


def write_files(store: Path, network: str, files: pd.DataFrame) -> str:
    """Write a network's table of files, sorted by SHA-256; return its path in the store."""
    table = files.sort_values("file", ignore_index=True)[list(FILE_TYPES)]
    return _write(store, f"files/network={network}", network, pa.Table.from_pandas(table, preserve_index=False))


def read_files(store: Path, manifest: Manifest, network: str) -> pd.DataFrame:
    """Read the files of a network that were put in: one row a file, columns `FILE_TYPES`."""
    if network not in manifest.files:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in FILE_TYPES.items()})
    return pq.read_table(store / manifest.files[network]).to_pandas().astype(FILE_TYPES)


def _write(store: Path, folder: str, stem: str, table: pa.Table) -> str:
    """Write a Parquet file under the name of its content; return its path in the store."""
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer, GROUP_ROWS, compression="zstd", compression_level=1)
    data = buffer.getvalue()
    path = f"{folder}/{stem}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    if not (store / path).exists():
        (store / folder).mkdir(parents=True, exist_ok=True)
        write_bytes(store / path, data)
    return path
