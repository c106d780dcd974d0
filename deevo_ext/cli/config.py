"""Options of a command from a file: one that a user writes, or the one of a run folder."""

import glob
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.options import nearest

COMMON = "Every command"
RUN_FILE = "run.yaml"
"""The file of a run folder that holds the options of its run."""


def read_options(path: Path) -> dict[str, Any]:
    """Reads options by their names from a YAML or TOML file."""
    try:
        text = path.read_text(encoding="utf-8")
        said = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DeevoError(f"config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(said, dict) or not all(isinstance(name, str) for name in said):
        raise DeevoError(f"config {path}: expected lines NAME: VALUE with the names of options")
    return said


def take_options(
    context: typer.Context, path: Path, said: Mapping[str, Any], *, first: bool = True
) -> None:
    """Makes a file's values the defaults of the command's options.

    first: whether they go before those of another file that has been read already.
    """
    names = {}
    for parameter in context.command.params:
        for flag in (parameter.name or "", *parameter.opts):
            names[flag.lstrip("-").replace("-", "_")] = parameter
    taken: dict[str, Any] = {}
    for name, value in said.items():
        named = names.get(name.lstrip("-").replace("-", "_"))
        if named is None:
            raise DeevoError(
                f"config {path}: there is no option {name!r}; the nearest is "
                f"{nearest(name, names)!r}"
            )
        if named.is_eager:
            raise DeevoError(f"config {path}: {name} is taken from the command line alone")
        if isinstance(value, dict):
            value = [
                f"{left}={right if isinstance(right, str) else json.dumps(right)}"
                for left, right in value.items()
            ]
        several = getattr(named, "multiple", False) or named.nargs == -1
        if several and value is not None and not isinstance(value, list):
            value = [value]
        if isinstance(value, list) and not several:
            raise DeevoError(f"config {path}: {name} is {value!r}; expected one value")
        if value is not None:
            taken[named.name or ""] = value
    before = context.default_map or {}
    context.default_map = {**before, **taken} if first else {**taken, **before}


def _config(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        take_options(context, path, read_options(path))
    return path


def _resume(context: typer.Context, folder: Path | None) -> Path | None:
    if folder is not None:
        path = folder / RUN_FILE
        if not path.is_file():
            raise DeevoError(
                f"resume is {folder}, which holds no {RUN_FILE}: no run of deevo evolve has begun "
                "there; give all of its options"
            )
        said = {**read_options(path), "run_dir": str(folder)}
        take_options(context, path, said, first=False)  # --config goes before, wherever it stands
    return folder


CONFIG = typer.Option(
    metavar="FILE",
    is_eager=True,
    callback=_config,
    help="A YAML or TOML file of options by their names; the command line goes before it.",
    rich_help_panel=COMMON,
)

Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        is_eager=True,
        callback=_resume,
        help="Go on with the run of this folder, with the options that it was begun with.",
    ),
]


def write_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the options of a run to its folder, from which --resume reads them anywhere.

    options: by their names; those without a value are left out. Paths become absolute.
    """
    said = {name: _anywhere(name, v) for name, v in options.items() if v not in (None, [], {})}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=1000)
    write_whole(folder / RUN_FILE, text.encode())


def _anywhere(name: str, value: Any) -> Any:
    """Returns a value that means the same in another current folder."""
    if name == "checkpoints" and isinstance(value, list):
        return [_anywhere(name, one) for one in value]
    where = os.path.expanduser(str(value))
    if name == "checkpoints" and not os.path.exists(where):  # a glob; the folder is none
        return os.path.normpath(os.path.join(glob.escape(os.getcwd()), where))
    if isinstance(value, Path) or name == "checkpoints":
        return os.path.abspath(where)
    if name == "arch" and value.startswith("hf:"):
        return f"hf:{os.path.abspath(os.path.expanduser(value[3:]))}"
    if name in ("transform", "class_order") and os.path.isfile(where):
        return os.path.abspath(where)
    return value
