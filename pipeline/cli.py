"""The command ``aqnet``: puts the commands together, sets up logging, turns errors into exit codes.

Imports that take time lie inside the commands (`pipeline.commands`), so that ``aqnet --help`` answers at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from pipeline import logs
from pipeline.commands import doctor, export, history, observe, publish, run, trace, train, verify
from pipeline.console import fail, logging_to_console
from pipeline.errors import AqnetError, telling_storage

logger = logging.getLogger("aqnet")

#: Options that say where a command writes, those that win first.
PLACES = ("out", "output", "store", "picture")

EXIT_ERROR, EXIT_BUG, EXIT_INTERRUPTED = 1, 70, 130

#: In the order of a first day's work.
COMMANDS = (
    run.run,
    run.estimate,
    train.train,
    train.evaluate,
    run.simulate,
    export.export_command,
    history.history_command,
    history.diff_command,
    history.accept_command,
    publish.publish,
    publish.serve,
    verify.verify,
    observe.fetch,
    observe.ingest,
    observe.ledger_command,
    trace.trace,
    doctor.doctor_command,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code: 0, 1 (the user can mend it), 2 (usage), 70 (a bug), 130 (Ctrl-C)."""
    # A service manager stops with SIGTERM: end as Ctrl-C does, so that Prefect's server ends, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:] if argv is None else argv))


def run_command(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; errors are one line on stderr."""
    debug, form = False, logs.wanted()
    try:
        with aqnet.make_context("aqnet", list(argv)) as context:
            debug, form = context.params["debug"], context.params["log_format"] or form
            aqnet.invoke(context)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "aqnet"
        fail(f"aqnet: error: {error.format_message()} (see {where} --help)", form)
        return error.exit_code
    except AqnetError as error:
        fail(f"aqnet: error: {error}", form, error)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        fail("aqnet: interrupted; nothing was published", form)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _report_bug(error, debug, form)
    return 0


def _report_bug(error: Exception, debug: bool, form: str) -> int:
    hint = "" if debug or form == "json" else "; `aqnet --debug COMMAND ...` shows the traceback"
    message = " ".join(str(error).split())
    fail(f"aqnet: this is a bug: {type(error).__name__}: {message}{hint}", form, error, traceback=debug)
    return EXIT_BUG


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("aqnet-reanalysis"), prog_name="aqnet")
@click.option("--debug", is_flag=True, help="Log more, and show the traceback of a bug.")
@click.option(
    "--log-format", type=click.Choice(logs.FORMATS), help="Log lines for people or for programs (AQNET_LOG_FORMAT)."
)
@click.pass_context
def aqnet(context: click.Context, debug: bool, log_format: str | None) -> None:
    """Hourly gridded PM2.5 reanalysis from station observations.

    `aqnet run` without anything else simulates a week, runs the whole pipeline over it and scores the result.
    """
    context.with_resource(logging_to_console(debug, log_format or logs.wanted()))


def _telling(command: click.Command) -> click.Command:
    """Let a command end in one line where a disk refuses; it names the file, or the place that options name."""
    work = command.callback
    assert work is not None

    @wraps(work)
    def told(**options: Any) -> Any:
        with telling_storage(_place(options)):
            return work(**options)

    command.callback = told
    return command


def _place(options: Mapping[str, Any]) -> Path:
    """Where a command writes; the working directory where no option says it."""
    given = (options.get(name) for name in PLACES)
    return next((path for path in given if isinstance(path, Path)), Path.cwd())


for _command in COMMANDS:
    aqnet.add_command(_telling(_command))
