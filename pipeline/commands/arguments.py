"""What commands share: kinds of arguments, and checks of them that name the option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline import output
from pipeline.errors import ConfigError
from pipeline.location import Location

PATH = click.Path(path_type=Path)


class _Cube(click.ParamType[Location]):
    """A cube: its folder, its address in a bucket, or the output folder of the runs that made it."""

    name = "path or s3://..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Find the cube."""
        try:
            return output.found(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


CUBE = _Cube()
TRUNCATED = "What to do with an input file cut short."


def needed(options: dict[str, Any], *names: str) -> None:
    """Stop where an option is missing that the others ask for."""
    if missing := [f"--{name}" for name in names if not options[name]]:
        raise click.UsageError(f"expected {', '.join(missing)} with these options")


def hour(text: str, option: str) -> Any:
    """Whole hour in UTC, numpy; ConfigError where it is none."""
    from pipeline.config import naive, utc_hour

    try:
        return naive(utc_hour(text))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def time(text: str, option: str) -> Any:
    """Any time, without the rule of whole hours; without an offset it is UTC."""
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: expected an ISO time such as 2020-01-31T06:20; found {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def hours(start: str, end: str) -> tuple[Any, Any]:
    """First hour and the hour after the last, of --start and --end; ConfigError where they are not in order."""
    first, last = hour(start, "--start"), hour(end, "--end")
    if last <= first:
        raise ConfigError(f"--end: expected an hour after --start ({first}); found {last}")
    return first, last


def whole_numbers(given: Sequence[str], option: str) -> tuple[int, ...]:
    """Numbers of texts such as 1,2,3."""
    words = [word for text in given for word in text.replace(",", " ").split()]
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ConfigError(f"{option}: expected whole numbers; found {wrong[0]!r}")
    return tuple(map(int, words))


def exist(*paths: Path) -> None:
    """Stop, with a ConfigError, at the first path that is not there."""
    for path in paths:
        if not path.exists():
            raise ConfigError(f"expected a file or folder that exists; found nothing at {path}")
