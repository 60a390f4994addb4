"""The command line: `avalanche-ntk …`. Each command imports what it needs, so `--help` is instant."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from avalanche_ntk.commands import compare, demo, doctor, inspect, kernel, measure, report, reproduce, run, sweep
from avalanche_ntk.errors import NTKError

app = typer.Typer(
    help="Measure the empirical neural tangent kernel while an Avalanche strategy trains.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than everything else that `--help` does
    context_settings={"help_option_names": ["-h", "--help"]},
)


demo.register(app)
run.register(app)
sweep.register(app)
compare.register(app)
report.register(app)
reproduce.register(app)
inspect.register(app)
kernel.register(app)
measure.register(app)
doctor.register(app)


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = {"debug": debug}


@app.command(epilog="Example: avalanche-ntk version")
def version() -> None:
    """Print the version."""
    from avalanche_ntk import __version__

    print(__version__)


def _replace_what_cannot_be_shown() -> None:
    """Print a question mark for a character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        # Keep Python's default for stderr, backslashreplace, which shows every character, and any handler that the user
        # set.
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def main() -> None:
    """Run the command line; errors go to stderr, with a traceback only if `--debug` is given anywhere in the line.

    Exit codes: 0 for success, 1 for a failure, 2 for a wrong command line or configuration.
    """
    _replace_what_cannot_be_shown()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, standalone_mode=True)
    except Exception as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        what = str(error) if isinstance(error, NTKError) else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"avalanche-ntk: {what}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
