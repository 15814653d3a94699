"""The QC report of a run: one self-contained HTML page with pictures, from the monthly records of `pipeline.qc`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.atomic import replacing
from pipeline.contract import POLLUTANTS
from pipeline.pages import page
from pipeline.qc import clocks, pictures
from pipeline.qc.flags import FLAGS, INFORMATION
from pipeline.qc.record import Record

#: Stations and groups that are listed by name.
WORST, LISTED = 25, 60

#: Pollutants as readers write them.
NAMES = {"pm2p5": "PM2.5", "pm10": "PM10", "so2": "SO₂", "no2": "NO₂", "o3": "O₃", "co": "CO"}

Table = dict[str, list[Any]]


@dataclass(frozen=True)
class About:
    """Which run the page is of; ``bbox`` (W, S, E, N) is what the map shows."""

    title: str
    period: str
    run_id: str
    bbox: tuple[float, float, float, float]
    simulated: bool


def judged_clocks(records: Sequence[Record]) -> pd.DataFrame:
    """Judge each network's clock by all months together; see `pipeline.qc.clocks.judge`."""
    return clocks.judge(pd.concat([record.cycles for record in records]))


def alarms(records: Sequence[Record]) -> list[str]:
    """One line for each network whose clock is wrong, or that disagrees with a network beside it."""
    judged = judged_clocks(records)
    wrong = [_wrong(row) for row in judged[judged["verdict"] == "wrong"].reset_index().to_dict("records")]
    beside = pd.concat([record.between for record in records])
    apart = beside[(beside["offset_hours"].abs() >= clocks.ERROR_HOURS) & (beside["share"] > 0.5)]
    return wrong + [_apart(row) for row in apart.drop_duplicates(["network", "beside"]).to_dict("records")]


def _wrong(row: dict[Any, Any]) -> str:
    return (
        f"network '{row['network']}': its daily cycles ({row['pollutants']}, {row['days']:.0f} days) run "
        f"{_hours(row['offset_hours'])} beside local solar time (fit {row['fit']:.1f}, unshifted "
        f"{row['fit_unshifted']:.1f}); check the time zone declared for it"
    )


def _apart(row: dict[Any, Any]) -> str:
    where = f"network '{row['network']}': {row['stations']} of its stations run {_hours(row['offset_hours'])} beside"
    return f"{where} '{row['beside']}' around them; check the time zones declared for both"


def _hours(offset: float) -> str:
    return f"{abs(offset):g} h {'late' if offset > 0 else 'early'}"


def write(records: Sequence[Record], about: About, path: Path) -> Path:
    """Write the page in one step."""
    with replacing(path) as part:
        part.write_text(page.render("quality-control.html", _content(records, about)), "utf-8")
    return path


def _content(records: Sequence[Record], about: About) -> dict[str, Any]:
    stations, daily = station_counts(records), pd.concat([record.daily for record in records])
    shares = pd.concat([record.shares for record in records])
    drawn = _pictures(records, stations, daily, shares, about)
    return {
        "title": about.title,
        "period": about.period,
        "run_id": about.run_id,
        "simulated": about.simulated,
        "alarms": alarms(records),
        "headline": _headline(stations),
        "pictures": {name: page.picture(png) for name, png in drawn.items()},
        "counts": _counts(records),
        "worst": _worst(stations),
        "clock": _table(judged_clocks(records).reset_index()),
        "between": _table(pd.concat([record.between for record in records])),
        "concerned": _table(_merged(pd.concat([record.concerned for record in records])).head(LISTED)),
        "one_place": _table(pd.concat([record.one_place for record in records]).drop_duplicates().head(LISTED)),
    }


def _pictures(
    records: Sequence[Record], stations: pd.DataFrame, daily: pd.DataFrame, shares: pd.DataFrame, about: About
) -> dict[str, bytes]:
    example = max((record.example for record in records), key=lambda series: series.attrs["share"])
    worst = _ranked(stations).index.tolist()
    drawn = {"map": pictures.station_map(stations, about.bbox), "time": pictures.over_time(daily)}
    if worst:
        drawn["stations"] = pictures.heat_map(shares, worst)
    if example.attrs["share"] > 0:
        drawn["example"] = pictures.example_series(example)
    cycles = pd.concat([record.cycles for record in records])
    if len(cycles):
        drawn["clock"] = pictures.clocks(clocks.pooled(cycles))
    return drawn


def station_counts(records: Sequence[Record]) -> pd.DataFrame:
    """Counts of all months, and each station's latest place."""
    every = pd.concat([record.stations for record in records])
    counts = every.drop(columns=["lon", "lat"]).groupby(level=0).sum()
    return counts.join(every[["lon", "lat"]].groupby(level=0).last())


def _ranked(stations: pd.DataFrame) -> pd.DataFrame:
    """Stations with invalid values, by how many."""
    return stations[stations["invalid"] > 0].sort_values("invalid", ascending=False, kind="stable")


def _headline(stations: pd.DataFrame) -> str:
    reported, invalid = int(stations["reported"].sum()), int(stations["invalid"].sum())
    active = int((stations["reported"] > 0).sum())
    share = 100 * invalid / max(reported, 1)
    return f"{active:,} stations reported {reported:,} hourly PM2.5 values; {invalid:,} ({share:.2f} %) are invalid."


def _counts(records: Sequence[Record]) -> Table:
    """Flags by pollutant: share of what it is a share of, over all months."""
    every = pd.concat([record.counts for record in records])
    total = every.groupby(["flag", "pollutant"], sort=False)[["count", "of"]].sum()
    share = (100 * total["count"] / total["of"].clip(lower=1)).unstack()
    shares = share.loc[list(FLAGS), list(POLLUTANTS)].to_numpy()
    rows = [[name, *(f"{one:.3f}" for one in row)] for name, row in zip(FLAGS, shares, strict=True)]
    return {"head": ["flag", *NAMES.values()], "rows": rows}


def _worst(stations: pd.DataFrame) -> Table:
    kinds = [name for name in FLAGS if name not in (*INFORMATION, "missing")]
    rows = [
        [
            str(station),
            "{:.3f}".format(row["lon"]),
            "{:.3f}".format(row["lat"]),
            int(row["reported"]),
            int(row["invalid"]),
            f"{100 * row['invalid'] / row['reported']:.1f}",
            ", ".join(f"{name} {int(row[name])}" for name in kinds if row[name]),
        ]
        for station, row in _ranked(stations).head(WORST).iterrows()
    ]
    return {"head": ["station", "lon", "lat", "reported", "invalid", "%", "flags"], "rows": rows}


def _merged(concerned: pd.DataFrame) -> pd.DataFrame:
    """One row a station and flag over all months."""
    if concerned.empty:
        return concerned
    groups = concerned.groupby(["station", "flag"], sort=False)
    return groups.agg({"first": "min", "last": "max", "hours": "sum", "beside": "last"}).reset_index()


def _table(found: pd.DataFrame) -> Table:
    head = [str(name).replace("_", " ") for name in found.columns]
    return {"head": head, "rows": [list(map(_cell, row)) for row in found.itertuples(index=False)]}


def _cell(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
