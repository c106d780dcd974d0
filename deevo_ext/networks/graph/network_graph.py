"""The network graph: fused layers in order, what each reads, and where its weights come from.

A graph is data. Registers are small integers; a layer writes one and says which ones nobody reads
after it. Engines (deevo_ext.networks.engines) turn a layer into code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from deevo_ext.text import text_table

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Activation:
    """A pointwise function behind a layer: relu, relu6's hardtanh, silu, hardswish, gelu, ..."""

    name: str
    scalars: tuple[float, ...] = ()
    approximate: str = "none"  # gelu's

    def __str__(self) -> str:
        if self == Activation("hardtanh", (0.0, 6.0)):
            return "relu6"
        return self.name


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in eval mode, by the names of its tensors (None: absent)."""

    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float


@dataclass(frozen=True)
class Weights:
    """A layer's weight and bias by name, with the norm that is folded into them."""

    weight: str
    bias: str | None
    norm: Norm | None
    shape: Shape

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its tensors, the norm's statistics too."""
        norm = self.norm
        more = () if norm is None else (norm.gamma, norm.beta, norm.mean, norm.variance)
        return tuple(name for name in (self.weight, self.bias, *more) if name is not None)


@dataclass(frozen=True)
class Shortcut:
    """A 1x1 convolution of a second input [N, C, H, W], added to another convolution's sums."""

    weights: Weights
    stride: tuple[int, int]
    in_shape: Shape


@dataclass
class Layer(ABC):
    """A layer of any kind.

    name: of its weights' module, else of the graph's node. reads: registers; writes: one;
    frees: those of `reads` that nobody needs afterwards. shapes and dtype: of what is read
    (first) and written. flops and bytes: of one call, weights included. fused: what it took in.
    """

    name: str
    reads: tuple[int, ...]
    writes: int
    in_shape: Shape
    out_shape: Shape
    dtype: torch.dtype
    flops: int = 0
    bytes: int = 0
    fused: tuple[str, ...] = ()
    frees: tuple[int, ...] = ()
    engine: str = "aten"

    @property
    @abstractmethod
    def operation(self) -> str:
        """The operation as the table names it."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """All that its speed depends on, the key of the engine table."""


@dataclass
class Convolution(Layer):
    """act(conv2d(x, W) + b [+ residual] [+ shortcut]).

    Reads x and, with a residual or a shortcut, of which it has one at most, a second register.
    """

    weights: Weights = field(kw_only=True)
    stride: tuple[int, int] = field(kw_only=True)
    padding: tuple[int, int] = field(kw_only=True)
    dilation: tuple[int, int] = field(kw_only=True)
    groups: int = field(kw_only=True)
    residual: bool = field(default=False, kw_only=True)
    shortcut: Shortcut | None = field(default=None, kw_only=True)
    activation: Activation | None = field(default=None, kw_only=True)

    @property
    def operation(self) -> str:
        kernel = "x".join(map(str, self.weights.shape[2:]))
        stride = "" if self.stride == (1, 1) else f" /{self.stride[0]}"
        depthwise = self.groups == self.weights.shape[0] and self.groups > 1
        groups = f" groups {self.groups}" if self.groups > 1 and not depthwise else ""
        return f"{'depthwise' if depthwise else 'conv'} {kernel}{stride}{groups}"

    @property
    def signature(self) -> str:
        geometry = [self.in_shape, self.weights.shape, self.stride, self.padding, self.dilation]
        sizes = " ".join("x".join(map(str, part)) for part in geometry)
        added = " residual" if self.residual else ""
        if self.shortcut is not None:
            into, stride = self.shortcut.in_shape, self.shortcut.stride
            added = " shortcut " + " ".join("x".join(map(str, part)) for part in (into, stride))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"conv {dtype} {sizes} {self.groups}{added} {self.activation or 'none'}"


@dataclass
class Linear(Layer):
    """act(x W^T + b) on the last dimension."""

    weights: Weights = field(kw_only=True)
    activation: Activation | None = field(default=None, kw_only=True)

    @property
    def operation(self) -> str:
        return "linear"

    @property
    def signature(self) -> str:
        sizes = " ".join("x".join(map(str, part)) for part in (self.in_shape, self.weights.shape))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"linear {dtype} {sizes} {self.activation or 'none'}"


@dataclass
class Aten(Layer):
    """One ATen operator, as exported.

    target: the operator. args, kwargs: with `Register`s and `Parameter`s in the places of tensors.
    in_place: the form that writes into its first input, where nobody needs that any more.
    """

    target: Callable[..., Any] = field(kw_only=True)
    args: tuple[Any, ...] = field(kw_only=True)
    kwargs: dict[str, Any] = field(kw_only=True)
    in_place: Callable[..., Any] | None = field(default=None, kw_only=True)

    @property
    def operation(self) -> str:
        name = getattr(self.target, "overloadpacket", self.target)
        return getattr(name, "__name__", str(name))

    @property
    def signature(self) -> str:
        dtype, shape = str(self.dtype).removeprefix("torch."), "x".join(map(str, self.in_shape))
        return f"{self.operation} {dtype} {shape} {self.args[1:]} {self.kwargs}"

    @property
    def parameters(self) -> list[Parameter]:
        """The model's tensors among its arguments."""
        return _parameters((self.args, self.kwargs))


@dataclass(frozen=True)
class Register:
    """The place of a register's value among an operator's arguments."""

    number: int


@dataclass(frozen=True)
class Parameter:
    """The place of a model's tensor among an operator's arguments.

    precise: in float32 even where the graph computes in 16 bits (statistics of a norm left alone).
    """

    name: str
    precise: bool = False


@dataclass
class NetworkGraph:
    """A network at one input shape.

    layers: run for every micro-batch. prologue: run once for each member, for what depends on its
    weights alone. image: the register of the images; output: that of the logits [N, classes].
    how: what captured the graph.
    """

    layers: list[Layer]
    prologue: list[Layer]
    image: int
    output: int
    registers: int
    image_shape: Shape
    classes: int
    dtype: torch.dtype
    how: str

    @property
    def flops(self) -> int:
        """Operations of one micro-batch; a multiplication and an addition are two."""
        return sum(layer.flops for layer in self.layers)

    def table(self) -> str:
        """Returns a line for each layer: engine, shapes, MFLOP and MB of a micro-batch, fusions."""
        header = ("layer", "operation", "engine", "in", "out", "MFLOP", "MB", "fused with")
        rows = []
        for part, layers in (("member: ", self.prologue), ("", self.layers)):
            for layer in layers:
                rows.append(
                    (
                        part + layer.name,
                        layer.operation,
                        layer.engine,
                        _text(layer.in_shape),
                        _text(layer.out_shape),
                        f"{layer.flops / 1e6:.1f}",
                        f"{layer.bytes / 1e6:.2f}",
                        ", ".join(layer.fused),
                    )
                )
        dtype = str(self.dtype).removeprefix("torch.")
        size = sum(layer.bytes for layer in self.layers)
        return (
            f"{text_table(header, rows, '<')}\n"
            f"{len(self.layers)} layers by {self.how}, {dtype}, {self.flops / 1e9:.2f} GFLOP and "
            f"{size / 1e9:.3f} GB a micro-batch of {self.image_shape[0]}"
        )

    def __str__(self) -> str:
        return self.table()


def owner_of(name: str) -> str:
    """Returns the path of the module that a tensor belongs to; its own name at the root."""
    return name.rpartition(".")[0] or name


def _parameters(value: object) -> list[Parameter]:
    if isinstance(value, Parameter):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [parameter for part in value for parameter in _parameters(part)]
    return []


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def size_of(shape: Shape, dtype: torch.dtype) -> int:
    """Returns the bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize


def two(value: int | Sequence[int]) -> tuple[int, int]:
    """Returns an argument for height and width, which may be one number for both, as a pair."""
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))
