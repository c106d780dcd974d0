"""A module as a runner for one image shape and row dtype, and the check that it is the module."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deevo_ext.distributed.ranks import warn
from deevo_ext.errors import DeevoError
from deevo_ext.networks.batched.runner import BatchedRunner
from deevo_ext.networks.engines.choose import Chooser, EngineTable
from deevo_ext.networks.execution.cuda_graphs import GraphedProgram
from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.modules import call, contiguous, logits_of
from deevo_ext.networks.execution.prefixes import PrefixRunner
from deevo_ext.networks.execution.program import FusedProgram, ModuleProgram, Program
from deevo_ext.networks.execution.runner import Execution, MemberRunner, Runner
from deevo_ext.networks.execution.sinks import LogitsSink
from deevo_ext.networks.execution.user_engine import EngineFunction, FunctionRunner
from deevo_ext.networks.execution.weight_table import Tensors
from deevo_ext.networks.execution.weights import Stager
from deevo_ext.networks.graph.arrange import arranged
from deevo_ext.networks.graph.batch_statistics import with_batch_statistics
from deevo_ext.networks.graph.export import NotExportable, as_dtype, capture
from deevo_ext.networks.graph.fuse import fuse
from deevo_ext.networks.graph.network_graph import Convolution, Linear, NetworkGraph
from deevo_ext.networks.graph.pools import is_pool

# Module and graph are checked on this many images of their first micro-batch.
CHECKED = 8
# Largest deviation of a right graph's logits from float32, relative to the largest logit: some 100
# roundings of 2^-24, 2^-11 (float16, tf32) or 2^-8 each, with room for networks that amplify. A
# wrong graph is off by the order of 1. Networks that amplify more are off in the module's own
# arithmetic too: up to _AMPLIFIED of its deviation is rounding.
DEVIATION = {"float32": 1e-2, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.5}
_AMPLIFIED = 2.0
# Largest deviation of the module's logits between two batches that hold an image, likewise.
_BATCHES = {"float32": 1e-3, "tf32": 0.1, "float16": 1e-3, "bfloat16": 1e-3}


@dataclass
class Built:
    """A runner with its network graph, or with the reason why there is none.

    graph: what runs; layers: the same before shortcuts were merged. checked: whether
    `Builder.check` has seen it right. prefixes: runs networks that share prefixes, where there is a
    graph whose members are run one by one.
    """

    runner: Runner
    graph: NetworkGraph | None
    layers: NetworkGraph | None = None
    why_unfused: str = ""
    checked: bool = False
    prefixes: PrefixRunner | None = None


@dataclass(frozen=True)
class Builder:
    """Makes runners of a module, and checks them.

    module: float32, in eval mode. table: the engines that are chosen already.
    """

    module: nn.Module
    tensors: Tensors
    engine: str | EngineFunction
    table: EngineTable
    execution: Execution

    def build(self, image_shape: tuple[int, ...], row_dtype: torch.dtype) -> Built:
        """The runner for images [C, H, W] and rows of a dtype."""
        run, name = self.execution, type(self.module).__name__
        if not isinstance(self.engine, str):
            names = list(self.module.state_dict())
            return Built(
                FunctionRunner(self.engine, names, self.tensors, run),
                None,
                why_unfused="own engine",
            )
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
                return self._fused(graph, row_dtype)
            if self.engine == "triton":
                raise DeevoError(f'engine="triton" cannot run {name}, which has no graph: {why}')
            warn(f"{name} is served unfused, by functional_call: {why}", stacklevel=2)
        return self._unfused(model, why)

    def _unfused(self, model: nn.Module, why: str) -> Built:
        """The module in its own dtype, by functional_call or compiled."""
        run = self.execution
        compiled = self.engine == "compile"
        program = ModuleProgram(
            model, self.tensors.views, run.dtype, run.workers.count, compiled=compiled
        )
        return Built(MemberRunner(program, run), None, why_unfused=why)

    def check(
        self, built: Built, row: Tensor, statistics: Tensor | None, batch: MicroBatch
    ) -> Built:
        """Checks the module, and its graph against it, on the first images of a micro-batch.

        Noise is added to them, lest all be the same. Returns `built`, or the module unfused, with a
        warning, where its graph fails or its logits differ by more than rounding explains. Raises
        DeevoError where the module's logits of an image depend on the images beside it. Of a user's
        function this is checked, not of the module (`FunctionRunner.check`).
        """
        count, precision = min(CHECKED, len(batch.images)), self.execution.precision
        generator = torch.Generator().manual_seed(0)
        spread = float(batch.images.float().std()) if batch.images.numel() > 1 else 1.0
        noise = torch.randn(batch.images.shape, generator=generator)
        noise *= spread if 0 < spread < math.inf else 1.0
        images = batch.images + noise.to(batch.images)
        if isinstance(built.runner, FunctionRunner):
            built.runner.check(row, statistics, images)
            built.checked = True
            return built
        expected = self._module_logits(row, statistics, images[:count], batch.name)
        sound = expected.isfinite().all(1)
        if not bool(sound.any()):
            return built  # the module's own overflow shows nothing; the next call checks
        size = float(expected[sound].abs().max())
        if count > 1:
            halves = images[:count].split((count + 1) // 2)
            parts = [self._module_logits(row, statistics, half, batch.name) for half in halves]
            apart = (torch.cat(parts) - expected)[sound].abs().max()
            if not float(apart) <= _BATCHES[precision] * size:
                again = self._module_logits(row, statistics, images[:count], batch.name)
                raise self._unsteady(torch.equal(again[sound], expected[sound]))
        if built.graph is not None:
            why = self._why_not(built, row, statistics, images, expected, sound)
            if why is not None and self.engine == "triton":
                raise DeevoError(f'{why}: use engine="eager", and please report this network')
            if why is not None:
                text = f"{why}; it is served by functional_call: please report this network"
                warnings.warn(text, stacklevel=2)  # measured, so on any rank
                run = self.execution
                built = self._unfused(as_dtype(self.module, run.dtype, run.device), why)
        built.checked = True
        return built

    def _why_not(
        self,
        built: Built,
        row: Tensor,
        statistics: Tensor | None,
        images: Tensor,
        expected: Tensor,
        sound: Tensor,
    ) -> str | None:
        """Why a graph's logits are not those that are expected, where these are sound."""
        name, precision = type(self.module).__name__, self.execution.precision
        run = self.execution
        apart = None if statistics is None else statistics[None]
        whole = MicroBatch(images, 0, len(images), "images")

        def deviation_of(runner: Runner) -> float:
            sink = LogitsSink()
            runner.run(row[None], apart, [[whole]], sink)
            return float((sink.logits()[: len(expected)] - expected)[sound].abs().max())

        try:
            deviation = deviation_of(built.runner)
        except (DeevoError, RuntimeError) as error:  # torch's own, too: of weights made of others
            return f"the network graph of {name} fails ({error})"
        size = float(expected[sound].abs().max())
        # An overflow is the network's, and its loss is +inf.
        overflow = precision == "float16" and not math.isfinite(deviation)
        if overflow or deviation <= DEVIATION[precision] * size:
            return None
        if run.dtype != torch.float32:
            module = as_dtype(self.module, run.dtype, run.device)
            if deviation <= _AMPLIFIED * deviation_of(self._unfused(module, "").runner):
                return None
        return (
            f"the network graph of {name} gives logits that differ from the module's by "
            f"{deviation:.3g} (largest logit {size:.3g})"
        )

    def _module_logits(
        self, row: Tensor, statistics: Tensor | None, images: Tensor, name: str
    ) -> Tensor:
        """The module's own logits in float32."""
        device = self.execution.device

        def logits() -> Tensor:
            where = None if statistics is None else statistics.to(device, torch.float32)
            exact = {
                key: tensor.float() if tensor.is_floating_point() else tensor
                for key, tensor in self.tensors.views(row.to(device), where).items()
            }
            return logits_of(
                lambda x: call(self.module, exact, (x,)),
                contiguous(images.float()),
                name,
            )

        with self.execution.torch_settings():
            (result,) = self.execution.workers.run([logits])
        return result

    def _unsteady(self, repeatable: bool) -> DeevoError:
        """The refusal of a module whose logits are no function of row and image."""
        name = type(self.module).__name__
        if not repeatable:
            return DeevoError(
                f"{name} draws random numbers in eval mode, so that a loss would depend on chance: "
                "call functional dropout with training=self.training, and the like"
            )
        return DeevoError(
            f"{name}'s logits of an image depend on the images beside it in a batch, as with "
            "BatchNorm without running statistics (track_running_stats=False) or x.mean(0): a loss "
            "must depend on row and image alone; give it running statistics or GroupNorm, or "
            "evaluate images one by one with micro_batch=1"
        )

    def _fused(self, graph: NetworkGraph, row_dtype: torch.dtype) -> Built:
        run = self.execution
        if self.engine == "triton":
            merged = arranged(graph)
            return Built(BatchedRunner(merged, self.tensors, row_dtype, run), merged, graph)
        assert isinstance(self.engine, str)
        forced = None if self.engine == "auto" else self.engine
        return self._by_members(graph, row_dtype, forced)

    def _by_members(self, graph: NetworkGraph, row_dtype: torch.dtype, forced: str | None) -> Built:
        """A graph with engines, which are chosen if they are not yet."""
        run, layers = self.execution, graph
        if run.device.type == "cuda":
            graph = arranged(graph)

        def measure(task: Callable[[], float]) -> float:
            with run.torch_settings():
                return run.workers.run([task])[0]

        chooser = Chooser(run.device, self.table, forced, measure)
        bounds = {}
        for index, layer in enumerate(graph.layers):
            if isinstance(layer, (Convolution, Linear)) or is_pool(layer):
                chosen = chooser.choose(layer)
                layer.engine = chosen.name
                bounds[index] = chosen.bind(layer)
        chooser.save()
        stager = Stager(graph, self.tensors, row_dtype, run.device)
        program = FusedProgram(graph, stager, bounds)
        prefixes = PrefixRunner(program, self.tensors, row_dtype, run)
        runs: Program = program
        if run.device.type == "cuda":
            runs = GraphedProgram(program, self.tensors.layout.stride, 2, program.example)
        runner = MemberRunner(runs, run, graph.image_shape[1])
        return Built(runner, graph, layers, prefixes=prefixes)

    def with_batch_statistics(
        self, image_shape: tuple[int, ...], row_dtype: torch.dtype, statistics: Collection[str]
    ) -> Built | None:
        """The runner whose BatchNorms use each micro-batch's statistics, in float32.

        statistics: running means and variances, which are not used. None where the network is to be
        served without a graph, or has none with norms that are known.
        """
        run = self.execution
        if self.engine not in ("auto", "fused", "triton"):
            return None
        try:
            captured = capture(self.module, (run.micro_batch, *image_shape), run.dtype)
            graph = fuse(with_batch_statistics(captured, statistics), run.dtype)
        except NotExportable:
            return None
        # On a CPU some hundred images a layer take too long for timing, and oneDNN is the fastest.
        forced = "fused" if run.device.type == "cpu" or self.engine == "fused" else None
        return self._by_members(graph, row_dtype, forced)
