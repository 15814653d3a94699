"""The command `aqnet doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.commands.arguments import PATH


@click.command("doctor")
@click.argument("config_toml", metavar="[CONFIG.toml]", required=False, type=PATH)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=3,
    show_default=True,
    help="Seconds to wait for each answer from the network.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def doctor_command(context: click.Context, config_toml: Path | None, timeout: float, as_json: bool) -> None:
    """Check what the next run needs: environment, weights, store, cube, space, network, clock, memory.

    Each check says what it found and, where that is not well, what to do. Exit code 1 where one failed.
    """
    from pipeline import doctor

    checks = doctor.examine(config_toml, timeout)
    click.echo(json.dumps(doctor.as_dict(checks), indent=2) if as_json else doctor.as_text(checks))
    context.exit(1 if doctor.failed(checks) else 0)
