"""Options of commands: those made from the fields of dataclasses, and those that commands share.

A field's help, default and words are those of its metadata. What a text on the command line becomes
is in `parameters.TEXTS`.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from deevo_ext.cli.parameters import TEXTS
from deevo_ext.options import help_of
from deevo_ext.runs.options import RunOptions
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.presets import configure

Command = TypeVar("Command", bound=Callable[..., Any])
Made = tuple[Any, Any, Any]
"""Type, default and typer's option."""

Arch = Annotated[
    str,
    typer.Option(
        help="A name of torchvision's or timm's, hf:FOLDER for a Hugging Face folder, or "
        "package.module:factory."
    ),
]
ModelArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help='An argument that the network is made with, as "img_size=96". May be repeated.',
    ),
]
TransformFile = Annotated[
    str | None,
    typer.Option(
        "--transform",
        help="The preprocessing: a JSON or TOML file, or a name of torchvision's weights. An "
        "architecture has a default.",
    ),
]
CacheFile = Annotated[
    Path | None,
    typer.Option("--cache", help="The file that keeps the decoded images, *.safetensors."),
]
Order = Annotated[
    str,
    typer.Option(
        "--class-order",
        help="The order of class folders as labels: text (1, 10, 2), natural (1, 2, 10), a file "
        "with the names of the network's classes, one a line; auto is that which the checkpoints "
        "say, else natural for timm's architectures, else text.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="A CSV with the columns file, label and, where the images have parts, split: of a "
        "folder without class folders."
    ),
]
TrainImages = Annotated[
    int,
    typer.Option(
        help="The number of train images that are cached, class-balanced; 0 stands for all.", min=0
    ),
]
SkipCorrupt = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave out files that cannot be read.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="The number of processes that decode and augment, by default one a processor.", min=0
    ),
]
Progress = Annotated[
    bool, typer.Option("--progress/--no-progress", help="Whether to show how far it is.")
]


def of_group(
    group: type[Any], panel: str | None, *, without: str = "", **defaults: Any
) -> dict[str, Made]:
    """Returns an option for each field of a dataclass.

    panel: the heading in the help. without: a field that has none. defaults: in place of the
    fields' own. Those of `Configuration` have none: what is not given is the preset's.
    """
    hints, made, preset = get_type_hints(group), {}, configure(RunOptions.preset)
    for part in fields(group):
        if part.name == without:
            continue
        text = TEXTS.get(part.name)
        kind, default = (
            (hints[part.name], part.default) if text is None else (text.kind, text.shown)
        )
        said, choices = help_of(part), part.metadata["choices"]
        flags = [f"--{part.name.replace('_', '-')}", *([text.alias] if text and text.alias else [])]
        shown: Any = True if text is None else text.default or True
        if group is Configuration:
            mine = getattr(preset, part.name)
            paper = "" if mine == default else f"; paper: {default}"
            shown, default = False if text else f"{mine}{paper}", None
        elif kind is bool and default:
            flags = [f"{flags[0]}/--no-{flags[0][2:]}"]
        if kind == list[str]:
            said += " May be repeated."
        kind = kind | None if default is None else kind
        default = defaults.get(part.name, default)
        least = None if group is Configuration or text else part.metadata["within"][0]
        made[part.name] = (
            kind,
            default,
            typer.Option(
                *([] if kind == bool | None else flags),
                help=(said[0].upper() + said[1:]).replace("`", ""),
                rich_help_panel=panel,
                metavar=text.metavar if text else None,
                autocompletion=_words(choices) if choices else None,
                show_default=shown,
                min=least,
            ),
        )
    return made


def _words(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in choices if word.startswith(incomplete)]

    return complete


def with_options(
    made: Mapping[str, Made],
    first: tuple[str, ...] = (),
    panels: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[Command], Command]:
    """Returns a decorator that gives a command that takes **options those of `of_group`.

    first: the options that head the help, in this order, under no heading. panels: headings, and
    which of the command's own options stand below each.
    """
    heading = {name: title for title, names in (panels or {}).items() for name in names}

    def decorate(command: Command) -> Command:
        signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
        all_of_them = {
            name: (*get_args(hints[name]), part.default)
            for name, part in signature.parameters.items()
            if part.kind is not part.VAR_KEYWORD
        }
        all_of_them |= {name: (kind, info, default) for name, (kind, default, info) in made.items()}
        listed = []
        for name in [*first, *(name for name in all_of_them if name not in first)]:
            kind, info, default = all_of_them[name]
            info = copy.copy(info)
            if name in first or name in heading:
                info.rich_help_panel = heading.get(name)
            annotation = command.__annotations__[name] = Annotated[kind, info]
            only = inspect.Parameter.KEYWORD_ONLY
            listed.append(inspect.Parameter(name, only, default=default, annotation=annotation))
        signed: Any = command
        signed.__signature__ = signature.replace(parameters=listed)
        return command

    return decorate
