"""Checkpoints: from a path to a flat `dict[str, Tensor]` on the CPU, under the model's names.

Training scripts wrap the weights. Where the file's top level is not itself a state dict, the first
of the keys `state_dict`, `model`, `model_state_dict`, `state_dict_ema`, `model_ema` that is present
is taken, in this fixed order: so the raw weights come before their moving average, with a warning
that says which were taken. Else it is the only one that holds tensors and nothing else.
`checkpoint_key` chooses another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deevo_ext.distributed.ranks import warn
from deevo_ext.errors import DeevoError
from deevo_ext.population import pickles
from deevo_ext.population.checkpoint_file import read_wrapped
from deevo_ext.population.finding import PathLike
from deevo_ext.population.matching import Match, NameOptions, match

WEIGHTS_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
"""Keys under which training scripts keep the weights, in order of preference."""


def load_matched(
    path: PathLike,
    expected: Collection[str],
    options: NameOptions,
    *,
    patterns: bool = False,
    mapped: bool = False,
) -> tuple[dict[str, Tensor], Match]:
    """Reads one file; returns its tensors under the model's names, and how names were matched.

    The tensors lie on the CPU and have the file's dtypes. expected, options, patterns: as in
    `matching.match`. mapped: as in `read_wrapped`, for those who ask for shapes alone. Raises
    DeevoError, naming the file, when it cannot be read, or has no state dict where it was looked
    for.
    """
    path = Path(path)
    state, _ = unwrap(read_wrapped(path, mapped=mapped), options.checkpoint_key, path)
    found = match(state, expected, options, str(path), patterns=patterns)
    return found.renamed(state), found


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and _is_array(v) for k, v in value.items())
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    )


def _tensors(value: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns a state dict's tensors without gradients, and NumPy's arrays as tensors."""
    return {
        name: v.detach() if isinstance(v, Tensor) else torch.from_numpy(v)
        for name, v in value.items()
    }


def unwrap(
    value: Any, checkpoint_key: str | None, path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns the state dict inside `value`, what `path` holds, and the keys that lead to it."""
    keys: list[str] = []
    inside: list[int] = []  # what the weights are wrapped in, to notice one that holds itself
    if checkpoint_key is not None:
        if not isinstance(value, Mapping) or checkpoint_key not in value:
            raise DeevoError(
                f"{path}: checkpoint_key {checkpoint_key!r} is absent; {_describe(value)}"
            )
        value = value[checkpoint_key]
        keys.append(checkpoint_key)
    while not _is_state_dict(value):
        if id(value) in inside:
            raise DeevoError(f"{path}: what it holds under {', '.join(keys)} holds itself")
        inside.append(id(value))
        present: list[str] = []
        if isinstance(value, Mapping):
            present = [k for k in WEIGHTS_KEYS if isinstance(value.get(k), Mapping)]
            states = [] if present else [k for k, v in value.items() if _is_state_dict(v)]
            present = present or (states if len(states) == 1 else [])
        key = present[0] if present else None
        if len(present) > 1:
            warn(
                f"checkpoints hold weights as {' and '.join(map(repr, present))}; {key!r} is "
                "taken: name another with checkpoint_key= (--checkpoint-key)",
                stacklevel=2,
            )
        if key is None:
            where = "" if checkpoint_key is None else f" under checkpoint_key {checkpoint_key!r}"
            raise DeevoError(
                f"{path}: no state dict (names to tensors){where}; {_describe(value)}; "
                f"looked for {', '.join(WEIGHTS_KEYS)}: name the right one with checkpoint_key="
            )
        value = value[key]
        keys.append(key)
    return _tensors(value), tuple(keys)


def _describe(value: Any) -> str:
    """Says what a file holds in place of a state dict, for error messages."""
    if isinstance(value, pickles.StandIn):
        return f"it holds a pickled {value.kind}: load it where its code is, save its state_dict()"
    if not isinstance(value, Mapping):
        return f"it holds a {type(value).__name__}"
    if _is_state_dict(value):
        return "it is a state dict itself, so leave checkpoint_key out"
    if tensors := [item for item in value.values() if _is_array(item)]:
        others = {k: v for k, v in value.items() if not _is_array(v)}
        listed = ", ".join(f"{k!r} is a {_kind(v)}" for k, v in list(others.items())[:4])
        return f"beside {len(tensors)} tensors {listed}"
    keys = [f"{key!r} ({_kind(item)})" for key, item in value.items()]
    first = ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
    return f"available keys: {first or 'none'}"


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, pickles.StandIn) else type(value).__name__
