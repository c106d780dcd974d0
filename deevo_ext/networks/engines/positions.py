"""Convolutions onto small maps on the CPU: matrix products for each position that is written.

y[n, o, p] = sum_t W[o, t] x[n, p + t], and on small maps many taps t lie in the padding: of a 3x3
convolution on a 2x2 map 20 of 36. Here a position's products have only the taps that lie inside the
image. In float32 weights are read where they lie, a product for each row of the kernel, and added
up; in 16 bits a position's taps are copied together once a member, so that its sum is rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.engines.aten import cast_bias
from deevo_ext.networks.engines.base import Bindable, Bound, activate
from deevo_ext.networks.engines.onednn import OneDNN
from deevo_ext.networks.graph.network_graph import Convolution

# More positions mean less padding and more, smaller products: direct convolution is faster there.
_MOST_POSITIONS = 9


@dataclass(frozen=True)
class _Span:
    """Along one axis, an output position's taps inside the image, and the inputs they see."""

    taps: slice
    inputs: slice


def _spans(size: int, written: int, kernel: int, stride: int, padding: int) -> list[_Span]:
    spans = []
    for position in range(written):
        first = position * stride - padding
        taps = slice(max(0, -first), min(kernel, size - first))
        spans.append(_Span(taps, slice(first + taps.start, first + taps.stop)))
    return spans


class Positions:
    """Dense convolutions of CPU tensors onto maps of a few positions."""

    name = "positions"

    def why_not(self, layer: Bindable, device: torch.device) -> str | None:
        """Returns why it cannot compute the layer on the device, or None if it can."""
        if not isinstance(layer, Convolution):
            return "it computes convolutions"
        if layer.groups != 1 or layer.dilation != (1, 1):
            return "it takes neither groups nor dilation"
        if math.prod(layer.out_shape[2:]) > _MOST_POSITIONS:
            return f"the map has more than {_MOST_POSITIONS} positions"
        spans = [self._axis(layer, axis) for axis in (0, 1)]
        if any(span.taps.start >= span.taps.stop for axis in spans for span in axis):
            return "some positions see nothing but padding"
        kernel = layer.weights.shape[2:]
        taps = math.prod(sum(s.taps.stop - s.taps.start for s in axis) for axis in spans)
        if taps == math.prod(kernel) * math.prod(layer.out_shape[2:]):
            return "no taps lie in the padding"
        return OneDNN(packed=False).why_not(layer, device)

    @staticmethod
    def _axis(layer: Convolution, axis: int) -> list[_Span]:
        return _spans(
            layer.in_shape[2 + axis],
            layer.out_shape[2 + axis],
            layer.weights.shape[2 + axis],
            layer.stride[axis],
            layer.padding[axis],
        )

    def bind(self, layer: Bindable) -> Bound:
        """Makes the layer ready to run, by a few products a position."""
        assert isinstance(layer, Convolution)
        rows, columns = self._axis(layer, 0), self._axis(layer, 1)
        places = [
            (i, j, row, column) for i, row in enumerate(rows) for j, column in enumerate(columns)
        ]
        # What is multiplied at once: a kernel row, whose taps are contiguous, or all of them.
        parts = [
            [
                (row_taps, slice(row_taps.start + shift, row_taps.stop + shift), column)
                for row_taps, shift in _cut(row, layer.dtype == torch.float32)
            ]
            for _, _, row, column in places
        ]
        act = activate(layer.activation)
        shape = (layer.out_shape[0], *layer.out_shape[2:], layer.out_shape[1])

        def prepare(weight: Tensor, bias: Tensor | None) -> Any:
            weight, bias = cast_bias(weight, bias)
            if bias is None:
                bias = weight.new_zeros(weight.shape[0])
            taps = weight.permute(0, 2, 3, 1)
            return bias, [
                [taps[:, row, column.taps].flatten(1).t() for row, _, column in part]
                for part in parts
            ]

        def run(prepared: Any, x: Tensor, residual: Tensor | None) -> Tensor:
            bias, weights = prepared
            pixels = x.permute(0, 2, 3, 1)
            y = x.new_empty(shape)
            for (i, j, _, _), part, matrices in zip(places, parts, weights, strict=True):
                out, add = y[:, i, j], bias
                for (_, row, column), matrix in zip(part, matrices, strict=True):
                    torch.addmm(add, pixels[:, row, column.inputs].flatten(1), matrix, out=out)
                    add = out
            result = y.permute(0, 3, 1, 2)
            if residual is not None:
                result.add_(residual)
            return result if act is None else act(result)

        return Bound(prepare, run)


def _cut(row: _Span, each: bool) -> list[tuple[slice, int]]:
    """The taps of a span, one by one or together, and how far their inputs lie from them."""
    shift = row.inputs.start - row.taps.start
    if not each:
        return [(row.taps, shift)]
    return [(slice(tap, tap + 1), shift) for tap in range(row.taps.start, row.taps.stop)]
