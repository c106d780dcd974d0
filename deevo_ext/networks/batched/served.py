"""Which exported layers our kernels take: pools, slices and pads, on [K, N, H, W, C]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deevo_ext.backends.windows import Window
from deevo_ext.errors import DeevoError
from deevo_ext.networks.graph.network_graph import Aten, Layer

aten = torch.ops.aten

_PLACE = (1, 4, 2, 3)  # of N, C, H and W among K, N, H, W, C


class NotServed(Exception):
    """Why our kernels do not take a layer (None: the one that was asked about)."""

    def __init__(self, reason: str, layer: Layer | None = None) -> None:
        super().__init__(reason)
        self.layer = layer


def served(layer: Layer, ask: Callable[[], Any]) -> Any:
    """What `ask` returns about a layer; DeevoError in place of its NotServed."""
    try:
        return ask()
    except NotServed as error:
        raise refusal(error.layer or layer, str(error)) from None


def refusal(layer: Layer, reason: str) -> DeevoError:
    """The error that names a layer which no kernel of ours takes."""
    return DeevoError(
        f'engine="triton" cannot compute layer {layer.name} ({layer.operation}): {reason}; use '
        'engine="auto", which takes another engine there'
    )


def pool(layer: Aten) -> Window:
    """What a max_pool2d or avg_pool2d does. Raises NotServed for others and other options."""
    options = _arguments(layer)
    if layer.target is aten.max_pool2d.default:
        if _two(options.get("dilation", 1)) != (1, 1):
            raise NotServed("our pool has no dilation")
    elif layer.target is aten.avg_pool2d.default:
        if options.get("divisor_override") is not None:
            raise NotServed("our pool divides by the size of the window")
    else:
        raise NotServed("we have no kernel for it")
    if options.get("ceil_mode", False):
        raise NotServed("our pool has no ceil_mode")
    kernel = _two(options["kernel_size"])
    return Window(
        layer.target is aten.max_pool2d.default,
        kernel,
        _two(options["stride"]) if options.get("stride") else kernel,
        _two(options.get("padding", 0)),
        bool(options.get("count_include_pad", True)),
    )


def movement(layer: Aten) -> Callable[[Tensor], Tensor] | None:
    """A slice, or zeros around, as ResNets' parameterless shortcuts have; None if it is neither."""
    options = _arguments(layer)
    if layer.target is aten.slice.Tensor:
        place = _PLACE[options.get("dim", 0) % 4]
        if place == 1:
            raise NotServed("it slices the batch")
        cut: list[slice] = [slice(None)] * 5
        cut[place] = slice(options.get("start"), options.get("end"), options.get("step", 1))
        return lambda x: x[tuple(cut)].contiguous()
    if layer.target in (aten.pad.default, aten.constant_pad_nd.default):
        zeros = options.get("mode", "constant") == "constant" and not options.get("value")
        width: list[int] = [*options["pad"], *[0] * 8][:8]  # of W, H, C, N
        if not zeros or width[6:] != [0, 0]:
            raise NotServed("of pads it takes zeros around positions and channels")
        amounts = [*width[4:6], *width[:4]]  # of C, W, H
        return lambda x: torch.nn.functional.pad(x, amounts).contiguous()
    return None


def is_global_mean(layer: Aten) -> bool:
    """Whether it is the mean over all positions of [N, C, H, W]."""
    if len(layer.in_shape) != 4:
        return False
    options, whole = _arguments(layer), tuple(layer.in_shape[2:])
    if layer.target is aten.adaptive_avg_pool2d.default:
        return tuple(layer.out_shape[2:]) == (1, 1)
    if layer.target is aten.mean.dim:
        return {d % 4 for d in options.get("dim") or ()} == {2, 3}
    if layer.target is aten.avg_pool2d.default:
        try:
            window = pool(layer)
        except NotServed:
            return False
        return window.kernel == whole and window.padding == (0, 0)
    return False


def is_flattening(layer: Aten) -> bool:
    """Whether it gives [N, C, 1, 1] or [N, C] another shape, or nothing new."""
    if layer.target is aten.dropout.default:
        return not _arguments(layer).get("train", True)
    reshapes = (aten.reshape.default, aten.view.default, aten.flatten.using_ints)
    more = (aten.squeeze.dim, aten.squeeze.dims)
    return layer.target in reshapes + more and set(layer.in_shape[2:]) <= {1}


def _arguments(layer: Aten) -> dict[str, Any]:
    """Arguments by their names in the operator's schema."""
    schema: Any = getattr(layer.target, "_schema", None)
    if schema is None:
        return dict(layer.kwargs)
    names = [argument.name for argument in schema.arguments]
    return {**dict(zip(names, layer.args, strict=False)), **layer.kwargs}


def _two(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))
