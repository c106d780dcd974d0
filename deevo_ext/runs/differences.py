"""Where two JSON values differ, in words for people."""

from __future__ import annotations

import math
from typing import Any


def first_difference(present: Any, recorded: Any, where: str = "") -> str | None:
    """Where two JSON values differ first, as "a.b: x, not y"; None when they are equal."""
    if isinstance(present, dict) and isinstance(recorded, dict):
        # The layout's hash follows from the rest, which says more.
        for key in sorted(set(present) | set(recorded), key=lambda key: (key == "layout", key)):
            name = f"{where}.{key}" if where else key
            if key not in present or key not in recorded:
                return f"{name} is only in the {'journal' if key in recorded else 'present run'}"
            difference = first_difference(present[key], recorded[key], name)
            if difference:
                return difference
        return None
    if isinstance(present, list) and isinstance(recorded, list) and len(present) == len(recorded):
        for i, (a, b) in enumerate(zip(present, recorded, strict=True)):
            difference = first_difference(a, b, f"{where}[{i}]")
            if difference:
                return difference
        return None
    if isinstance(present, list) and isinstance(recorded, list):
        return f"{where} has {len(recorded)} entries in the journal, {len(present)} now"
    if present == recorded or (_is_nan(present) and _is_nan(recorded)):
        return None
    return f"{where} is {_short(recorded)} in the journal, {_short(present)} now"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
