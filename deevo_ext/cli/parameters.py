"""Options made from the fields of Configuration, and what option texts mean."""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer

from deevo_ext.errors import DeevoError
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.pools import POOLS
from deevo_ext.search.strategies import Strategy

EVOLUTION = "Parameters of the evolution"


def function_of(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DeevoError(
            f"metric is {name!r}, which cannot be had: {error}; expected package.module:function, "
            "importable from here"
        ) from None
    return found


def given(parameters: dict[str, Any]) -> dict[str, Any]:
    """The fields of Configuration that were given."""
    found = {name: value for name, value in parameters.items() if value not in (None, [])}
    if "strategies" in found:
        found["strategies"] = [s for text in found["strategies"] for s in _strategies(text)]
    return found


def _strategies(text: str) -> Sequence[Strategy | tuple[str, ...]]:
    """Those of a pool's name, or the one of a formula."""
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
    """Field by field what a docstring in lines "name, name: text" says."""
    entry = r"^    (\w+(?:, \w+)*): (.*?)(?=^    \w+(?:, \w+)*: |\Z)"
    found = {}
    for names, text in re.findall(entry, documentation, re.MULTILINE | re.DOTALL):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def with_configuration(command: Callable[..., None]) -> None:
    """Gives a command that takes **parameters an option for each field of Configuration."""
    own = inspect.signature(command)
    shown = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints, help_texts = get_type_hints(Configuration), described(Configuration.__doc__ or "")
    for field in fields(Configuration):
        if field.name in own.parameters:
            continue
        kind: Any = hints[field.name]
        default = "" if field.default in (MISSING, None) else f" Paper: {field.default}."
        if field.name == "strategies":
            kind = list[str]
        option = typer.Option(help=f"{help_texts[field.name]}{default}", rich_help_panel=EVOLUTION)
        annotation = Annotated[kind | None, option]
        shown.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )
        command.__annotations__[field.name] = annotation
    command.__annotations__.pop("parameters")
    command.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
