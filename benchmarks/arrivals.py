"""Real CNEMC hours as a network delivers them: in order, late, twice, altered and corrected, out of order.

An hour arrives as a file in the layout of the present CNEMC API, made of the rows of the archive; history and the
archive's day files stay in their own layout.
"""

from __future__ import annotations

import csv
import io
import os
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

HOUR = timedelta(hours=1)
#: From an hour's label (Beijing, its end) to its start in UTC.
TO_START = timedelta(hours=9)
#: `type` of the archive -> column of the API.
COLUMNS = {"PM2.5": "pm2_5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}
HEADER = """\
timepoint,stationcode,longitude,latitude,area,positionname,primarypollutant,aqi,pm10,pm10_24h,pm2_5,pm2_5_24h,
o3,o3_24h,o3_8h,o3_8h_24h,no2,no2_24h,so2,so2_24h,co,co_24h"""


@dataclass(frozen=True)
class Delivery:
    """A file that arrives before a run.

    Attributes
    ----------
    run : number of the run that finds it first; run `n` has the present `n` hours after the first hour.
    hour : number of the hour that it holds.
    kind : ``whole``, ``provisional`` (a fifth of the stations missing, a tenth of PM2.5 altered), ``again`` (the bytes
        of a former ``whole``) or ``outdated`` (the provisional file, after the whole one, with its former date).
    """

    run: int
    hour: int
    kind: str


def plan(hours: int, seed: int) -> list[Delivery]:
    """Deliveries of so many hours, a quarter each in order, late, twice, and out of order."""
    rng, edges = random.Random(seed), [hours * n // 4 for n in range(5)]
    parts = [range(*edges[n : n + 2]) for n in range(4)]
    found = [Delivery(hour + 1, hour, "whole") for hour in parts[0]]
    found += [Delivery(hour + 1 + rng.choice([0, rng.randint(1, 12)]), hour, "whole") for hour in parts[1]]
    for number, hour in enumerate(parts[2]):
        found += _twice(hour, rng.randint(1, 4), outdated=number % 3 == 2)
    found += [Delivery(run + 1, hour, "whole") for run, hour in zip(parts[3], _shuffled(parts[3], rng), strict=True)]
    return sorted(found, key=lambda one: (one.run, one.hour, one.kind))


def _twice(hour: int, after: int, outdated: bool) -> list[Delivery]:
    """An hour whose provisional file is corrected, or arrives after the whole one; and the whole one once more."""
    again = Delivery(hour + 2 + after, hour, "again")
    if outdated:
        return [Delivery(hour + 1, hour, "whole"), Delivery(hour + 1 + after, hour, "outdated"), again]
    return [Delivery(hour + 1, hour, "provisional"), Delivery(hour + 1 + after, hour, "whole"), again]


def _shuffled(hours: range, rng: random.Random) -> list[int]:
    """Hours in a random order within pieces of five."""
    pieces = [list(hours[at : at + 5]) for at in range(0, len(hours), 5)]
    for piece in pieces:
        rng.shuffle(piece)
    return [hour for piece in pieces for hour in piece]


class Archive:
    """The archive's day files that hold [first, end), UTC."""

    def __init__(self, folder: Path, first: datetime, end: datetime) -> None:
        self.days: dict[str, list[str]] = {}
        labels = {(first + HOUR * n + TO_START) for n in range(int((end - first) / HOUR))}
        names = {f"china_sites_{label:%Y%m%d}.csv" for label in labels}
        for path in sorted(folder.glob("china_sites_*.zip")):
            with zipfile.ZipFile(path) as archive:
                for name in sorted(names & set(archive.namelist())):
                    self.days[name] = archive.read(name).decode().splitlines()
        if not self.days:
            raise SystemExit(f"{folder}: expected china_sites_YYYYMM.zip with {min(names)} to {max(names)}; found none")
        with (folder / "stations.csv").open(encoding="utf-8") as file:
            self.sites = {row["code"]: row for row in csv.DictReader(file)}

    def cut(self, path: Path, first: datetime, end: datetime, published: datetime) -> Path:
        """Write the day files' hours [first, end) as a zip in the layout of the archive."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (header, *lines) in self.days.items():
                if kept := [line for line in lines if first <= _start(line) < end]:
                    archive.writestr(_member(name, published), "\n".join([header, *kept]) + "\n")
        return path

    def hour(self, start: datetime, rng: random.Random | None = None) -> tuple[str, bytes] | None:
        """Name and content of the API's file of an hour; with `rng` a provisional one; None where there is none."""
        label = start + TO_START
        header, *lines = self.days.get(f"china_sites_{label:%Y%m%d}.csv", ["", ""])
        rows = [line.split(",") for line in lines if line.startswith(f"{label:%Y%m%d},{label.hour},")]
        values = {COLUMNS[row[2]]: dict(zip(header.split(","), row, strict=True)) for row in rows if row[2] in COLUMNS}
        if not values:
            return None
        text = io.StringIO()
        writer = csv.DictWriter(text, HEADER.replace("\n", "").split(","), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows(f"{label:%Y-%m-%dT%H}00", values, rng))
        return f"{label:%Y-%m-%dT%H}.csv", text.getvalue().encode()

    def _rows(
        self, timepoint: str, values: dict[str, dict[str, str]], rng: random.Random | None
    ) -> Iterator[dict[str, str]]:
        for code, site in self.sites.items():
            own = {column: given.get(code, "") for column, given in values.items()}
            if not site["lon"] or not any(own.values()):
                continue
            if rng and rng.random() < 0.2:
                continue
            if rng and own.get("pm2_5") and rng.random() < 0.1:
                own["pm2_5"] = str(round(float(own["pm2_5"]) * 1.3))
            place = {"longitude": site["lon"], "latitude": site["lat"], "area": site["city"]}
            yield {"timepoint": timepoint, "stationcode": code, "positionname": site["name"]} | place | own


def deliver(archive: Archive, first: datetime, one: Delivery, folder: Path) -> None:
    """Put a delivery into the folder, in one step, dated as the network would."""
    start = first + HOUR * one.hour
    provisional = one.kind in ("provisional", "outdated")
    found = archive.hour(start, random.Random(one.hour) if provisional else None)
    if found is None:
        return  # an hour that the network never published
    name, data = found
    published = start + HOUR + timedelta(minutes=10 if provisional else 20)
    if one.kind in ("again", "outdated"):
        _replace(folder / f"{one.kind}-{one.run:02}-{one.hour:02}.zip", _zipped(name, data, published), published)
    else:
        _replace(folder / name, data, published)


def _zipped(name: str, data: bytes, published: datetime) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_member(name, published), data)
    return whole.getvalue()


def _member(name: str, published: datetime) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, published.timetuple()[:6])
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _replace(path: Path, data: bytes, published: datetime) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.utime(part, (published.timestamp(),) * 2)
    part.replace(path)


def _start(line: str) -> datetime:
    date, label, _ = line.split(",", 2)
    return datetime.strptime(date, "%Y%m%d").replace(tzinfo=UTC) + int(label) * HOUR - TO_START
