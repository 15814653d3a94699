"""Commands about revisions: `aqnet history`, `aqnet diff` and `aqnet accept`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline import output
from pipeline.commands.arguments import CUBE, PATH
from pipeline.location import Location

CUBE_HELP = "The cube that `aqnet run` published (OUT/cube.icechunk)."


@click.command("history")
@click.option("--cube", type=CUBE, required=True, help=CUBE_HELP)
@click.option("--last", type=click.IntRange(min=1), help="Only the newest so many: each is a file to read.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole record of every revision as JSON.")
def history_command(cube: Location, last: int | None, as_json: bool) -> None:
    """List the revisions of a cube with reason and scores, and a candidate that the release gate holds."""
    from pipeline.cube import revisions

    found = revisions.history(cube, last)
    click.echo(json.dumps(revisions.as_records(found), indent=2) if as_json else revisions.as_text(found))


@click.command("diff")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--cube", type=CUBE, required=True, help=CUBE_HELP)
@click.option("--picture", type=PATH, help="Map of the mean absolute change to write (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def diff_command(before: str, after: str, cube: Location, picture: Path | None, as_json: bool) -> None:
    """Say what changed from revision A to B: hours, cells and sizes.

    A and B are tags such as r1 and r2; B may be a held candidate, held-RUN_ID, as `aqnet history` names it.
    """
    from pipeline.cube import changes, reader

    found = changes.compare(reader.open_cube(cube, before), reader.open_cube(cube, after), (before, after))
    if picture is not None:
        changes.draw(found, picture)
    click.echo(json.dumps(found.as_record(), indent=2) if as_json else found.as_text())


@click.command("accept")
@click.argument("run_id", metavar="RUN_ID")
@click.option("--out", type=PATH, required=True, help="Folder of the products, as in `aqnet run`.")
@click.option("--reason", required=True, help="Why it is right all the same; kept with the revision.")
@click.option("--json", "as_json", is_flag=True, help="Print the files as JSON.")
def accept_command(run_id: str, out: Path, reason: str, as_json: bool) -> None:
    """Publish a candidate that the release gate holds, after looking at it."""
    from pipeline.release import hold

    files = hold.accept(out, output.cube(out), run_id, reason)
    named = {name: str(path) for name, path in files.items()}
    click.echo(json.dumps(named, indent=2) if as_json else "\n".join(f"  {n:15} {p}" for n, p in named.items()))
