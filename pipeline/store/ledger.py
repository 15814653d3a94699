"""The late-data ledger: which hours each ingest changed, so that a cube made before can be made again for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.atomic import write_bytes
from pipeline.contract import HOUR
from pipeline.errors import InputError
from pipeline.store.layout import Manifest, ledger_path, require
from pipeline.store.rows import Rows, aligned

#: Global attributes of a cube revision that say from which state of a store it was made.
INGEST_ATTR, DIGEST_ATTR = "observation_store_ingest", "observation_store_digest"

#: What a ledger counts for each hour: values that came, differ (or stand elsewhere) and went, and stations concerned.
COUNTS = ("added", "changed", "withdrawn", "stations")


def differences(before: Rows, after: Rows) -> pd.DataFrame:
    """Count, hour by hour, in how many values two observed tables of one partition differ.

    Returns
    -------
    DataFrame with a row for each hour that differs: ``hour`` (since 1970-01-01), and `COUNTS`. A value that another
    file now gives is no difference; one whose station has other coordinates is.
    """
    if not len(before):
        return _all_added(after)
    before, after = aligned([before, after])
    keys = np.union1d(before.key, after.key)
    old, new = (_at(rows, keys) for rows in (before, after))
    was, now = (np.isfinite(values) for values, _ in (old, new))
    moved = ~((old[1] == new[1]) | (np.isnan(old[1]) & np.isnan(new[1]))).all(axis=1)
    kinds = {
        "added": now & ~was,
        "changed": was & now & ((old[0] != new[0]) | moved[:, None]),
        "withdrawn": was & ~now,
    }
    hour = keys // max(len(after.stations), 1)
    counts = pd.DataFrame({name: kind.sum(axis=1) for name, kind in kinds.items()})
    counts["stations"] = (counts > 0).any(axis=1).astype("int64")
    table = counts.groupby(hour).sum().rename_axis("hour").reset_index()
    return table[table["stations"] > 0].reset_index(drop=True)


def _all_added(after: Rows) -> pd.DataFrame:
    hours, at = np.unique(after.hour, return_inverse=True)
    added = np.bincount(at, np.isfinite(after.values).sum(axis=1)).astype("int64")
    return pd.DataFrame({"hour": hours, "added": added, "changed": 0, "withdrawn": 0, "stations": np.bincount(at)})


def _at(rows: Rows, keys: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Values (K, P) and places (K, 3) at `keys`, NaN where there is no row."""
    values = np.full((len(keys), rows.values.shape[1]), np.nan, dtype="float32")
    place = np.full((len(keys), rows.place.shape[1]), np.nan)
    at = np.searchsorted(keys, rows.key)
    values[at], place[at] = rows.values, rows.place
    return values, place


def write(store: Path, ingest: int, changes: pd.DataFrame) -> None:
    """Write the ledger of an ingest: ``network``, ``time`` (UTC hour), `COUNTS`; whole before it has its name."""
    table = changes.assign(time=pd.to_datetime(changes["hour"] * 3600, unit="s", utc=True))
    columns = ["network", "time", *COUNTS]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(table[columns], preserve_index=False), buffer, compression="zstd")
    path = ledger_path(store, ingest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue().to_pybytes())


def since(store: Path, ingest: int) -> pd.DataFrame:
    """Hours that ingests after number `ingest` changed, of all networks.

    Returns
    -------
    DataFrame with a row a network and hour, sorted: ``network``, ``time`` (UTC, naive), `COUNTS` added up over the
    ingests, and ``ingest``, the last that changed it.

    Raises
    ------
    InputError
        When there is no store, or it never had an ingest of that number.
    """
    manifest = require(store)
    if not 0 <= ingest <= manifest.ingest:
        raise InputError(f"{store}: expected an ingest from 0 to {manifest.ingest}; found {ingest}")
    parts = [_read(store, number) for number in range(ingest + 1, manifest.ingest + 1)]
    if not parts:
        return pd.DataFrame(columns=["network", "time", *COUNTS, "ingest"])
    added = dict.fromkeys(COUNTS, "sum") | {"ingest": "max"}
    return pd.concat(parts).groupby(["network", "time"], as_index=False).agg(added)


def _read(store: Path, ingest: int) -> pd.DataFrame:
    found = pq.read_table(ledger_path(store, ingest)).to_pandas()
    return found.assign(time=found["time"].dt.tz_localize(None), ingest=ingest)


def used_by(attrs: dict[str, object], where: str) -> int:
    """Number of the ingest that a cube revision was made after, from its global attributes.

    Raises
    ------
    InputError
        When the revision was not made from an observation store.
    """
    if INGEST_ATTR not in attrs:
        raise InputError(
            f"{where}: expected a revision made from an observation store (--source store);"
            f" found no attribute {INGEST_ATTR}"
        )
    return int(str(attrs[INGEST_ATTR]))


def periods(time: pd.Series) -> list[tuple[np.datetime64, np.datetime64]]:
    """Hours as periods ``[first, end)``, in order."""
    hours = np.unique(time.to_numpy("datetime64[h]"))
    if not len(hours):
        return []
    breaks = np.flatnonzero(np.diff(hours) != HOUR)
    return list(zip(hours[np.r_[0, breaks + 1]], hours[np.r_[breaks, len(hours) - 1]] + HOUR, strict=True))


def state(manifest: Manifest) -> dict[str, str]:
    """Global attributes that say from which state of a store a product was made."""
    return {INGEST_ATTR: str(manifest.ingest), DIGEST_ATTR: manifest.digest}


def as_text(changes: pd.DataFrame, ingest: int) -> str:
    """What `since` found, as one line a network and period, for people."""
    if changes.empty:
        return f"No hour changed after ingest {ingest}"
    lines = [f"{changes['time'].nunique()} hours changed after ingest {ingest}"]
    for network, own in changes.groupby("network"):
        for first, end in periods(own["time"]):
            inside = own[(own["time"] >= first) & (own["time"] < end)]
            counts = ", ".join(f"{inside[name].sum()} {name}" for name in COUNTS[:-1])
            lines.append(f"  {network} {first} to {end}: values {counts}")
    return "\n".join(lines)


def as_json(changes: pd.DataFrame) -> str:
    """What `since` found, every hour of it, as JSON."""
    rows = changes.assign(time=changes["time"].astype("datetime64[s]").map(lambda time: f"{time:%Y-%m-%dT%H:%M:%SZ}"))
    return json.dumps(rows.to_dict("records"), indent=2)
