"""In which order class folders become the labels 0, 1, ...: that of the network's outputs."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from deevo_ext.errors import DeevoError

ORDERS = ("text", "natural")
ClassOrder = str | Sequence[str]
"""One of `ORDERS`, or the names of all classes of the network in the order of its outputs.

"text" sorts folders as torchvision does (1, 10, 2), "natural" as timm does (1, 2, 10). Of named
classes some may have no folder.
"""


def ordered(names: Collection[str], order: ClassOrder, source: str) -> list[str]:
    """Returns the classes in their order, those without a folder included where they are named.

    names: of the class folders. source: what has them, for messages. Raises DeevoError for an order
    that is none, repeats a name, or lacks a folder's.
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise DeevoError(
                f"class order is {order!r}; expected {', '.join(ORDERS)} or the classes' names"
            )
        return sorted(sorted(names), key=_natural) if order == "natural" else sorted(names)
    named = list(order)
    if not named or not all(isinstance(name, str) for name in named):
        raise DeevoError("class order names no classes; expected their names, as texts")
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise DeevoError(f"class order has {twice!r} twice; expected each class once")
    if unknown := sorted(set(names) - set(named)):
        raise DeevoError(
            f"{source}: {len(unknown)} classes are not among the {len(named)} of the class order, "
            f"such as {unknown[0]!r}; expected names of class folders, one for each output of the "
            "network"
        )
    return named


def require_order(names: Sequence[str], order: ClassOrder, source: str) -> None:
    """Raises DeevoError where a cache's classes are in another order than they should be.

    Classes that were sorted neither way, such as CIFAR's, have an order of their own. Those without
    names, or with their numbers for names, cannot be compared.
    """
    expected = ordered(names, order, source) if isinstance(order, str) else order
    if isinstance(order, str) and list(names) not in [ordered(names, o, source) for o in ORDERS]:
        return
    if list(names) == [str(n) for n in range(len(names))] and len(names) in (0, len(expected)):
        return
    for label, (name, other) in enumerate(itertools.zip_longest(names, expected)):
        if name != other:
            raise DeevoError(
                f"{source}: label {label} is class {name!r}, but the class order has {other!r} "
                "there; make another cache with this order, or give the one it was made with "
                "(--class-order, class_order=)"
            )


def class_order_of(text: str, architecture: str, names: Sequence[str] | None = None) -> ClassOrder:
    """Returns the order that `--class-order` says: "auto", one of `ORDERS`, or a file's.

    "auto" is that of `names`, which are the checkpoints' own, and without them "natural" for an
    architecture "timm:...", else "text". A file is as in `names_in_file`.
    """
    if text == "auto" and names is not None:
        return names
    if text == "auto":
        return "natural" if architecture.startswith("timm:") else "text"
    if text in ORDERS:
        return text
    path = Path(text)
    if not os.path.isfile(path):
        raise DeevoError(
            f"class order is {text!r}; expected auto, {', '.join(ORDERS)} or a file with a name of "
            "a class a line"
        )
    return names_in_file(path)


def names_in_file(path: Path) -> list[str]:
    """Reads the names of classes, in the order of the network's outputs.

    The file has a name a line, or is .json: a list of names, an object of their numbers 0, 1, ...
    by name, or a config.json of transformers' or timm's that has one. Raises DeevoError where it is
    none of them.
    """
    try:
        content = path.read_text(encoding="utf-8")
        value = json.loads(content) if path.suffix == ".json" else content.split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise DeevoError(f"{path}: cannot be read ({error}); expected names, one a line") from None
    if isinstance(value, dict):
        value = value.get("label2id") or value.get("label_names") or value
    if isinstance(value, dict):
        numbers = list(value.values())
        if not all(type(n) is int for n in numbers) or sorted(numbers) != [*range(len(numbers))]:
            raise DeevoError(
                f"{path}: expected an object of the classes' numbers 0, 1, ... by name"
            )
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DeevoError(f"{path}: expected a list of the classes' names, or their numbers by name")
    names = [name.strip() for name in value]
    if path.suffix != ".json":  # where a line may be empty
        return [name for name in names if name]
    if "" in names:
        raise DeevoError(f"{path}: class {names.index('')} has an empty name; give it one")
    return names


def _natural(name: str) -> list[int | str]:
    """timm's key: whole numbers compare as numbers, and case does not matter."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]
