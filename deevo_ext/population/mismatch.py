"""A checkpoint against the model: all that is missing, unexpected or of another shape at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.inventory import Inventory


def require_fit(inventory: Inventory, state: Mapping[str, Tensor], label: str) -> None:
    """Refuses a checkpoint that is not the model's: lists what is missing, unexpected, other.

    Values are not looked at, and of tied names one is enough.
    """
    known = frozenset(inventory.order)
    missing = [
        f"{tensor.name!r} {list(tensor.shape)}"
        for tensor in inventory.tensors
        if tensor.counter is None and not any(name in state for name in tensor.names)
    ]
    unexpected = [f"{n!r} {list(t.shape)}" for n, t in state.items() if n not in known]
    other = [
        (name, tuple(state[name].shape), tensor.shape)
        for tensor in inventory.tensors
        for name in tensor.names
        if tensor.counter is None and name in state and tuple(state[name].shape) != tensor.shape
    ]
    if not (missing or unexpected or other):
        return
    shapes = [f"{name!r} {list(has)}, not {list(wants)}" for name, has, wants in other]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    listed = "; ".join(f"{what}: {_some(names)}" for what, names in parts.items() if names)
    hint = "all members must be of the model's architecture"
    classes = {(has[:1], wants[:1]) for _, has, wants in other if has[1:] == wants[1:]}
    if not (missing or unexpected) and len(classes) == 1 and len(other) <= 2:
        [(has_classes, wants_classes)] = classes
        hint = f"it has {has_classes[0]} classes where the model has {wants_classes[0]}"
    elif missing and unexpected:
        head = inventory.order[0].partition(".")[0]
        if any(f"{head}.{name}" in known for name in state):
            # As torch.compile and DataParallel make names.
            hint = f"the model is in a wrapper that its members are not in: give model.{head}"
        else:
            hint += "; where only names differ, give prefix= (--prefix) or key_map= (--key-map)"
    elif unexpected and not other:
        hint += "; what is no part of it can be left out by ignore= (--ignore)"
    raise DeevoError(f"{label}: does not fit the model; {listed}; {hint}")


def _some(names: Sequence[str]) -> str:
    """Returns up to 8 names, and how many there are besides."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
