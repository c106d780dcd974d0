"""Optional packages, imported when used."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from deevo_ext.errors import DeevoError


def import_extra(module: str, extra: str = "imagenet") -> Any:
    """Imports a module of a package that the extra brings, such as torchvision or matplotlib.

    Raises DeevoError, with the remedy, where the package is not installed, and where its operators
    were built for another torch.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DeevoError(
            f'{package} is not installed ({error}): pip install "deevo_ext[{extra}]"'
        ) from error
    except RuntimeError as error:
        raise DeevoError(
            f"{package} cannot be imported beside torch {torch.__version__} ({error}); install the "
            "pair that constraints.txt names, from one index"
        ) from error
