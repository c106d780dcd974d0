"""What every command has: what it says by `log`, and its result as JSON."""

import functools
import inspect
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from deevo_ext.cli.config import COMMON, CONFIG
from deevo_ext.distributed.ranks import ranks
from deevo_ext.files import require_place, write_whole

log = logging.getLogger("deevo_ext")


_quiet = typer.Option("--quiet", help="Say nothing but warnings.", rich_help_panel=COMMON)
_json = typer.Option(
    metavar="FILE|-",
    help="Write the result as JSON to a file, or to stdout; the rest then goes to stderr.",
    rich_help_panel=COMMON,
)


class Console(logging.Handler):
    """Shows what a command says on stdout, or on stderr where stdout is for the result alone."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record; one of a problem begins with how grave it is."""
        grave = record.levelno >= logging.WARNING
        text = record.getMessage()
        if grave:
            text = f"{record.levelname.lower()}: {' '.join(text.split())}"
        print(text, file=sys.stderr if grave or self.apart else sys.stdout, flush=True)


@contextmanager
def speaking(quiet: bool, apart: bool) -> Iterator[None]:
    """Lets the package's logger, and warnings, speak on this command's console."""
    handler, before = Console(apart), (log.level, warnings.showwarning)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        log.warning("%s", message)

    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    warnings.showwarning = show
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        warnings.showwarning = before[1]


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """Makes a command of a function, whose result is what --json writes."""

    @functools.wraps(function)
    def run(*, config: Path | None, quiet: bool, json: str | None, **options: Any) -> None:
        if json is not None and json != "-":
            require_place(Path(json), "json")
        for name, value in options.items():
            if isinstance(value, Path):  # a shell expands ~, a file of options does not
                options[name] = Path(os.path.expanduser(value))
        if quiet and "progress" in options:
            options["progress"] = False
        with speaking(quiet or not ranks().leads, json == "-"):
            result = function(**options)
        if json is not None and ranks().leads:
            write_json(result, json)

    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(each.split()) for each in paragraphs)
    signature = inspect.signature(function)
    common = {
        "config": (Path | None, CONFIG, None),
        "quiet": (bool, _quiet, False),
        "json": (str | None, _json, None),
    }
    run.__annotations__ = dict(function.__annotations__)
    parameters = list(signature.parameters.values())
    for name, (kind, option, default) in common.items():
        annotation = run.__annotations__[name] = Annotated[kind, option]
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def write_json(result: Any, file: str) -> None:
    """Writes a result as JSON to a file, or to stdout for "-"; what is no finite number is null."""
    text = json.dumps(_plain(result), indent=2)
    if file == "-":
        print(text)
    else:
        write_whole(Path(file), f"{text}\n".encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)
