from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz import netcdf
from pipeline import harmonise, sources
from pipeline.contract import POLLUTANTS, STANDARD_NAMES, check_station_table, line_column
from pipeline.errors import InputError
from pipeline.sources import isolated, timeseries
from pipeline.sources.archive import RawFile

HOURS = pd.date_range("2020-02-28T22", periods=4, freq="h")
CODES = ["net:a", "b", "net:c"]
TIME = {"standard_name": "time", "units": "hours since 1970-01-01"}
PM = {"standard_name": STANDARD_NAMES["pm2p5"], "units": "ug m-3"}


def numbers(times: pd.DatetimeIndex) -> np.ndarray:
    return (times.to_numpy().astype("M8[h]").astype("int64")).astype("float64")


def stations(dims: tuple[str, ...] = ("station",), codes: object = CODES) -> dict[str, xr.Variable]:
    """Station variables along `dims`, for three stations or a single one."""

    def of(values: list[object]) -> object:
        return values if dims else values[0]

    return {
        "code": xr.Variable(dims, np.array(of(codes), dtype=object), {"cf_role": "timeseries_id"}),
        "x": xr.Variable(dims, of([10.0, 11, 12]), {"standard_name": "longitude", "units": "degrees_east"}),
        "y": xr.Variable(dims, of([50.0, 51, 52]), {"standard_name": "latitude", "units": "degrees_north"}),
        "z": xr.Variable(dims, of([5.0, 6, 7]), {"standard_name": "surface_altitude", "units": "m"}),
    }


def cube(**changes: xr.Variable | None) -> xr.Dataset:
    """A (time, station) file of four hours and three stations, with variables changed, added or (None) left out."""
    values = np.arange(12, dtype="float32").reshape(4, 3) + 0.5
    found = stations() | {
        "t": xr.Variable("time", numbers(HOURS), TIME),
        "pm": xr.Variable(("time", "station"), values, PM),
    }
    found |= changes
    return xr.Dataset({k: v for k, v in found.items() if v is not None}, attrs={"featureType": "timeSeries"})


def with_attrs(name: str, **attrs: object) -> xr.Dataset:
    data = cube()
    data[name].attrs |= attrs
    data[name].attrs = {key: value for key, value in data[name].attrs.items() if value is not None}
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("nc")


def written(data: xr.Dataset, folder: Path, **options) -> bytes:
    path = folder / "a.nc"
    data.to_netcdf(path, **options)
    return path.read_bytes()


def decode(data: xr.Dataset, folder: Path, **options) -> pd.DataFrame:
    """Decode in this process; `test_parse_...` go through the worker."""
    return check_station_table(timeseries.read("dir/a.nc", written(data, folder, **options)))


def as_dict(table: pd.DataFrame, pollutant: str = "pm2p5") -> dict[tuple[str, np.datetime64], tuple[float, int]]:
    table = table[table[pollutant].notna()]
    keys = zip(table["station"], table["time"].to_numpy("M8[h]"), strict=True)
    return dict(zip(keys, zip(table[pollutant], table[line_column(pollutant)], strict=True), strict=True))


EXPECTED = {
    (code, hour): (np.float32(3 * i + j + 0.5), i + 1)
    for i, hour in enumerate(HOURS.to_numpy("M8[h]"))
    for j, code in enumerate(["net:a", "timeseries:b", "net:c"])
}


class TestLayouts:
    @pytest.mark.parametrize("layout", ["NETCDF4", "NETCDF4_CLASSIC", "NETCDF3_CLASSIC", "NETCDF3_64BIT"])
    def test_time_by_station_in_every_file_format(self, folder, layout):
        table = decode(cube(), folder, format=layout)
        assert as_dict(table) == EXPECTED
        place = table.groupby("station", observed=True)[["lon", "lat", "elevation"]].first()
        assert place.loc["timeseries:b"].tolist() == [11, 51, 6]

    def test_station_by_time(self, folder):
        assert as_dict(decode(cube().transpose(), folder)) == EXPECTED

    @pytest.mark.parametrize("dims", [(), ("station",)])
    def test_a_single_station(self, folder, dims):
        full = cube().isel(station=slice(1, 2))
        table = decode(full if dims else full.isel(station=0), folder)
        assert as_dict(table) == {key: value for key, value in EXPECTED.items() if key[0] == "timeseries:b"}

    def test_incomplete_array_with_times_of_its_own(self, folder):
        hours, values = np.full((3, 4), np.nan), np.full((3, 4), np.nan, dtype="float32")
        hours[0], values[0] = numbers(HOURS), [1, 2, np.nan, 4]
        hours[2, :2], values[2, :2] = numbers(HOURS)[2:], [7, 8]
        data = cube(t=xr.Variable(("station", "obs"), hours, TIME), pm=xr.Variable(("station", "obs"), values, PM))
        h = HOURS.to_numpy("M8[h]")
        assert as_dict(decode(data, folder)) == {
            ("net:a", h[0]): (1, 1),
            ("net:a", h[1]): (2, 2),
            ("net:a", h[3]): (4, 4),
            ("net:c", h[2]): (7, 1),
            ("net:c", h[3]): (8, 2),
        }

    @pytest.mark.parametrize("indexed", [False, True])
    def test_ragged_arrays(self, folder, indexed):
        data = cube(
            t=xr.Variable("obs", numbers(HOURS)[[0, 1, 2, 0, 3]], TIME),
            pm=xr.Variable("obs", np.array([1, 2, 3, 4, 5], dtype="float32"), PM),
        )
        data["n"] = (
            xr.Variable("obs", [0, 0, 0, 2, 2], {"instance_dimension": "station"})
            if indexed
            else xr.Variable("station", [3, 0, 2], {"sample_dimension": "obs"})
        )
        h = HOURS.to_numpy("M8[h]")
        assert as_dict(decode(data, folder)) == {
            ("net:a", h[0]): (1, 1),
            ("net:a", h[1]): (2, 2),
            ("net:a", h[2]): (3, 3),
            ("net:c", h[0]): (4, 4),
            ("net:c", h[3]): (5, 5),
        }

    @pytest.mark.parametrize(
        ("variable", "message"),
        [
            (
                ("station", [3, 0, 1], {"sample_dimension": "obs"}),
                "'n': expected 5 observations in all, as obs has; found 4",
            ),
            (("station", [9, 0, -4], {"sample_dimension": "obs"}), r"'n': expected whole numbers in 0..5; found 9"),
            (
                ("obs", [0, 0, 0, 2, 3], {"instance_dimension": "station"}),
                r"'n': expected whole numbers in 0..2; found 3",
            ),
            (("obs", [0, 0, 0, 0.5, 2], {"instance_dimension": "station"}), "'n': expected whole numbers"),
            (("station", [3, 0, 2], {}), "expected obs told by instance_dimension or sample_dimension; found neither"),
        ],
    )
    def test_broken_ragged_arrays(self, folder, variable, message):
        data = cube(
            t=xr.Variable("obs", numbers(HOURS)[[0, 1, 2, 0, 3]], TIME),
            pm=xr.Variable("obs", np.arange(5, dtype="float32"), PM),
            n=xr.Variable(*variable),
        )
        with pytest.raises(InputError, match=message):
            decode(data, folder)

    def test_character_arrays_as_station_codes(self, folder):
        path = folder / "chars.nc"
        with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
            for name, size in (("time", 4), ("station", 3), ("width", 8)):
                file.createDimension(name, size)
            codes = file.createVariable("code", "S1", ("station", "width"))
            codes.cf_role = "timeseries_id"
            codes[:] = netCDF4.stringtochar(np.array(CODES, dtype="S8"))
            for name, variable in cube().drop_vars("code").variables.items():
                made = file.createVariable(name, variable.dtype, variable.dims)
                made.setncatts(variable.attrs)
                made[:] = variable.values
        assert as_dict(check_station_table(timeseries.read("a", path.read_bytes()))) == EXPECTED


class TestHours:
    @pytest.mark.parametrize(
        ("units", "values"),
        [
            ("hours since 2020-02-28 22:00:00", [0, 1, 2, 3]),
            ("minutes since 2020-02-28T22:00:00Z", [0, 60, 120, 180]),
            ("seconds since 2020-02-29 06:00:00 +08:00", [0, 3600, 7200, 10800]),
            ("days since 2020-02-28", [22 / 24, 23 / 24, 1, 25 / 24]),
            ("days since 1900-01-01", list(43887 + np.arange(22, 26) / 24)),
        ],
    )
    def test_units(self, folder, units, values):
        data = cube(t=xr.Variable("time", np.array(values, "float64"), TIME | {"units": units}))
        assert as_dict(decode(data, folder)) == EXPECTED

    @pytest.mark.parametrize("first", [-1.0, -0.5, 0.0])
    def test_bounds_decide_the_start(self, folder, first):
        """The label may stand at the start, the middle or the end of the hour: the bounds are what counts."""
        start = numbers(HOURS)
        data = cube(
            t=xr.Variable("time", start - first, TIME | {"bounds": "edges"}),
            edges=xr.Variable(("time", "two"), np.stack([start, start + 1], axis=1)),
        )
        assert as_dict(decode(data, folder)) == EXPECTED

    @pytest.mark.parametrize(("label", "shift"), [("begin", 0), ("end", 1)])
    def test_time_label(self, folder, label, shift):
        data = cube(t=xr.Variable("time", numbers(HOURS) + shift, TIME | {"time_label": label}))
        assert as_dict(decode(data, folder)) == EXPECTED

    @pytest.mark.parametrize(
        ("attrs", "values", "message"),
        [
            ({"units": "months since 1970-01-01"}, None, "'t': expected units such as 'hours since 1970-01-01'"),
            ({"units": "hours since 1970-01-01 00:00 8:00"}, None, "'t': expected units such as"),
            ({"units": "hours"}, None, "'t': expected units such as"),
            ({"calendar": "noleap"}, None, "'t': expected a calendar of standard, gregorian, proleptic_gregorian"),
            ({"time_label": "middle"}, None, "'t': expected time_label begin or end; found middle"),
            ({"bounds": "none"}, None, "'t': expected bounds along"),
            ({}, [0.5, 1, 2, 3], "'t': expected starts of hours; found 1970-01-01T00:30:00"),
            ({}, [0, 24, 48, 72], "'t': expected hourly means, or bounds that say so; found a daily file"),
            ({}, [0, 3, 6, 9], "found one of 3 hours a time"),
            ({}, [0, np.nan, 2, 3], "'t': expected a time for every value; found a missing one"),
            ({}, [0, 1, 1, 3], "station 'net:a': expected each hour once; found 1970-01-01T01"),
            ({}, [0, 1, 2, 5e6], "'t': expected times in 1950..2199; found 2540-05-25T08:00:00"),
            ({}, [0, 1, 2, 1e300], "variable 't': expected a readable NetCDF file"),
        ],
    )
    def test_times_that_are_refused(self, folder, attrs, values, message):
        values = numbers(HOURS) if values is None else np.array(values, "float64")
        with pytest.raises(InputError, match=message):
            decode(cube(t=xr.Variable("time", values, TIME | attrs)), folder)

    def test_daily_bounds(self, folder):
        start = np.arange(4.0) * 24
        data = cube(
            t=xr.Variable("time", start, TIME | {"bounds": "edges"}),
            edges=xr.Variable(("time", "two"), np.stack([start, start + 24], axis=1)),
        )
        with pytest.raises(InputError, match="'edges': expected averages over one hour; found 86400 seconds"):
            decode(data, folder)


class TestValues:
    @pytest.mark.parametrize("units", ["ug m-3", "µg m-3", "ug/m3", "µg/m³"])
    def test_spellings(self, folder, units):
        assert as_dict(decode(with_attrs("pm", units=units), folder)) == EXPECTED

    def test_kilograms(self, folder):
        data = with_attrs("pm", units="kg m-3")
        data["pm"] = data["pm"].astype("float64") * 1e-9
        for key, (value, _) in as_dict(decode(data, folder)).items():
            assert value == pytest.approx(EXPECTED[key][0], rel=1e-6)

    @pytest.mark.parametrize(("units", "scale"), [("1e-9", 40), ("ppb", 40), ("1", 4e-8), ("mol mol-1", 4e-8)])
    def test_mole_fractions_at_25_degrees(self, folder, units, scale):
        attrs = {"standard_name": "mole_fraction_of_ozone_in_air", "units": units}
        data = cube(pm=xr.Variable(("time", "station"), np.full((4, 3), scale), attrs))
        # 40 ppb: 40 * 47.998 * 101325 / (8.314462618 * 298.15) / 1000 = 78.475 ug m-3
        assert decode(data, folder)["o3"].to_numpy() == pytest.approx(np.full(12, 78.475), abs=1e-3)

    def test_packed_values_and_fill(self, folder):
        encoding = {"pm": {"dtype": "int16", "scale_factor": 0.5, "add_offset": 0.0, "_FillValue": -9}}
        data = cube()
        data["pm"][1, 1] = np.nan
        missing = ("timeseries:b", HOURS.to_numpy("M8[h]")[1])
        assert as_dict(decode(data, folder, encoding=encoding)) == {k: v for k, v in EXPECTED.items() if k != missing}

    def test_missing_value(self, folder):
        data = with_attrs("pm", missing_value=np.float32(4.5))
        assert len(as_dict(decode(data, folder))) == 11

    def test_flags_and_other_quantities_are_passed_over(self, folder):
        flag = xr.Variable(
            ("time", "station"), np.ones((4, 3), "int8"), {"standard_name": f"{PM['standard_name']} status_flag"}
        )
        wind = xr.Variable(("time", "station"), np.ones((4, 3)), {"standard_name": "wind_speed", "units": "m s-1"})
        assert as_dict(decode(cube(flag=flag, wind=wind), folder)) == EXPECTED

    @pytest.mark.parametrize(
        ("name", "attrs", "message"),
        [
            ("pm", {"units": "furlong"}, "'pm': expected a unit of concentration of pm2p5; found units 'furlong'"),
            ("pm", {"units": "ppb"}, "'pm': expected a unit of concentration"),
            ("pm", {"units": "1"}, "'pm': expected a unit of concentration"),
            ("pm", {"units": None}, "'pm': expected a unit of concentration"),
            ("pm", {"units": 3}, "'pm': expected text as units"),
            ("pm", {"standard_name": "wind_speed"}, "expected a variable with a standard_name of a pollutant"),
            ("pm", {"cell_methods": "time: maximum"}, r"'pm': expected hourly means \(cell_methods time: mean\)"),
            ("code", {"cf_role": "profile_id"}, "expected a variable with cf_role timeseries_id"),
            ("x", {"standard_name": None}, "expected a variable with standard_name longitude"),
            ("x", {"units": "radian"}, "'x': expected degrees; found radian"),
            ("z", {"units": "feet"}, "'z': expected metres; found feet"),
        ],
    )
    def test_attributes_that_are_refused(self, folder, name, attrs, message):
        with pytest.raises(InputError, match=message) as error:
            decode(with_attrs(name, **attrs), folder)
        assert str(error.value).startswith("dir/a.nc")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pm": xr.Variable(("time", "station"), np.full((4, 3), "x", object), PM)}, "'pm': expected numbers"),
            (
                {"x": xr.Variable("station", [10.0, np.nan, 0], {"standard_name": "longitude"})},
                "station 'timeseries:b'",
            ),
            ({"y": xr.Variable("time", [1.0, 2, 3, 4], {"standard_name": "latitude"})}, "stations do not move"),
            (
                {"code": xr.Variable("station", np.array(["a", "a", "b"], object), {"cf_role": "timeseries_id"})},
                "'a' twice",
            ),
            (
                {"code": xr.Variable("station", np.array(["a", "", "b"], object), {"cf_role": "timeseries_id"})},
                "station 2",
            ),
            (
                {"again": xr.Variable(("time", "station"), np.ones((4, 3)), PM)},
                "expected one variable of standard_name",
            ),
            ({"pm": xr.Variable(("time", "level"), np.ones((4, 2)), PM)}, "expected pollutants along a time"),
        ],
    )
    def test_variables_that_are_refused(self, folder, changes, message):
        with pytest.raises(InputError, match=message):
            decode(cube(**changes), folder)

    @pytest.mark.parametrize("value", [np.inf, 1e39, -1e12])
    def test_what_no_concentration_is_names_its_variable(self, folder, value):
        values = np.ones((4, 3))
        values[2, 1] = value
        with pytest.raises(InputError, match="variable 'pm': expected finite concentrations; found"):
            decode(cube(pm=xr.Variable(("time", "station"), values, PM)), folder)

    @pytest.mark.parametrize("kind", ["f4", "f8"])
    def test_cells_that_were_never_written_are_missing(self, folder, kind):
        values = np.ones((4, 3), dtype=kind)
        values[2, 1] = netCDF4.default_fillvals[kind]
        table = decode(
            cube(pm=xr.Variable(("time", "station"), values, PM)), folder, encoding={"pm": {"_FillValue": None}}
        )
        assert len(as_dict(table)) == 11


def test_text_is_no_number_even_where_it_is_packed():
    # xarray makes 1.7 of the character 7 with a scale factor of 0.1 and an offset of 1, fill value or not
    cube = deepcopy(netcdf.seeds()[0])
    ozone = cube.variables["o3"]
    ozone.values, ozone.attrs["_FillValue"] = np.full((4, 3), b"7"), b"7"
    raw = RawFile("d/x.nc", "x.nc", netcdf.written(cube, "NETCDF3_CLASSIC"))
    with pytest.raises(InputError, match="variable 'o3': expected numbers; found"):
        list(timeseries.parse(raw, None, "error"))


def test_a_scale_factor_of_zero_makes_nothing_of_everything():
    cube = deepcopy(netcdf.seeds()[0])
    cube.variables["pm"].attrs["scale_factor"] = 0.0
    raw = RawFile("d/x.nc", "x.nc", netcdf.written(cube, "NETCDF3_CLASSIC"))
    with pytest.raises(InputError, match="variable 'pm': expected a scale_factor that is not 0; found 0"):
        list(timeseries.parse(raw, None, "error"))


def test_other_feature_types_and_files(folder):
    with pytest.raises(InputError, match="expected featureType timeSeries"):
        decode(cube().assign_attrs(featureType="trajectory"), folder)
    with pytest.raises(InputError, match="expected a NetCDF file; found one that begins with b'date,hou'"):
        timeseries.read("a.nc", b"date,hour,type\n")


amount = st.one_of(st.none(), st.floats(0, 1000, width=32))


@given(grid=st.lists(st.lists(amount, min_size=3, max_size=3), min_size=1, max_size=12), data=st.data())
def test_round_trip_of_every_layout(grid, data, folder):
    values = np.array(grid, dtype="float32")
    hours = pd.date_range("1999-12-31T20", periods=len(values), freq="h")
    layout = data.draw(st.sampled_from(["time, station", "station, time", "contiguous", "indexed"]))
    full = cube().drop_dims("time")
    if "time" in layout:
        order = tuple(layout.split(", "))
        full["t"] = xr.Variable("time", numbers(hours), TIME)
        full["pm"] = xr.Variable(("time", "station"), values, PM).transpose(*order)
    else:
        at, row = np.nonzero(np.isfinite(values.T))
        full["t"], full["pm"] = xr.Variable("obs", numbers(hours)[row], TIME), xr.Variable("obs", values.T[at, row], PM)
        contiguous = ("station", np.bincount(at, minlength=3), {"sample_dimension": "obs"})
        full["n"] = xr.Variable(
            *(contiguous if layout == "contiguous" else ("obs", at, {"instance_dimension": "station"}))
        )
    expected = {
        (code, hours.to_numpy("M8[h]")[i]): values[i, j]
        for i in range(len(values))
        for j, code in enumerate(["net:a", "timeseries:b", "net:c"])
        if np.isfinite(values[i, j])
    }
    kept = hours[np.isfinite(values).any(axis=1)]
    steps = np.diff(numbers(kept)).astype(int)
    if len(kept) > 2 and np.gcd.reduce(steps) > 1:  # only every second hour has values: as good as a longer mean
        with pytest.raises(InputError, match="expected hourly means"):
            decode(full, folder)
        return
    assert {key: value for key, (value, _) in as_dict(decode(full, folder)).items()} == expected


def test_parse_reads_back_the_pipelines_own_station_cube(tmp_path):
    rng = np.random.default_rng(5)
    hours = np.repeat(pd.date_range("2020-01-01", periods=48, freq="h"), 7)
    table = pd.DataFrame({"time": hours, "station": np.tile([f"cnemc:{i}A" for i in range(7)], 48)})
    table = table.assign(lon=116.0 + np.tile(np.arange(7), 48), lat=40.0, elevation=np.nan)
    for name in POLLUTANTS:
        table[name] = rng.gamma(2, 30, len(table)).astype("float32")
        table.loc[rng.random(len(table)) < 0.2, name] = np.nan
    period = np.datetime64("2020-01-01", "h"), np.datetime64("2020-01-03", "h")
    original = harmonise.to_cube([table], *period)
    original.to_netcdf(tmp_path / "cube.nc")
    back = harmonise.to_cube(sources.read("timeseries", tmp_path, None, *period, None), *period)
    xr.testing.assert_identical(back, original)


class TestIsolation:
    def test_damaged_files_end_in_input_errors_and_the_worker_goes_on(self, folder, monkeypatch):
        monkeypatch.setattr(isolated, "TIMEOUT", 1)
        base, rng = written(cube(), folder), np.random.default_rng(7)
        refused = 0
        for _ in range(150):
            data = bytearray(base)
            for at in rng.integers(0, len(data), rng.integers(1, 8)):
                data[at] ^= 1 << rng.integers(0, 8)
            try:
                (table,) = timeseries.parse(RawFile("dir/a.nc", "a.nc", bytes(data)), None, "error")
            except InputError as error:
                refused += str(error).startswith("dir/a.nc") and "\n" not in str(error)
            else:
                check_station_table(table)
                refused += 1
        assert refused == 150
        (table,) = timeseries.parse(RawFile("dir/a.nc", "a.nc", base), None, "error")
        assert as_dict(table) == EXPECTED

    def test_half_a_file(self, folder):
        with pytest.raises(InputError, match=r"^dir/a.nc: expected a readable NetCDF file; found OSError"):
            list(timeseries.parse(RawFile("dir/a.nc", "a.nc", written(cube(), folder)[:4000]), None, "error"))

    @pytest.mark.parametrize(
        ("work", "message"),
        [
            ("hang", "f.nc: expected a whole file; found one that takes more than 1 s"),
            ("crash", "f.nc: expected a whole file; found one that crashes its reader"),
            ("bomb", "f.nc: expected a file that is read in 4 GiB of memory; found more"),
        ],
    )
    def test_a_worker_that_hangs_crashes_or_eats_memory(self, monkeypatch, work, message):
        monkeypatch.setattr(isolated, "TIMEOUT", 1)
        with pytest.raises(InputError, match=message):
            isolated.run(_WORK[work], "f.nc", b"")
        assert isolated.run(_size, "f.nc", b"abc") == 3

    def test_a_pool_that_broke_is_made_anew(self):
        assert isolated.run(_size, "f.nc", b"abc") == 3
        pool = isolated._pool(os.getpid())
        pool.stop()
        pool.join()
        assert isolated.run(_size, "f.nc", b"abcd") == 4


def _size(_where: str, data: bytes) -> int:
    return len(data)


def _hang(_where: str, _data: bytes) -> None:
    while True:
        pass


def _crash(_where: str, _data: bytes) -> None:
    import ctypes

    ctypes.string_at(0)


def _bomb(_where: str, _data: bytes) -> None:
    np.zeros(1 << 40)


_WORK = {"hang": _hang, "crash": _crash, "bomb": _bomb}
