"""Options as fields of frozen dataclasses, which say themselves what they are.

The metadata of a field hold its help, what it may be and where it comes from: from them docstrings,
signatures, checks and the command line's options are made, so that each is said once.
"""

from __future__ import annotations

import difflib
import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Iterable
from dataclasses import Field, field, fields
from typing import Any, TypeVar, cast

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError

Documented = TypeVar("Documented", bound=Callable[..., Any])


def option(
    default: Any,
    help: str,
    source: str = "",
    *,
    least: float | None = None,
    within: tuple[float, float] | None = None,
    choices: Collection[str] = (),
    search: str | None = None,
) -> Any:
    """Returns a dataclass's field for an option.

    help: what it is, as a docstring has it behind the name. source: where it or its default comes
    from, a paper or a program. least: the least finite number that it may be. within: the least and
    the greatest one. choices: the words that it may be. search: the one search that it belongs to.
    """
    metadata = {
        "help": help,
        "source": source,
        "within": (least, math.inf) if within is None else within,
        "choices": tuple(choices),
        "search": search,
    }
    return field(default=default, metadata=metadata)


def help_of(part: Field[Any]) -> str:
    """Returns what a field's metadata say of it, its source in brackets at the end."""
    said, source = part.metadata["help"], part.metadata["source"]
    return f"{said} ({source})." if source else f"{said}."


def documented(*classes: type[Any]) -> Callable[[Documented], Documented]:
    """Returns a decorator that ends a docstring with a line for each option.

    classes: the dataclasses of the options that a function takes as **keywords, which its signature
    then lists, too. Without them it is the decorated class itself.
    """

    def decorate(thing: Documented) -> Documented:
        parts = [part for each in classes or (thing,) for part in fields(cast(Any, each))]
        lines = [
            textwrap.fill(f"{part.name}: {help_of(part)}", 96, subsequent_indent="    ")
            for part in parts
        ]
        gap = "\n" if classes else "\n\n"  # where options follow lines of their kind
        thing.__doc__ = inspect.cleandoc(thing.__doc__ or "") + gap + "\n".join(lines)
        if classes:
            signature = inspect.signature(thing)
            *named, rest = signature.parameters.values()
            listed = [
                inspect.Parameter(
                    part.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=part.default,
                    annotation=part.type,
                )
                for part in parts
            ]
            signed: Any = thing
            signed.__signature__ = signature.replace(parameters=[*named, *listed, rest])
        return thing

    return decorate


def check_options(options: Any) -> None:
    """Raises DeevoError for the first option that its field does not allow: type, bounds, words."""
    parts = {part.name: part for part in fields(options)}
    values = {name: getattr(options, name) for name in parts}
    for name, part in parts.items():
        value, choices = values[name], part.metadata["choices"]
        word = value is None or (isinstance(value, str) and value in choices)
        if choices and not word:
            raise DeevoError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
        least, most = part.metadata["within"]
        if least is None or value is None or isinstance(value, str):
            continue
        check_arguments(type(options), {name: value})
        if most == math.inf and not least <= value < most:
            raise DeevoError(f"{name} is {value!r}; expected a finite number, at least {least}")
        if not least <= value <= most:
            raise DeevoError(f"{name} is {value!r}; expected a number in [{least}, {most}]")
    check_arguments(type(options), values)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name that is most like another."""
    return difflib.get_close_matches(name, sorted(known), 1, 0.0)[0]
