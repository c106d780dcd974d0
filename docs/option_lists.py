"""For the API reference: docstrings' lines "name: what it is." become items of a list."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe

_NAMES = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): ")


class OptionLists(griffe.Extension):
    """Changes paragraphs in which each line begins with names, or goes on indented."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites an object's docstring."""
        if obj.docstring is not None:
            paragraphs = _said(obj, obj.docstring.value).split("\n\n")
            obj.docstring.value = "\n\n".join(as_list(one) for one in paragraphs)


def _said(obj: griffe.Object, written: str) -> str:
    """Returns the docstring, with the lines that `documented` adds when the module is imported."""
    decorators = getattr(obj, "decorators", ())
    if not any(each.callable_path.endswith(".documented") for each in decorators):
        return written
    return inspect.getdoc(getattr(importlib.import_module(obj.module.path), obj.name)) or written


def as_list(paragraph: str) -> str:
    """Returns the paragraph as a list where it is one, else as it is."""
    lines = paragraph.splitlines()
    begins = [line for line in lines if not line.startswith("    ")]
    if not begins or lines[0] != begins[0] or not all(map(_NAMES.match, begins)):
        return paragraph
    return "\n".join(_NAMES.sub(r"- `\1`: ", line, count=1) for line in lines)
