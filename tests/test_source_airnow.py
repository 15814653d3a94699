from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.contract import POLLUTANTS, check_station_table, line_column
from pipeline.errors import InputError
from pipeline.sources.airnow import SOURCE, read_sites
from pipeline.sources.archive import RawFile

#: ug m-3 of 1 ppb at 25 degrees C and 1013.25 hPa: g mol-1 times 101325 / (8.314462618 * 298.15) * 1e-3.
PPB = {"no2": 46.006 * 0.04087404, "o3": 47.998 * 0.04087404, "so2": 64.064 * 0.04087404}
CO_PPM = 28.010 * 0.04087404

V2 = (
    "StationID|AQSID|FullAQSID|Parameter|MonitorType|SiteCode|SiteName|Status|AgencyID|AgencyName|EPARegion|Latitude|"
    "Longitude|Elevation|GMTOffset|CountryFIPS|CBSA_ID|CBSA_Name|StateAQSCode|StateAbbreviation|CountyAQSCode|"
    "CountyName\n"
)


def v2_row(aqsid: str, status: str, lat: str, lon: str, parameter: str = "PM2.5") -> str:
    return (
        f"{aqsid}|{aqsid}|840{aqsid}|{parameter}|Permanent|1001|BONDVILLE|{status}|IL1|Illinois EPA|R5|{lat}|{lon}||"
        "-6.00|US|||17|IL|019|CHAMPAIGN\n"
    )


def parse(text: str | bytes, sites=None, name: str = "HourlyData.dat", truncated="error") -> pd.DataFrame:
    data = text.encode("latin-1") if isinstance(text, str) else text
    return check_station_table(pd.concat(SOURCE.parse(RawFile(f"d/{name}", name, data), sites, truncated)))


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    path = tmp_path_factory.mktemp("airnow") / "Monitoring_Site_Locations_V2.dat"
    path.write_text("\ufeff" + V2 + "".join(v2_row(f"17019100{i}", "Active", f"4{i}.5", "-88.25") for i in range(5)))
    return read_sites(path)


def line(parameter: str, unit: str, value: str, time: str = "09:00", aqsid: str = "170191001") -> str:
    return f"07/24/25|{time}|{aqsid}|Montréal|-6|{parameter}|{unit}|{value}|Illinois EPA\n"


class TestRealHourlyData:
    def test_values_hours_and_lines(self, shared_data):
        path = shared_data / "samples" / "airnow" / "HourlyData_2025072409.dat"
        day = np.datetime64("2025-07-24"), np.datetime64("2025-07-25")
        found = pd.concat(sources.read("airnow", path, None, *day, None)).set_index(["station", "time"])
        # 07/24/25|09:00|000020401|...|PM2.5|UG/M3|5.3 in line 3 and NO2|PPB|0.7 in line 2: GMT, beginning of the hour
        row = found.loc["airnow:000020401", pd.Timestamp("2025-07-24T09")]
        assert row["pm2p5"] == np.float32(5.3)
        assert row["no2"] == pytest.approx(0.7 * PPB["no2"], rel=1e-5)  # 1.3163 ug m-3
        assert (row["line_pm2p5"], row["line_no2"], row["line_o3"]) == (3, 2, 0)
        assert (row["lon"], row["lat"], row["elevation"]) == (-62.5828, 46.3864, 15.3)
        both = found.loc["airnow:000030113"]["pm2p5"]
        assert both.to_dict() == {
            pd.Timestamp("2025-07-24T09"): np.float32(4.2),
            pd.Timestamp("2025-07-24T10"): np.float32(5.2),
        }
        assert len(found) == 3  # NO of line 1 is passed over

    def test_needs_the_site_list(self, shared_data):
        path = shared_data / "samples" / "airnow" / "HourlyData_2025072409.dat"
        with pytest.raises(InputError, match=r"expected a site list .Monitoring_Site_Locations_V2.dat or monitoring"):
            parse(path.read_bytes())


class TestRealHourlyAQObs:
    def test_values_hours_and_lines(self, shared_data):
        path = shared_data / "samples" / "airnow" / "HourlyAQObs_2026092715.dat"
        found = parse(path.read_bytes(), name=path.name).set_index("station")
        # FAIRHOPE, line 2: 09/27/2026 15:00, PM25 10.6 UG/M3, OZONE 43.0 PPB = 43 * 1.96187 = 84.360 ug m-3
        row = found.loc["airnow:010030010"]
        assert row["time"] == np.datetime64("2026-09-27T15")
        assert row["pm2p5"] == np.float32(10.6)
        assert row["o3"] == pytest.approx(84.360, abs=1e-3)
        assert (row["line_pm2p5"], row["line_o3"], row["line_no2"]) == (2, 2, 0)
        assert (row["lon"], row["lat"], row["elevation"]) == (-87.8706, 30.4889, 0.0)
        assert list(found.index) == ["airnow:010030010", "airnow:010270001"]  # the others have no value

    def test_a_carbon_monoxide_value_in_ppm(self, shared_data):
        text = (shared_data / "samples" / "airnow" / "HourlyAQObs_2026092715.dat").read_text()
        head, first, *_ = text.splitlines()
        filled = first.removesuffix(',""' * 8) + ',"","","0.3","PPM","1","PPB","",""'
        found = parse(f"{head}\n{filled}\n")
        assert found["co"][0] == pytest.approx(0.3 * CO_PPM, rel=1e-5)  # 0.343 mg m-3
        assert found["so2"][0] == pytest.approx(PPB["so2"], rel=1e-5)


class TestSiteList:
    def test_old_generation(self, shared_data):
        found = read_sites(shared_data / "samples" / "airnow" / "monitoring_site_locations.dat").frame
        assert found.loc["000030113", ["lon", "lat", "elevation"]].tolist() == [-63.573689, 44.647175, 29.0]

    def test_an_active_row_with_coordinates_counts(self, tmp_path):
        path = tmp_path / "V2.dat"
        rows = [("Active", "40.5", "-88"), ("Inactive", "10", "-10"), ("Active", "0", "0"), ("Active", "", "")]
        path.write_text(V2 + "".join(v2_row("170191001", *row) for row in rows) + v2_row("1", "Inactive", "2", "3"))
        found = read_sites(path).frame
        assert found.loc[["170191001", "840170191001", "1"], "lat"].tolist() == [40.5, 40.5, 2]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (V2 + v2_row("1", "Active", "95", "3"), "line 2, column 'lat': expected degrees"),
            (V2 + v2_row("1", "Active", "x", "3"), "line 2, column 'Latitude': expected a number; found 'x'"),
            ("StationID|Latitude\n1|2\n", "with the column 'AQSID'"),
            ("<html>\n", "expected 23 columns"),
        ],
    )
    def test_errors(self, tmp_path, text, message):
        (tmp_path / "V2.dat").write_text(text)
        with pytest.raises(InputError, match=message):
            read_sites(tmp_path / "V2.dat")
        with pytest.raises(InputError, match="found no such file"):
            read_sites(tmp_path / "none.dat")


class TestRules:
    def test_the_later_of_two_rows_counts(self, sites):
        found = parse(line("PM2.5", "UG/M3", "5") + line("PM2.5", "UG/M3", "7"), sites)
        assert (found["pm2p5"][0], found["line_pm2p5"][0]) == (7, 2)

    def test_missing_marks(self, sites):
        found = parse("".join(line("PM2.5", "UG/M3", v) for v in ("5", "-999", "-999.0", "")), sites)
        assert (found["pm2p5"].tolist(), found["line_pm2p5"].tolist()) == ([5], [1])

    def test_full_and_short_aqsid_are_one_station(self, sites):
        text = line("PM2.5", "UG/M3", "5") + line("CO", "PPM", "0.3", aqsid="840170191001")
        found = parse(text, sites)
        assert found["station"].tolist() == ["airnow:170191001"]
        assert found["co"][0] == pytest.approx(0.3 * CO_PPM, rel=1e-5)

    def test_an_hour_that_begins_at_half_past_is_left_out(self, sites, caplog):
        with caplog.at_level(logging.WARNING, "aqnet"):
            found = parse(line("PM2.5", "UG/M3", "5") + line("PM10", "UG/M3", "9", time="09:30"), sites)
        assert np.isnan(found["pm10"][0])
        assert "left out 1 values: their hour does not begin at a whole hour UTC" in caplog.text

    def test_rows_outside_the_hours_of_the_name_are_left_out(self, sites, caplog):
        times = ["05:00", "06:00", "07:00", "08:00", "09:00", "10:00"]
        text = "".join(line("PM2.5", "UG/M3", "5", time=time) for time in times)
        with caplog.at_level(logging.WARNING, "aqnet"):
            found = parse(text, sites, name="HourlyData_2025072408.dat")
        assert found["time"].dt.hour.tolist() == [6, 7, 8, 9]
        assert "left out 2 values: outside the file's hours" in caplog.text

    def test_names(self):
        span = np.datetime64("2025-07-24T07"), np.datetime64("2025-07-24T11")
        assert SOURCE.span("HourlyData_2025072409.dat") == SOURCE.span("HourlyAQObs_2025072409.dat") == span
        assert SOURCE.span("HourlyData_2025072499.dat") is SOURCE.span("monitoring.dat") is None
        assert SOURCE.rank("HourlyAQObs_2025072409.dat") > SOURCE.rank("HourlyData_2025072409.dat")

    def test_observations_without_a_place_are_left_out(self, shared_data, caplog):
        text = (shared_data / "samples" / "airnow" / "HourlyAQObs_2026092715.dat").read_text()
        with caplog.at_level(logging.WARNING, "aqnet"):
            found = parse(text.replace('"30.4889","-87.8706"', '"",""'))
        assert found["station"].tolist() == ["airnow:010270001"]
        assert "left out 1 values: rows of sites without coordinates" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected AirNow HourlyData .* found an empty file"),
        ("<html><body>Not Found</body></html>\n", "found <html><body>Not Found"),
        ("location_id,sensors_id\n1,2\n", "found location_id,sensors_id"),
        ("07/24/25|000020401|SOUTHAMPTON|PM2.5-24hr|UG/M3|5.3|24|Canada\n", "found AirNow's daily file, parameter 'PM"),
        (line("PM2.5", "NG/M3", "5"), "line 1, column 'reporting units': expected a unit of pm2p5.*found 'NG/M3'"),
        (line("PM2.5", "PPB", "5"), "line 1, column 'reporting units': expected a unit of pm2p5"),
        (line("OZONE", "", "5"), "line 1, column 'reporting units'.*found ''"),
        (line("NO", "PPB", "1") + line("PM2.5", "UG/M3", "x"), "line 2, column 'value': expected a number; found 'x'"),
        (line("PM2.5", "UG/M3", "5", time="24:00"), "line 1, column 'time': expected a time as HH:MM; found '24:00'"),
        (line("PM2.5", "UG/M3", "5", time="9:00"), "line 1, column 'time': expected a time as HH:MM; found '9:00'"),
        (line("PM2.5", "UG/M3", "5").replace("07/24", "24/07"), "line 1, column 'date': expected a date written as 02"),
        (line("PM2.5", "UG/M3", "5", aqsid=""), "line 1, column 'AQSID': expected a site's AQSID"),
        (line("PM2.5", "UG/M3", "5") + "07/24/25|09:00|17\n", "line 2: expected 9 columns; found 3"),
        (line("PM2.5", "UG/M3", "5", aqsid="999999999"), "expected a line for each station that reports.*999999999"),
    ],
)
def test_refusals(sites, text, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text, sites)
    assert "\n" not in str(error.value)


def test_refusals_of_observations(shared_data):
    text = (shared_data / "samples" / "airnow" / "HourlyAQObs_2026092715.dat").read_text()
    for old, new, message in (
        ('"43.0","PPB"', '"43.0","PPT"', "line 2, column 'OZONE_Unit': expected a unit of o3"),
        ('"PM25_Unit"', '"PM25_Units"', "with the column 'PM25_Unit'"),
        ('"30.4889"', '"130.4889"', "line 2, column 'Latitude': expected degrees in .-90, 90.; found '130.4889'"),
        ('"09/27/2026","15:00"', '"2026-09-27","15:00"', "line 2, column 'ValidDate': expected a date written as"),
    ):
        with pytest.raises(InputError, match=message):
            parse(text.replace(old, new, 1))


cells = st.tuples(
    st.integers(0, 4),
    st.integers(0, 23),
    st.sampled_from(["PM2.5", "PM10", "OZONE", "NO2", "SO2", "CO", "TEMP"]),
    st.one_of(st.none(), st.decimals(-20, 900, places=1)),
)
NAMES = {"PM2.5": "pm2p5", "PM10": "pm10", "OZONE": "o3", "NO2": "no2", "SO2": "so2", "CO": "co"}


def held(found: pd.DataFrame) -> dict[tuple[str, int, str], tuple[int, float]]:
    """Line and value by station, hour and pollutant."""
    return {
        (row["station"], row["time"].hour, name): (row[line_column(name)], row[name])
        for row in found.to_dict("records")
        for name in POLLUTANTS
        if row[line_column(name)]
    }


@given(rows=st.lists(cells, min_size=1, max_size=40))
def test_hourly_data_round_trip(rows, sites):
    text, expected = "", {}
    for number, (site, hour, parameter, value) in enumerate(rows, start=1):
        unit = "UG/M3" if parameter.startswith("PM") else "PPM" if parameter == "CO" else "PPB"
        shown = "-999" if value is None else str(value)
        text += line(parameter, unit, shown, time=f"{hour:02}:00", aqsid=f"17019100{site}")
        if value is not None and parameter in NAMES:
            name = NAMES[parameter]
            scale = CO_PPM if name == "co" else PPB.get(name, 1.0)
            expected[f"airnow:17019100{site}", hour, name] = number, pytest.approx(float(value) * scale, rel=1e-5)
    assert held(parse(text, sites)) == expected


@given(rows=st.lists(st.tuples(*[st.one_of(st.none(), st.decimals(-20, 900, places=1))] * 3), min_size=1, max_size=20))
def test_hourly_aqobs_round_trip(rows):
    text, expected = "AQSID,Latitude,Longitude,ValidDate,ValidTime,PM25,PM25_Unit,OZONE,OZONE_Unit,CO,CO_Unit\n", {}
    for number, (pm, ozone, co) in enumerate(rows, start=2):
        values = [("" if value is None else str(value)) for value in (pm, ozone, co)]
        units = [unit if value else "" for value, unit in zip(values, ("UG/M3", "PPB", "PPM"), strict=True)]
        cells = ",".join(f'"{v}","{u}"' for v, u in zip(values, units, strict=True))
        text += f'"01003{number:04}","30.5","-87.9","07/24/2025","{number % 24:02}:00",{cells}\n'
        for name, value, scale in (("pm2p5", pm, 1.0), ("o3", ozone, PPB["o3"]), ("co", co, CO_PPM)):
            if value is not None:
                key = f"airnow:01003{number:04}", number % 24, name
                expected[key] = number, pytest.approx(float(value) * scale, rel=1e-5)
    assert held(parse(text)) == expected
