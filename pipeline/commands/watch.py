"""The option that says where metrics go; the environment says the same to flows and to processes of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.commands.arguments import PATH

Command = TypeVar("Command", bound=Callable[..., Any])

ENVIRONMENT = "AQNET_METRICS_FILE"


def metrics_file(command: Command) -> Command:
    """Give a command the option ``--metrics-file``."""
    text = f"File for Prometheus's textfile collector ({ENVIRONMENT})."
    return click.option("--metrics-file", type=PATH, expose_value=False, callback=_say, help=text)(command)


def _say(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    """Set the variable while the command runs."""
    if path is None:
        return
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = str(path.absolute())
    context.call_on_close(lambda: _restore(before))


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(ENVIRONMENT, None)
    else:
        os.environ[ENVIRONMENT] = before
