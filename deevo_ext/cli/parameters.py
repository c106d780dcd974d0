"""Values of options that are texts on the command line and something else for the library."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from deevo_ext.data.class_maps import ClassMap
from deevo_ext.data.classes import ClassOrder, class_order_of
from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_named
from deevo_ext.networks.blocks import UNITS
from deevo_ext.search.pools import POOLS
from deevo_ext.search.strategies import Strategy

log = logging.getLogger("deevo_ext")


def class_order_shown(
    text: str, architecture: str, own: ClassMap | None, action: str = "warn"
) -> ClassOrder:
    """Returns the order of classes that `--class-order` says; says where "auto" found one.

    own: the checkpoints' class map. action: what is done where another order was asked for, as
    `ClassMap.require_same` has it.
    """
    order = class_order_of(text, architecture, own.names if own else None)
    if own is not None and text == "auto":
        log.info("%s classes in the order of %s", len(own.names), own.where)
    elif own is not None:
        own.require_same(order, action)
    return order


def count_of(name: str, *words: str) -> Callable[[str], Any]:
    """Returns what reads a number of images, or one of the words; "all" is None."""

    def read(text: str) -> Any:
        if text in words:
            return None if text == "all" else text
        try:
            return int(text)
        except ValueError:
            said = ", ".join(f'"{word}"' for word in words)
            raise DeevoError(f"{name} is {text!r}; expected {said} or a whole number") from None

    return read


def unit_of(blocks: list[str]) -> str | list[str]:
    """Returns the unit that is named, or the patterns."""
    return blocks[0] if len(blocks) == 1 and blocks[0] in UNITS else blocks


def dtype_of(text: str) -> torch.dtype:
    """Returns the dtype of this name."""
    if text not in ("float32", "bfloat16", "float16"):
        raise DeevoError(f"dtype is {text!r}; expected float32, bfloat16 or float16")
    dtype: torch.dtype = getattr(torch, text)
    return dtype


_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def time_of(text: str) -> float:
    """Returns the seconds of "90", "90s", "30m", "8h", "1.5d" or several together, as "1h30m"."""
    compact, part = text.replace(" ", ""), r"(\d+\.?\d*|\.\d+)([smhd])"
    if re.fullmatch(r"\d+\.?\d*", compact):
        return float(compact)
    total = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(part, compact))
    if not re.fullmatch(f"({part})+", compact) or not 0 < total < math.inf:
        raise DeevoError(f'seconds is {text!r}; expected a duration such as "8h" or "1h30m"')
    return total


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
        return {name: _value_of(text) for name, text in pairs.items()}
    except yaml.YAMLError as error:
        raise DeevoError(f"model_arg has {pairs}, which YAML cannot read: {error}") from None


def _value_of(text: str) -> Any:
    """Returns what YAML reads, and a number where it takes 1e-6 for a text."""
    value = yaml.safe_load(text)
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def bytes_of(text: str) -> int:
    """Returns the bytes of "500MiB", "2GiB" or a plain number."""
    match = re.fullmatch(r"(\d+\.?\d*) *([KMGT]i?B?)?", text.strip(), re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < 2**63:
        raise DeevoError(f'memory is {text!r}; expected a size such as "500MiB" or "2GiB"')
    power = " KMGT".index((match[2] or " ")[0].upper())
    return int(float(match[1]) * 1024**power)


def _pool_of(texts: list[str]) -> list[Strategy | tuple[str, ...]]:
    """Returns the strategies that texts name or describe."""
    return [strategy for text in texts for strategy in _strategies(text)]


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


@dataclass(frozen=True)
class Text:
    """How an option is written on the command line, where that is no plain value of its type.

    kind: typer's type. metavar: what the help shows. read: makes the value. shown: its default.
    alias: a further flag. default: what the help says of a default that is found later.
    """

    kind: Any
    metavar: str
    read: Callable[[Any], Any]
    shown: Any = None
    alias: str | None = None
    default: str | None = None


def _named(option: str) -> Callable[[str], Any]:
    return lambda text: import_named(text, option) if ":" in text else text


TEXTS = {
    "metric": Text(str, "NAME|MODULE:NAME", _named("metric"), "loss"),
    "engine": Text(str, "NAME|MODULE:NAME", _named("engine"), "auto"),
    "device": Text(str, "DEVICE", str, default="a GPU if there is one"),
    "population_device": Text(str, "DEVICE", str),
    "dtype": Text(str, "DTYPE", dtype_of, "float32"),
    "frozen": Text(list[str], "PATTERN", list),
    "ignore": Text(list[str], "PATTERN", list),
    "key_map": Text(list[str], "THEIRS=OURS", key_map_of),
    "blocks": Text(list[str], "UNIT|PATTERN", unit_of),
    "strategies": Text(list[str], "POOL|FORMULA,CROSSOVER", _pool_of),
    "images_per_round": Text(str, "N|auto", count_of("images_per_round", "auto"), "auto"),
    "images_per_batch": Text(
        str, "N|auto|all", count_of("images_per_batch", "auto", "all"), "auto"
    ),
    "memory": Text(str, "BYTES|2GiB", bytes_of),
    "seconds": Text(str, "SECONDS|8h", time_of, alias="--time"),
    "run_dir": Text(Path, "FOLDER", Path, alias="--out"),
}
"""By the name of the option."""


def keywords_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what options of the command line mean as keywords.

    Those without a value are left out: they have their default, or the preset's value.
    """
    return {
        name: TEXTS[name].read(value) if name in TEXTS else value
        for name, value in given.items()
        if value not in (None, [])
    }
