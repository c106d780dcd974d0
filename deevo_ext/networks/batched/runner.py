"""A runner for a chunk of members at once on our own kernels: `engine="triton"`.

Rows of a chunk are folded together, and each launch has its members on an axis of its grid. The
last layers are one operator that gives losses and ranks; other sinks get logits member by member.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.networks.batched.steps import LayerWeights, MembersWeights, Steps
from deevo_ext.networks.engines.triton import padded
from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.runner import Execution, SliceRunner
from deevo_ext.networks.execution.sinks import LossSink, Sink
from deevo_ext.networks.execution.weights import Stager
from deevo_ext.networks.graph.network_graph import Convolution, NetworkGraph

# Activations and folded weights of the members of a chunk together; one member may need more.
CHUNK_BYTES = 2 << 30
_ONE_AT_A_TIME = threading.Lock()  # Triton's interpreter serves one thread only
_LARGEST_GRID = 65535  # of CUDA's second grid axis, on which members are


class BatchedRunner(SliceRunner):
    """Runs a network graph for up to `chunk` members at a time.

    make_stager(padded): the stager of the graph, given input channels to pad to by layer. Raises
    DeevoError for a layer that no kernel of ours takes.

    chunk: as many members as CHUNK_BYTES hold, each with its folded weights and the most that is
    alive at a time of its activations of one micro-batch; at least one. It decides tile sizes too,
    so that a member's bits depend on the graph alone and not on how many members a call has.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        make_stager: Callable[[Mapping[int, int]], Stager],
        execution: Execution,
    ) -> None:
        super().__init__(execution)
        self.graph, self._device = graph, execution.device
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise DeevoError(f'engine="triton" needs Triton, which is not here: {error}') from None
        steps = Steps(graph, self._device)
        self._tail = steps.tail
        self.stager = make_stager(steps.padded)
        each = steps.live_bytes() + self.stager.staged_bytes
        self.chunk = max(1, min(_LARGEST_GRID, CHUNK_BYTES // each))
        tf32 = execution.precision == "tf32"
        self._launches = steps.launches(self.chunk, "tf32" if tf32 else "ieee")

    def _run(
        self,
        rows: Tensor,
        statistics: Tensor | None,
        micro_batches: Sequence[MicroBatch],
        sink: Sink,
    ) -> None:
        if isinstance(sink, LossSink):
            sink.check_classes(self.graph.classes, micro_batches[0].name)

        def run() -> None:
            padded_images = [self._images(batch.images) for batch in micro_batches]
            for first in range(0, rows.shape[0], self.chunk):
                members = slice(first, first + self.chunk)
                weights = self._fold(rows, statistics, members)
                for batch, images in zip(micro_batches, padded_images, strict=True):
                    features = self._features(weights, images)
                    if isinstance(sink, LossSink):
                        self._score(weights, features, members, batch, sink)
                    else:
                        for k, logits in enumerate(self._logits(weights, features)):
                            sink.take(first + k, batch, logits[: batch.size])

        # One task: a launch has all members, and the interpreter one thread.
        self.execution.workers.run([run])

    def _images(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] as [1, N, H, W, C'], channels padded by zeros."""
        more = padded(images.shape[1]) - images.shape[1]
        nhwc = torch.nn.functional.pad(images.permute(0, 2, 3, 1), (0, more))
        return nhwc.contiguous()[None]

    def _fold(self, rows: Tensor, statistics: Tensor | None, members: slice) -> MembersWeights:
        """Folds the members' rows and statistics."""
        if statistics is not None:
            statistics = statistics[members].to(self._device, torch.float32)
        staged = self.stager.stage_members(rows[members].to(self._device), statistics)

        def bias_of(index: int) -> Tensor:
            weight, bias = staged[index]
            return torch.zeros(weight.shape[:2], device=self._device) if bias is None else bias

        layers: dict[int, LayerWeights] = {}
        for step, _ in self._launches:
            if isinstance(step.layer, Convolution):
                weight, bias, second = staged[step.index][0], bias_of(step.index), None
                if step.shortcut is not None:
                    second = staged[step.shortcut][0]
                    bias = bias + bias_of(step.shortcut)
                layers[step.index] = (weight, bias, second)
        last = self._tail.classifier
        # Rows hold both between each other, and the head wants memory that does not overlap.
        classifier = (_apart(staged[last][0]), bias_of(last).contiguous())
        return MembersWeights(classifier[0].shape[0], layers, classifier)

    def _features(self, weights: MembersWeights, images: Tensor) -> Tensor:
        """The classifier's input before its pool, [K, N, H, W, C]."""
        registers: list[Any] = [None] * self.graph.registers
        registers[self.graph.image] = images
        with _ONE_AT_A_TIME:
            for step, launch in self._launches:
                registers[step.writes] = launch(registers, weights)
                for number in step.frees:
                    registers[number] = None
        return registers[self._tail.features]

    def _score(
        self,
        weights: MembersWeights,
        features: Tensor,
        members: slice,
        batch: MicroBatch,
        sink: LossSink,
    ) -> None:
        """Pool, classifier, losses and ranks in one operator."""
        torch.ops.deevo.head(
            features.flatten(2, 3)[:, : batch.size],
            *weights.classifier,
            sink.labels[batch.places],
            sink.label_smoothing,
            sink.losses[members, batch.places],
            sink.ranks[members, batch.places],
        )

    def _logits(self, weights: MembersWeights, features: Tensor) -> list[Tensor]:
        """Logits float32 [N, classes] of each member; the products are ATen's, one a member."""
        from deevo_ext.backends.triton.pooling import mean

        pooled = torch.empty((*features.shape[:2], features.shape[4]), device=self._device)
        with _ONE_AT_A_TIME:
            mean(features.flatten(2, 3), pooled)
        weight, bias = weights.classifier
        alone = [slice(k, k + 1) for k in range(weights.members)]
        return [torch.baddbmm(bias[k, None], pooled[k], weight[k].float().mT)[0] for k in alone]


def _apart(x: Tensor) -> Tensor:
    """Members that do not share memory, as frozen tensors do."""
    return x.contiguous() if x.stride(0) < x[0].numel() else x
