"""A module as a runner for one image shape and row dtype, and the check that it is the module."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deevo_ext.errors import DeevoError
from deevo_ext.networks.batched.runner import BatchedRunner
from deevo_ext.networks.engines.choose import Chooser, EngineTable
from deevo_ext.networks.execution.cuda_graphs import GraphedProgram
from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.program import FusedProgram, ModuleProgram
from deevo_ext.networks.execution.runner import Execution, MemberRunner, Runner
from deevo_ext.networks.execution.sinks import LogitsSink
from deevo_ext.networks.execution.weight_table import Tensors
from deevo_ext.networks.execution.weights import Stager
from deevo_ext.networks.graph.export import NotExportable, as_dtype, capture
from deevo_ext.networks.graph.fuse import fuse
from deevo_ext.networks.graph.network_graph import Convolution, Linear, NetworkGraph

# A graph is checked against the module on this many images of its first micro-batch.
CHECKED = 8
# Largest deviation of a right graph's logits from float32, relative to the largest logit: some 100
# roundings of 2^-24, 2^-11 (float16, tf32) or 2^-8 each, with room for networks that amplify. A
# wrong graph is off by the order of 1.
_DEVIATION = {"float32": 1e-2, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.5}


@dataclass
class Built:
    """A runner with its network graph, or with the reason why there is none."""

    runner: Runner
    graph: NetworkGraph | None
    why_unfused: str = ""


@dataclass(frozen=True)
class Builder:
    """Makes runners of a module, and checks them.

    module: float32, in eval mode. table: the engines that are chosen already.
    """

    module: nn.Module
    tensors: Tensors
    engine: str
    table: EngineTable
    execution: Execution

    def build(self, image_shape: tuple[int, ...], row_dtype: torch.dtype) -> Built:
        """The runner for images [C, H, W] and rows of a dtype."""
        run, name = self.execution, type(self.module).__name__
        model = self.module
        if run.dtype != torch.float32:
            model = as_dtype(model, run.dtype, run.device)
        why = f'engine="{self.engine}"'
        if self.engine in ("auto", "fused", "triton"):
            try:
                graph = fuse(capture(model, (run.micro_batch, *image_shape), run.dtype), run.dtype)
            except NotExportable as error:
                why = str(error)
            else:
                return Built(self._fused(graph, row_dtype), graph)
            if self.engine == "triton":
                raise DeevoError(f'engine="triton" cannot run {name}, which has no graph: {why}')
            warnings.warn(f"{name} is served unfused, by functional_call: {why}", stacklevel=2)
        compiled = self.engine == "compile"
        program = ModuleProgram(
            model, self.tensors.views, run.dtype, run.workers.count, compiled=compiled
        )
        return Built(MemberRunner(program, run), None, why)

    def check(
        self, built: Built, row: Tensor, statistics: Tensor | None, batch: MicroBatch
    ) -> None:
        """The graph against the module itself in float32, on the first images of a micro-batch.

        Raises DeevoError where they differ by more than rounding explains.
        """
        graph, device = built.graph, self.execution.device
        if graph is None or graph.checked:
            return
        count, precision = min(CHECKED, len(batch.images)), self.execution.precision
        sink = LogitsSink()
        apart = None if statistics is None else statistics[None]
        whole = MicroBatch(batch.images, 0, len(batch.images), batch.name)
        built.runner.run(row[None], apart, [[whole]], sink)
        logits = sink.logits()[:count]

        def module_logits() -> Tensor:
            where = None if statistics is None else statistics.to(device, torch.float32)
            exact = {
                key: tensor.float() if tensor.is_floating_point() else tensor
                for key, tensor in self.tensors.views(row.to(device), where).items()
            }
            images = batch.images[:count].float()
            return functional_call(self.module, exact, (images,), tie_weights=False)

        with self.execution.float32_products():
            (expected,) = self.execution.workers.run([module_logits])
        size = float(expected.abs().max())
        deviation = float((logits - expected).abs().max())
        if not math.isfinite(size):
            return  # the module's own overflow shows nothing; the next call checks
        graph.checked = (
            deviation <= _DEVIATION[precision] * size
            # An overflow is the network's, and its loss is +inf.
            or (precision == "float16" and not math.isfinite(deviation))
        )
        if not graph.checked:
            raise DeevoError(
                f"the network graph of {type(self.module).__name__} gives logits that differ from "
                f"the module's by {deviation:.3g} (largest logit {size:.3g}): use "
                'engine="eager", and please report this network'
            )

    def _fused(self, graph: NetworkGraph, row_dtype: torch.dtype) -> Runner:
        run = self.execution
        stager = functools.partial(Stager, graph, self.tensors, row_dtype, run.device)
        if self.engine == "triton":
            return BatchedRunner(graph, stager, run)

        def measure(task: Callable[[], float]) -> float:
            with run.float32_products():
                return run.workers.run([task])[0]

        forced = None if self.engine == "auto" else self.engine
        chooser = Chooser(run.device, self.table, forced, measure)
        bounds = {}
        for index, layer in enumerate(graph.layers):
            if isinstance(layer, (Convolution, Linear)):
                chosen = chooser.choose(layer)
                layer.engine = chosen.name
                bounds[index] = chosen.bind(layer)
        chooser.save()
        program = FusedProgram(graph, stager(), bounds)
        if run.device.type == "cuda":
            return MemberRunner(GraphedProgram(program, self.tensors.layout.stride, row_dtype), run)
        return MemberRunner(program, run)
