"""Values of options that are texts on the command line and something else for the library."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import typer
import yaml

from deevo_ext.data.class_maps import ClassMap
from deevo_ext.data.classes import ClassOrder, class_order_of
from deevo_ext.errors import DeevoError
from deevo_ext.networks.blocks import UNITS
from deevo_ext.search.pools import POOLS
from deevo_ext.search.strategies import Strategy


def class_order_shown(
    text: str, architecture: str, own: ClassMap | None, action: str = "warn"
) -> ClassOrder:
    """Returns the order of classes that `--class-order` says; says where "auto" found one.

    own: the checkpoints' class map. action: what is done where another order was asked for, as
    `ClassMap.require_same` has it.
    """
    order = class_order_of(text, architecture, own.names if own else None)
    if own is not None and text == "auto":
        typer.echo(f"{len(own.names)} classes in the order of {own.where}")
    elif own is not None:
        own.require_same(order, action)
    return order


def images_per_batch_of(text: str) -> int | Literal["auto"] | None:
    """Returns the number of images that the text is, "auto", or None for "all"."""
    if text == "auto":
        return "auto"
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise DeevoError(
            f'images_per_batch is {text!r}; expected "auto", "all" or a whole number'
        ) from None


def images_per_round_of(text: str) -> int | Literal["auto"]:
    """Returns the number of images that the text is, or "auto"."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise DeevoError(
            f'images_per_round is {text!r}; expected "auto" or a whole number'
        ) from None


def unit_of(blocks: list[str] | None) -> str | list[str]:
    """Returns the unit that is named, or the patterns; by default "auto"."""
    if not blocks:
        return "auto"
    return blocks[0] if len(blocks) == 1 and blocks[0] in UNITS else blocks


def pairs_of(texts: list[str] | None, name: str, example: str) -> dict[str, str]:
    """Returns what the texts "LEFT=RIGHT" of an option say; `example` is one of them."""
    pairs = {}
    for text in texts or ():
        left, equals, right = text.partition("=")
        if not left or not equals:
            raise DeevoError(f"{name} has {text!r}; expected a text as {example!r}")
        pairs[left] = right
    return pairs


def key_map_of(texts: list[str] | None) -> dict[str, str]:
    """Returns names of files and the model's in their place."""
    return pairs_of(texts, "key_map", "encoder.=backbone.")


def model_args_of(texts: list[str] | None) -> dict[str, Any]:
    """Returns arguments of a model: numbers, truth values, lists and texts, as YAML reads them."""
    pairs = pairs_of(texts, "model_arg", "img_size=96")
    try:
        return {name: yaml.safe_load(value) for name, value in pairs.items()}
    except yaml.YAMLError as error:
        raise DeevoError(f"model_arg has {pairs}, which YAML cannot read: {error}") from None


def bytes_of(text: str) -> int:
    """Returns the bytes of "500MiB", "2GiB" or a plain number."""
    match = re.fullmatch(r"(\d+\.?\d*) *([KMGT]i?B?)?", text.strip(), re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < 2**63:
        raise DeevoError(f'memory is {text!r}; expected a size such as "500MiB" or "2GiB"')
    power = " KMGT".index((match[2] or " ")[0].upper())
    return int(float(match[1]) * 1024**power)


def without_defaults(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters that are neither None nor empty, with strategies made from texts.

    What is left out has its default, or the preset's value.
    """
    values = {name: value for name, value in parameters.items() if value not in (None, [])}
    if "strategies" in values:
        values["strategies"] = [s for text in values["strategies"] for s in _strategies(text)]
    return values


def _strategies(text: str) -> Sequence[Strategy | tuple[str, ...]]:
    """Returns the strategies of the pool that the text names, or the one whose formula it is."""
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
