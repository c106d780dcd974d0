"""Options from the table in `options` and the fields of Configuration, and what texts mean."""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer

from deevo_ext.cli.options import EVOLUTION, PASSED
from deevo_ext.errors import DeevoError
from deevo_ext.runs.evolve import evolve
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.pools import POOLS
from deevo_ext.search.strategies import Strategy


def function_of(name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names."""
    module, _, attribute = name.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DeevoError(
            f"metric is {name!r}, which cannot be had: {error}; expected package.module:function, "
            "importable from here"
        ) from None
    return function


def without_defaults(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters without those that are None or empty, with strategies made from their texts.

    What is left out has its default, or the preset's value.
    """
    values = {name: value for name, value in parameters.items() if value not in (None, [])}
    if "strategies" in values:
        values["strategies"] = [s for text in values["strategies"] for s in _strategies(text)]
    return values


def _strategies(text: str) -> Sequence[Strategy | tuple[str, ...]]:
    """The strategies of the pool that the text names, or the one whose formula it is."""
    if text in POOLS:
        return POOLS[text]()
    name, equals, rest = text.partition("=")
    formula, comma, crossover = (rest if equals else text).rpartition(",")
    if not comma:
        raise DeevoError(
            f"strategies is {text!r}; expected a pool ({', '.join(POOLS)}), "
            '"FORMULA, CROSSOVER" or "NAME=FORMULA, CROSSOVER", as '
            '"target + F*(best - target), bin"'
        )
    parts = (formula.strip(), crossover.strip())
    return [(name.strip(), *parts) if equals else parts]


def described(documentation: str) -> dict[str, str]:
    """What a docstring of lines "name, name: text" says of each name."""
    entry = r"^    (\w+(?:, \w+)*): (.*?)(?=^    \w+(?:, \w+)*: |\Z)"
    texts = {}
    for names, text in re.findall(entry, documentation, re.MULTILINE | re.DOTALL):
        for name in names.split(", "):
            texts[name] = " ".join(text.split())
    return texts


def with_parameters(command: Callable[..., None]) -> None:
    """Gives a command that takes **parameters an option for each entry of `PASSED`, with the
    default that `deevo_ext.evolve` has, and one for each further field of Configuration.
    """
    signature = inspect.signature(command)
    defaults = inspect.signature(evolve).parameters
    options = {name: (kind, defaults[name].default) for name, kind in PASSED.items()}
    hints, help_texts = get_type_hints(Configuration), described(Configuration.__doc__ or "")
    for field in fields(Configuration):
        if field.name not in options:
            kind: Any = list[str] if field.name == "strategies" else hints[field.name]
            paper = "" if field.default in (MISSING, None) else f" Paper: {field.default}."
            text = f"{help_texts[field.name]}{paper}"
            option = typer.Option(help=text, rich_help_panel=EVOLUTION)
            options[field.name] = (Annotated[kind | None, option], None)
    shown = [
        p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name, (annotation, default) in options.items():
        keyword = inspect.Parameter.KEYWORD_ONLY
        shown.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
        command.__annotations__[name] = annotation
    command.__annotations__.pop("parameters")
    command.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
