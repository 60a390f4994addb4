"""The command line: `avalanche-ntk …`. Everything heavy is imported inside its command, so that `--help` is instant."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from avalanche_ntk.commands import compare, demo, doctor, inspect, kernel, measure, report, reproduce, run, sweep
from avalanche_ntk.errors import NTKError

app = typer.Typer(
    help="Watch the empirical neural tangent kernel while an Avalanche strategy trains.",
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
    """Print a question mark for a character that the terminal's encoding lacks: no command ends because of one."""
    for stream in (sys.stdout, sys.stderr):
        # Python's own choice for errors, backslashreplace, shows every character; what else the user chose stays too.
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def main() -> None:
    """Run the command line; errors go to stderr without a traceback, unless `--debug` stands anywhere in the line.

    Exit codes: 0 when all was done, 1 when something failed, 2 when the command line or a configuration is wrong.
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
