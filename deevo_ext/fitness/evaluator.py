"""Scores of a population's rows: statistics by the policy, losses by PopulationForward, means.

Images are always evaluated in micro-batches of one fixed size, the last one padded, each on one
thread, and their float64 subtotals are added in order. So a score depends on the row and the images
alone: not on what is evaluated with it, nor on the number of threads. Ranks, where there are
several, each evaluate a share of the micro-batches of all rows; which is whose changes nothing.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deevo_ext.arguments import check_arguments
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks
from deevo_ext.distributed.shares import Part, edges_of, evaluated
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.metrics import Metric, mean_score
from deevo_ext.fitness.statistics import Inherited, StatisticsPolicy, Used
from deevo_ext.identity import function_identity
from deevo_ext.networks.arguments import check_rows
from deevo_ext.networks.engines.choose import EngineTable, device_name
from deevo_ext.networks.execution.modules import logits_of
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.networks.forward import Losses, PopulationForward
from deevo_ext.population.allocation import sent
from deevo_ext.population.population import Population

# What the precision check looks at.
_CHECK_MEMBERS, _CHECK_IMAGES = 8, 1024
_LOSS = Metric("loss")

Evaluate = Callable[[Tensor, LabelledImages, Used | None], Sequence[Tensor]]
"""function(rows [k, D], images, statistics) -> tensors [k, n, ...]."""


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats (+inf where it is not finite), and top-1 in 0..1."""

    loss: float
    top1: float


class Evaluator:
    """Scores rows of a population.

    model: gives the forward pass; it is copied, and its own weights are not used. micro_batch:
    images per forward pass, torch.get_num_threads() of them at a time on the CPU. calibration:
    images whose activations give BatchNorm's statistics under the population's policy "recalibrate"
    (needed there, ignored elsewhere). device: where networks run; the population may lie elsewhere.
    precision and engine: as in `PopulationForward`. force_precision: selection in 16 bits is
    refused where the population fails the precision check, unless this is set.

    `score` and `scores` apply the policy to inherited statistics; the other methods take those that
    rows are evaluated with, which `used_statistics` gives.
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population,
        *,
        micro_batch: int = 64,
        calibration: LabelledImages | None = None,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        engine: str | EngineFunction = "auto",
        force_precision: bool = False,
    ) -> None:
        check_arguments(Evaluator.__init__, locals())
        self.population = population
        self.micro_batch = micro_batch
        self.forward = PopulationForward(
            model,
            population,
            precision=precision,
            engine=engine,
            micro_batch=micro_batch,
            device=device,
        )
        self.device = self.forward.device
        self.policy = StatisticsPolicy(
            population, self.forward.module, calibration, micro_batch, self.device
        )
        self._options = {
            "precision": precision,
            "engine": engine if isinstance(engine, str) else function_identity(engine),
        }
        self._force_precision = force_precision
        self._image_passes = 0
        self._agreed: set[tuple[Any, ...]] = set()  # what ranks have engines for
        self._slices: weakref.WeakKeyDictionary[LabelledImages, dict[int, LabelledImages]]
        self._slices = weakref.WeakKeyDictionary()

    @property
    def forward_passes(self) -> int:
        """Number of images put through a network so far, calibration's included.

        Checks of network graphs and of the precision are not counted.
        """
        return self._image_passes + self.policy.forward_passes

    def count(self, images: int) -> None:
        """Adds images that others have put through a network to `forward_passes`."""
        self._image_passes += images

    def describe(self) -> dict[str, Any]:
        """Returns what decides the scores besides row and images, for the journal's header."""
        calibration = self.policy.calibration
        return {
            "micro_batch": self.micro_batch,
            "device": self.device.type,
            "calibration": calibration.digest() if calibration else None,
            **self._options,
        }

    def engines(self) -> dict[str, Any]:
        """Returns the engines and the precision that are decided so far, as JSON values."""
        return self.forward.table.record()

    def use_engines(self, record: dict[str, Any]) -> None:
        """Takes what `engines` returned when a run was begun; others would round otherwise.

        Warns where the run began on another processor or version of torch.
        """
        table = EngineTable.of(record, self.device)
        self.forward.use_table(table)
        if table.device != (here := device_name(self.device)):
            warnings.warn(
                f"the run began on {table.device} and goes on on {here}: from here on scores may "
                "differ in their last bits from those of an uninterrupted run",
                stacklevel=2,
            )

    def check_precision(self, images: LabelledImages) -> None:
        """Refuses selection in a 16-bit precision that the population fails, on these images."""
        if self.forward.precision not in ("bfloat16", "float16") or self._force_precision:
            return
        report = self.forward.precision_check(*self._sample(images))
        if not report.passed:
            raise DeevoError(
                f"selection in this precision would be decided by rounding: {report}; use "
                'precision="float32", or force_precision=True'
            )

    @torch.no_grad()
    def require_fit(self, images: LabelledImages) -> None:
        """Raises DeevoError where the network fails on two blank images of this shape."""
        blank = torch.zeros(min(2, self.micro_batch), *images.image_shape, device=self.device)
        logits_of(self.forward.module, blank, images.name)

    def used_statistics(self, rows: Tensor, inherited: Inherited | None) -> Used | None:
        """Returns the statistics [K, S] that rows [K, D] are evaluated with, or [S] of a row [D].

        None where rows hold them.
        """
        return self.policy.used(rows, inherited)

    def losses(
        self,
        rows: Tensor,
        images: LabelledImages,
        statistics: Used | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Losses:
        """Returns losses float32 and ranks of the true class, [K, N], or [N] of a row [D].

        rows: [K, D] of any floating dtype, with statistics [K, S] where they are apart. Results lie
        where the labels are.
        """
        check_arguments(Evaluator.losses, locals())
        if rows.ndim == 1:
            apart = None if statistics is None else Used(statistics[None])
            losses, ranks = self.losses(rows[None], images, apart, label_smoothing=label_smoothing)
            return Losses(losses[0], ranks[0])
        check_rows(rows, self.population.layout)
        self.settle(images)

        def evaluate(rows: Tensor, images: LabelledImages, apart: Used | None) -> Losses:
            return self.forward(rows, images, statistics=apart, label_smoothing=label_smoothing)

        found = self._shared(rows, images, statistics, evaluate)
        return Losses(*(tensor.to(images.labels.device) for tensor in found))

    def image_scores(
        self,
        rows: Tensor,
        images: LabelledImages,
        metric: Metric,
        statistics: Used | None = None,
    ) -> Tensor:
        """Returns a metric's outcomes float32 [K, N] of rows [K, D] with statistics [K, S].

        They are [K, N, classes] where the metric keeps logits. They lie on the evaluating device,
        which is not waited for.
        """
        self.settle(images)

        def evaluate(rows: Tensor, images: LabelledImages, apart: Used | None) -> list[Tensor]:
            return [self._outcomes(rows, images, metric, apart)]

        return self._shared(rows, images, statistics, evaluate)[0]

    def _outcomes(
        self, rows: Tensor, images: LabelledImages, metric: Metric, statistics: Used | None
    ) -> Tensor:
        if metric.by_ranks:
            smoothing = metric.label_smoothing
            return metric.of_results(
                *self.forward.losses(rows, images, None, statistics, label_smoothing=smoothing)
            )
        labels = sent(images.labels, self.device)
        parts: list[dict[int, Tensor]] = [{} for _ in rows]

        def take(k: int, start: int, logits: Tensor) -> None:
            places = slice(start, start + len(logits))
            parts[k][start] = metric.of_logits(logits.float(), labels[places])

        self.forward.each(rows, images, statistics, take)
        return torch.stack([torch.cat([part[at] for at in sorted(part)]) for part in parts])

    def _shared(
        self, rows: Tensor, images: LabelledImages, statistics: Used | None, evaluate: Evaluate
    ) -> Sequence[Tensor]:
        """Results [K, N, ...] of rows on images, of which each rank evaluates its share."""
        self._image_passes += len(images) * len(rows)
        if ranks().count == 1:
            return evaluate(rows, images, statistics)

        def some(part: Part) -> Sequence[Tensor]:
            apart = None if statistics is None else Used(statistics[part.rows])
            return evaluate(rows[part.rows], self.seen(images, part.images), apart)

        first = Part(slice(0, 1), slice(0, min(self.micro_batch, len(images))))
        self.agree(images, rows.dtype, lambda: some(first))
        found = evaluated(len(rows), edges_of(len(images), self.micro_batch), some)
        return [tensor.to(self.device) for tensor in found]

    def seen(self, images: LabelledImages, some: slice) -> LabelledImages:
        """Returns some of the images; the same object again, whose pixels may lie on a GPU."""
        if some == slice(0, len(images)):
            return images
        known = self._slices.setdefault(images, {})
        if some.start not in known or len(known[some.start]) != some.stop - some.start:
            known[some.start] = images.slice(some.start, some.stop)
        return known[some.start]

    def agree(
        self,
        images: LabelledImages,
        dtype: torch.dtype,
        first: Callable[[], object],
        what: str = "scores",
    ) -> None:
        """Gives all ranks the engines that rank 0 has timed, before they evaluate such images.

        first: evaluates the first micro-batch of the first row, on which networks are checked;
        all ranks do that, so that all find the same. what: they are evaluated for.
        """
        key = (what, images.image_shape, dtype, self.forward.precision)
        if ranks().count == 1 or key in self._agreed:
            return

        def engines() -> dict[str, Any]:
            first()
            return self.engines()

        record = ranks().lead(engines)
        if not ranks().leads:
            if self.engines() != record:
                self.use_engines(record)
            first()
        self._agreed.add(key)

    def logits(self, row: Tensor, images: LabelledImages, statistics: Used | None = None) -> Tensor:
        """Returns logits float32 [N, classes] of a row [D], where the labels are."""
        self.settle(images)
        self._image_passes += len(images)
        return self.forward.logits(row, images, statistics)

    def score(
        self,
        row: Tensor,
        images: LabelledImages,
        inherited: Inherited | None = None,
        metric: Metric = _LOSS,
    ) -> float:
        """Returns a row's fitness by a metric; by default the mean cross-entropy."""
        check_arguments(Evaluator.score, locals())
        check_rows(row[None], self.population.layout)
        used = self.used_statistics(row, inherited)
        apart = None if used is None else Used(used[None])
        outcomes = self.image_scores(row[None], images, metric, apart)[0]
        return ranks().lead(
            lambda: float(metric.fitness(outcomes, images.labels, self.micro_batch))
        )

    def scores(
        self, rows: Tensor, images: LabelledImages, inherited: Inherited | None = None
    ) -> list[Score]:
        """Returns the mean loss and top-1 of each of rows [K, D]."""
        check_arguments(Evaluator.scores, locals())
        check_rows(rows, self.population.layout)
        losses, ranks = self.losses(rows, images, self.used_statistics(rows, inherited))
        return [
            Score(mean_score(loss, self.micro_batch), float((rank == 0).double().mean()))
            for loss, rank in zip(losses, ranks, strict=True)
        ]

    def settle(self, images: LabelledImages) -> None:
        """Decides the precision "auto", by the members' losses on some of these images."""
        if self.forward.precision == "auto":

            def decide() -> dict[str, Any]:
                self.forward.decide_precision(*self._sample(images))
                return self.engines()

            record = ranks().lead(decide)
            if not ranks().leads:
                self.use_engines(record)

    def _sample(self, images: LabelledImages) -> tuple[Tensor, LabelledImages, Tensor, Tensor]:
        """Members and images for a precision check, with the members' own statistics."""
        some = slice(0, _CHECK_MEMBERS)
        rows, statistics = self.population.rows[some], self.population.statistics[some]
        sample = images.slice(0, min(len(images), _CHECK_IMAGES))
        return rows, sample, sample.labels, statistics
