"""PopulationForward: flat rows and labelled images in, losses and ranks per image out."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deevo_ext.arguments import check_arguments
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.networks.arguments import (
    check_labels,
    check_options,
    check_rows,
    check_smoothing,
    check_statistics,
    check_tensors,
    evaluating_device,
)
from deevo_ext.networks.build import Builder, Built
from deevo_ext.networks.engines.choose import EngineTable
from deevo_ext.networks.execution.feed import ImageFeed, Images, MicroBatch, TensorImages
from deevo_ext.networks.execution.prefixes import PrefixRunner
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.networks.execution.runner import DTYPES, Execution
from deevo_ext.networks.execution.sinks import FunctionSink, LogitsSink, LossSink, Sink, TakeLogits
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.networks.execution.weight_table import Tensors
from deevo_ext.networks.execution.workers import Workers
from deevo_ext.networks.graph.export import as_dtype
from deevo_ext.networks.graph.network_graph import NetworkGraph
from deevo_ext.networks.precision import PrecisionReport, compare_losses
from deevo_ext.population.layout import Layout
from deevo_ext.population.population import Population


class Losses(NamedTuple):
    """losses float32 [K, N] in nats, +inf where not finite; ranks int32 [K, N] of the true class.

    Rank 0 is a top-1 hit, a rank below 5 a top-5 hit; of equal logits the lower class comes first.
    """

    losses: Tensor
    ranks: Tensor


class PopulationForward:
    """Evaluates networks given as flat rows on the same images.

    model: gives the forward pass (an nn.Module that maps [N, C, H, W] to logits [N, classes]); it
    is copied, put into eval mode, and its weights are used only for tensors that are not in the
    rows, in `fixed` or among the statistics. layout: of the rows, or the population itself, which
    knows statistics_layout and fixed too. precision: "float32"; "tf32" (CUDA); "bfloat16" or
    "float16" with float32 sums; or "auto", float32 on the CPU and on CUDA float16 if the first rows
    pass `precision_check`, else tf32. engine: "auto" times engines per layer when the graph is
    built; "fused" takes the preferred ones untimed; "triton" runs the whole network in our own
    kernels, members together (an error where that cannot be); "compile" is torch.compile; "eager"
    is functional_call; an `EngineFunction` of (state dict, images) gives the logits in their place,
    whatever it computes with. micro_batch: images per forward pass; the last one is padded, so that
    an image's loss depends on nothing else; a model whose logits of an image depend on the images
    beside it is refused at the first call, unless micro_batch is 1. mean, std: per channel, for
    uint8 images in units of 1/255, applied to float images too if they are not None. table: engines
    that are fixed already.

    On the CPU micro-batches and members spread over T = torch.get_num_threads() threads, one torch
    thread each. Memory there, beside rows and results, whatever K and N:
    T * (activations + largest weight) + (T + 1) * 2 * weights + images, with `activations` the
    layers' outputs that are needed at once in one micro-batch of one member, `weights` a member's
    folded weights (twice: oneDNN may have packed them), the largest layer's being packed inside a
    call, and 64 MiB of prepared images, or one micro-batch. Of one micro-batch of images: T copies
    of the weights, not T + 1. glibc keeps up to 64 MiB of what each thread freed, and oneDNN's own
    code takes tens of MiB. On CUDA: two staging copies, their graphs' activations, and 256 MiB of
    images; with engine="triton" three times 2 GiB of activations and weights, or one member's (two
    shapes' graphs have their own), and the images. Threads that use it there take turns.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout | Population,
        *,
        statistics_layout: Layout | None = None,
        fixed: Mapping[str, Tensor] | None = None,
        precision: str = "auto",
        engine: str | EngineFunction = "auto",
        micro_batch: int = 64,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
        table: EngineTable | None = None,
    ) -> None:
        check_arguments(PopulationForward.__init__, locals())
        if isinstance(layout, Population):
            statistics_layout, fixed = layout.statistics_layout, layout.fixed
            layout = layout.layout
        check_options(model, layout, engine, precision, micro_batch)
        self.device = evaluating_device(device, precision)
        if statistics_layout is not None and not statistics_layout.dim:
            statistics_layout = None
        self.layout, self.statistics_layout = layout, statistics_layout
        self.engine, self.micro_batch = engine, micro_batch
        self._feed = ImageFeed(self.device, micro_batch, Preprocessing(mean, std))
        self._precision = precision
        self._runners: dict[tuple[tuple[int, ...], torch.dtype], Built] = {}
        self._with_statistics: dict[tuple[Hashable, ...], Built | None] = {}
        self.use_table(EngineTable(self.device) if table is None else table)
        self._model = as_dtype(model, torch.float32, self.device)
        state: dict[str, Tensor] = dict(self._model.named_parameters(remove_duplicate=False))
        state.update(self._model.named_buffers(remove_duplicate=False))
        check_tensors(state, layout, statistics_layout)
        elsewhere = {*layout.names, *(statistics_layout.names if statistics_layout else ())}
        apart = {name: tensor.detach() for name, tensor in state.items() if name not in elsewhere}
        self._tensors = Tensors(layout, statistics_layout, {**apart, **(fixed or {})})
        self._workers = Workers(self.device)

    @property
    def precision(self) -> str:
        """The precision that networks are computed in; "auto" until that is decided."""
        if self._precision == "auto":
            if not self.table.precision and (self.own_engine or self.device.type != "cuda"):
                self.table.precision = "float32"
            return self.table.precision or "auto"
        self.table.precision = self._precision
        return self._precision

    @property
    def own_engine(self) -> bool:
        """Whether a user's function evaluates the networks, and not the module."""
        return not isinstance(self.engine, str)

    @property
    def module(self) -> nn.Module:
        """The copy of the model: eval mode, float32, on the device."""
        return self._model

    def use_table(self, table: EngineTable) -> None:
        """Takes engines and precision from `table` from here on; graphs are made anew."""
        if self._precision != "auto" and table.precision not in ("", self._precision):
            raise DeevoError(
                f"precision is {self._precision!r}, but the engine table {table.path or ''} was "
                f"made for {table.precision!r}"
            )
        self.table = table
        self._runners.clear()
        self._with_statistics.clear()
        if self.precision != "auto":
            table.save()

    def graph(
        self, image_shape: tuple[int, ...], row_dtype: torch.dtype = torch.float32
    ) -> NetworkGraph:
        """Returns the network graph for images [C, H, W], engines chosen; print it for its table.

        Raises DeevoError where the network is served unfused, saying why.
        """
        check_arguments(PopulationForward.graph, locals())
        built = self._built(tuple(image_shape), row_dtype)
        if built.graph is None:
            raise DeevoError(f"the network is served without a graph: {built.why_unfused}")
        return built.graph

    def find_graph(
        self, image_shape: tuple[int, ...], row_dtype: torch.dtype = torch.float32
    ) -> NetworkGraph | None:
        """Returns the graph with each of the module's layers by itself; None if served unfused."""
        check_arguments(PopulationForward.find_graph, locals())
        return self._built(tuple(image_shape), row_dtype).layers

    def prefixes(self, image_shape: tuple[int, ...], row_dtype: torch.dtype) -> PrefixRunner | None:
        """Returns what runs networks that share prefixes, or None where nothing can be shared."""
        return self._built(tuple(image_shape), row_dtype).prefixes

    def micro_batches(self, images: LabelledImages, most: int) -> Iterator[list[MicroBatch]]:
        """Yields the micro-batches that networks see, in order, at most so many together."""
        return self._feed.read(images, DTYPES[self.precision], most)

    def with_batch_statistics(
        self,
        statistics: Collection[str],
        size: int,
        image_shape: tuple[int, ...],
        row_dtype: torch.dtype,
    ) -> Built | None:
        """Returns a runner of micro-batches of `size` images, with their own batch statistics.

        statistics: the running means and variances that these replace. It computes in float32, or
        tf32 where the precision is not float32. None where there is no graph for it.
        """
        run = self.execution.in_float32(size)
        key = (frozenset(statistics), run.precision, size, tuple(image_shape), row_dtype)
        if key not in self._with_statistics:
            tensors = replace(self._tensors, statistics_layout=None)
            builder = replace(self._builder(), tensors=tensors, execution=run)
            built = builder.with_batch_statistics(tuple(image_shape), row_dtype, statistics)
            self._with_statistics[key] = built
        return self._with_statistics[key]

    @torch.no_grad()
    def __call__(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        labels: Tensor | None = None,
        statistics: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Losses:
        """Returns losses and ranks of K networks for each image.

        rows [K, D] or longer, any floating dtype; images [N, C, H, W] uint8 or floating, or a set,
        which brings labels and normalisation of its own and is read slice by slice; labels int64
        [N]; statistics [K, S] where BatchNorm's are held apart from the rows. label_smoothing:
        the share of each label that is spread over all classes. Logits are not kept. Results lie
        where the labels are.
        """
        found = self.losses(rows, images, labels, statistics, label_smoothing=label_smoothing)
        home = labels
        if home is None:
            assert isinstance(images, LabelledImages)
            home = images.labels
        return Losses(found.losses.to(home.device), found.ranks.to(home.device))

    @torch.no_grad()
    def losses(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        labels: Tensor | None = None,
        statistics: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Losses:
        """Returns the same on the evaluating device, which is not waited for."""
        if labels is None:
            if not isinstance(images, LabelledImages):
                raise DeevoError("labels are missing; expected int64 [N] beside a tensor of images")
            labels = images.labels
        image_set = self._checked(rows, images, statistics)
        check_labels(labels, len(image_set))
        check_smoothing(label_smoothing)
        if self.precision == "auto":
            self.decide_precision(rows, images, labels, statistics)
        sink = LossSink(labels, len(rows), label_smoothing, self.device)
        self._run(rows, image_set, statistics, sink)
        return Losses(sink.losses, sink.ranks)

    @torch.no_grad()
    def logits(
        self, row: Tensor, images: Tensor | LabelledImages, statistics: Tensor | None = None
    ) -> Tensor:
        """Returns logits float32 [N, classes] of one row [D], for ensembles and inspection."""
        check_arguments(PopulationForward.logits, locals())
        rows, apart = row[None], None if statistics is None else statistics[None]
        sink = LogitsSink()
        self._run(rows, self._checked(rows, images, apart), apart, sink)
        home = images if isinstance(images, Tensor) else images.labels
        return sink.logits().to(home.device)

    @torch.no_grad()
    def each(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        statistics: Tensor | None,
        take: TakeLogits,
    ) -> None:
        """Calls take(k, start, logits) with each micro-batch's logits [n, classes] of row k.

        The images are start to start + n. Calls come from several threads, and logits are valid
        during the call only.
        """
        self._run(rows, self._checked(rows, images, statistics), statistics, FunctionSink(take))

    def precision_check(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        labels: Tensor | None = None,
        statistics: Tensor | None = None,
        *,
        precision: str | None = None,
    ) -> PrecisionReport:
        """Returns how much a precision (default: this one's) disturbs differences between networks.

        Rows are compared pairwise, each with the next, on the same images: the error of the mean
        paired loss difference against float32, beside that difference.
        """
        if rows.shape[0] < 2:
            raise DeevoError(f"rows hold {rows.shape[0]} networks; expected at least 2 to compare")
        precision = precision or self.precision
        both = (self._sibling(p) for p in ("float32", precision))
        losses = [forward(rows, images, labels, statistics).losses for forward in both]
        return compare_losses(precision, *losses)

    def _sibling(self, precision: str) -> PopulationForward:
        """Returns the same in another precision, with a table of its own."""
        return PopulationForward(
            self._model,
            self.layout,
            statistics_layout=self.statistics_layout,
            fixed=self._tensors.fixed,
            precision=precision,
            engine=self.engine,
            micro_batch=self.micro_batch,
            mean=self._feed.preprocessing.mean,
            std=self._feed.preprocessing.std,
            device=self.device,
        )

    def decide_precision(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        labels: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> None:
        """Settles precision "auto" on CUDA, by the check of float16 on these networks."""
        self.table.precision = "tf32"
        if rows.shape[0] > 1:
            report = self.precision_check(rows, images, labels, statistics, precision="float16")
            if report.passed:
                self.table.precision = "float16"
        self.table.save()

    def _checked(
        self, rows: Tensor, images: Tensor | LabelledImages, statistics: Tensor | None
    ) -> Images:
        """Returns the images as the feed reads them; DeevoError for what cannot be evaluated."""
        check_rows(rows, self.layout)
        if not isinstance(images, (Tensor, LabelledImages)) or (
            isinstance(images, Tensor) and images.dim() < 2
        ):
            raise DeevoError(
                f"images are a {type(images).__name__}; expected a tensor [N, C, H, W] or a set of "
                "labelled images"
            )
        image_set = TensorImages(images) if isinstance(images, Tensor) else images
        self._feed.check(image_set)
        check_statistics(statistics, rows.shape[0], self.statistics_layout)
        return image_set

    def _run(self, rows: Tensor, images: Images, statistics: Tensor | None, sink: Sink) -> None:
        """The one way in: the feed's micro-batches through the runner into the sink."""
        if statistics is not None and not statistics.numel():
            statistics = None
        built, dtype = self._built(images.image_shape, rows.dtype), DTYPES[self.precision]
        if not built.checked:
            first = None if statistics is None else statistics[0]
            batch = self._feed.first(images, dtype)
            built = self._builder().check(built, rows[0], first, batch)
            self._runners[images.image_shape, rows.dtype] = built
        built.runner.run(rows, statistics, self._feed.batches(images, dtype), sink)

    @property
    def execution(self) -> Execution:
        """Where and how networks run, once the precision is decided."""
        return Execution(self.device, self.precision, self.micro_batch, self._workers)

    def _builder(self) -> Builder:
        return Builder(self._model, self._tensors, self.engine, self.table, self.execution)

    def _built(self, image_shape: tuple[int, ...], row_dtype: torch.dtype) -> Built:
        key = (image_shape, row_dtype)
        if key not in self._runners:
            self._runners[key] = self._builder().build(image_shape, row_dtype)
        return self._runners[key]
