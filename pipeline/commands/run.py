"""Commands that make PM2.5: `aqnet run`, `aqnet estimate`, and `aqnet simulate` for a record to make it from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.arguments import PATH, TRUNCATED, hour, hours
from pipeline.commands.watch import metrics_file

if TYPE_CHECKING:
    from pipeline.config import RunConfig


@click.command()
@click.argument("config_toml", metavar="[CONFIG.toml]", required=False, type=PATH)
@click.option("--source", help="Network of the input: airnow, cnemc, eea ..., or store, table.")
@click.option("--input", type=PATH, help="File or folder of observations.")
@click.option("--stations", type=PATH, help="Station list (CSV: code, lon, lat).")
@click.option("--start", help="First hour, UTC: 2019-01-31 or 2019-01-31T06:00.")
@click.option("--end", help="Hour after the last, UTC.")
@click.option(
    "--stream", type=click.Choice(["interim", "final"]), help="Read hours before, or on both sides (interim)."
)
@click.option("--bbox", nargs=4, type=float, metavar="W S E N", help="Centres of the outermost cells, degrees.")
@click.option("--resolution", type=float, help="Cell size in units of the CRS (0.1 degrees).")
@click.option("--crs", help="Coordinate reference system of the grid (EPSG:4326).")
@click.option("--out", type=PATH, help="Folder for the products (out).")
@click.option("--store", metavar="URL", help="Bucket and prefix of the cube, s3://... (in the folder).")
@click.option("--domain", help="Name of the domain in file names.")
@click.option("--truncated", type=click.Choice(["error", "keep"]), help=TRUNCATED)
@click.option("--weights", type=PATH, help="Checkpoint of the network (the shipped one).")
@click.option("--seed", type=int, help="Seed of every random draw.")
@click.option("--outlook-hours", type=int, help="Hours to forecast after the last, up to 168 (0).")
@click.option("--workers", type=click.IntRange(min=1), help="Make months side by side in so many processes.")
@click.option("--reason", help="Why the run is made, for `aqnet history`; lets other weights through the release gate.")
@metrics_file
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(config_toml: Path | None, reason: str | None, workers: int | None, as_json: bool, **options: Any) -> None:
    """Make hourly PM2.5 on a grid: ingest, quality control, analyse, validate, publish.

    Options override the environment (AQNET_SOURCE ...), which overrides CONFIG.toml. Without CONFIG.toml and --input
    a SIMULATED week is made and used, and the result is scored against the simulated truth.
    """
    from pipeline import config, report, score
    from pipeline.twin import example

    if not example.wanted(config_toml, options):
        finished = _run_flow(config.from_sources(config_toml, options), reason, workers)
        click.echo(json.dumps(report.as_dict(finished), indent=2) if as_json else report.as_text(finished))
        return
    settings, simulation = example.prepare(options["out"] or config.DEFAULT_OUT)
    finished = _run_flow(settings, reason, workers)
    scores = example.against_truth(finished, simulation)
    if as_json:
        click.echo(json.dumps(report.as_dict(finished) | {"against_truth": score.records(scores)}, indent=2))
    else:
        click.echo(f"{report.as_text(finished)}\n\n{example.as_text(scores)}")


def _run_flow(config: RunConfig, reason: str | None, workers: int | None) -> Any:
    """Run the flow; Prefect reads its environment when it is imported, so that comes first."""
    from flows import environment

    environment.prepare_command_line()
    from flows.reanalysis import reanalysis

    return reanalysis(config, reason, workers=workers)


@click.command()
@click.option("--input", "input_path", type=PATH, required=True, help="StationTable, CSV or Parquet.")
@click.option("--points", type=PATH, required=True, help="Places (CSV: station, lon, lat).")
@click.option("--start", required=True, help="First hour, UTC.")
@click.option("--end", required=True, help="Hour after the last, UTC.")
@click.option("--output", type=PATH, required=True, help="File to write: .csv, .parquet or .nc.")
@click.option("--weights", type=PATH, help="Checkpoint of the network (the shipped one).")
def estimate(input_path: Path, points: Path, start: str, end: str, output: Path, weights: Path | None) -> None:
    """Estimate hourly PM2.5 with its uncertainty at places anywhere on Earth."""
    from pipeline import analyse

    first, last = hours(start, end)
    analyse.estimate(input_path, points, first, last, output, weights)
    click.echo(str(output))


@click.command()
@click.option("--out", type=PATH, required=True, help="Folder to write.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of every random draw.")
@click.option("--start", default="2019-12-01", show_default=True, help="First hour of the truth, UTC.")
@click.option("--days", type=int, default=8, show_default=True, help="Length of the truth.")
@click.option("--bbox", nargs=4, type=float, default=(105, 32, 125, 45), show_default=True, metavar="W S E N")
@click.option("--n-stations", type=int, default=590, show_default=True, help="Stations of the network.")
def simulate(
    out: Path, seed: int, start: str, days: int, bbox: tuple[float, float, float, float], n_stations: int
) -> None:
    """Write a SIMULATED network's archive and the true field behind it."""
    from pipeline import config
    from pipeline.twin import simulate as simulation

    config.check_writable(out)
    done = simulation.simulate(out, seed, hour(start, "--start"), days, bbox, n_stations)
    click.echo(f"SIMULATED data: {done.archive}, {done.stations}, {done.truth}")
