"""Quality control on the real record of 2019, nothing planted: `python -m benchmarks.episodes ../shared/data/cnemc`.

The first table says how much of real haze and dust is made invalid. ``--clocks`` adds, for every week of the year, what
the check of the network's clock says when all its times are moved by some hours.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from pipeline import harmonise, qc, sources
from pipeline.contract import HOUR, POLLUTANTS
from pipeline.errors import InputError
from pipeline.qc.alone import flag_alone

BBOX = (105.0, 32.0, 125.0, 45.0)

#: Name, first day, days.
EPISODES = (
    ("haze", "2019-01-11", 5),
    ("dust", "2019-05-11", 7),
    ("dust", "2019-10-27", 3),
    ("no episode", "2019-11-11", 7),
    ("no episode", "2019-06-11", 6),
)

#: What counts as a peak, ug m-3.
PEAKS = {"pm2p5": 250.0, "pm10": 500.0}

#: Hours by which all times are moved.
SHIFTS = (0, 8, -8, 3, 2)
VERDICTS = ("right", "wrong", "cannot tell")


def read(
    path: Path, start: np.datetime64, end: np.datetime64, bbox: tuple[float, float, float, float] | None
) -> xr.Dataset:
    """Read a period as a StationCube."""
    return harmonise.to_cube(sources.read("cnemc", path, None, start, end, bbox, "keep"), start, end)


def episode(path: Path, name: str, first: str, days: int) -> str:
    """One row of the first table."""
    start = np.datetime64(first, "h")
    end = start + 24 * days * HOUR
    found = qc.flag(read(path, start - qc.LOOKBACK_HOURS * HOUR, end, BBOX), start).sel(time=slice(start, None))
    cells = [f"{name}, {days} days from {first}"]
    for pollutant, peak in PEAKS.items():
        values = found[pollutant].values
        invalid = (found[f"qc_{pollutant}"].values & qc.INVALID) != 0
        reported = np.isfinite(values)
        high = reported & (values > peak) & (values <= qc.MAXIMA[pollutant])
        share = 100 * invalid[high].mean() if high.any() else np.nan
        cells += [f"{100 * invalid[reported].mean():.2f}", f"{share:.2f} ({high.sum():,})"]
    return f"| {' | '.join(cells)} |"


def weeks(path: Path) -> Iterator[xr.Dataset]:
    """Every week of 2019 that holds observations, national, with the flags that one value alone can have."""
    for start in np.arange("2019-01-01", "2019-12-31", 7, dtype="M8[D]").astype("M8[h]"):
        try:
            cube = read(path, start, start + 168 * HOUR, None)
        except InputError:
            continue
        flags = {f"qc_{n}": (cube[n].dims, flag_alone(n, cube[n].values)) for n in POLLUTANTS}
        yield cube.assign(flags)


def clocks(path: Path) -> Iterator[str]:
    """Rows of the second table: verdicts on the year's weeks."""
    found = {(use, shift): Counter[str]() for use in ("O3, NO2, PM2.5", "PM2.5 alone") for shift in SHIFTS}
    for cube in weeks(path):
        for use, shift in found:
            part = cube.assign_coords(time=cube["time"] + np.timedelta64(shift, "h"))
            if use == "PM2.5 alone":
                part = part.assign({n: part[n] * np.float32(np.nan) for n in POLLUTANTS if n != "pm2p5"})
            found[use, shift][qc.clock(part)["verdict"].iloc[0]] += 1
    for use in dict.fromkeys(use for use, _ in found):
        counts = (" / ".join(str(found[use, shift][verdict]) for verdict in VERDICTS) for shift in SHIFTS)
        yield f"| {use} | {' | '.join(counts)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of the CNEMC archive")
    parser.add_argument("--clocks", action="store_true", help="judge the clock of every week of the year, too")
    options = parser.parse_args()
    print("| period | PM2.5, % invalid | of values over 250 | PM10, % invalid | of values over 500 |")
    print("|---|---|---|---|---|")
    for name, first, days in EPISODES:
        print(episode(options.path, name, first, days), flush=True)
    if options.clocks:
        print(f"\n| pollutants | {' | '.join(f'{shift:+d} h' for shift in SHIFTS)} |\n|---|{'---|' * len(SHIFTS)}")
        for row in clocks(options.path):
            print(row, flush=True)


if __name__ == "__main__":
    main()
