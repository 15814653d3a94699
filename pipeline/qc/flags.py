"""The flag bits of ``qc_<pollutant>``: what each means, and which of them make a value invalid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS

Bits = NDArray[np.uint16]
Mask = NDArray[np.bool_]
Float = NDArray[np.float32]

#: Flag name -> bit of ``qc_<pollutant>``.
FLAGS = {
    "missing": 1,
    "range": 2,
    "zero_as_missing": 4,
    "flat_line": 8,
    "pm10_below_pm2p5": 16,
    "buddy": 32,
    "sct": 64,
    "isolated": 128,
    "spike": 256,
    "gap": 512,
    "duplicate_station": 1024,
    "moved": 2048,
    "unit_jump": 4096,
    "time_shift": 8192,
}

#: Flags that say something about a value without making it wrong: nothing to compare it with, silence, a new place.
INFORMATION = ("isolated", "gap", "moved")

#: All bits that make a value invalid.
INVALID = sum(bit for name, bit in FLAGS.items() if name not in INFORMATION)

#: Bits that mean: far from the neighbours or from the hours before.
DEPARTURES = FLAGS["buddy"] | FLAGS["sct"] | FLAGS["spike"]


def attributes(pollutant: str) -> dict[str, object]:
    """CF attributes of ``qc_<pollutant>`` (CF-1.11 section 3.5: ``flag_masks`` and ``flag_meanings``)."""
    return {
        "long_name": f"quality flags of {pollutant}",
        "standard_name": "quality_flag",
        "flag_masks": np.array(list(FLAGS.values()), dtype="uint16"),
        "flag_meanings": " ".join(FLAGS),
        "comment": f"{', '.join(INFORMATION)}: information; every other flag makes the value invalid",
    }


def valid(cube: xr.Dataset, pollutant: str) -> xr.DataArray:
    """Values of a flagged cube, NaN wherever a flag of `INVALID` is set; dims ``(time, station)``, float32."""
    return cube[pollutant].where((cube[f"qc_{pollutant}"] & INVALID) == 0)


def summary(cube: xr.Dataset) -> pd.DataFrame:
    """Count the flags of a flagged cube.

    Returns
    -------
    DataFrame with one row a flag and pollutant: ``flag``, ``pollutant``, ``count``, ``share`` and what it is a share
    ``of``: the values reported; all station-hours for ``missing`` and ``gap``. A value with two flags counts twice.
    """
    return pd.DataFrame(_counts(cube), columns=["flag", "pollutant", "count", "share", "of"])


def _counts(cube: xr.Dataset) -> Iterator[tuple[str, str, int, float, int]]:
    for name, bit in FLAGS.items():
        for pollutant in POLLUTANTS:
            bits = cube[f"qc_{pollutant}"].to_numpy()
            absent = name in ("missing", "gap")
            of = bits.size if absent else int((bits & FLAGS["missing"] == 0).sum())
            count = int((bits & bit != 0).sum())
            yield name, pollutant, count, count / max(of, 1), of
