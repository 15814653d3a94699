"""Commands that bring observations in: `aqnet fetch`, `aqnet ingest` and `aqnet ledger`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.commands.arguments import CUBE, PATH, TRUNCATED, exist, hours, time, whole_numbers
from pipeline.errors import ConfigError, InputError
from pipeline.location import Location

#: Names in `pipeline.fetch.NETWORKS`, which would take time to import; a test holds them together.
NETWORKS = ("airnow", "cnemc", "eea", "openaq", "prsa")
TIMEOUT_HELP = "Seconds without a byte that make a try fail."


@click.command()
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


def _query(start: str, end: str, options: dict[str, Any]) -> Any:
    """What to fetch, from options as they were given."""
    from datetime import UTC

    from pipeline.fetch import Query

    first, last = (hour.item().replace(tzinfo=UTC) for hour in hours(start, end))
    locations = whole_numbers(options.pop("locations"), "--locations")
    given = {name: value for name, value in options.items() if value is not None}
    return Query(start=first, end=last, locations=locations, **given)


@click.command()
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

    exist(input_path, *filter(None, [options["stations"]]))
    when = None if published is None else time(published, "--published")
    done = ingesting.ingest(store, path=input_path, published=when, **options)
    click.echo(json.dumps(done.as_dict(), indent=2) if as_json else done.as_text(store))
    if done.refused:
        raise InputError(f"{input_path}: {len(done.refused)} files were left out; the first: {done.refused[0]}")


@click.command("ledger")
@click.option("--store", type=PATH, required=True, help="Folder of the observation store.")
@click.option("--cube", type=CUBE, help="Hours that changed since a revision of this cube was made.")
@click.option("--revision", help="The revision, such as r3 (the newest).")
@click.option("--since", type=click.IntRange(min=0), help="Hours that changed after this ingest.")
@click.option("--json", "as_json", is_flag=True, help="Print every hour as JSON.")
def ledger_command(store: Path, cube: Location | None, revision: str | None, since: int | None, as_json: bool) -> None:
    """List the hours whose observations changed since a cube revision, or since an ingest."""
    from pipeline.cube import reader
    from pipeline.store import ledger

    if (cube is None) == (since is None):
        raise ConfigError("expected one of --cube and --since; found " + ("neither" if cube is None else "both"))
    if cube is not None:
        since = ledger.used_by(reader.open_cube(cube, revision).attrs, f"{cube} {revision or ''}".strip())
    changes = ledger.since(store, since or 0)
    click.echo(ledger.as_json(changes) if as_json else ledger.as_text(changes, since or 0))
