"""Where two JSON values differ, in words for people."""

from __future__ import annotations

import math
from typing import Any


def first_difference(own: Any, other: Any, where: str = "") -> str | None:
    """Where two JSON values differ first, as "a.b: x, not y"; None when they are equal."""
    if isinstance(own, dict) and isinstance(other, dict):
        # The layout's hash follows from the rest, which says more.
        for key in sorted(set(own) | set(other), key=lambda key: (key == "layout", key)):
            name = f"{where}.{key}" if where else key
            if key not in own or key not in other:
                return f"{name} is only in the {'journal' if key in other else 'present run'}"
            found = first_difference(own[key], other[key], name)
            if found:
                return found
        return None
    if isinstance(own, list) and isinstance(other, list) and len(own) == len(other):
        for i, (a, b) in enumerate(zip(own, other, strict=True)):
            found = first_difference(a, b, f"{where}[{i}]")
            if found:
                return found
        return None
    if isinstance(own, list) and isinstance(other, list):
        return f"{where} has {len(other)} entries in the journal, {len(own)} now"
    if own == other or (_is_nan(own) and _is_nan(other)):
        return None
    return f"{where} is {_short(other)} in the journal, {_short(own)} now"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
