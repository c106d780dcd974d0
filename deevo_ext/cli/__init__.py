"""The command `deevo`. Each of its commands is a module here."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from deevo_ext._version import __version__
from deevo_ext.errors import DeevoError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `deevo` with `argv` (default: sys.argv[1:]) and exits the process with its status.

    Every error is one line on stderr; DEEVO_DEBUG=1 shows the traceback.
    """
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except Exception as error:
        if os.environ.get("DEEVO_DEBUG", "0") not in ("", "0"):
            raise
        said = " ".join(str(error).split())
        if not isinstance(error, (DeevoError, OSError)):  # a fault of this package, or a factory's
            said = f"{type(error).__name__}: {said} (DEEVO_DEBUG=1 shows where)"
        print(f"error: {said}", file=sys.stderr)
        sys.exit(1)


def _run(arguments: list[str]) -> None:
    """Runs a command, as one rank of several where a launcher has started them."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        app()(args=arguments, prog_name="deevo")
        return
    from deevo_ext.distributed.joining import joined

    if arguments[:1] != ["evolve"]:
        raise DeevoError(
            f"{' '.join(arguments[:1]) or 'deevo'} is started as {os.environ['WORLD_SIZE']} ranks "
            "(WORLD_SIZE), which only evolve can share; start it without torchrun"
        )
    with joined() as ranks, open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if not ranks.leads:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        app()(args=arguments, prog_name="deevo")


def app() -> typer.Typer:
    """Makes the typer application with every command."""
    # Imported here, because each function has the name of its module.
    from deevo_ext.cli.average import average
    from deevo_ext.cli.cache import cache
    from deevo_ext.cli.command import command
    from deevo_ext.cli.compare import compare
    from deevo_ext.cli.demo import demo
    from deevo_ext.cli.evolve import evolve
    from deevo_ext.cli.info import info
    from deevo_ext.cli.merge import merge
    from deevo_ext.cli.populate import populate
    from deevo_ext.cli.replay import replay

    application = typer.Typer(
        name="deevo",
        help="Evolve the weights of trained networks by differential evolution.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    application.callback()(_of_all_commands)
    for function in (demo, cache, populate, evolve, average, replay, merge, compare, info):
        application.command()(command(function))
    return application


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"deevo_ext {__version__}")
        raise typer.Exit()


def _of_all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Takes the options that stand before a command."""
