"""PopulationForward: flat rows and labelled images in, losses and ranks per image out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.inference.arguments import (
    check_labels,
    check_options,
    check_rows,
    check_statistics,
    evaluating_device,
)
from deevo_ext.inference.build import Built, Tensors, build, float32_products, validate
from deevo_ext.inference.choose import EngineTable
from deevo_ext.inference.export import as_dtype
from deevo_ext.inference.feed import Pixels, own_labels, shown_pixels, stretches
from deevo_ext.inference.members import MembersProgram
from deevo_ext.inference.placement import Placement
from deevo_ext.inference.plan import Plan
from deevo_ext.inference.precision import PrecisionReport, compare_losses
from deevo_ext.inference.preprocessing import Preprocessing
from deevo_ext.inference.schedule import Head, Scores, member_of, run_chunks, run_members
from deevo_ext.inference.workers import Workers
from deevo_ext.population.layout import Layout
from deevo_ext.population.population import Population

_DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Prepared images held at a time; members' weights are staged anew for each such part, which takes
# less than a hundredth of its time.
_IMAGES_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}


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
    "float16" with float32 sums; or "auto", float32 on the CPU and on CUDA float16 if the first
    rows pass `precision_check`, else tf32. engine: "auto" times engines per layer when the plan is
    built; "fused" takes the preferred ones untimed; "triton" runs the whole network in our own
    kernels, members together (an error where that cannot be); "compile" is torch.compile; "eager"
    is functional_call. micro_batch: images per forward pass; the last one is padded, so that an
    image's loss depends on nothing else. mean, std: per channel, for uint8 images in units of
    1/255, applied to float images as well when given. table: engines that are fixed already.

    On the CPU micro-batches and members spread over T = torch.get_num_threads() threads, one torch
    thread each. Memory there, beside rows and results, whatever K and N:
    T * (activations + largest weight) + (T + 1) * 2 * weights + images, with `activations` the
    layers' outputs that are needed at once in one micro-batch of one member, `weights` a member's
    folded weights (twice: oneDNN may have packed them), the largest layer's being packed inside a
    call, and 64 MiB of prepared images, or one micro-batch. Of one micro-batch of images: T copies
    of the weights, not T + 1. glibc keeps up to 64 MiB of what each thread freed, and oneDNN's own
    code takes tens of MiB. On CUDA: two staging copies and 256 MiB of images; with engine="triton"
    2 GiB of activations and weights, or one member's, and the images.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout | Population,
        *,
        statistics_layout: Layout | None = None,
        fixed: Mapping[str, Tensor] | None = None,
        precision: str = "auto",
        engine: str = "auto",
        micro_batch: int = 64,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        label_smoothing: float = 0.0,
        device: torch.device | str = "cpu",
        table: EngineTable | None = None,
    ) -> None:
        if isinstance(layout, Population):
            statistics_layout, fixed = layout.statistics_layout, layout.fixed
            layout = layout.layout
        check_options(model, layout, engine, precision, micro_batch, label_smoothing)
        self.device = evaluating_device(device, precision)
        if statistics_layout is not None and not statistics_layout.dim:
            statistics_layout = None
        self.layout, self.statistics_layout = layout, statistics_layout
        self.engine, self.micro_batch = engine, micro_batch
        self.preprocessing, self.label_smoothing = Preprocessing(mean, std), label_smoothing
        self._asked = precision
        self._programs: dict[tuple[tuple[int, ...], torch.dtype], Built] = {}
        self.use_table(EngineTable(self.device) if table is None else table)
        self._model = as_dtype(model, torch.float32, self.device)
        own = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        elsewhere = {*layout.names, *(statistics_layout.names if statistics_layout else ())}
        apart = {name: tensor.detach() for name, tensor in own.items() if name not in elsewhere}
        self._tensors = Tensors(layout, statistics_layout, {**apart, **(fixed or {})})
        self._workers = Workers(self.device)
        self._placement = Placement(self.device)

    @property
    def precision(self) -> str:
        """What networks are computed in; "auto" until that is decided."""
        if self._asked == "auto":
            if not self.table.precision and self.device.type != "cuda":
                self.table.precision = "float32"
            return self.table.precision or "auto"
        self.table.precision = self._asked
        return self._asked

    @property
    def module(self) -> nn.Module:
        """The copy of the model: eval mode, float32, on the device."""
        return self._model

    def use_table(self, table: EngineTable) -> None:
        """Engines and precision from here on by `table`; plans made before are made anew."""
        if self._asked != "auto" and table.precision not in ("", self._asked):
            raise DeevoError(
                f"precision is {self._asked!r}, but the engine table {table.path or ''} was made "
                f"for {table.precision!r}"
            )
        self.table = table
        self._programs.clear()
        if self.precision != "auto":
            table.save()

    def plan(self, image_shape: tuple[int, ...], row_dtype: torch.dtype = torch.float32) -> Plan:
        """The fused plan for images [C, H, W], its engines chosen; print it for the table.

        Raises DeevoError where the network is served unfused, saying why.
        """
        built = self._built(tuple(image_shape), row_dtype)
        if built.plan is None:
            raise DeevoError(f"the network is served without a plan: {built.why_unfused}")
        return built.plan

    why_unfused: str = ""
    """Why networks are served by functional_call; empty where they have a plan."""

    @torch.no_grad()
    def __call__(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        labels: Tensor | None = None,
        statistics: Tensor | None = None,
        *,
        label_smoothing: float | None = None,
        name: str = "images",
    ) -> Losses:
        """Per-image losses and ranks of K networks.

        rows [K, D] or longer, any floating dtype; images [N, C, H, W] uint8 or floating, or a set,
        which brings labels and normalisation of its own and is read by stretches; labels int64 [N];
        statistics [K, S] where BatchNorm's are held apart from the rows. label_smoothing: other
        than the object's own. name: what messages call the images. Logits are not kept. Results lie
        where the labels are.
        """
        shown, labels = self._placed(images), own_labels(images, labels)
        self._check(rows, shown, labels, statistics, name)
        if self.precision == "auto":
            self.decide_precision(rows, images, labels, statistics)
        smoothing = self.label_smoothing if label_smoothing is None else label_smoothing
        count = labels.numel()
        target = labels.to(self.device).contiguous()
        losses = torch.empty(rows.shape[0], count, device=self.device)
        ranks = torch.empty(rows.shape[0], count, dtype=torch.int32, device=self.device)
        highest = int(labels.max())

        def check_classes(classes: int) -> None:
            if highest >= classes:
                raise DeevoError(
                    f"{name} have label {highest}, but the model has {classes} classes; expected "
                    f"labels 0..{classes - 1}"
                )

        def head(k: int, start: int, logits: Tensor) -> None:
            check_classes(logits.shape[1])
            own = slice(start, start + logits.shape[0])
            torch.ops.deevo.loss_and_rank(
                logits[None],
                target[own],
                smoothing,
                losses[k : k + 1, own],
                ranks[k : k + 1, own],
            )

        built = self._built(shown.image_shape, rows.dtype)
        if isinstance(built.program, MembersProgram):
            check_classes(built.program.plan.classes)
        scores = Scores(target, smoothing, losses, ranks)
        self._forward(rows, shown, statistics, head, name, scores)
        return Losses(losses.to(labels.device), ranks.to(labels.device))

    @torch.no_grad()
    def logits(
        self,
        row: Tensor,
        images: Tensor | LabelledImages,
        statistics: Tensor | None = None,
        *,
        name: str = "images",
    ) -> Tensor:
        """Logits float32 [N, classes] of one row [D], for ensembles and inspection."""
        given = None if statistics is None else statistics[None]
        parts: dict[int, Tensor] = {}

        def head(k: int, start: int, logits: Tensor) -> None:
            parts[start] = logits.float().clone()

        self.each(row[None], images, given, head, name=name)
        home = images.labels.device if isinstance(images, LabelledImages) else images.device
        return torch.cat([parts[start] for start in sorted(parts)]).to(home)

    @torch.no_grad()
    def each(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        statistics: Tensor | None,
        head: Head,
        *,
        name: str = "images",
    ) -> None:
        """Calls head(k, start, logits) with each micro-batch's logits [n, classes] of row k.

        The images are start to start + n. Calls come from several threads, and logits are valid
        during the call only.
        """
        shown = self._placed(images)
        self._check(rows, shown, None, statistics, name)
        self._forward(rows, shown, statistics, head, name)

    def precision_check(
        self,
        rows: Tensor,
        images: Tensor | LabelledImages,
        labels: Tensor | None = None,
        statistics: Tensor | None = None,
        *,
        precision: str | None = None,
    ) -> PrecisionReport:
        """How much a precision (default: this one's) disturbs differences between networks.

        Rows are compared pairwise, each with the next, on the same images: the error of the mean
        paired loss difference against float32, beside that difference.
        """
        if rows.shape[0] < 2:
            raise DeevoError(f"rows hold {rows.shape[0]} networks; expected at least 2 to compare")
        asked = precision or self.precision
        found = [
            self._sibling(p)(rows, images, labels, statistics).losses for p in ("float32", asked)
        ]
        return compare_losses(asked, *found)

    def _sibling(self, precision: str) -> PopulationForward:
        """The same in another precision, with a table of its own."""
        return PopulationForward(
            self._model,
            self.layout,
            statistics_layout=self.statistics_layout,
            fixed=self._tensors.fixed,
            precision=precision,
            engine=self.engine,
            micro_batch=self.micro_batch,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
            label_smoothing=self.label_smoothing,
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

    def _check(
        self,
        rows: Tensor,
        images: Pixels,
        labels: Tensor | None,
        statistics: Tensor | None,
        name: str,
    ) -> None:
        shape = (len(images), *images.image_shape)
        check_rows(rows, self.layout)
        self._preprocessing(images).check(shape, images.dtype, name)
        check_labels(labels, len(images))
        check_statistics(statistics, rows.shape[0], self.statistics_layout)

    def _forward(
        self,
        rows: Tensor,
        images: Pixels,
        statistics: Tensor | None,
        head: Head,
        name: str,
        scores: Scores | None = None,
    ) -> None:
        """Micro-batches through the program: logits to `head`, or results straight to `scores`."""
        built = self._built(images.image_shape, rows.dtype)
        program = built.program
        preprocessing = self._preprocessing(images)
        if statistics is not None and not statistics.numel():
            statistics = None
        if built.plan is not None and not built.plan.checked:
            first = images.pixels(0, min(self.micro_batch, len(images)))
            batch, *_ = preprocessing.batches(
                first, self.micro_batch, _DTYPES[self.precision], self.device
            )
            row, own = member_of(rows, statistics, 0, self.device)
            validate(
                built,
                self._model,
                self._tensors,
                row,
                own,
                batch,
                precision=self.precision,
                workers=self._workers,
                name=name,
            )
        dtype = _DTYPES[self.precision]
        size = math.prod(images.image_shape) * dtype.itemsize * self.micro_batch
        part = self.micro_batch * max(1, _IMAGES_BYTES[self.device.type] // size)
        for start, shown in stretches(images, part, self.device):
            batches = preprocessing.batches(shown, self.micro_batch, dtype, self.device)
            sizes = [batch.shape[0] for batch in shown.split(self.micro_batch)]
            with float32_products(self.device, tf32=self.precision == "tf32"):
                if scores is not None and isinstance(program, MembersProgram):
                    rest = (scores, self._workers, self.device)
                    run_chunks(program, rows, statistics, batches, sizes, start, *rest)
                    continue
                run_members(
                    program,
                    rows,
                    statistics,
                    batches,
                    sizes,
                    start,
                    head,
                    self._workers,
                    self.device,
                    name,
                )

    def _placed(self, images: Tensor | LabelledImages) -> Pixels:
        return shown_pixels(images if isinstance(images, Tensor) else self._placement.of(images))

    def _preprocessing(self, images: Pixels) -> Preprocessing:
        """The images' own, if they have one."""
        own = images.mean is not None
        return Preprocessing(images.mean, images.std) if own else self.preprocessing

    def _built(self, image_shape: tuple[int, ...], row_dtype: torch.dtype) -> Built:
        key = (image_shape, row_dtype)
        if key not in self._programs:
            self._programs[key] = build(
                self._model,
                self._tensors,
                image_shape,
                row_dtype,
                engine=self.engine,
                precision=self.precision,
                dtype=_DTYPES[self.precision],
                micro_batch=self.micro_batch,
                table=self.table,
                workers=self._workers,
                device=self.device,
            )
            self.why_unfused = self._programs[key].why_unfused
        return self._programs[key]
