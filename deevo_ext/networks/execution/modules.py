"""A user's module as it is called: on images as it takes them, for logits or what holds them."""

from __future__ import annotations

import contextlib
import copy
import itertools
import queue
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deevo_ext.errors import DeevoError

# Largest deviation of logits between memory formats, relative to the largest logit: more than
# rounding to 16 bits explains; a module that reads memory as it lies is off by the order of 1.
_FORMATS = 0.1


class Modules:
    """Copies of a module that share its tensors, since functional_call swaps tensors in and out."""

    def __init__(self, model: nn.Module, count: int) -> None:
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self._idle: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(copy.deepcopy(model, dict(shared)))
        self._formats: dict[torch.Size, torch.memory_format] = {}

    @contextlib.contextmanager
    def take(self, images: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """A module that nobody else uses until the with-block ends, and a copy of images for it.

        It may write to the copy, which has the images' memory format, whatever that is, unless the
        module does not take channels-last ones.
        """
        module, shape = self._idle.get(), images.shape[1:]
        try:
            if shape not in self._formats:
                self._formats[shape] = memory_format_of(module, images)
            fits = self._formats[shape] == torch.channels_last
            yield module, images.clone() if fits else contiguous(images)
        finally:
            self._idle.put(module)


def copy_of(model: nn.Module) -> nn.Module:
    """Returns a copy of a user's model; DeevoError where torch refuses to copy it."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise DeevoError(
                f"model is a {type(model).__name__} whose {name!r} is on the meta device, which "
                "keeps no values; a population is made with that, networks are evaluated with a "
                "model on a real device: make it without torch.device('meta')"
            )
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        if "deepcopy" not in str(error):
            raise
        raise DeevoError(
            f"model is a {type(model).__name__} that cannot be copied ({str(error).split('.')[0]}):"
            " it keeps tensors computed from its parameters. Instead of torch.nn.utils.weight_norm "
            "or spectral_norm use those of torch.nn.utils.parametrizations, or take it off first "
            "(torch.nn.utils.remove_weight_norm); detach other such tensors"
        ) from error


def call(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    arguments: tuple[Any, ...],
    named: dict[str, Any] | None = None,
    *,
    by: Callable[..., Any] = functional_call,
) -> Any:
    """Returns module(*arguments, **named), computed with other tensors; by: functional_call.

    tensors: by name, tied ones under all of their names. A submodule that has several names gets
    its tensors under the first: functional_call would put those of the others back in their place.
    """
    names = [
        name
        for prefix, part in module.named_modules()
        for members in (part.named_parameters, part.named_buffers)
        for name, _ in members(prefix, recurse=False, remove_duplicate=False)
    ]
    own = {name: tensors[name] for name in names if name in tensors}
    return by(module, own, arguments, named, tie_weights=False)


@torch.no_grad()
def memory_format_of(module: nn.Module, images: Tensor) -> torch.memory_format:
    """Returns the memory format of images [n, C, H, W] that suits a module in eval mode.

    Channels-last, in which convolutions are up to twice as fast, where it gives the same logits as
    contiguous ones; not where it calls `view` on features, say. The module is run on two images.
    """
    some = images[:2]
    try:
        found = logits_of(module, some.clone(memory_format=torch.channels_last), "images")
    except DeevoError:
        return torch.contiguous_format
    expected = logits_of(module, contiguous(some), "images").nan_to_num()
    apart = (found.nan_to_num() - expected).abs().max()
    same = bool(apart <= _FORMATS * expected.abs().max())
    return torch.channels_last if same else torch.contiguous_format


def contiguous(images: Tensor) -> Tensor:
    """Returns a copy of images [n, C, H, W] that is contiguous, also in its strides.

    Those of one channel may be contiguous and still channels-last by their strides, which
    `Tensor.contiguous` leaves and convolutions follow.
    """
    return images.clone(memory_format=torch.contiguous_format)


def logits_of(run: Callable[[Tensor], Any], images: Tensor, name: str) -> Tensor:
    """Returns run(images) for images called `name`; DeevoError where it gives no logits.

    Of an output with `logits`, as an attribute or a key, these are taken; float64 is rounded to
    float32.
    """
    try:
        logits = run(images)
        if isinstance(logits, Mapping):
            logits = logits.get("logits", logits)
        elif not isinstance(logits, Tensor):
            logits = getattr(logits, "logits", logits)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = tuple(images.shape[1:])
        raise DeevoError(f"the model failed on {name} of shape {shape}: {error}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DeevoError(f"the model returned {what}; expected logits [N, classes]")
    if not logits.is_floating_point():
        raise DeevoError(
            f"the model returned {logits.dtype} {tuple(logits.shape)}; expected logits of a "
            "floating-point dtype, not classes that are decided on or complex numbers"
        )
    return logits.float() if logits.dtype == torch.float64 else logits
