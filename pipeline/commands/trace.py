"""`aqnet trace`: what a published value was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.commands.arguments import CUBE, PATH, hour
from pipeline.location import Location

#: Where a run without `--out` leaves its cube.
DEFAULT = Path("out/cube.icechunk")


@click.command()
@click.option("--cube", type=CUBE, default=DEFAULT, show_default=True, help="The cube that `aqnet run` published.")
@click.option("--lon", type=float, required=True, help="Longitude of a point in the cell, degrees.")
@click.option("--lat", type=float, required=True, help="Latitude of a point in the cell, degrees.")
@click.option("--time", required=True, help="The hour, by its start, UTC: 2019-01-31T06:00.")
@click.option("--revision", help="Published revision such as r3 (the newest).")
@click.option("--shown", type=click.IntRange(min=1), default=12, show_default=True, help="Stations named in the text.")
@click.option("--picture", type=PATH, help="PNG to draw: map of the stations, hours around, what is added up.")
@click.option("--source", help="Network of the input, where the run's configuration was not kept.")
@click.option("--input", type=PATH, help="Where the run's observations lie now.")
@click.option("--stations", type=PATH, help="Where the run's station list lies now.")
@click.option("--weights", type=PATH, help="Where the run's checkpoint lies now.")
@click.option("--outlook-weights", type=PATH, help="Where the checkpoint of the run's outlook lies now.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, every observation with file and line.")
def trace(
    cube: Location,
    lon: float,
    lat: float,
    time: str,
    revision: str | None,
    shown: int,
    picture: Path | None,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Explain a published value: its stations, their weights and observations, with file and line, and the rest.

    The value of the cell that holds the point is made again from the observations of the run and compared with the
    published one. Exit code 1 where the two differ by more than rounding although no input changed.
    """
    from pipeline.errors import ProductError
    from pipeline.tracing import picture as trace_picture
    from pipeline.tracing import text as trace_report
    from pipeline.tracing import trace as tracing

    found = tracing.trace(cube, lon, lat, hour(time, "--time"), revision, overrides)
    if picture is not None:
        trace_picture.draw(found, picture)
    click.echo(json.dumps(trace_report.as_dict(found), indent=1) if as_json else trace_report.as_text(found, shown))
    if found.observed.known and not found.changed and not all(map(found.agrees, tracing.VALUES)):
        raise ProductError(f"{cube}: expected the published value within rounding; found another (see above)")
