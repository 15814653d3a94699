"""Names, dimensions, units and dtypes of the three artefacts, and the functions that check them.

StationTable -> StationCube -> field cube. Every module agrees on these three and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.errors import InputError, ProductError

#: Pollutants in the order every array stacks them; the network's input order.
POLLUTANTS = ("pm2p5", "pm10", "so2", "no2", "o3", "co")

UNITS = {"pm2p5": "ug m-3", "pm10": "ug m-3", "so2": "ug m-3", "no2": "ug m-3", "o3": "ug m-3", "co": "mg m-3"}

STANDARD_NAMES = {
    "pm2p5": "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air",
    "pm10": "mass_concentration_of_pm10_ambient_aerosol_particles_in_air",
    "so2": "mass_concentration_of_sulfur_dioxide_in_air",
    "no2": "mass_concentration_of_nitrogen_dioxide_in_air",
    "o3": "mass_concentration_of_ozone_in_air",
    "co": "mass_concentration_of_carbon_monoxide_in_air",
}

#: StationTable columns that must be present; the other pollutants, ``elevation`` and ``source_file`` may be absent.
TABLE_REQUIRED = ("time", "station", "lon", "lat", "pm2p5")
TABLE_OPTIONAL = ("elevation", "pm10", "so2", "no2", "o3", "co", "source_file")


def line_column(pollutant: str) -> str:
    """Optional StationTable column with the line of `source_file` on which the pollutant's value stands, int32."""
    return f"line_{pollutant}"


TIME_UNITS = "hours since 1970-01-01"
HOUR = np.timedelta64(1, "h")


@dataclass(frozen=True)
class FieldSpec:
    """One variable of the cube: whether it is gridded or one value an hour, dtype, CF attributes."""

    name: str
    gridded: bool
    dtype: str
    attrs: dict[str, object]

    @property
    def concentration(self) -> bool:
        """Whether it holds PM2.5, at a height, rather than something about it."""
        return self.attrs.get("units") == UNITS["pm2p5"]

    def dims(self, spatial: tuple[str, str] = ("lat", "lon")) -> tuple[str, ...]:
        """Dimensions of the variable; ``spatial`` is ``("y", "x")`` on a projected grid."""
        return ("time", *spatial) if self.gridded else ("time",)


_PM2P5 = {"standard_name": STANDARD_NAMES["pm2p5"], "units": "ug m-3", "cell_methods": "time: mean area: point"}

#: Bits of ``quality_flag``.
QUALITY_BITS = {"sea": 1, "extrapolated": 2, "few_observations": 4}

#: Values of ``stream``.
STREAMS = {"interim": 0, "final": 1, "outlook": 2}

FIELDS = (
    FieldSpec("pm2p5", True, "float32", {**_PM2P5, "long_name": "PM2.5, conditional mean"}),
    FieldSpec("pm2p5_p05", True, "float32", {**_PM2P5, "long_name": "PM2.5, 5th percentile"}),
    FieldSpec("pm2p5_p50", True, "float32", {**_PM2P5, "long_name": "PM2.5, median"}),
    FieldSpec("pm2p5_p95", True, "float32", {**_PM2P5, "long_name": "PM2.5, 95th percentile"}),
    FieldSpec(
        "nearest_observation_distance",
        True,
        "float32",
        {"long_name": "geodesic distance to the nearest valid PM2.5 observation of the hour", "units": "km"},
    ),
    FieldSpec(
        "quality_flag",
        True,
        "uint8",
        {
            "long_name": "quality flag",
            "standard_name": "quality_flag",
            "flag_masks": np.array(list(QUALITY_BITS.values()), dtype="uint8"),
            "flag_meanings": " ".join(QUALITY_BITS),
        },
    ),
    FieldSpec(
        "stream",
        False,
        "int8",
        {
            "long_name": "production stream of the hour",
            "flag_values": np.array(list(STREAMS.values()), dtype="int8"),
            "flag_meanings": " ".join(STREAMS),
        },
    ),
    FieldSpec(
        "revision",
        False,
        "int32",
        {
            "long_name": "times the values of the hour were published",
            "units": "1",
            "flag_values": np.array([0, 1], dtype="int32"),
            "flag_meanings": "never_published as_first_published",
            "comment": "Above 1: published again with other values, one more each time.",
        },
    ),
    FieldSpec(
        "observation_count",
        False,
        "int32",
        {"long_name": "stations with a valid PM2.5 observation in the hour", "units": "1"},
    ),
)

FIELD_NAMES = tuple(spec.name for spec in FIELDS)


def check_station_table(table: pd.DataFrame, where: str = "station table") -> pd.DataFrame:
    """Check a StationTable and return it unchanged.

    Parameters
    ----------
    table : DataFrame with one row a station and hour. ``time`` is datetime64, naive and in UTC, the **start** of
        the averaging hour; ``station`` is ``network:code``; ``lon``, ``lat`` WGS84 degrees; pollutants in `UNITS`.
    where : what to call the table in an error (a path, say).

    Raises
    ------
    InputError
        Naming the column, what was expected and what was found (with the first offending row).
    """
    for name in TABLE_REQUIRED:
        if name not in table.columns:
            raise InputError(f"{where}: column '{name}' is missing; found {', '.join(map(str, table.columns))}")
    if not (pd.api.types.is_datetime64_dtype(table["time"])):
        raise InputError(f"{where}: column 'time' must be datetime64 without zone, in UTC; found {table['time'].dtype}")
    for name in [*TABLE_REQUIRED[2:], *TABLE_OPTIONAL[:-1]]:
        if name in table.columns and not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{where}: column '{name}' must be numeric; found {table[name].dtype}")
    _check_rows(table, where, "time", table["time"].isna(), "a time")
    _check_rows(table, where, "time", table["time"] != table["time"].dt.floor("h"), "the start of an hour")
    _check_rows(table, where, "station", table["station"].isna(), "a station identifier")
    _check_rows(table, where, "lon", ~table["lon"].between(-180, 360), "degrees east in [-180, 360]")
    _check_rows(table, where, "lat", ~table["lat"].between(-90, 90), "degrees north in [-90, 90]")
    return table


def _check_rows(table: pd.DataFrame, where: str, column: str, bad: pd.Series, expected: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        found = table[column].iloc[row]
        raise InputError(f"{where}: column '{column}', row {row}: expected {expected}; found {found}")


def check_station_cube(cube: xr.Dataset) -> xr.Dataset:
    """Check a StationCube and return it unchanged.

    Dims ``(time, station)``; coordinates ``time`` (every hour present, UTC starts), ``station``, ``lon``, ``lat``,
    ``elevation``; one float32 variable a pollutant (NaN for missing) and, after quality control, one uint16
    ``qc_<pollutant>`` each.

    Raises
    ------
    InputError
        Naming the variable or coordinate, what was expected and what was found.
    """
    for name in ("time", "station", "lon", "lat", "elevation"):
        if name not in cube.coords:
            raise InputError(f"station cube: coordinate '{name}' is missing")
    steps = np.diff(cube["time"].values)
    if not (steps == HOUR).all():
        at = cube["time"].values[int(np.flatnonzero(steps != HOUR)[0])]
        raise InputError(f"station cube: coordinate 'time' must hold every hour; the step after {at} is not one hour")
    for name in POLLUTANTS:
        _check_variable(cube, name, ("time", "station"), "float32", InputError, "station cube")
        if f"qc_{name}" in cube:
            _check_variable(cube, f"qc_{name}", ("time", "station"), "uint16", InputError, "station cube")
    return cube


def check_cube(cube: xr.Dataset, where: str = "cube") -> xr.Dataset:
    """Check a field cube (or an hour block of one) and return it unchanged.

    Dims ``(time, lat, lon)``, or ``(time, y, x)`` with 2-D ``lat`` and ``lon`` on a projected grid.

    Raises
    ------
    ProductError
        Naming the variable: missing, wrong dims, wrong dtype, latitude not ascending, times not whole hours, an
        interval that is not ordered (``p05 <= p50 <= p95``) or a negative concentration.
    """
    spatial = ("y", "x") if "y" in cube.dims else ("lat", "lon")
    for spec in FIELDS:
        _check_variable(cube, spec.name, spec.dims(spatial), spec.dtype, ProductError, where)
    if not (np.diff(cube[spatial[0]].values) > 0).all():
        raise ProductError(f"{where}: coordinate '{spatial[0]}' must ascend")
    if not (np.diff(cube["time"].values) == HOUR).all():
        raise ProductError(f"{where}: coordinate 'time' must hold every hour")
    for low, high in (("pm2p5_p05", "pm2p5_p50"), ("pm2p5_p50", "pm2p5_p95")):
        if bool((cube[low] > cube[high]).any()):
            raise ProductError(f"{where}: variable '{low}' exceeds '{high}'")
    if bool((cube["pm2p5_p05"] < 0).any()) or bool((cube["pm2p5"] < 0).any()):
        raise ProductError(f"{where}: variable 'pm2p5' holds a negative concentration")
    return cube


def _check_variable(
    data: xr.Dataset, name: str, dims: tuple[str, ...], dtype: str, error: type[Exception], where: str
) -> None:
    if name not in data:
        raise error(f"{where}: variable '{name}' is missing")
    if data[name].dims != dims:
        raise error(f"{where}: variable '{name}' must have dims {dims}; found {data[name].dims}")
    if data[name].dtype != np.dtype(dtype):
        raise error(f"{where}: variable '{name}' must be {dtype}; found {data[name].dtype}")
