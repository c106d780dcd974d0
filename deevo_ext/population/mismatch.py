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
    elif wrapper := _wrapper(inventory, state):
        hint = f"the model is in a wrapper that its members are not in: give {wrapper}"
    elif missing and unexpected:
        head = inventory.order[0].partition(".")[0]
        if any(f"{head}.{name}" in known for name in state):
            hint = (
                f"the model's names begin with {head!r}, as torch.compile and DataParallel make "
                f"them, and the file's do not: give the network itself, model.{head}"
            )
        else:
            hint += "; where only names differ, give prefix= (--prefix) or key_map= (--key-map)"
    elif unexpected and not other:
        hint += "; what is no part of it can be left out by ignore= (--ignore)"
    raise DeevoError(f"{label}: does not fit the model; {listed}; {hint}")


def _wrapper(inventory: Inventory, state: Mapping[str, Tensor]) -> str | None:
    """Returns what to take the model out of, where its names then are the state's."""
    for attribute in ("module", "_orig_mod"):  # DataParallel's, torch.compile's
        names = [name.removeprefix(f"{attribute}.") for name in inventory.order]
        counted = [name for name in names if not name.endswith("num_batches_tracked")]
        if names != list(inventory.order) and state.keys() >= set(counted):
            return f"model.{attribute}"
    return None


def _some(names: Sequence[str]) -> str:
    """Returns up to 8 names, and how many there are besides."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
