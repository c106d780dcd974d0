"""Where two headers of runs differ first, in words."""

from __future__ import annotations

import math
from typing import Any


def first_difference(present: Any, recorded: Any, where: str = "") -> str | None:
    """Says where two JSON values differ first, as "a.b: x, not y"; None when they are equal."""
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(present, dict) and isinstance(recorded, dict):
        if present != recorded and _is_function(present, recorded):
            return (
                f"{where} is {present['function']}, whose code or version is another than in the "
                "journal (where a function has an attribute `version`, that tells it, not its code)"
            )
        # The layout's hash comes last: it follows from the rest, which says more.
        for key in sorted(present.keys() | recorded.keys(), key=lambda key: (key == "layout", key)):
            name = f"{where}.{key}" if where else key
            if key not in present or key not in recorded:
                return f"{name} is only in the {'journal' if key in recorded else 'present run'}"
            parts.append((name, present[key], recorded[key]))
    elif isinstance(present, list) and isinstance(recorded, list):
        if len(present) != len(recorded):
            return f"{where} has {len(recorded)} entries in the journal, {len(present)} now"
        for i, (a, b) in enumerate(zip(present, recorded, strict=True)):
            parts.append((f"{where}[{i}]", a, b))
    elif present != recorded and not (_is_nan(present) and _is_nan(recorded)):
        return f"{where} is {_short(recorded)} in the journal, {_short(present)} now"
    differences = (first_difference(a, b, name) for name, a, b in parts)
    return next(filter(None, differences), None)


def _is_function(present: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """Whether both are identities (`deevo_ext.identity`) of functions of one name."""
    known = present.keys() | recorded.keys() <= {"function", "sha256", "version"}
    return known and present.get("function", 0) == recorded.get("function", 1)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
