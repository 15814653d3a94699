"""The command ``aqnet``: reads options, sets up logging, reports. What it does is done elsewhere.

Imports that take time lie inside the commands, so that ``aqnet --help`` answers at once.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.console import logging_to_console
from pipeline.errors import AqnetError, ConfigError, InputError

if TYPE_CHECKING:
    from pipeline.config import RunConfig

logger = logging.getLogger("aqnet")

EXIT_ERROR, EXIT_BUG, EXIT_INTERRUPTED = 1, 70, 130

PATH = click.Path(path_type=Path)

#: Names in `pipeline.fetch.NETWORKS`, which would take time to import; a test holds them together.
NETWORKS = ("airnow", "cnemc", "eea", "openaq", "prsa")
TRUNCATED = "What to do with an input file cut short."
TIMEOUT_HELP = "Seconds without a byte that make a try fail."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code: 0, 1 (the user can mend it), 2 (usage), 70 (a bug), 130 (Ctrl-C)."""
    # A service manager stops with SIGTERM: end as Ctrl-C does, so that Prefect's server ends, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:] if argv is None else argv))


def run_command(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; errors are one line on stderr."""
    debug = False
    try:
        with aqnet.make_context("aqnet", list(argv)) as context:
            debug = context.params["debug"]
            aqnet.invoke(context)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "aqnet"
        click.echo(f"aqnet: error: {error.format_message()} (see {where} --help)", err=True)
        return error.exit_code
    except AqnetError as error:
        click.echo(f"aqnet: error: {error}", err=True)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        click.echo("aqnet: interrupted; nothing was published", err=True)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _report_bug(error, debug)
    return 0


def _report_bug(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    hint = "" if debug else "; `aqnet --debug COMMAND ...` shows the traceback"
    message = " ".join(str(error).split())
    click.echo(f"aqnet: this is a bug: {type(error).__name__}: {message}{hint}", err=True)
    return EXIT_BUG


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("aqnet-reanalysis"), prog_name="aqnet")
@click.option("--debug", is_flag=True, help="Log more, and show the traceback of a bug.")
@click.pass_context
def aqnet(context: click.Context, debug: bool) -> None:
    """Hourly gridded PM2.5 reanalysis from station observations.

    `aqnet run` without anything else simulates a week, runs the whole pipeline over it and scores the result.
    """
    context.with_resource(logging_to_console(debug))


# ---- commands ----


@aqnet.command()
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
@click.option("--domain", help="Name of the domain in file names.")
@click.option("--truncated", type=click.Choice(["error", "keep"]), help=TRUNCATED)
@click.option("--weights", type=PATH, help="Checkpoint of the network (the shipped one).")
@click.option("--seed", type=int, help="Seed of every random draw.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(config_toml: Path | None, as_json: bool, **options: Any) -> None:
    """Make hourly PM2.5 on a grid: ingest, quality control, analyse, validate, publish.

    Options override the environment (AQNET_SOURCE ...), which overrides CONFIG.toml. Without CONFIG.toml and --input
    a SIMULATED week is made and used, and the result is scored against the simulated truth.
    """
    from pipeline import config, example, report, score

    if not example.wanted(config_toml, options):
        finished = _run_flow(config.from_sources(config_toml, options))
        click.echo(json.dumps(report.as_dict(finished), indent=2) if as_json else report.as_text(finished))
        return
    settings, simulation = example.prepare(options["out"] or config.DEFAULT_OUT)
    finished = _run_flow(settings)
    scores = example.against_truth(finished, simulation)
    if as_json:
        click.echo(json.dumps(report.as_dict(finished) | {"against_truth": score.records(scores)}, indent=2))
    else:
        click.echo(f"{report.as_text(finished)}\n\n{example.as_text(scores)}")


@aqnet.command()
@click.option("--input", "input_path", type=PATH, required=True, help="StationTable, CSV or Parquet.")
@click.option("--points", type=PATH, required=True, help="Places (CSV: station, lon, lat).")
@click.option("--start", required=True, help="First hour, UTC.")
@click.option("--end", required=True, help="Hour after the last, UTC.")
@click.option("--output", type=PATH, required=True, help="File to write: .csv, .parquet or .nc.")
@click.option("--weights", type=PATH, help="Checkpoint of the network (the shipped one).")
def estimate(input_path: Path, points: Path, start: str, end: str, output: Path, weights: Path | None) -> None:
    """Estimate hourly PM2.5 with its uncertainty at places anywhere on Earth."""
    from pipeline import analyse

    first, last = _hours(start, end)
    analyse.estimate(input_path, points, first, last, output, weights)
    click.echo(str(output))


@aqnet.command()
@click.option("--input", "input_path", type=PATH, required=True, help="Files of the CNEMC archive.")
@click.option("--stations", type=PATH, required=True, help="Station list (CSV: code, lon, lat).")
@click.option("--splits", type=PATH, required=True, help="The public split (JSON).")
@click.option("--out", type=PATH, required=True, help="Folder for the weights.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random draw.")
@click.option("--everything", is_flag=True, help="Use all stations and hours: for production only.")
@click.option("--outlook", is_flag=True, help="Train the outlook mode (336 hours in, 168 hours out).")
@click.option("--calibrate", type=PATH, help="Calibrate intervals by folds, which are kept in this folder.")
@click.option("--folds", type=click.IntRange(min=2), default=10, show_default=True, help="Folds of --calibrate.")
def train(
    input_path: Path, stations: Path, splits: Path, out: Path, seed: int, everything: bool, outlook: bool, **how: Any
) -> None:
    """Train AQ-Net on the training hours and visible stations of a split."""
    from pipeline import outlook as outlooks
    from pipeline import train as training

    _exist(input_path, stations, splits)
    if outlook and everything:
        raise ConfigError("--everything: expected without --outlook, whose weights are those that are evaluated")
    if outlook and how["calibrate"]:
        raise ConfigError("--calibrate: expected without --outlook, whose intervals validation hours shape")
    if outlook:
        outlooks.train(input_path, stations, splits, out, seed)
    else:
        work, number = how["calibrate"], how["folds"]
        training.train(input_path, stations, splits, out, seed, everything=everything, work=work, number=number)


@aqnet.command()
@click.option("--input", "input_path", type=PATH, required=True, help="Files of observations (the CNEMC archive).")
@click.option("--stations", type=PATH, help="Station list (CSV: code, lon, lat, city).")
@click.option("--splits", type=PATH, help="The public split (JSON).")
@click.option("--out", type=PATH, required=True, help="Folder for tables and pictures.")
@click.option("--weights", type=PATH, multiple=True, help="Weights to score, once for each seed (the shipped ones).")
@click.option("--stride", type=click.IntRange(min=1), help="Score every so many hours (6, in folds 7).")
@click.option("--leave", type=click.Choice(["city", "station"]), multiple=True, help="Leave out in folds instead.")
@click.option("--folds", type=click.IntRange(min=2), default=10, show_default=True, help="Folds of --leave.")
@click.option("--ablation", is_flag=True, help="Score AQ-Net without each of its parts instead, trained anew.")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="N,...", help="Seeds of each row of --ablation.")
@click.option("--work", type=PATH, help="Folder of what is done, to go on with (OUT/folds, with --ablation OUT/work).")
@click.option("--outlook", is_flag=True, help="Score the outlook mode instead.")
@click.option("--source", help="Network of --input: score the shipped weights there, without training.")
@click.option("--start", help="First hour, UTC (with --source).")
@click.option("--end", help="Hour after the last, UTC (with --source).")
@click.option("--bbox", nargs=4, type=float, metavar="W S E N", help="Stations wanted, degrees (with --source).")
@click.option("--outside", nargs=4, type=float, metavar="W S E N", help="Box left aside, degrees (with --source).")
def evaluate(input_path: Path, out: Path, weights: tuple[Path, ...], stride: int | None, **how: Any) -> None:
    """Score AQ-Net and the baselines at hidden stations of the public split.

    With --leave every station is estimated by methods trained without it, its city left out with it or not; with
    --ablation the network is trained without each of its parts; with --outlook forecasts are scored; with --source the
    shipped weights are scored on another record, beside kriging that is fitted to it.
    """
    from pipeline import ablation as ablations
    from pipeline import evaluate as evaluation
    from pipeline import fold_report, folds, outlook, outlook_report, transfer

    _exist(input_path, *weights, *filter(None, [how["stations"], how["splits"]]))
    work = how["work"] or out / "folds"
    protocols = [folds.Protocol(leave, how["folds"], stride=stride or folds.STRIDE) for leave in how["leave"]]
    if how["source"]:
        _needed(how, "start", "end", "leave")
        where = input_path, how["stations"], _hours(how["start"], how["end"]), out, work, protocols[0]
        found = transfer.transfer(how["source"], *where, how["bbox"], how["outside"], *weights[:1])
        click.echo(found.to_markdown([*transfer.REFERENCES, *folds.NETWORKS]))
        return
    _needed(how, "stations", "splits")
    data = input_path, how["stations"], how["splits"]
    if how["ablation"]:
        if not (seeds := _whole_numbers([how["seeds"]], "--seeds")):
            raise ConfigError("--seeds: expected one whole number or more; found none")
        click.echo(ablations.ablate(*data, out, how["work"] or out / "work", seeds, stride or 6).to_markdown())
    elif how["outlook"]:
        click.echo(outlook_report.markdown(outlook.evaluate(*data, out, list(weights) or None)))
    elif protocols:
        scores = fold_report.evaluate_folds(*data, out, work, protocols, folds.networks())
        click.echo("\n\n".join(score.to_markdown(list(folds.NETWORKS)) for score in scores.values()))
    else:
        click.echo(evaluation.evaluate(*data, out, list(weights) or None, stride or 6).to_markdown())


def _needed(options: dict[str, Any], *names: str) -> None:
    """Stop where an option is missing that the others ask for."""
    if missing := [f"--{name}" for name in names if not options[name]]:
        raise click.UsageError(f"expected {', '.join(missing)} with these options")


@aqnet.command()
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
    from pipeline import simulate as simulation

    config.check_writable(out)
    done = simulation.simulate(out, seed, _hour(start, "--start"), days, bbox, n_stations)
    click.echo(f"SIMULATED data: {done.archive}, {done.stations}, {done.truth}")


@aqnet.command("export")
@click.option("--cube", type=PATH, required=True, help="The cube that `aqnet run` published (OUT/cube.icechunk).")
@click.option("--format", "kind", type=click.Choice(["netcdf", "zarr"]), required=True)
@click.option("--out", type=PATH, required=True, help="Folder for NetCDF files; path of the Zarr folder.")
@click.option("--bbox", nargs=4, type=float, metavar="W S E N", help="Cells with centres in it, degrees.")
@click.option("--start", help="First hour, UTC.")
@click.option("--end", help="Hour after the last, UTC.")
@click.option("--revision", help="Published revision such as r3 (the newest).")
@click.option("--domain", default="region", show_default=True, help="Name of the domain in NetCDF file names.")
@click.option(
    "--stream",
    type=click.Choice(["interim", "final", "outlook"]),
    default="interim",
    show_default=True,
    help="Hours of NetCDF.",
)
def export_command(
    kind: str, cube: Path, out: Path, domain: str, revision: str | None, stream: str, **options: Any
) -> None:
    """Cut a download out of the published cube."""
    from pipeline import export, write

    for name in ("start", "end"):
        if options[name] is not None:
            options[name] = _hour(options[name], f"--{name}")
    opened = write.open_cube(cube, revision)
    if kind == "zarr":
        click.echo(str(export.export_zarr(opened, out, **options)))
    else:
        files = export.export_netcdf(opened, out, domain, stream, version("aqnet-reanalysis"), **options)
        click.echo("\n".join(map(str, files)))


@aqnet.command()
@click.argument("network", metavar="NETWORK", type=click.Choice(NETWORKS))
@click.option("--start", required=True, help="First hour, UTC.")
@click.option("--end", required=True, help="Hour after the last, UTC.")
@click.option("--bbox", nargs=4, type=float, metavar="W S E N", help="Stations wanted, degrees (openaq, eea).")
@click.option("--out", type=PATH, required=True, help="Folder for the files and their manifest.")
@click.option("--locations", multiple=True, metavar="ID,...", help="Location numbers instead of --bbox (openaq).")
@click.option("--product", type=click.Choice(["HourlyData", "HourlyAQObs"]), help="Which hourly files (airnow).")
@click.option("--dataset", type=click.Choice(["recent", "verified", "historical"]), help="Which delivery (eea).")
@click.option("--base-url", help="Address of a mirror of the archive.")
@click.option("--api-url", help="Address of the network's API (openaq, eea).")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=4, show_default=True, help="Requests a second."
)
@click.option("--tries", type=click.IntRange(min=1), default=5, show_default=True, help="Tries of each file.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=30, show_default=True, help=TIMEOUT_HELP)
@click.option("--dry-run", is_flag=True, help="Print the addresses of the files and fetch none.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def fetch(out: Path, start: str, end: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Fetch a network's observations from its public archive, to resume and repeat as often as needed.

    NETWORK is airnow, cnemc, eea, openaq or prsa.
    """
    from dataclasses import asdict

    from pipeline import fetch as fetching

    limits = fetching.Limits(**{name: options.pop(name) for name in ("rate", "tries", "timeout")})
    query = _query(start, end, options)
    if dry_run:
        addresses = fetching.plan(query, limits)
        click.echo(json.dumps(addresses, indent=2) if as_json else "\n".join(addresses))
        return
    done = fetching.fetch(query, out, limits)
    click.echo(json.dumps(asdict(done), indent=2) if as_json else done.as_text())


@aqnet.command()
@click.argument("network", metavar="NETWORK")
@click.option("--input", "input_path", type=PATH, required=True, help="File, zip or folder of observations.")
@click.option("--store", type=PATH, required=True, help="Folder of the observation store; made when absent.")
@click.option("--stations", type=PATH, help="Site list of networks whose files have no coordinates.")
@click.option("--published", help="When the files were published, UTC (their own time stamps).")
@click.option("--truncated", type=click.Choice(["error", "keep"]), default="error", show_default=True, help=TRUNCATED)
@click.option("--keep-going", is_flag=True, help="Leave out files that cannot be read; exit 1 at the end.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def ingest(store: Path, input_path: Path, published: str | None, as_json: bool, **options: Any) -> None:
    """Put raw files of NETWORK into the observation store, each file once.

    NETWORK is one of the sources, built in or plugged in.
    """
    from pipeline.store import ingest as ingesting

    _exist(input_path, *filter(None, [options["stations"]]))
    when = None if published is None else _time(published, "--published")
    done = ingesting.ingest(store, path=input_path, published=when, **options)
    click.echo(json.dumps(done.as_dict(), indent=2) if as_json else done.as_text(store))
    if done.refused:
        raise InputError(f"{input_path}: {len(done.refused)} files were left out; the first: {done.refused[0]}")


@aqnet.command("ledger")
@click.option("--store", type=PATH, required=True, help="Folder of the observation store.")
@click.option("--cube", type=PATH, help="Hours that changed since a revision of this cube was made.")
@click.option("--revision", help="The revision, such as r3 (the newest).")
@click.option("--since", type=click.IntRange(min=0), help="Hours that changed after this ingest.")
@click.option("--json", "as_json", is_flag=True, help="Print every hour as JSON.")
def ledger_command(store: Path, cube: Path | None, revision: str | None, since: int | None, as_json: bool) -> None:
    """List the hours whose observations changed since a cube revision, or since an ingest."""
    from pipeline import write
    from pipeline.store import ledger

    if (cube is None) == (since is None):
        raise ConfigError("expected one of --cube and --since; found " + ("neither" if cube is None else "both"))
    if cube is not None:
        since = ledger.used_by(write.open_cube(cube, revision).attrs, f"{cube} {revision or ''}".strip())
    changes = ledger.since(store, since or 0)
    click.echo(ledger.as_json(changes) if as_json else ledger.as_text(changes, since or 0))


# ---- shared by the commands ----


def _run_flow(config: RunConfig) -> Any:
    """Run the flow; Prefect reads its environment when it is imported, so that comes first."""
    from flows import environment

    environment.prepare_command_line()
    from flows.reanalysis import reanalysis

    return reanalysis(config)


def _hour(text: str, option: str) -> Any:
    from pipeline.config import naive, utc_hour

    try:
        return naive(utc_hour(text))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def _time(text: str, option: str) -> Any:
    """Any time, without the rule of whole hours; without an offset it is UTC."""
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: expected an ISO time such as 2020-01-31T06:20; found {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _hours(start: str, end: str) -> tuple[Any, Any]:
    first, last = _hour(start, "--start"), _hour(end, "--end")
    if last <= first:
        raise ConfigError(f"--end: expected an hour after --start ({first}); found {last}")
    return first, last


def _query(start: str, end: str, options: dict[str, Any]) -> Any:
    """What to fetch, from options as they were given."""
    from datetime import UTC

    from pipeline.fetch import Query

    first, last = (hour.item().replace(tzinfo=UTC) for hour in _hours(start, end))
    locations = _whole_numbers(options.pop("locations"), "--locations")
    given = {name: value for name, value in options.items() if value is not None}
    return Query(start=first, end=last, locations=locations, **given)


def _whole_numbers(given: Sequence[str], option: str) -> tuple[int, ...]:
    """Numbers of texts such as 1,2,3."""
    words = [word for text in given for word in text.replace(",", " ").split()]
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ConfigError(f"{option}: expected whole numbers; found {wrong[0]!r}")
    return tuple(map(int, words))


def _exist(*paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise ConfigError(f"expected a file or folder that exists; found nothing at {path}")
