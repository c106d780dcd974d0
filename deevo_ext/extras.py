"""Optional packages and users' own modules, imported when used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from deevo_ext.errors import DeevoError

_BOXES = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # a library's operators go with it


def import_extra(module: str, extra: str = "imagenet") -> Any:
    """Imports a module of a package that the extra brings, such as torchvision or matplotlib.

    Raises DeevoError, with the remedy, where the package is not installed, and where it was built
    for another torch and cannot do without what depends on that.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        raise DeevoError(
            f'{package} is not installed ({error}): pip install "deevo_ext[{extra}]"'
        ) from error
    except RuntimeError as error:
        raise DeevoError(
            f"{package} cannot be imported beside torch {torch.__version__} ({error}): pip install "
            f"torch torchvision --index-url {torch_index()} brings a pair of one build"
        ) from error


def import_module(name: str) -> Any:
    """Imports a module, as `importlib.import_module`, and torchvision beside any torch.

    Where torchvision is older than torch or built for another one, such as PyPI's wheel beside a
    torch without CUDA, it cannot load its operators, and registers for two of them all the same.
    These are declared then, without an implementation: they thin out the boxes of detectors, and
    no classifier, transform or metric here calls them.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if _declared or "operator torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _BOXES:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module(name)


def import_named(name: str, argument: str) -> Callable[..., Any]:
    """Imports the function that "package.module:name" names, for an argument that is this text.

    Modules in the current folder are found, too, before installed ones, as `python -m` finds them.
    """
    module, _, attribute = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    wrong = f"{argument} is {name!r}, which cannot be had"
    how = "expected package.module:name, importable from here"
    try:
        imported = import_module(module)
    except (Exception, SystemExit) as error:  # it is somebody's own code
        what = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise DeevoError(f"{wrong}: cannot import {module} ({what}); {how}") from error
    function = getattr(imported, attribute, None)
    if not callable(function):
        raise DeevoError(f"{wrong}: {module} has no function {attribute}; {how}")
    return function


def torch_index() -> str:
    """Returns the index of packages that were built as the torch that runs here."""
    cuda = torch.version.cuda
    build = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    return f"https://download.pytorch.org/whl/{build}"
