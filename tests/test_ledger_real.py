"""The store and its ledger on a genuine week: any order, twice, and a corrected file."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout, ledger
from pipeline.store.ingest import ingest

#: Rows of a published file that are observations.
TYPES = ("PM2.5", "PM10", "SO2", "NO2", "O3", "CO")


@pytest.fixture(scope="module")
def week(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven national day files as published, each in a folder with the station list."""
    folder, found = tmp_path_factory.mktemp("week"), []
    with zipfile.ZipFile(shared_data / "cnemc" / "unmodified_20191202-20191208.zip") as archive:
        for name in sorted(archive.namelist()):
            place = folder / name.removesuffix(".csv")
            place.mkdir()
            shutil.copy(shared_data / "cnemc" / "stations.csv", place)
            (place / name).write_bytes(archive.read(name))
            date(place / name, "2020-01-01")
            found.append(place / name)
    return found


def date(path: Path, published: str) -> None:
    stamp = datetime.fromisoformat(published).replace(tzinfo=UTC).timestamp()
    os.utime(path, (stamp, stamp))


@pytest.fixture(scope="module")
def whole(week: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store of the week, and its digest."""
    store = tmp_path_factory.mktemp("whole") / "store"
    for path in week:
        ingest(store, "cnemc", path)
    return store, layout.load(store).digest


def test_any_order_and_twice(week: list[Path], whole: tuple[Path, str], tmp_path: Path) -> None:
    order = week * 2
    random.Random(1).shuffle(order)
    for path in order:
        ingest(tmp_path / "s", "cnemc", path)
    assert layout.load(tmp_path / "s").digest == whole[1]
    assert layout.load(tmp_path / "s").ingest == len(week)


def corrected(path: Path, place: Path, rng: random.Random) -> tuple[Path, set[np.datetime64]]:
    """A later version of a day file with 60 cells changed, emptied or filled, and the UTC hours that concerns."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    listed = {row.split(",")[0] for row in (path.parent / "stations.csv").read_text().splitlines() if ",," not in row}
    columns = [i for i, code in enumerate(lines[0]) if code in listed and lines[0].index(code) == i]
    rows = [i for i, cells in enumerate(lines) if cells[2] in TYPES]
    hours = set()
    for row in rng.sample(rows, 12):
        for column in rng.sample(columns, 5):
            old = lines[row][column]
            new = rng.choice(["", "777"]) if old else "777"
            lines[row][column] = new
            if new != old:
                day = np.datetime64(f"{lines[row][0][:4]}-{lines[row][0][4:6]}-{lines[row][0][6:]}", "h")
                hours.add(day + int(lines[row][1]) - 9)
    place.mkdir()
    shutil.copy(path.parent / "stations.csv", place)
    (place / path.name).write_text("\n".join(map(",".join, lines)) + "\n")
    date(place / path.name, "2020-02-01")
    return place / path.name, hours


@pytest.mark.parametrize("first", ["the original", "the correction"])
def test_a_corrected_file(week: list[Path], whole: tuple[Path, str], tmp_path: Path, first: str) -> None:
    later, hours = corrected(week[3], tmp_path / "later", random.Random(2))
    shutil.copytree(whole[0], tmp_path / "s")
    done = ingest(tmp_path / "s", "cnemc", later)
    assert set(ledger.since(tmp_path / "s", len(week))["time"].to_numpy("M8[h]")) == hours
    assert 5 < len(hours) <= 12
    if first == "the correction":
        for path in [later, *week]:
            again = ingest(tmp_path / "other", "cnemc", path)
        assert again.digest == done.digest
