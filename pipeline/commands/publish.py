"""What readers get: `aqnet publish` and `aqnet serve`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.arguments import PATH, exist

OUT_HELP = "Output folder of `aqnet run`: products and cube."


@click.command()
@click.option("--out", type=PATH, required=True, help=OUT_HELP)
def publish(out: Path) -> None:
    """Build catalogue, download page, provenance and checksums anew from products and cube.

    A run does the same at its end. Readers see the former ones, whole, until they see the new ones, whole.
    """
    from pipeline.offer import publication

    exist(out)
    for path in publication.entrances(publication.publish(out)).values():
        click.echo(str(path))


@click.command()
@click.option("--out", type=PATH, required=True, help=OUT_HELP)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
def serve(out: Path, port: int, host: str) -> None:
    """Serve products and cube over HTTP, read-only, until interrupted."""
    from pipeline.offer import serve as serving

    exist(out)
    serving.serve(out, host, port)
