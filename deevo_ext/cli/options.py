"""Options of `deevo evolve` that `deevo_ext.evolve` takes under the same name and as they are.

Type and default of an option are those of the keyword or of the field of `Configuration`; its help
is what the docstring there says. So a keyword has its option as soon as it stands in `PANELS`, and
a field of `Configuration` has one always.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_args, get_type_hints

import torch
import typer

from deevo_ext.runs.evolve import evolve
from deevo_ext.search.configuration import Configuration

NETWORKS, IMAGES = "What is evolved", "Images and fitness"
RUNNING, EVOLUTION = "Where and how it runs", "Parameters of the evolution"

PANELS: dict[str | None, tuple[str, ...]] = {
    None: ("search", "rounds", "passes", "generations", "seed"),
    NETWORKS: ("batchnorm", "inject_soups", "checkpoint_key", "prefix"),
    IMAGES: (
        "keep",
        "generations_per_batch",
        "sampling",
        "augment",
        "metric_name",
        "label_smoothing",
        "metric_name",
        "racing",
        "racing_first",
        "validate_every",
    ),
    RUNNING: (
        "population_device",
        "micro_batch",
        "chunk",
        "precision",
        "engine",
        "force_precision",
        "progress",
    ),
    EVOLUTION: ("preset",),
}


def described(documentation: str) -> dict[str, str]:
    """Returns what a docstring of lines "name, name: text" says of each name, as sentences."""
    entry = r"^(\w+(?:, \w+)*): (.*?)(?=^\S|\Z)"
    texts = {}
    for names, text in re.findall(entry, inspect.cleandoc(documentation), re.MULTILINE | re.DOTALL):
        for name in names.split(", "):
            texts[name] = " ".join((text[0].upper() + text[1:]).split())
    return texts


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that takes **parameters the options of `PANELS` and of `Configuration`."""
    signature = inspect.signature(command)
    parameters = [
        part for part in signature.parameters.values() if part.kind is not part.VAR_KEYWORD
    ]
    for name, (kind, default, option) in (_of_evolve() | _of_configuration()).items():
        annotation = Annotated[kind, option]  # type: ignore[valid-type]
        command.__annotations__[name] = annotation
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    command.__annotations__.pop("parameters")
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _of_evolve() -> dict[str, tuple[Any, Any, Any]]:
    """Type, default and option of each keyword in `PANELS`."""
    keywords, hints = inspect.signature(evolve).parameters, get_type_hints(evolve)
    texts = described(evolve.__doc__ or "")
    options = {}
    for panel, names in PANELS.items():
        for name in names:
            kind, default = hints[name], keywords[name].default
            if torch.device in get_args(kind):
                kind = str if default is not None else str | None
            if name == "engine":
                kind = str  # "package.module:function"
            flags = (f"--{name.replace('_', '-')}",) if default is False else ()
            least = (0 if name == "seed" else 1) if kind is int else None
            option = typer.Option(*flags, help=texts[name], rich_help_panel=panel, min=least)
            options[name] = (kind, default, option)
    return options


def _of_configuration() -> dict[str, tuple[Any, Any, Any]]:
    """Type, default and option of each further field of `Configuration`; None is the preset's."""
    hints, texts = get_type_hints(Configuration), described(Configuration.__doc__ or "")
    keywords = inspect.signature(evolve).parameters
    options = {}
    for field in fields(Configuration):
        if field.name not in keywords:
            kind: Any = list[str] if field.name == "strategies" else hints[field.name]
            paper = "" if field.default in (MISSING, None) else f" Paper: {field.default}."
            option = typer.Option(help=texts[field.name] + paper, rich_help_panel=EVOLUTION)
            options[field.name] = (kind | None, None, option)
    return options
