"""A schedule's life: files arrive in order, late, twice, out of order; the cube is that of one run over all of them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline import cli, output, schedule
from pipeline.contract import STREAMS
from pipeline.cube import reader
from pipeline.errors import ConfigError
from pipeline.store.ingest import ingest
from pipeline.twin.simulate import Simulation

START = datetime(2019, 11, 30, 20, tzinfo=UTC)
HOURS = 8

#: What differs between a cube made in pieces and one made at once: how it was made, and when.
HOW = ("revision", "stream")


class Network:
    """A network that publishes a growing file a Beijing day, as CNEMC does: one line a station hour and pollutant."""

    def __init__(self, simulation: Simulation, folder: Path) -> None:
        self.folder, self.days = folder, dict[str, list[str]]()
        for path in sorted(simulation.archive.glob("*.zip")):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    self.days[name] = archive.read(name).decode().splitlines()

    def publish(self, hour: datetime, name: str, late: int = 0) -> Path:
        """Publish all days, as seen after `hour`, in a folder of that name; of the last `late` hours PM2.5 alone."""
        (folder := self.folder / name).mkdir()
        for day, (header, *lines) in self.days.items():
            kept = [line for line in lines if self._seen(line, hour, late)]
            if kept:
                path = folder / day
                path.write_text("\n".join([header, *kept]) + "\n")
                stamp = (hour + timedelta(minutes=30)).timestamp()
                os.utime(path, (stamp, stamp))
        return folder

    @staticmethod
    def _seen(line: str, hour: datetime, late: int) -> bool:
        date, label, kind = line.split(",")[:3]
        begins = datetime.strptime(date, "%Y%m%d").replace(tzinfo=UTC) + timedelta(hours=int(label) - 9)
        return begins <= hour - timedelta(hours=late) or (begins <= hour and kind == "PM2.5")


@pytest.fixture
def network(small_simulation: Simulation, tmp_path: Path) -> Network:
    return Network(small_simulation, tmp_path)


@pytest.fixture
def settings(small_simulation: Simulation, weights: Path, tmp_path: Path) -> Path:
    """The configuration of a schedule."""
    path = tmp_path / "schedule.toml"
    path.write_text(
        f"""
        source = "store"
        input = "{tmp_path / "store"}"
        start = {START:%Y-%m-%dT%H:%M:%SZ}
        bbox = [110.0, 36.0, 113.0, 39.0]
        resolution = 0.5
        weights = "{weights}"
        out = "{tmp_path / "out"}"
        domain = "test"
        """
    )
    return path


def assert_same_values(found: xr.Dataset, wanted: xr.Dataset) -> None:
    wanted = wanted.isel(time=wanted["stream"].values >= 0)
    found = found.isel(time=found["stream"].values >= 0)
    np.testing.assert_array_equal(found["time"], wanted["time"])
    for name in set(wanted.data_vars) - set(HOW):
        np.testing.assert_array_equal(found[name].values, wanted[name].values, err_msg=str(name))


def arrivals(network: Network) -> Iterator[tuple[datetime, Path]]:
    """The present, and what arrives then."""
    at = [START + timedelta(hours=n) for n in range(HOURS)]
    yield at[2], network.publish(at[1], "in order")
    yield at[4], network.publish(at[3], "late", late=2)
    yield at[4], network.publish(at[3], "twice", late=2)
    yield at[6], network.publish(at[5], "filled in")
    yield at[7], network.publish(at[2], "out of order")
    yield at[7] + timedelta(hours=1), network.publish(at[7], "the last")


def test_whatever_the_order_of_arrival_the_cube_is_that_of_one_run(
    network: Network, settings: Path, small_simulation: Simulation, tmp_path: Path, prefect_harness: None
) -> None:
    from flows.hourly import hourly
    from flows.scheduled import Arrivals

    store, sites = tmp_path / "store", small_simulation.stations
    first = network.publish(START - timedelta(hours=1), "before")
    ingest(store, "cnemc", first, sites)
    made = []
    for now, folder in arrivals(network):
        given = Arrivals(network="cnemc", path=folder, stations=sites)
        found = hourly(settings, given, now, return_state=True)
        made.append(found.name if found.name == "NothingDue" else found.result())
    assert made == [["r1"], ["r2"], "NothingDue", ["r3"], "NothingDue", ["r4"]]
    cube = reader.open_cube(tmp_path / "out" / output.CUBE)
    assert cube.attrs[schedule.MADE_TO["interim"]] == "6"
    ends = START + timedelta(hours=HOURS)
    code = cli.run_command(["run", str(settings), "--end", ends.isoformat(), "--out", str(tmp_path / "once"), "--json"])
    assert code == 0
    assert_same_values(cube, reader.open_cube(tmp_path / "once" / output.CUBE))
    files = sorted((tmp_path / "out" / output.PRODUCTS).glob("*.nc"))
    files[-1].unlink()  # as the kill of a run leaves them once readers see its hours: none is of the newest revision
    assert hourly(settings, None, ends) == ["unchanged"]
    assert sorted((tmp_path / "out" / output.PRODUCTS).glob("*.nc")) == files
    assert hourly(settings, None, ends, return_state=True).name == "NothingDue"


def test_days_become_final_and_stay_so(
    network: Network, settings: Path, small_simulation: Simulation, tmp_path: Path, prefect_harness: None
) -> None:
    from flows.daily import daily
    from flows.hourly import hourly

    store, sites = tmp_path / "store", small_simulation.stations
    ingest(store, "cnemc", network.publish(START + timedelta(days=3), "all but half an hour", late=70), sites)
    now = START + timedelta(hours=6)
    assert daily(settings, None, now, return_state=True).name == "NothingDue"
    assert hourly(settings, None, now) == ["r1"]
    later = datetime(2019, 12, 5, tzinfo=UTC)
    assert daily(settings, None, later) == ["r2"]
    path = tmp_path / "out" / output.CUBE
    stream = reader.open_cube(path)["stream"].values
    assert (stream == STREAMS["final"]).sum() == 4  # 20 to 23 UTC of the first day
    ingest(store, "cnemc", network.publish(START + timedelta(days=3), "whole"), sites)
    assert hourly(settings, None, now) == ["r3"]
    assert daily(settings, None, later) == ["r4"]
    np.testing.assert_array_equal(reader.open_cube(path)["stream"].values[20:26], [1, 1, 1, 1, 0, 0])
    once = ["run", str(settings), "--stream", "final", "--end", "2019-12-01", "--out", str(tmp_path / "once"), "--json"]
    assert cli.run_command(once) == 0
    assert_same_values(
        reader.open_cube(path).isel(time=slice(20, 24)), reader.open_cube(tmp_path / "once" / output.CUBE)
    )


def test_a_schedule_needs_a_store(settings: Path, tmp_path: Path) -> None:
    from flows.scheduled import open_ended

    settings.write_text(settings.read_text().replace('"store"', '"table"', 1))
    (tmp_path / "store").mkdir()
    with pytest.raises(ConfigError, match="source: expected 'store', which knows late data; found 'table'"):
        open_ended(settings)
