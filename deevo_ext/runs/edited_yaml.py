"""YAML files that people edit: whatever is wrong in one is named, and little can be hidden in it.

Scalars are read as texts, and as numbers where numbers belong: YAML itself takes `no` for a truth
value and `1e-5` for a text.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from deevo_ext.errors import DeevoError
from deevo_ext.options import nearest

_LARGEST = 16 << 20  # bytes; a recipe has kilobytes


def dump(content: dict[str, Any]) -> str:
    """Returns plain values as YAML, in their order; a list or mapping of scalars is on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


def load(path: Path) -> Any:
    """Reads a file: mappings, lists and texts; raises DeevoError that says what is wrong in it."""
    try:
        if path.stat().st_size > _LARGEST:
            raise DeevoError(f"it is larger than {_LARGEST >> 20} MiB: this is no recipe")
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise DeevoError(f"it cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DeevoError("it is not UTF-8 text: save it as such") from error
    except RecursionError as error:
        raise DeevoError("it is nested too deeply: this is no recipe") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise DeevoError(f"{line}not the YAML of a recipe: {error.problem}") from error
    except yaml.YAMLError as error:
        raise DeevoError(f"not the YAML of a recipe: {error}") from error


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.BaseLoader):
    """Makes mappings, lists and texts only; refuses keys that are there twice, and aliases.

    With aliases a small file says more than memory holds.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            problem = "aliases are not read: write out what they repeat"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"{key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def mapping(
    value: Any, what: str, known: Collection[str] = (), word: str = "key"
) -> dict[str, Any]:
    """Returns a mapping; where keys are known, others are refused, called `word`."""
    if not isinstance(value, dict):
        given = "missing" if value in (None, "") else f"{_shown(value)}, which is no mapping"
        raise DeevoError(f"{what} is {given}; expected `name: value` lines")
    for key in value:
        if known and key not in known:
            like = nearest(key, known)
            raise DeevoError(f"{what}: unknown {word} {key!r}; did you mean {like!r}?")
    return value


def text(value: Any, what: str) -> str:
    """Returns a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise DeevoError(f"{what} is {_shown(value)}; expected a text")
    return value


def texts(value: Any, what: str) -> tuple[str, ...]:
    """Returns a list's texts; a text alone is a list of one."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise DeevoError(f"{what}: {_shown(value)} is no list of names")
    return tuple(text(item, what) for item in items)


def choice(value: Any, what: str, choices: Collection[str]) -> str:
    """Returns a text that is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise DeevoError(f"{what} is {_shown(value)}; expected one of {', '.join(choices)}")
    return value


def number(value: Any, what: str) -> float:
    """Returns a finite number."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise DeevoError(f"{what} is {_shown(value)}; expected a finite number")
    return result


def count(value: Any, what: str) -> int:
    """Returns a whole number from 0 that fits int64."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 18:
        raise DeevoError(f"{what} is {_shown(value)}; expected a whole number from 0")
    return int(value)


def _shown(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."
