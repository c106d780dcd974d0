"""A second device where there is no GPU: torch's meta device, made readable.

Like a GPU's, its tensors cannot be combined with the host's. Nothing is computed: what is read of
them is 1, or True, and how often something is read is counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.fx.experimental._config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deevo_ext import arguments, backends
from deevo_ext.networks.build import Builder, Built
from deevo_ext.networks.execution import feed, prefixes
from deevo_ext.ops.checks import Checker
from deevo_ext.population import reading
from deevo_ext.population.layout import Layout

DEVICE = torch.device("meta")


class Reads:
    """How often the host has read the device, each time waiting for it."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, tensor: Tensor) -> Tensor:
        """Returns a tensor of the device as one of the host."""
        self.count += 1
        return torch.ones(tensor.shape, dtype=tensor.dtype)


class _Apart(TorchDispatchMode):
    """Refuses what a GPU refuses: operators whose tensors lie on several devices.

    Copies take both, index tensors may be the host's, and its single numbers go anywhere.
    """

    _MAY = ("aten::copy_", "aten::_to_copy", "aten::index.", "aten::index_put")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name()
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        if not name.startswith(self._MAY) or tensors[0].device != DEVICE:
            there = {t.device for t in tensors if t.ndim or t.device == DEVICE}
            if len(there) > 1 and not name.startswith(self._MAY[:2]):
                raise RuntimeError(f"{name} of tensors on several devices")
        return func(*args, **(kwargs or {}))


class _Operators:
    """A backend of the device, which computes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            tensors = [a for a in arguments if isinstance(a, Tensor)]
            if any(tensor.device != DEVICE for tensor in tensors):
                raise RuntimeError(f"deevo::{name} of tensors on several devices")

        return run


@contextlib.contextmanager
def second_device() -> Iterator[Reads]:
    """Lets networks and populations be on the device within the with-block."""
    reads, patch = Reads(), pytest.MonkeyPatch()
    to, copy_, equal, select = Tensor.to, Tensor.copy_, torch.equal, backends.select

    def readable(name: str) -> Callable[..., Any]:
        given = getattr(Tensor, name)

        def read(self: Tensor, *arguments: Any, **options: Any) -> Any:
            return given(reads.of(self) if self.device == DEVICE else self, *arguments, **options)

        return read

    def moved(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        target = options.get("device", arguments[0] if arguments else None)
        if isinstance(target, Tensor):
            target = target.device
        if isinstance(target, (str, torch.device)):
            there = torch.device(target)
            self = reads.of(self) if self.device == DEVICE != there else self
        return to(self, *arguments, **options)

    def copied(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        stays = self.device == DEVICE or source.device != DEVICE
        return copy_(self, source if stays else reads.of(source))

    def same(a: Tensor, b: Tensor) -> bool:
        if a.device != b.device:
            raise RuntimeError(f"torch.equal of tensors on {a.device} and {b.device}")
        return bool(reads.of(a).numel() >= 0) if a.device == DEVICE else equal(a, b)

    def selected(device: torch.device, operator: str) -> Any:
        return _Operators() if device == DEVICE else select(device, operator)

    def unchecked(builder: Builder, built: Built, *_: Any) -> Built:
        return replace(built, checked=True)

    try:
        for name in ("tolist", "item", "cpu", "__bool__", "__int__", "__float__"):
            patch.setattr(Tensor, name, readable(name))
        patch.setattr(Tensor, "to", moved)
        patch.setattr(Tensor, "copy_", copied)
        patch.setattr(torch, "equal", same)
        config = torch.fx.experimental._config
        patch.setattr(config, "meta_nonzero_assume_all_nonzero", True, raising=False)
        patch.setattr(backends, "select", selected)
        patch.setitem(feed.SLICE_BYTES, "meta", 1 << 20)
        patch.setitem(prefixes.KEPT_BYTES, "meta", 1 << 20)
        # What looks at values would find all of them equal, and memory would overlap.
        patch.setattr(Builder, "check", unchecked)
        patch.setattr(arguments, "_is_device", lambda _: True)  # it refuses meta
        patch.setattr(Checker, "disjoint", lambda *_: None)
        patch.setattr(reading, "_check_duplicates", lambda *_: None)
        patch.setattr(Layout, "check_values", lambda *_, **__: None)
        with _Apart():
            yield reads
    finally:
        patch.undo()
