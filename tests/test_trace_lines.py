"""Every value of a traced StationCube knows the file and line that it was read from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from test_harmonise import END, START, table

from pipeline.contract import POLLUTANTS, line_column
from pipeline.errors import InputError
from pipeline.harmonise import to_cube, to_traced_cube

rows = st.lists(
    st.tuples(st.integers(-2, 8), st.sampled_from(["n:b", "n:a", "n:c"]), st.floats(1, 2000, width=32)), min_size=1
)


def read(name: str, part: list[tuple[int, str, float]], **columns: object) -> pd.DataFrame:
    """A table as a reader gives it: rows stand on lines 2, 3 ..."""
    lines = np.arange(2, 2 + len(part), dtype="int32")
    return table(*part, **columns).assign(**{line_column("pm2p5"): lines}, source_file=name)


@given(parts=st.lists(rows, min_size=1, max_size=3))
def test_lines_are_those_of_the_rows_that_count(parts: list[list[tuple[int, str, float]]]) -> None:
    expected = {
        (hour, name): (f"{number}.csv", line)
        for number, part in enumerate(parts)
        for line, (hour, name, _) in enumerate(part, 2)
        if 0 <= hour < 6
    }
    tables = [read(f"{number}.csv", part) for number, part in enumerate(parts)]
    if not expected:
        with pytest.raises(InputError, match="expected observations"):
            to_traced_cube(tables, START, END)
        return
    cube, origins = to_traced_cube(tables, START, END)
    xr.testing.assert_identical(cube, to_cube(tables, START, END))
    names, p = list(cube["station"].values), POLLUTANTS.index("pm2p5")
    found = {
        (hour, names[station]): (origins.files[origins.file[hour, station, p]], origins.line[hour, station, p])
        for hour, station in zip(*np.nonzero(origins.file[..., p] >= 0), strict=True)
    }
    assert found == expected
    assert (np.delete(origins.file, p, axis=2) == -1).all()
    assert (np.delete(origins.line, p, axis=2) == 0).all()


def test_each_place_of_a_station_that_moved_has_its_own_lines() -> None:
    tables = [read("a.csv", [(0, "n:a", 1.0)]), read("b.csv", [(3, "n:a", 2.0)], lon=117.0)]
    cube, origins = to_traced_cube(tables, START, END)
    assert list(cube["station"].values) == ["n:a", "n:a@2020-01-01T03"]
    assert [(origins.files[origins.file[hour, k, 0]], origins.line[hour, k, 0]) for hour, k in ((0, 0), (3, 1))] == [
        ("a.csv", 2),
        ("b.csv", 2),
    ]


def test_a_plug_in_without_lines_gives_the_file_alone() -> None:
    _, origins = to_traced_cube([table((0, "n:a", 1.0)).assign(source_file="x")], START, END)
    assert (origins.files[origins.file[0, 0, 0]], origins.line[0, 0, 0]) == ("x", 0)
