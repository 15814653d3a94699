"""Plant known faults in a real week and count which of them quality control finds, and what it flags besides.

    python -m benchmarks.planted ../shared/data/cnemc --start 2019-12-09

A fault is found when at least half of the values that are due carry the flag of its kind. Clean is every reported
value that no fault touched; a value that is truly at fault in the archive counts as clean, so false flags are an
upper limit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from benchmarks.faults import KINDS, Fault, Round
from pipeline import harmonise, qc, sources
from pipeline.contract import HOUR, POLLUTANTS
from pipeline.score import markdown

NORTH_CHINA = (105.0, 32.0, 125.0, 45.0)
WEEK = np.timedelta64(168, "h")
#: Hours read after the week, so that a station can be made to run ahead.
AFTER = np.timedelta64(12, "h")
#: Faults of each kind in a round: 10 stations of 590 are 1.7 %.
A_ROUND = 10

#: Flags that count as the right one, where it is not only the kind's own: these all say "far from what is around".
RIGHT = {"spike": ("spike", "buddy", "sct", "range"), "gross": ("buddy", "sct", "spike", "range")}

#: Sizes of the second table.
SPIKES = (2, 3, 4, 6, 8, -2, -3, -4, -6, -8)
SHIFTS = (1, -1, 2, -2, 3, -3, 5, -5, 8, -8)


def read_week(path: Path, start: np.datetime64, bbox: tuple[float, float, float, float] | None) -> xr.Dataset:
    """Read a week, what its flags look back to, and the hours after it; observations as they are."""
    hours = start - qc.LOOKBACK_HOURS * HOUR, start + WEEK + AFTER
    return harmonise.to_cube(sources.read("cnemc", path, None, *hours, bbox, "keep"), *hours)


def rounds(cube: xr.Dataset, start: np.datetime64, plan: dict[str, list[float]], seed: int) -> Iterator[Round]:
    """Plant faults of kinds and sizes (0: the kind's own), `A_ROUND` of each at a time."""
    first, last = (int((hour - cube["time"].values[0]) / HOUR) for hour in (start, start + WEEK))
    left = {kind: list(sizes) for kind, sizes in plan.items()}
    rng = np.random.default_rng(seed)
    while any(left.values()):
        round_ = Round(cube, first, last, rng)
        for kind, sizes in left.items():
            for size in sizes[:A_ROUND]:
                KINDS[kind](round_, size)
            del sizes[:A_ROUND]
        yield round_


def flagged(round_: Round) -> dict[str, np.ndarray]:
    """Flag a round's week and return the bits (T, S) of each pollutant, in the round's columns."""
    whole = round_.cube.isel(time=slice(None, round_.end))
    stay = np.setdiff1d(np.arange(whole.sizes["station"]), list(round_.moves))
    parts = [whole.isel(station=stay)] + ([_moved(round_, whole)] if round_.moves else [])
    cube = xr.concat(parts, "station").sortby("station") if len(parts) > 1 else parts[0]
    found = qc.flag(cube, cube["time"].values[round_.start])
    return {name: _in_columns(found[f"qc_{name}"], round_) for name in POLLUTANTS}


def _moved(round_: Round, cube: xr.Dataset) -> xr.Dataset:
    """Columns of the stations that move, as `pipeline.harmonise` makes them of their rows."""
    own = cube.isel(station=list(round_.moves))
    table = own.to_dataframe().reset_index()
    row = ((table["time"] - cube["time"].values[0]) / HOUR).astype(int)
    for column, (since, lon, lat) in round_.moves.items():
        later = (table["station"] == cube["station"].values[column]) & (row >= since)
        table.loc[later, ["lon", "lat"]] = lon, lat
    return harmonise.to_cube([table], cube["time"].values[0], cube["time"].values[-1] + HOUR)


def _in_columns(bits: xr.DataArray, round_: Round) -> np.ndarray:
    """Bits in the round's columns: of a station that moved, each hour's from the place it stood at."""
    names = round_.cube["station"].values
    found = bits.sel(station=names).values.copy()
    for column, (since, *_) in round_.moves.items():
        stamp = np.datetime_as_string(round_.cube["time"].values[since], "h")
        found[since:, column] = bits.sel(station=f"{names[column]}@{stamp}").values[since:]
    return found


def judge(round_: Round, bits: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row a fault: kind, size, values due, share of them with the right flag, with any invalid flag."""
    return pd.DataFrame([_judge(round_, bits, fault) for fault in round_.faults])


def _judge(round_: Round, bits: dict[str, np.ndarray], fault: Fault) -> dict[str, object]:
    right = sum(qc.FLAGS[name] for name in RIGHT.get(fault.kind, (fault.kind,)))
    due, here, either, wrong = [], [], [], []
    for name in fault.names:
        given = bits[name][fault.due, fault.column]
        other = bits[name][fault.due, fault.column if fault.either is None else fault.either]
        value = np.isfinite(round_.values[name][: round_.end][fault.due, fault.column]) | (fault.kind == "gap")
        due.append(value)
        here.append((given & right != 0) & value)
        either.append(((given | other) & right != 0) & value)
        wrong.append((given & qc.INVALID != 0) & value)
    count = max(int(np.sum(due)), 1)
    shares = {key: np.sum(what) / count for key, what in (("right", either), ("here", here), ("invalid", wrong))}
    return {"kind": fault.kind, "size": fault.size, "due": count, **shares}


def false_flags(round_: Round, bits: dict[str, np.ndarray]) -> pd.DataFrame:
    """Count clean values of the week, and those of them made invalid, by flag; one row a pollutant."""
    rows = {}
    week = slice(round_.start, round_.end)
    for name in POLLUTANTS:
        clean = np.isfinite(round_.values[name][week]) & ~round_.touched[name][week]
        given = bits[name][week][clean]
        invalid = {flag: int((given & bit != 0).sum()) for flag, bit in qc.FLAGS.items() if bit & qc.INVALID}
        rows[name] = {"clean": given.size, "flagged": int((given & qc.INVALID != 0).sum()), **invalid}
    return pd.DataFrame.from_dict(rows, "index")


def run(
    cube: xr.Dataset, start: np.datetime64, plan: dict[str, list[float]], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Plant, flag and judge: a row a fault, and the counts of clean values."""
    faults, clean = [], []
    for number, round_ in enumerate(rounds(cube, start, plan, seed)):
        bits = flagged(round_)
        faults.append(judge(round_, bits))
        clean.append(false_flags(round_, bits))
        print(f"round {number + 1}: {len(round_.faults)} faults", file=sys.stderr)
    return pd.concat(faults), sum(clean[1:], clean[0])


def recall(faults: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Faults found, and shares of the values due with the right flag, at the planted station, and invalid; %."""
    faults = faults.assign(found=faults["right"] >= 0.5)
    groups = faults.groupby(by, sort=False)
    table = groups.agg(faults=("found", "size"), found=("found", "mean"), due=("due", "sum"))
    for name, column in (("right flag", "right"), ("at its station", "here"), ("invalid", "invalid")):
        table[name] = (faults[column] * faults["due"]).groupby([faults[key] for key in by], sort=False).sum()
        table[name] /= table["due"]
    shares = ["found", "right flag", "at its station", "invalid"]
    return table.assign(**{name: (100 * table[name]).round(1) for name in shares})


def false_share(clean: pd.DataFrame) -> pd.DataFrame:
    """Share of the clean values made invalid, by any flag and by each, %; the last row is of all pollutants."""
    table = pd.concat([clean, clean.sum().to_frame("all").T])
    shares = (100 * table.drop(columns="clean").div(table["clean"], axis=0)).round(3)
    return shares.loc[:, shares.any()].assign(clean=table["clean"]).rename_axis("pollutant")


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of the CNEMC archive")
    parser.add_argument("--start", default="2019-12-09", help="first day of the week (UTC)")
    parser.add_argument("--count", type=int, default=200, help="faults of each kind")
    parser.add_argument("--sizes", type=int, default=100, help="faults of each size in the second table; 0 for none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--national", action="store_true", help="all of China instead of 105-125 E, 32-45 N")
    given = parser.parse_args()
    start = np.datetime64(given.start, "h")
    cube = read_week(given.path, start, None if given.national else NORTH_CHINA)
    faults, clean = run(cube, start, {kind: [0.0] * given.count for kind in KINDS}, given.seed)
    print(f"{cube.sizes['station']} stations, week from {start} UTC, seed {given.seed}\n")
    print(markdown(recall(faults, ["kind"])))
    print(markdown(false_share(clean)))
    if given.sizes:
        plan = {kind: [float(s) for s in SPIKES for _ in range(given.sizes)] for kind in ("spike", "gross")}
        plan["time_shift"] = [float(s) for s in SHIFTS for _ in range(given.sizes)]
        print(markdown(recall(run(cube, start, plan, given.seed + 1)[0], ["kind", "size"]).reset_index("size")))


if __name__ == "__main__":
    main()
