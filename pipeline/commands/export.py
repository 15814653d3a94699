"""`aqnet export`: downloads cut from a published cube."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from pipeline.commands.arguments import CUBE, PATH, hour
from pipeline.errors import ConfigError
from pipeline.location import Location

#: Names in `pipeline.contract.STREAMS`, which would take time to import.
STREAMS = ("interim", "final", "outlook")


@click.command("export")
@click.option("--cube", type=CUBE, required=True, help="The cube that `aqnet run` published (OUT/cube.icechunk).")
@click.option("--format", "kind", type=click.Choice(["netcdf", "zarr", "csv", "geotiff"]), required=True)
@click.option("--freq", type=click.Choice(["hourly", "daily", "monthly"]), default="hourly", show_default=True)
@click.option("--out", type=PATH, required=True, help="Folder for the files; path of the Zarr folder.")
@click.option("--bbox", nargs=4, type=float, metavar="W S E N", help="Cells with centres in it, degrees.")
@click.option("--start", help="First hour, UTC; of means, a time in the first day or month.")
@click.option("--end", help="Hour after the last, UTC.")
@click.option("--revision", help="Published revision such as r3 (the newest).")
@click.option("--domain", default="region", show_default=True, help="Name of the domain in file names.")
@click.option("--stream", type=click.Choice(STREAMS), help="Whose hours (interim; all in an hourly Zarr).")
@click.option("--day-offset", type=int, default=0, show_default=True, help="Hours that days are ahead of UTC.")
@click.option("--variable", multiple=True, metavar="NAME", help="Variable of GeoTIFF (pm2p5); may be repeated.")
def export_command(kind: str, out: Path, domain: str, revision: str | None, cube: Location, **options: Any) -> None:
    """Cut a download of hours, daily or monthly means out of the published cube."""
    from pipeline.cube import reader
    from pipeline.products import export

    if options["variable"] and kind != "geotiff":
        raise ConfigError(f"--variable: expected with --format geotiff; {kind} holds every variable")
    opened, cut = reader.open_cube(cube, revision), _cut(kind, options)
    if kind == "zarr":
        click.echo(str(export.export_zarr(opened, out, cut=cut)))
        return
    variables = options["variable"] or ("pm2p5",)
    files = export.export_files(opened, out, cut, kind, domain, version("aqnet-reanalysis"), variables)
    click.echo("\n".join(map(str, files)))


def _cut(kind: str, options: dict[str, Any]) -> Any:
    """What to cut, from options as they were given."""
    from pipeline.products.export import Cut

    start, end = (None if options[name] is None else hour(options[name], f"--{name}") for name in ("start", "end"))
    frequency, every = options["freq"], kind == "zarr" and options["freq"] == "hourly"
    stream = options["stream"] or (None if every else "interim")
    return Cut(stream, frequency, start, end, options["bbox"], options["day_offset"])
