"""A plan for K members at once on our own kernels: `engine="triton"`.

Rows of a chunk of members are folded together; activations are [K, N, H, W, C], images [1, N, H, W,
C] are shared, and each launch has the members on an axis of its grid. The last layers are one
operator that gives losses and ranks; logits are stored for inspection only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.inference.engines import ENGINES
from deevo_ext.inference.engines.triton import padded
from deevo_ext.inference.layouts import Geometry, movement, pool, refusal, served
from deevo_ext.inference.plan import Aten, Convolution, Layer, Plan, size_of
from deevo_ext.inference.tails import merged_shortcuts, tail_of
from deevo_ext.inference.weights import Stager

# Activations and folded weights of the members of a chunk together; one member may need more.
CHUNK_BYTES = 2 << 30
_ONE_AT_A_TIME = threading.Lock()  # Triton's interpreter serves one thread only
_LARGEST_GRID = 65535  # of CUDA's second grid axis, on which members are

Weights = tuple[Tensor, Tensor, Tensor | None]
"""A convolution's [K, Co, kh, kw, C], the bias [K, Co], and its shortcut's [K, Co, 1, 1, C2]."""
Run = Callable[[list[Any], Any, int], Tensor]


@dataclass
class Prepared:
    """Folded weights of some members, by layer, and those of the classifier [K, classes, C]."""

    members: int
    layers: dict[int, Weights]
    classifier: tuple[Tensor, Tensor]


@dataclass
class _Step:
    """A launch: layers[index] of the plan, with the shortcut's layer if it is computed inside."""

    index: int
    layer: Layer
    reads: tuple[int, ...]
    writes: int
    out_shape: tuple[int, ...]
    shortcut: int | None = None
    run: Run | None = None
    frees: tuple[int, ...] = ()


class MembersProgram:
    """Runs a plan for up to `chunk` members at a time.

    make_stager(padded): the stager of the plan, given input channels to pad to by layer.
    tf32: form products of float32 in tf32. Raises DeevoError for a layer that no kernel of ours
    takes.

    chunk: as many members as CHUNK_BYTES hold, each with its folded weights and the most that is
    alive at a time of its activations of one micro-batch; at least one. It decides tile sizes too,
    so that a member's bits depend on the plan alone and not on how many members a call has.
    """

    def __init__(
        self,
        plan: Plan,
        make_stager: Callable[[dict[int, int]], Stager],
        device: torch.device,
        *,
        tf32: bool,
    ) -> None:
        self.plan, self.device, self.tf32 = plan, device, tf32
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise DeevoError(f'engine="triton" needs Triton, which is not here: {error}') from None
        if plan.prologue:
            raise refusal(plan.prologue[0], "it computes weights from weights")
        for layer in plan.layers:
            reason = None
            if isinstance(layer, Convolution):
                reason = ENGINES["triton"].why_not(layer, device)
            if reason is not None:
                raise refusal(layer, reason)
        self.tail = served(plan.layers[-1], lambda: tail_of(plan))
        self._steps = self._schedule()
        self._padded = {
            index: padded(layer.in_shape[1])
            for index, layer in enumerate(plan.layers)
            if isinstance(layer, Convolution) and layer.reads[0] == plan.image
        }
        plan.layers[self.tail.classifier].dtype = plan.dtype  # the head's; its logits are float32
        self.stager = make_stager(self._padded)
        each = self._live_bytes() + self.stager.staged_bytes
        self.chunk = max(1, min(_LARGEST_GRID, CHUNK_BYTES // each))
        for step in self._steps:
            step.run = self._bind(step)

    # What runs

    def images(self, batch: Tensor) -> Tensor:
        """Images [N, C, H, W] as [1, N, H, W, C'], channels padded by zeros."""
        nhwc = batch.permute(0, 2, 3, 1)
        more = padded(batch.shape[1]) - batch.shape[1]
        return torch.nn.functional.pad(nhwc, (0, more)).contiguous()[None]

    def prepare_members(self, rows: Tensor, statistics: Tensor | None) -> Prepared:
        """Folds rows [K, D] with statistics [K, S]; the rows must outlive the result."""
        members = rows.shape[0]
        staged = self.stager.stage_members(rows, statistics)

        def bias_of(index: int) -> Tensor:
            weight, bias = staged[index]
            return torch.zeros(weight.shape[:2], device=self.device) if bias is None else bias

        layers: dict[int, Weights] = {}
        for step in self._steps:
            if isinstance(step.layer, Convolution):
                weight, bias, second = staged[step.index][0], bias_of(step.index), None
                if step.shortcut is not None:
                    second = staged[step.shortcut][0]
                    bias = bias + bias_of(step.shortcut)
                layers[step.index] = (weight, bias, second)
        last = self.tail.classifier
        # Rows hold both between each other, and the head wants memory that does not overlap.
        classifier = (_apart(staged[last][0]), bias_of(last).contiguous())
        return Prepared(members, layers, classifier)

    def features(self, prepared: Prepared, images: Tensor) -> Tensor:
        """The classifier's input before its pool [K, N, H, W, C]; images as `images` gives them."""
        registers: list[Any] = [None] * self.plan.registers
        registers[self.plan.image] = images
        with _ONE_AT_A_TIME:
            for step in self._steps:
                assert step.run is not None
                registers[step.writes] = step.run(registers, prepared, prepared.members)
                for number in step.frees:
                    registers[number] = None
        return registers[self.tail.features]

    def score(
        self,
        prepared: Prepared,
        images: Tensor,
        labels: Tensor,
        smoothing: float,
        losses: Tensor,
        ranks: Tensor,
    ) -> None:
        """Losses and ranks [K, n] of the first n images, as labels int64 [n] says."""
        features = self.features(prepared, images).flatten(2, 3)[:, : labels.numel()]
        torch.ops.deevo.head(features, *prepared.classifier, labels, smoothing, losses, ranks)

    def prepare(self, row: Tensor, statistics: Tensor | None) -> Prepared:
        """One member's weights."""
        return self.prepare_members(row[None], None if statistics is None else statistics[None])

    def run(self, prepared: Prepared, images: Tensor) -> Tensor:
        """One member's logits float32 [N, classes], for inspection: the product is ATen's."""
        from deevo_ext.backends.triton.mean import mean

        features = self.features(prepared, self.images(images))
        pooled = torch.empty((*features.shape[:2], features.shape[4]), device=self.device)
        with _ONE_AT_A_TIME:
            mean(features.flatten(2, 3), pooled)
        weight, bias = prepared.classifier
        return torch.baddbmm(bias[:, None], pooled, weight.float().mT)[0]

    # How it is made

    def _schedule(self) -> list[_Step]:
        """Layers in order, shortcuts merged; says in the plan where each is computed."""
        plan, layers = self.plan, self.plan.layers
        pairs = merged_shortcuts(plan)
        inside = {first for pair in pairs.values() for first in pair} - set(pairs)
        steps = []
        for index, layer in enumerate(layers):
            if index in self.tail.inside or index == self.tail.classifier:
                layer.engine = f"in {layers[self.tail.classifier].name}"
                continue
            if not isinstance(layer, (Convolution, Aten)):
                raise refusal(layer, "it is not the classifier at the end")
            if plan.image in layer.reads[0 if isinstance(layer, Aten) else 1 :]:
                raise refusal(layer, "it reads the images, which only convolutions do here")
            layer.engine = "triton"
            if index in inside:
                continue  # its partner comes later and takes it
            step = _Step(index, layer, layer.reads, layer.writes, layer.out_shape)
            if index in pairs:
                main, shortcut = pairs[index]
                own, taken = layers[main], layers[shortcut]
                reads = (own.reads[0], taken.reads[0])
                step = _Step(main, own, reads, layer.writes, layer.out_shape, shortcut)
                own.engine, taken.engine = "triton", f"in {own.name}"
                own.fused = (*own.fused, f"shortcut {taken.name}")
            steps.append(step)
        layers[self.tail.classifier].engine = "deevo.head"
        seen = {self.tail.features, plan.image}
        for step in reversed(steps):
            step.frees = tuple({r for r in step.reads if r not in seen})
            seen.update(step.reads)
        return steps

    def _live_bytes(self) -> int:
        """The most bytes of one member's activations that are alive at a time."""
        live: dict[int, int] = {}
        most = 0
        for step in self._steps:
            live[step.writes] = size_of(step.out_shape, self.plan.dtype)
            most = max(most, sum(live.values()))
            for number in step.frees:
                live.pop(number, None)
        return most

    def _bind(self, step: _Step) -> Run:
        layer = step.layer
        if isinstance(layer, Convolution):
            return self._convolution(step, layer)
        assert isinstance(layer, Aten)
        source = step.reads[0]
        move = served(layer, lambda: movement(layer))
        if move is not None:
            layer.engine = "copy"
            return lambda registers, prepared, members: move(registers[source])
        window = served(layer, lambda: pool(layer))
        return self._pool(window, source, step.out_shape)

    def _convolution(self, step: _Step, layer: Convolution) -> Run:
        from deevo_ext.inference.triton.configurations import default
        from deevo_ext.inference.triton.convolution import Operands, Operation, conv2d

        n, channels, height, width = step.out_shape
        into, taps = layer.weights.shape[1], layer.weights.shape[2] * layer.weights.shape[3]
        positions, dtype = n * height * width, self.plan.dtype
        configuration = default(
            positions, channels, self._padded.get(step.index, into), taps, self.chunk, dtype
        )
        last, stride2 = layer, None
        if step.shortcut is not None:
            shortcut = self.plan.layers[step.shortcut]
            assert isinstance(shortcut, Convolution)
            stride2 = shortcut.stride
            last = shortcut if shortcut.residual else layer
        operation = Operation(
            layer.stride,
            layer.padding,
            layer.dilation,
            activation="none" if last.activation is None else "relu",
            precision="tf32" if self.tf32 else "ieee",
        )
        index, first, second = step.index, step.reads[0], step.reads[-1]
        residual = layer.residual and stride2 is None

        def run(registers: list[Any], prepared: Prepared, members: int) -> Tensor:
            weight, bias, weight2 = prepared.layers[index]
            downsample = None
            if stride2 is not None and weight2 is not None:
                downsample = (registers[second], weight2, stride2)
            out = self._empty((members, n, height, width, channels))
            added = registers[second] if residual else None
            operands = Operands(registers[first], weight, bias, out, added, downsample)
            return conv2d(operands, operation, configuration)

        return run

    def _pool(self, window: Geometry, source: int, out_shape: Sequence[int]) -> Run:
        from deevo_ext.inference.triton.pooling import pool2d

        n, channels, height, width = out_shape

        def run(registers: list[Any], prepared: Prepared, members: int) -> Tensor:
            x = registers[source].flatten(0, 1)
            out = self._empty((members * n, height, width, channels))
            pool2d(x, window, out)
            return out.view(members, n, height, width, channels)

        return run

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.plan.dtype, device=self.device)


def _apart(x: Tensor) -> Tensor:
    """Members that do not share memory, as frozen tensors do."""
    return x.contiguous() if x.stride(0) < x[0].numel() else x
