"""`aqnet export`: downloads cut from a published cube."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from pipeline.commands.arguments import PATH, hour


@click.command("export")
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
            options[name] = hour(options[name], f"--{name}")
    opened = write.open_cube(cube, revision)
    if kind == "zarr":
        click.echo(str(export.export_zarr(opened, out, **options)))
    else:
        files = export.export_netcdf(opened, out, domain, stream, version("aqnet-reanalysis"), **options)
        click.echo("\n".join(map(str, files)))
