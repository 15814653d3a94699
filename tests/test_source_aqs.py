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
from pipeline.sources.aqs import SOURCE
from pipeline.sources.archive import RawFile

#: The documented layout (AirData Download Files Documentation, Hourly Data Files).
HEADER = (
    '"State Code","County Code","Site Num","Parameter Code","POC","Latitude","Longitude","Datum","Parameter Name",'
    '"Date Local","Time Local","Date GMT","Time GMT","Sample Measurement","Units of Measure","MDL","Uncertainty",'
    '"Qualifier","Method Type","Method Code","Method Name","State Name","County Name","Date of Last Change"\n'
)
UNITS = {
    **dict.fromkeys(("88101", "88502"), "Micrograms/cubic meter (LC)"),
    "81102": "Micrograms/cubic meter (25 C)",
    **dict.fromkeys(("44201", "42101"), "Parts per million"),
    **dict.fromkeys(("42602", "42401"), "Parts per billion"),
}
NAMES = {"88101": "pm2p5", "88502": "pm2p5", "81102": "pm10", "44201": "o3", "42101": "co"}
NAMES |= {"42602": "no2", "42401": "so2"}

#: mol m-3 at 25 degrees C and 1013.25 hPa, 101325 / (8.314462618 * 298.15), times 1e-3.
MOLES = 0.04087404
SCALES = {"o3": 1000 * 47.998 * MOLES, "co": 28.010 * MOLES, "no2": 46.006 * MOLES, "so2": 64.064 * MOLES}


def row(parameter="88101", value="12.3", site="01-073-0023", poc=1, hour=0, datum="WGS84", unit=None, **other) -> str:
    """One row of a site in Alabama, whose local standard time is UTC-6."""
    state, county, number = site.split("-")
    local = np.datetime64("2023-07-04T00", "h") + np.timedelta64(hour, "h")
    gmt = local + np.timedelta64(6, "h")
    date, time = other.get("date", str(gmt)[:10]), other.get("time", f"{str(gmt)[11:]}:00")
    lon = other.get("lon", "-86.815")
    return (
        f'"{state}","{county}","{number}","{parameter}",{poc},33.553056,{lon},"{datum}","PM2.5 - Local Conditions",'
        f'"{str(local)[:10]}","{str(local)[11:]}:00","{date}","{time}",{value},"{unit or UNITS.get(parameter, "m")}",'
        '5,"","","FEM","209","Met One BAM-1022 Mass Monitor w/ VSCC or TE-PM2.5C - Beta Attenuation","Alabama",'
        '"Jefferson","2024-03-19"\n'
    )


def parse(text: str, name: str = "hourly_88101_2023.csv") -> pd.DataFrame:
    raw = RawFile(f"d/{name}", name, text.encode())
    return check_station_table(pd.concat(SOURCE.parse(raw, None, "error")))


def test_documented_rows():
    # EPA's own example of a row: 0.062 ppm of ozone, 2024-03-01 01:00 local is 07:00 GMT; 62 * 1.96187 = 121.64 ug m-3
    text = (
        HEADER + '"01","003","0010","44201",1,30.497478,-87.880258,"NAD83","Ozone","2024-03-01","01:00","2024-03-01",'
        '"07:00",0.062,"Parts per million",0.005,"","","FEM","087","INSTRUMENTAL - ULTRA VIOLET ABSORPTION","Alabama",'
        '"Baldwin","2024-07-19"\n'
        '"06","037","1103","42602",1,34.06659,-118.22688,"WGS84","Nitrogen dioxide (NO2)","2024-01-01","00:00",'
        '"2024-01-01","08:00",21.3,"Parts per billion",0.1,"","","FEM","074","Instrumental - Chemiluminescence",'
        '"California","Los Angeles","2024-04-01"\n'
    )
    found = parse(text, "hourly_44201_2024.csv").set_index("station")
    ozone, nitrogen = found.loc["aqs:01-003-0010"], found.loc["aqs:06-037-1103"]
    assert ozone["time"] == np.datetime64("2024-03-01T07")
    assert ozone["o3"] == pytest.approx(121.64, abs=0.01)
    assert (ozone["line_o3"], ozone["lon"], ozone["lat"]) == (2, -87.880258, 30.497478)  # NAD83 is taken as WGS84
    assert nitrogen["time"] == np.datetime64("2024-01-01T08")
    assert nitrogen["no2"] == pytest.approx(40.05, abs=0.01)  # 21.3 * 1.88045
    assert nitrogen["line_no2"] == 3


class TestRules:
    def test_the_lowest_occurrence_code_counts_hour_by_hour(self):
        text = HEADER + row(poc=3, value="3") + row(poc=3, value="4", hour=1) + row(poc=1, value="1") + row(poc=2)
        found = parse(text)
        assert found["pm2p5"].tolist() == [1, 4]
        assert found["line_pm2p5"].tolist() == [4, 3]

    def test_a_reference_method_comes_first_whatever_its_code(self):
        found = parse(HEADER + row("88101", "5", poc=9) + row("88502", "7", poc=1) + row("88502", "8", hour=1))
        assert found["pm2p5"].tolist() == [5, 8]
        assert SOURCE.rank("hourly_88101_2023.csv") > SOURCE.rank("hourly_88502_2023.csv") == SOURCE.rank("x.csv")

    def test_of_the_same_row_twice_the_later_counts(self):
        assert parse(HEADER + row(value="1") + row(value="2"))["line_pm2p5"].tolist() == [3]

    def test_nad27_is_shifted_to_wgs84(self):
        # the shift is some ten metres in Alabama: NAD27 coordinates are too far south
        old, new = parse(HEADER + row(datum="NAD27")).iloc[0], parse(HEADER + row()).iloc[0]
        assert 5 < (old["lat"] - new["lat"]) * 111_000 < 30
        assert abs(old["lon"] - new["lon"]) * 92_000 < 20

    def test_rows_of_another_year_are_left_out(self, caplog):
        with caplog.at_level(logging.WARNING, "aqnet"):
            assert parse(HEADER + row(), "hourly_88101_2022.csv").empty
        assert "left out 1 values: outside the file's hours" in caplog.text

    def test_names(self):
        start, end = SOURCE.span("hourly_88101_2023.csv")
        assert start == np.datetime64("2022-12-31T10")
        assert end == np.datetime64("2024-01-01T12")
        assert SOURCE.span("daily_88101_2023.csv") is SOURCE.span("hourly_88101_9999.csv") is None


class TestRealDailyFiles:
    @pytest.mark.parametrize(
        ("name", "unit"), [("la_county_2023_daily_head.csv", "UNITS"), ("virginia_2023_daily_head.csv", "Units")]
    )
    def test_are_refused_by_name(self, shared_data, name, unit):
        path = shared_data / "samples" / "aqs" / name
        assert unit in path.read_text().split("\n", 1)[0]  # both generations of the header
        year = np.datetime64("2023-01-01"), np.datetime64("2024-01-01")
        with pytest.raises(InputError, match=rf"{name}, line 1: expected hourly .* found a daily file \(column 'Daily"):
            list(sources.read("aqs", path, None, *year, None))


DAILY = '"State Code","Sample Duration","Date Local","Observation Count","Arithmetic Mean","1st Max Value","AQI"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DAILY, "found a daily summary .column 'Arithmetic Mean'"),
        ('"State Code","Year","Metric Used","Arithmetic Mean"\n', "found an annual summary .column 'Metric Used'"),
        ('"State Code","Date Local","Mean Including All Data"\n', "found an 8-hour file"),
        ('"Date","Daily Max 8-hour Ozone Concentration"\n', "found a daily file"),
        ("", "expected a CSV header"),
        ("<html>\n<body>\n", "line 1: expected an EPA AQS hourly file.*found <html>"),
        ("location_id,sensors_id,location,datetime\n", "found location_id,sensors_id"),
        (HEADER + row("61103"), "column 'Parameter Code': expected 88101, .*; found 61103"),
        (HEADER + row(unit="Parts per billion"), "line 2, column 'Units of Measure': expected a unit of pm2p5"),
        (HEADER + row() + row(value="x"), "line 3, column 'Sample Measurement': expected a number; found 'x'"),
        (HEADER + row(date="2023-7-04"), "line 2, column 'Date GMT': expected a date written as 2001-02-03"),
        (HEADER + row(time="06:30"), "line 2, column 'Time GMT': expected the beginning of an hour"),
        (HEADER + row(time="6:00"), "line 2, column 'Time GMT': expected a time as HH:MM; found '6:00'"),
        # files of 2014 had their GMT columns with the wrong sign, 6 h before local time instead of after
        (HEADER + row(date="2023-07-03", time="18:00"), "line 2, column 'Date GMT': expected a GMT date and time that"),
        (HEADER + row(lon="-186"), r"line 2, column 'Longitude': expected degrees in \[-180, 180\]; found '-186.0'"),
        (HEADER + row(lon=""), r"line 2, column 'Longitude': expected degrees in \[-180, 180\]; found ''"),
        (HEADER + row(datum="ED50"), "line 2, column 'Datum': expected WGS84, NAD83, NAD27 or UNKNOWN; found 'ED50'"),
        (HEADER + row(site="1-073-0023"), "line 2, column 'State Code': expected a code of 2 letters or digits"),
        (HEADER + row(poc="-1"), "line 2, column 'POC': expected a parameter occurrence code"),
        (HEADER + "1,2,3\n", "line 2: expected 24 columns; found 3"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


values = st.one_of(st.none(), st.decimals(-10, 500, places=1))
entry = st.tuples(
    st.sampled_from(["01-073-0023", "01-073-0024", "CC-001-0001"]),
    st.sampled_from(list(UNITS)),
    st.integers(1, 4),
    st.integers(0, 60),
    values,
)


@given(rows=st.lists(entry, min_size=1, max_size=40, unique_by=lambda r: r[:4]))
def test_round_trip(rows):
    text, best = HEADER, {}
    for line, (site, parameter, poc, hour, value) in enumerate(rows, start=2):
        text += row(parameter, "" if value is None else str(value), site, poc, hour)
        if value is not None:
            key = f"aqs:{site}", np.datetime64("2023-07-04T06") + np.timedelta64(hour, "h"), NAMES[parameter]
            new = (parameter == "88502", poc, line, float(value) * SCALES.get(NAMES[parameter], 1.0))
            best[key] = min(best.get(key, new), new)
    found = {
        (record["station"], np.datetime64(record["time"], "h"), name): (record[line_column(name)], record[name])
        for record in parse(text).to_dict("records")
        for name in POLLUTANTS
        if record[line_column(name)]
    }
    assert found == {key: (line, pytest.approx(value, rel=1e-5)) for key, (_, _, line, value) in best.items()}
