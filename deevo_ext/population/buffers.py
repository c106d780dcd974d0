"""Which of a model's buffers are BatchNorm's, and which are no weights at all."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.spectral_norm import SpectralNorm


def norm_tensors(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names norm layers' running_mean and running_var, and their num_batches_tracked."""
    statistics: set[str] = set()
    counters: set[str] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        buffers = {name for name, _ in module.named_buffers(prefix, recurse=False)}
        pair = {f"{prefix}.{name}".lstrip(".") for name in ("running_mean", "running_var")}
        if pair <= buffers:
            statistics |= pair
            counters |= {
                name for name in buffers if name.rpartition(".")[2] == "num_batches_tracked"
            }
    return statistics, counters


def other_norms(model: nn.Module, statistics: Collection[str]) -> dict[str, str]:
    """Returns the layers of these statistics that are no BatchNorm, and their types, by path.

    Training mode averages the statistics of BatchNorms alone over batches: InstanceNorm's has no
    such average, frozen norms have no training mode, and of norms written by hand nothing is known.
    What torch.jit has made of a norm is refused where it is called.
    """
    known = (_BatchNorm, torch.jit.ScriptModule)
    owners = {name.rpartition(".")[0] for name in statistics}
    return {
        path: type(module).__name__
        for path, module in model.named_modules(remove_duplicate=False)
        if path in owners and not isinstance(module, known)
    }


def kept_buffers(model: nn.Module) -> set[str]:
    """Names buffers that only training writes and that no average of two has the meaning of.

    Spectral norm's u and v, which are unit vectors, and what quantisation observers have seen.
    """
    kept: set[str] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        kinds = {kind.__name__ for kind in type(module).__mro__}
        hooks = [
            hook.name
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, SpectralNorm)
        ]
        for name, _ in module.named_buffers(prefix, recurse=False):
            last = name.rpartition(".")[2]
            spectral = "_SpectralNorm" in kinds and last in ("_u", "_v")
            hooked = any(last in (f"{weight}_u", f"{weight}_v") for weight in hooks)
            if spectral or hooked or kinds & {"ObserverBase", "FakeQuantizeBase"}:
                kept.add(name)
    return kept


def kept_by_name(names: Collection[str]) -> set[str]:
    """Returns those of `kept_buffers` by the names of a state dict alone, as torch gives them."""
    known, kept = frozenset(names), set()
    for name in known:
        prefix, _, last = name.rpartition(".")
        spectral = last in ("_u", "_v") and ".parametrizations." in f".{prefix}."
        hooked = name.endswith(("_u", "_v")) and f"{name[:-2]}_orig" in known
        if spectral or hooked or {f"{prefix}.min_val", f"{prefix}.fake_quant_enabled"} & known:
            kept.add(name)
    return kept
