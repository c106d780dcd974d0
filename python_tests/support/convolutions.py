"""Layers for the Triton engine: random operands, and the result in float64 with its error bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from deevo_ext.backends.triton.convolution import Operands, Operation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Rounding of a result to its type: relative, and absolute below the least normal number.
ROUNDING = {
    torch.float32: (2.0**-24, 2.0**-150),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.bfloat16: (2.0**-8, 2.0**-134),
}


@dataclass(frozen=True)
class Layer:
    """A convolution of `members` networks on `samples` images of size x (size + 1)."""

    channels: int = 16
    out: int = 16
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    size: int = 6
    samples: int = 2
    members: int = 2
    shared: bool = False
    residual: bool = False
    activation: str = "none"
    downsample: int = 0  # channels of the shortcut's input, whose stride is `stride`

    @property
    def operation(self) -> Operation:
        return Operation(
            (self.stride, self.stride),
            (self.padding, self.padding),
            (self.dilation, self.dilation),
            self.activation,
        )

    def operands(self, dtype: torch.dtype, seed: int = 0) -> Operands:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(shape, generator=draw) * scale).to(dtype).to(DEVICE)

        height, width = self.size, self.size + 1
        scale = (self.channels * self.kernel**2) ** -0.5
        x = normal(1 if self.shared else self.members, self.samples, height, width, self.channels)
        of_weight = (self.members, self.out, self.kernel, self.kernel, self.channels)
        weight = normal(*of_weight, scale=scale)
        bias = normal(self.members, self.out).float()
        reach = self.dilation * (self.kernel - 1)
        outside = [(s + 2 * self.padding - reach - 1) // self.stride + 1 for s in (height, width)]
        shape = (self.members, self.samples, *outside, self.out)
        downsample = None
        if self.downsample:
            x2 = normal(self.members, self.samples, height, width, self.downsample)
            weight2 = normal(self.members, self.out, 1, 1, self.downsample, scale=scale)
            downsample = (x2, weight2, (self.stride, self.stride))
        out = torch.full(shape, 7.0, dtype=dtype, device=DEVICE)
        residual = normal(*shape) if self.residual else None
        return Operands(x, weight, bias, out, residual, downsample)

    def expected(self, o: Operands) -> tuple[torch.Tensor, torch.Tensor]:
        """Result in float64 and what float32 sums, then one rounding, may differ from it."""

        def total(magnitudes: bool) -> torch.Tensor:
            def wide(t: torch.Tensor) -> torch.Tensor:
                return t.double().abs() if magnitudes else t.double()

            outs = []
            for k in range(self.members):
                x = wide(o.x[0 if self.shared else k]).permute(0, 3, 1, 2)
                w = wide(o.weight[k]).permute(0, 3, 1, 2)
                geometry = (self.stride, self.padding, self.dilation)
                z = functional.conv2d(x, w, wide(o.bias[k]), *geometry)
                if o.downsample:
                    x2, w2, stride = o.downsample
                    a = wide(x2[k]).permute(0, 3, 1, 2)
                    z = z + functional.conv2d(a, wide(w2[k]).permute(0, 3, 1, 2), None, stride)
                z = z.permute(0, 2, 3, 1)
                outs.append(z if o.residual is None else z + wide(o.residual[k]))
            return torch.stack(outs)

        exact, magnitude = total(False), total(True)
        if self.activation == "relu":
            exact = exact.clamp(min=0.0)
        terms = self.channels * self.kernel**2 + self.downsample + 3
        relative, absolute = ROUNDING[o.out.dtype]
        bound = magnitude * terms * 2.0**-24
        return exact, bound + (exact.abs() + bound) * relative + absolute
