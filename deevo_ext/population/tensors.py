"""What one tensor of a checkpoint must be: present, of its shape and kind of dtype, finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from deevo_ext.errors import DeevoError

PLAIN = (
    "are no plain tensors; expected dense ones: save full_tensor() of DTensors, to_dense() of "
    "sparse and dequantize() of quantised tensors"
)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """Returns the dtype of a name such as "float32"; raises DeevoError for an unknown name."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise DeevoError(f"{name!r} is not the name of a torch dtype")
    return dtype


def wider(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """Returns a dtype that holds the values of both."""
    if a == b:
        return a
    try:
        return torch.promote_types(a, b)
    except RuntimeError:  # float8 has no promotion
        return torch.float32


def converted(tensors: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """Returns the tensors on the device of `like`, those of a floating dtype in its dtype.

    What is one object under several names stays one, as functional_call asks for tied weights.
    """
    once: dict[int, Tensor] = {}
    for tensor in tensors.values():
        dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
        once.setdefault(id(tensor), tensor.to(like.device, dtype))
    return {name: once[id(tensor)] for name, tensor in tensors.items()}


def pick(
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    shape: Iterable[int],
    source: str,
    *,
    floating: bool = True,
) -> Tensor:
    """Returns the tensor of `tensors` under the first of its tied `names` that is present.

    Raises DeevoError, naming `source`, when `check_kind` does, or the values under the tied names
    differ.
    """
    present = check_kind(tensors, names, shape, source, floating=floating)
    first = tensors[present[0]]
    for name in present[1:]:
        if not torch.equal(first, tensors[name]):
            raise DeevoError(
                f"{source}: tensors {present[0]!r} and {name!r} are tied in the model but hold "
                "different values; untie them in the model or repair the checkpoint"
            )
    return first


def check_kind(
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    shape: Iterable[int],
    source: str,
    *,
    floating: bool = True,
) -> list[str]:
    """Returns those of a tensor's tied `names` that are present; values are not looked at.

    Raises DeevoError, naming `source`, when none is present, or a tensor is not a dense one of this
    shape and kind of dtype.
    """
    present = [name for name in names if name in tensors]
    expected = list(shape)
    if not present:
        raise DeevoError(f"{source}: tensor {names[0]!r} of shape {expected} is missing")
    for name in present:
        tensor = tensors[name]
        if list(tensor.shape) != expected:
            raise DeevoError(
                f"{source}: tensor {name!r} has shape {list(tensor.shape)}, expected {expected}; "
                "all members must be of the model's architecture"
            )
        dense = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
        if not dense or is_traceable_wrapper_subclass(tensor):
            raise DeevoError(f"{source}: {name!r} and its like {PLAIN}")
        if tensor.is_floating_point() != floating:
            raise DeevoError(
                f"{source}: tensor {name!r} has dtype {dtype_name(tensor.dtype)}, expected "
                f"{'a floating-point' if floating else 'an integer or bool'} dtype; save the "
                "weights in the model's dtypes"
            )
    return present


def check_finite(tensor: Tensor, name: str, source: str) -> None:
    """Refuses a tensor with an infinity or NaN."""
    bad = int(tensor.numel() - torch.isfinite(tensor).sum())
    if bad:
        raise DeevoError(
            f"{source}: tensor {name!r} has {bad} of {tensor.numel()} values that are not finite "
            f"as {dtype_name(tensor.dtype)}; leave this checkpoint out, or if the tensor is a "
            "constant buffer (an attention mask) keep it out of the rows with frozen= (--frozen)"
        )


def check_nonnegative(tensor: Tensor, name: str, source: str) -> None:
    """Refuses a tensor with a negative value."""
    bad = int((tensor < 0).sum())
    if bad:
        raise DeevoError(
            f"{source}: tensor {name!r} has {bad} of {tensor.numel()} negative values, expected "
            "variances >= 0; leave this checkpoint out or recompute its BatchNorm statistics"
        )
