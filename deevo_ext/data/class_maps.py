"""Class maps: the names of a network's classes, which training scripts keep beside its weights.

They are looked for in what a checkpoint file holds around the weights, in its mappings and argparse
Namespaces, three deep, the outermost first (`class_to_idx` of torchvision's datasets, `id2label` of
Hugging Face's configurations, `classes` of OpenMMLab's `meta`, timm's `args.class_map`), and in the
metadata of a .safetensors, where they are JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deevo_ext.data.classes import ClassOrder, names_in_file, ordered
from deevo_ext.distributed.ranks import warn
from deevo_ext.errors import DeevoError
from deevo_ext.population.checkpoint_file import read_around

_BY_NAME = ("class_to_idx", "label2id")  # numbers
_BY_NUMBER = ("idx_to_class", "id2label")  # names
_IN_ORDER = ("class_names", "classes", "CLASSES", "categories")
_IN_FILE = "class_map"  # timm's: the path of a file
_DEPTH = 3


@dataclass(frozen=True)
class ClassMap:
    """The names of a network's classes, in the order of its outputs.

    where: what holds them, for messages.
    """

    names: tuple[str, ...]
    where: str

    def require_same(
        self,
        order: ClassOrder,
        action: str,
        mend: str = "leave out --class-order, or correct it",
    ) -> None:
        """Compares an order that was asked for; "refuse" raises DeevoError, "warn" warns.

        Named classes that the map does not know, such as names in another language, say nothing.
        """
        expected = ordered(self.names, order, self.where) if isinstance(order, str) else order
        numbers = {name: number for number, name in enumerate(expected)}
        for number, name in enumerate(self.names):
            if numbers.get(name, number) != number:
                _object(
                    f"class order gives {name!r} the label {numbers[name]}, but by {self.where} it "
                    f"is output {number} of the network: {mend}",
                    action,
                )
                return


def class_map_of(files: Sequence[Path], action: str) -> ClassMap | None:
    """Returns the class map of checkpoints; None where no file has one.

    action: what is done where files have different ones: "refuse" raises DeevoError, "warn" warns
    and takes the first file's, "ignore" takes that.
    """
    first: ClassMap | None = None
    for file in files:
        found = _in_file(file)
        if found is None:
            continue
        if first is None:
            first = found
        elif found.names != first.names:
            pairs = enumerate(itertools.zip_longest(first.names, found.names))
            number, (one, other) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
            _object(
                f"output {number} is class {one!r} by {first.where}, but {other!r} by "
                f"{found.where}: networks whose classes have other numbers cannot be combined; "
                "leave one out",
                action,
            )
    return first


def require_same_as_configs(files: Sequence[Path], order: Sequence[str], action: str) -> None:
    """Compares the order of the classes with the `config.json` of each network that is a folder.

    transformers' and timm's have names of classes, which need not be those of class folders, so
    they decide no order; the names that both know must have the same numbers.
    """
    for config in dict.fromkeys(file.with_name("config.json") for file in files):
        if config.is_file() and (found := _in_config(config)):
            found.require_same(order, action, f"give --class-order {config}")


def _in_config(config: Path) -> ClassMap | None:
    content = _parsed(config.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(content, dict):
        return None
    for key, kind in (("label2id", "label2id"), ("label_names", "class_names")):
        if names := _names(kind, content.get(key)):
            return ClassMap(names, f"{key!r} in {config}")
    return None


def _object(what: str, action: str) -> None:
    if action == "refuse":
        raise DeevoError(f'{what}. basin="warn" (--force) goes on all the same')
    if action == "warn":
        warn(what, stacklevel=4)


def _in_file(file: Path) -> ClassMap | None:
    content = read_around(file)
    if file.suffix == ".safetensors":
        content = {key: _parsed(text) for key, text in content.items()}
    for mapping in _mappings(content):
        for key in (*_BY_NAME, *_BY_NUMBER, *_IN_ORDER):
            if names := _names(key, mapping.get(key)):
                return ClassMap(names, f"{key!r} in {file}")
        path = mapping.get(_IN_FILE)
        if isinstance(path, str) and path:
            if os.path.isfile(path):
                return ClassMap(tuple(names_in_file(Path(path))), f"{path}, named in {file}")
            warn(
                f"{file} was trained with the class map {path}, which is not here: give it with "
                "--class-order",
                stacklevel=3,
            )
    return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _mappings(content: Any) -> Iterator[Mapping[Any, Any]]:
    """All mappings in a content, those nearer to the top first."""
    level = [content]
    for _ in range(_DEPTH):
        level = [vars(v) if isinstance(v, argparse.Namespace) else v for v in level]
        level = [value for value in level if isinstance(value, Mapping)]
        yield from level
        level = [inner for value in level for inner in value.values()]


def _names(key: str, value: Any) -> tuple[str, ...]:
    """The names in order; empty where the value is no class map, whatever its key."""
    if key in _IN_ORDER:
        names = list(value) if isinstance(value, (list, tuple)) else []
    elif not isinstance(value, Mapping):
        return ()
    else:
        pairs = [(n, name) if key in _BY_NAME else (name, n) for name, n in value.items()]
        by_number = {_number(number): name for number, name in pairs}
        if len(by_number) < len(value) or by_number.keys() != {*range(len(value))}:
            return ()
        names = [by_number[number] for number in range(len(value))]
    strings = all(isinstance(name, str) for name in names)
    return tuple(names) if len(names) > 1 and strings and len({*names}) == len(names) else ()


def _number(value: Any) -> int | None:
    """A class's number, which JSON makes a text where it is a key."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if type(value) is int else None
