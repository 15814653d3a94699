"""Are published values what `aqnet trace` says, and do its files and lines hold? `python -m benchmarks.trace`.

SIMULATED runs of every kind (both streams, an outlook, several revisions, a projected grid, the raw archive, an
observation store, a table) are made in a temporary folder, or one of a real day with ``--real``. Of each, cell-hours
are drawn at random, with a seed, and traced: values must be made again within rounding, parts must add up, and each
observation must stand in the raw file on the line that the trace names. Lines are read here, not by the readers under
test.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from model.trace import Parts, in_ug
from pipeline import output, sources, stages
from pipeline.config import RunConfig
from pipeline.contract import HOUR
from pipeline.cube import reader
from pipeline.store.ingest import ingest
from pipeline.tracing.text import as_dict, steps
from pipeline.tracing.trace import ROUNDING, VALUES, Trace, traces
from pipeline.twin import simulate

BBOX = (110.5, 36.5, 113.5, 38.5)
STATIONS = 60


@dataclass(frozen=True)
class Kind:
    """Cell-hours of one sort: `cube` at `revision`, of hours in `stream`; raw files lie in `raw`."""

    name: str
    cube: Path
    revision: str
    stream: int
    raw: Path


@dataclass
class Result:
    """What was found.

    `values` counts published numbers, `off` those not made again within rounding; `worst` is the largest difference
    over that of rounding, `sums` the largest difference of the sum of the parts from the recomputed mean, relative;
    `references` counts the different observations that were looked up, `wrong` those whose line holds something else.
    """

    cells: int = 0
    values: int = 0
    off: int = 0
    worst: float = 0.0
    sums: float = 0.0
    references: set[tuple[str, str, str]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


# ---- runs ----


def simulated(folder: Path) -> list[Kind]:
    """Make the runs; return what there is to trace."""
    done = simulate.simulate(folder / "sim", 3, "2019-12-05", 6, (110.0, 36.0, 114.0, 39.0), STATIONS)
    raw: dict[str, Any] = {"source": "cnemc", "input": done.archive, "stations": done.stations}
    ingest(folder / "store", "cnemc", done.archive, done.stations)
    kept: dict[str, Any] = {"source": "store", "input": folder / "store"}
    table: dict[str, Any] = {"source": "table", "input": _table(done, folder / "table.csv")}
    one, projected, stored, tabled = (folder / name for name in ("one", "projected", "stored", "tabled"))
    make = [
        (raw, one, "2019-12-06", "2019-12-07", {}),
        (raw, one, "2019-12-07", "2019-12-08", {}),
        (raw, one, "2019-12-06", "2019-12-07", {"stream": "final"}),
        (raw, one, "2019-12-08", "2019-12-09T06", {"outlook_hours": 12}),
        (raw, projected, "2019-12-06", "2019-12-07", {"crs": "EPSG:32649", "resolution": 15000}),
        (raw, projected, "2019-12-07", "2019-12-08", {"crs": "EPSG:32649", "resolution": 15000, "stream": "final"}),
        (kept, stored, "2019-12-07", "2019-12-08", {}),
        (table, tabled, "2019-12-07", "2019-12-08", {}),
    ]
    for number, (read, out, start, end, more) in enumerate(make):
        fields = {"bbox": BBOX, "resolution": 0.1, "out": out, "start": start, "end": end} | read | more
        stages.make(RunConfig(**fields), f"run-{number}")
    cube, archive = one / output.CUBE, done.archive
    return [
        Kind("interim, r1", cube, "r1", 0, archive),
        Kind("interim, r2", cube, "r2", 0, archive),
        Kind("final, r3 (over r1)", cube, "r3", 1, archive),
        Kind("interim, newest", cube, "r4", 0, archive),
        Kind("outlook", cube, "r4", 2, archive),
        Kind("projected, interim", projected / output.CUBE, "r2", 0, archive),
        Kind("projected, final", projected / output.CUBE, "r2", 1, archive),
        Kind("observation store", stored / output.CUBE, "r1", 0, archive),
        Kind("table (CSV)", tabled / output.CUBE, "r1", 0, folder),
    ]


def _table(done: simulate.Simulation, path: Path) -> Path:
    """The simulated observations as a StationTable."""
    period = np.datetime64("2019-11-24", "h"), np.datetime64("2019-12-11", "h")
    parts = list(sources.read("cnemc", done.archive, done.stations, *period, bbox=None))
    columns = ["time", "station", "lon", "lat", "pm2p5", "pm10", "so2", "no2", "o3", "co"]
    pd.concat(part.astype({"station": str})[columns] for part in parts).to_csv(path, index=False)
    return path


def real(folder: Path, archive: Path) -> list[Kind]:
    """A day of the CNEMC record in both streams."""
    read = {"source": "cnemc", "input": archive, "truncated": "keep", "bbox": (105, 32, 125, 45), "resolution": 0.25}
    for number, stream in enumerate(("interim", "final")):
        day = {"start": "2019-12-10", "end": "2019-12-11", "stream": stream, "out": folder / "real"}
        stages.make(RunConfig(**read, **day), f"real-{number}")
    cube = folder / "real" / output.CUBE
    return [Kind("CNEMC, interim", cube, "r1", 0, archive), Kind("CNEMC, final", cube, "r2", 1, archive)]


# ---- draws ----


def draw(kind: Kind, count: int, together: int, rng: np.random.Generator) -> Iterator[list[Trace]]:
    """Trace `count` random cell-hours of a kind, `together` cells of an hour at a time."""
    cube = reader.open_cube(kind.cube, kind.revision)
    hours = cube["time"].values[cube["stream"].values == kind.stream].astype("M8[h]")
    left = count
    while left > 0:
        hour = rng.choice(hours)
        field_ = cube["pm2p5"].sel(time=hour).values
        rows, columns = np.nonzero(np.isfinite(field_))
        if not len(rows):
            continue
        chosen = rng.integers(len(rows), size=min(together, left))
        points = [_centre(cube, int(rows[k]), int(columns[k])) for k in chosen]
        yield list(traces(kind.cube, points, hour, kind.revision))
        left -= len(chosen)


def _centre(cube: Any, row: int, column: int) -> tuple[float, float]:
    at = dict(zip(cube["pm2p5"].dims[1:], (row, column), strict=True))
    lon, lat = (cube[name].isel({dim: at[dim] for dim in cube[name].dims}) for name in ("lon", "lat"))
    return float(lon), float(lat)


def check(kind: Kind, count: int, together: int, rng: np.random.Generator) -> Result:
    """Trace random cell-hours and check all that is said of them."""
    found, began = Result(), time.perf_counter()
    for batch in draw(kind, count, together, rng):
        for trace in batch:
            _check_values(trace, found)
        _check_references(batch[0], kind.raw, found)
    found.seconds = time.perf_counter() - began
    return found


def _check_values(trace: Trace, found: Result) -> None:
    found.cells += 1
    for name in VALUES:
        found.values += 1
        found.off += not trace.agrees(name)
        found.worst = max(found.worst, abs(trace.difference(name)) / ROUNDING)
    if isinstance(trace.parts, Parts):
        total = in_ug(sum(z for _, z, _ in steps(trace)))
        found.sums = max(found.sums, abs(total / trace.recomputed["pm2p5"] - 1))


# ---- references ----


def _check_references(trace: Trace, raw: Path, found: Result) -> None:
    """Open the raw file of every observation of a trace, go to the line and find the value."""
    for station, one in cited(trace):
        key = f"{one['file']}:{one['line']}", station, one["time"]
        if key in found.references:
            continue
        found.references.add(key)
        if problem := mistake(raw, station, one):
            found.wrong.append(f"{trace.cube} {key}: {problem}")


def cited(trace: Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Station and observation of everything that the JSON of a trace says was reported."""
    told = as_dict(trace)
    for station in told["stations"]:
        yield from ((station["station"], one) for one in station["observations"])
    yield from ((one["station"], one) for one in told["rejected"])


def mistake(raw: Path, station: str, one: Mapping[str, Any]) -> str | None:
    """What is wrong with the reference of an observation; None where the line holds it."""
    lines = raw_lines(raw, one["file"])
    header, cells = (next(csv.reader([lines[k]])) for k in (0, one["line"] - 1))
    held = _wide(header, cells, station) if header[:3] == ["date", "hour", "type"] else _long(header, cells)
    said = (station, np.datetime64(one["time"].rstrip("Z"), "h"), np.float32(one["pm2p5"]))
    return None if held == said else f"said {said}, the line holds {held}"


def _wide(header: list[str], cells: list[str], station: str) -> tuple[str, np.datetime64, np.float32]:
    """Station, hour and PM2.5 of a line of China's archive: Beijing time, the end of the hour."""
    assert cells[2] == "PM2.5", cells[:3]
    day = f"{cells[0][:4]}-{cells[0][4:6]}-{cells[0][6:]}"
    start = np.datetime64(day, "h") + (int(cells[1]) - 9) * HOUR
    return station, start, np.float32(cells[header.index(station.removeprefix("cnemc:"))])


def _long(header: list[str], cells: list[str]) -> tuple[str, np.datetime64, np.float32]:
    """Station, hour and PM2.5 of a line of a table."""
    row = dict(zip(header, cells, strict=True))
    return row["station"], np.datetime64(row["time"].replace(" ", "T"), "h"), np.float32(row["pm2p5"])


@lru_cache(maxsize=64)
def raw_lines(raw: Path, label: str) -> list[str]:
    """The lines of a raw file, as an editor numbers them; `label` is ``<zip>!<member>`` or the file's name."""
    container, _, member = label.partition("!")
    path = raw if raw.is_file() else raw / container
    if not member:
        return path.read_text(encoding="utf-8-sig").split("\n")
    with zipfile.ZipFile(path) as archive:
        return archive.read(member).decode("utf-8-sig").split("\n")


# ---- report ----


def table_of(results: Mapping[str, Result]) -> str:
    """Markdown, a row a kind and one of all."""
    head = (
        "| of | cell-hours | values | off | worst / rounding | parts' sum off by | references | wrong | s a cell-hour |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(name, [found]) for name, found in results.items()]
    return "\n".join([*lines, _row("all", results.values())])


def _row(name: str, found: Iterable[Result]) -> str:
    every = list(found)
    cells, values, off, seconds = (sum(getattr(r, k) for r in every) for k in ("cells", "values", "off", "seconds"))
    references, wrong = (sum(len(getattr(r, k)) for r in every) for k in ("references", "wrong"))
    worst, sums = (max(getattr(r, k) for r in every) for k in ("worst", "sums"))
    numbers = (
        f"{cells} | {values} | {off} | {worst:.3f} | {sums:.1e} | {references:,} | {wrong} | {seconds / cells:.2f}"
    )
    return f"| {name} | {numbers} |"


def main() -> None:
    """Print a Markdown table; exit code 1 where anything is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="cell-hours in all")
    parser.add_argument("--together", type=int, default=6, help="cells drawn of an hour")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", type=Path, help="folder of the CNEMC archive: trace a day of it instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="aqnet-trace-") as name:
        kinds = real(Path(name), options.real) if options.real else simulated(Path(name))
        each, rng = -(-options.count // len(kinds)), np.random.default_rng(options.seed)
        results = {kind.name: check(kind, each, options.together, rng) for kind in kinds}
    print(table_of(results))
    for text in [text for found in results.values() for text in found.wrong][:10]:
        print(text)
    raise SystemExit(any(found.off or found.wrong for found in results.values()))


if __name__ == "__main__":
    main()
