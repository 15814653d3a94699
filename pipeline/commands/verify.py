"""`aqnet verify`: whether what was published is still what it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.commands.arguments import PATH, exist
from pipeline.errors import ProductError


@click.command()
@click.option("--out", type=PATH, required=True, help="Output folder of `aqnet run`: products and cube.")
@click.option("--json", "as_json", is_flag=True, help="Print all that was looked at as JSON.")
def verify(out: Path, as_json: bool) -> None:
    """Compare published files, revisions and values with their digests; exit 1 when any differs."""
    from pipeline import verify as verifying

    exist(out)
    found = list(verifying.verify(out))
    wrong = [one for one in found if one.problem]
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        click.echo(
            "".join(f"{one.name}: {one.problem}\n" for one in wrong) + f"{len(found)} looked at, {len(wrong)} wrong"
        )
    if wrong:
        raise ProductError(f"{out}: {len(wrong)} of {len(found)} are not what was published; first: {wrong[0].name}")
