"""A runner for a chunk of members at once on our own kernels: `engine="triton"`.

Rows of a chunk are folded together, and each launch has its members on an axis of its grid. The
last layers are one operator that gives losses and ranks; other sinks get logits member by member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.networks.batched.program import ONE_AT_A_TIME, BatchedProgram
from deevo_ext.networks.batched.steps import MembersWeights, Steps
from deevo_ext.networks.engines.triton import channels_last
from deevo_ext.networks.execution.cuda_graphs import GraphedProgram, Slot
from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.runner import Execution, SliceRunner
from deevo_ext.networks.execution.sinks import LossSink, Sink
from deevo_ext.networks.execution.weight_table import Tensors
from deevo_ext.networks.execution.weights import Stager
from deevo_ext.networks.graph.network_graph import NetworkGraph

# Activations and folded weights of the members of a chunk together; one member may need more.
CHUNK_BYTES = 2 << 30
_LARGEST_GRID = 65535  # of CUDA's second grid axis, on which members are


class BatchedRunner(SliceRunner):
    """Runs a network graph for up to `chunk` members at a time.

    graph: an arranged one. tensors: where its weights come from; row_dtype: of the rows. Raises
    DeevoError for a layer that no kernel of ours takes.

    chunk: as many members as CHUNK_BYTES hold, each with its folded weights and the most that is
    alive at a time of its activations of one micro-batch; at least one. It decides tile sizes too,
    so that a member's bits depend on the graph alone and not on how many members a call has.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        tensors: Tensors,
        row_dtype: torch.dtype,
        execution: Execution,
    ) -> None:
        super().__init__(execution, graph.image_shape[1])
        self.graph, self._device = graph, execution.device
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise DeevoError(f'engine="triton" needs Triton, which is not here: {error}') from None
        steps = Steps(graph, self._device)
        self.stager = stager = Stager(graph, tensors, row_dtype, self._device)
        each = steps.live_bytes() + self.stager.staged_bytes
        self.chunk = max(1, min(_LARGEST_GRID, CHUNK_BYTES // each))
        tf32 = execution.precision == "tf32"
        launches = steps.launches(self.chunk, "tf32" if tf32 else "ieee")
        tail = steps.tail
        program = BatchedProgram(graph, stager, launches, tail.features, tail.classifier)
        self._program: BatchedProgram | GraphedProgram = program
        if self._device.type == "cuda":
            self._program = GraphedProgram(program, tensors.layout.stride, 1, program.example)

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
            for first in range(0, rows.shape[0], self.chunk):
                members = slice(first, first + self.chunk)
                apart = None
                if statistics is not None:
                    apart = statistics[members].to(self._device, torch.float32)
                prepared: Any = self._program.prepare(rows[members].to(self._device), apart)
                weights = prepared.weights if isinstance(prepared, Slot) else prepared
                for batch in micro_batches:
                    features = self._program.run(prepared, channels_last(batch.images))
                    if isinstance(sink, LossSink):
                        self._score(weights, features, members, batch, sink)
                    else:
                        for k, logits in enumerate(self._logits(weights, features)):
                            sink.take(first + k, batch, logits[: batch.size])

        # One task: a launch has all members, and the interpreter one thread.
        self.execution.workers.run([run])

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
        with ONE_AT_A_TIME:
            mean(features.flatten(2, 3), pooled)
        weight, bias = weights.classifier
        alone = [slice(k, k + 1) for k in range(weights.members)]
        return [torch.baddbmm(bias[k, None], pooled[k], weight[k].float().mT)[0] for k in alone]
