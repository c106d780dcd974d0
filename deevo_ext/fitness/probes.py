"""Logits of many networks on the same images, as a linear model of the population asks for them.

A network with BatchNorm is evaluated with the statistics of fixed groups of images, not with
running ones: a step of the weights moves the statistics with it, and probes that do not show this
predict what does not come (docs/contract.md, "Rounds").

A probe differs from the present network in one block. What lies before it is computed once for all
probes, where there is a network graph to cut; each gets the bits that it would have alone. Ranks,
where there are several, each evaluate some probes on some images; each gets what is kept of the
images that it holds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks, warn
from deevo_ext.distributed.shares import Part, edges_of, evaluated, parts_by_images
from deevo_ext.distributed.slices import Slices
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.statistics import Used, group_size, norms_in_training
from deevo_ext.networks.build import DEVIATION, Built
from deevo_ext.networks.execution.feed import MicroBatch, slices
from deevo_ext.networks.execution.modules import Modules, call
from deevo_ext.networks.execution.prefixes import Changed, PrefixRunner
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.networks.execution.runner import MemberRunner, Runner
from deevo_ext.networks.execution.sinks import FunctionSink, LogitsSink, TakeLogits
from deevo_ext.population.allocation import sent
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.layout import Layout

Moved = Mapping[int, Sequence[Tensor]]
"""Recipes [blocks, members] by the one block in which they differ from another recipe."""
Compose = Callable[[Tensor, Layout | None], Tensor]
"""function(recipes [K, blocks, members], part) -> rows [K, D], or those of a part of the layout."""


Columns = Callable[[Tensor, slice], Tensor]
"""function(logits float32 [K, n, classes], images) -> what is kept of them, [K, n, columns]."""


@dataclass(frozen=True)
class Wanted:
    """What each rank gets of logits: those of the images that it holds, or columns of them.

    slices: tell whose, None: of all images. columns: what is kept in their place.
    """

    slices: Slices | None = None
    columns: Columns | None = None

    @property
    def held(self) -> list[slice] | None:
        """The images whose logits each rank gets, None: all get those of all."""
        return None if self.slices is None or self.slices.whole else self.slices.held(ranks().count)


ALL = Wanted()
"""All logits, for every rank."""


class ProbeForward:
    """Puts images through networks of an evaluator's population and keeps the logits.

    Under the policy "recalibrate" norm layers use the statistics of each group of images; the
    groups are equal parts of the images, of about `statistics.group_size`. A user's function has no
    such mode: its probes have their statistics re-estimated, like networks that are scored.
    Otherwise networks are evaluated as they are, in micro-batches. forward_passes are counted by
    the evaluator.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._by_groups = evaluator.policy.recalibrates and not evaluator.forward.own_engine
        if self._by_groups:
            self._in_training = _InTraining(evaluator)

    def __call__(self, rows: Tensor, images: LabelledImages, wanted: Wanted = ALL) -> Tensor:
        """Returns what is wanted of logits float32 [K, N, classes] of rows [K, D].

        They lie on the evaluator's device.
        """
        rows, device = sent(rows, self.evaluator.device), self.evaluator.device
        used: Used | None = None
        if not self._by_groups:
            self.evaluator.settle(images)
            used = self.evaluator.used_statistics(rows, None)  # which a user's function is to have
        self.evaluator.agree(
            images,
            rows.dtype,
            functools.partial(self._first, rows, images, used),
            f"probes of {len(images)}",
        )

        def some(part: Part) -> list[Tensor]:
            logits = _Logits(part, wanted.columns)
            if self._by_groups:
                for group in self._groups(images, part.images):
                    built = self._checked(images, rows[0], group)
                    built.runner.run(rows[part.rows], None, [[group]], FunctionSink(logits.take))
            else:
                apart = None if used is None else Used(used[part.rows])
                seen = self.evaluator.seen(images, part.images)
                self.evaluator.forward.each(rows[part.rows], seen, apart, logits.take_of_part)
            return [logits.all()]

        edges = self._edges(images)
        found = evaluated(len(rows), edges, some, parts_by_images, wanted.held)[0].to(device)
        self.evaluator.count(len(rows) * len(images))
        return found

    def _first(self, rows: Tensor, images: LabelledImages, used: Used | None) -> None:
        """Evaluates the first row on the first images, where networks are checked."""
        if self._by_groups:
            edges = self._edges(images)
            for size in {stop - start for start, stop in itertools.pairwise(edges)}:
                at = next(a for a, b in itertools.pairwise(edges) if b - a == size)
                (group,) = self._groups(images, slice(at, at + size))
                self._checked(images, rows[0], group)
            return
        seen = self.evaluator.seen(images, slice(0, self._edges(images)[1]))
        apart = None if used is None else Used(used[:1])
        self.evaluator.forward.each(rows[:1], seen, apart, lambda *_: None)

    def shares(self, images: LabelledImages) -> bool:
        """Whether networks that differ in a block share what lies before it."""
        return bool(self._prefixes(images))

    def by_blocks(
        self,
        blocks: Blocks,
        compose: Compose,
        recipe: Tensor,
        moved: Moved,
        images: LabelledImages,
        wanted: Wanted = ALL,
    ) -> Tensor:
        """Returns what is wanted of the logits of networks that differ from one in a block each.

        compose: makes their rows. recipe: of that network. The others are numbered in the order of
        `moved`; their bits are those of their rows. Networks must share something, as `shares` says
        once rows have been evaluated on the images. The passes that are counted are those of
        `passes`, however many ranks share them.
        """
        device = self.evaluator.device
        row = sent(compose(recipe[None], None)[0], device)

        def changed(runner: PrefixRunner, b: int, recipes: Sequence[Tensor]) -> Changed:
            change = runner.change(blocks.tensors[b])

            def rows() -> Tensor:
                return sent(compose(torch.stack([*recipes]), change.layout), device)

            return Changed(change, rows, len(recipes))

        def some(part: Part) -> list[Tensor]:
            logits, own = _Logits(part, wanted.columns), _of(moved, part.rows)

            def run(
                runner: PrefixRunner,
                batches: Callable[[int], Iterator[list[MicroBatch]]],
                take: TakeLogits,
            ) -> None:
                changes = [changed(runner, b, recipes) for b, recipes in own.items()]
                runner.run(row, changes, batches, FunctionSink(take))

            if self._by_groups:
                for group in self._groups(images, part.images):
                    runner = self._built(images, group.size).prefixes
                    assert runner is not None
                    run(runner, functools.partial(_alone, group), logits.take)
            else:
                (runner,) = self._prefixes(images)
                seen = self.evaluator.seen(images, part.images)
                forward = self.evaluator.forward
                run(runner, lambda most: forward.micro_batches(seen, most), logits.take_of_part)
            return [logits.all()]

        count = sum(map(len, moved.values()))
        edges = self._edges(images)
        found = evaluated(count, edges, some, parts_by_images, wanted.held)[0].to(device)
        counts = {b: len(recipes) for b, recipes in moved.items()}
        self.evaluator.count(self.passes(blocks, counts, images))
        return found

    def passes(self, blocks: Blocks, counts: Mapping[int, int], images: LabelledImages) -> int:
        """Returns the forward passes of networks that differ from one in a block each.

        counts: of networks, by block. A pass that begins at a block's entry counts as its share of
        the network's FLOPs; to them comes what is shared, up to the last entry. Sums are rounded
        up. Where nothing is shared, they are all the networks' passes.
        """
        runners = self._prefixes(images)
        flops = runners[0].program.graph.flops if runners else 0
        if not flops:
            return sum(counts.values()) * len(images)
        behind = {b: runners[0].flops_behind(blocks.tensors[b]) for b in counts}
        spent = flops - min(behind.values()) + sum(behind[b] * n for b, n in counts.items())
        return -(-len(images) * spent // flops)

    def _prefixes(self, images: LabelledImages) -> list[PrefixRunner]:
        """What runs networks that share prefixes, for each size of groups; empty: nothing does."""
        shape, dtype = images.image_shape, self.evaluator.population.rows.dtype
        if self._by_groups:
            sizes = {stop - start for start, stop in itertools.pairwise(self._edges(images))}
            found = [self._built(images, size).prefixes for size in sorted(sizes)]
        else:
            found = [self.evaluator.forward.prefixes(shape, dtype)]
        runners = [one for one in found if one is not None]
        return runners if len(runners) == len(found) else []

    def _built(self, images: LabelledImages, size: int) -> Built:
        """A runner of networks with the statistics of a group."""
        dtype = self.evaluator.population.rows.dtype
        statistics = [n for tensor in self.evaluator.policy.statistics() for n in tensor.names]
        found = self.evaluator.forward.with_batch_statistics(
            statistics, size, images.image_shape, dtype
        )
        return Built(self._module(size), None, checked=True) if found is None else found

    def _module(self, size: int) -> Runner:
        run = self.evaluator.forward.execution.in_float32(size)
        return MemberRunner(self._in_training, run)

    def _checked(self, images: LabelledImages, row: Tensor, group: MicroBatch) -> Built:
        """Likewise, and seen to give the module's logits of a row; else it is the module."""
        built = self._built(images, group.size)
        if not built.checked:
            module, both = self._module(group.size), list[Tensor]()
            for runner in (built.runner, module):
                sink = LogitsSink()
                runner.run(row[None], None, [[group]], sink)
                both.append(sink.logits())
            apart, size = float((both[0] - both[1]).abs().max()), float(both[1].abs().max())
            # An overflow is the network's own.
            if apart > DEVIATION[built.runner.execution.precision] * size:
                warn(
                    "the network graph with batch statistics gives logits that differ from the "
                    f"module's by {apart:.3g} (largest logit {size:.3g}); probes are served by "
                    "functional_call: please report this network",
                    stacklevel=2,
                )
                built.runner, built.graph, built.prefixes = module, None, None
            built.checked = True
        return built

    def _edges(self, images: LabelledImages) -> list[int]:
        """The first image of each group or micro-batch, and at last their number."""
        if not self._by_groups:
            return edges_of(len(images), self.evaluator.micro_batch)
        count = len(images) // group_size(images, self.evaluator.micro_batch)
        return [len(images) * i // count for i in range(count + 1)]

    def _groups(self, images: LabelledImages, some: slice) -> Iterator[MicroBatch]:
        """The groups of some images."""
        device = self.evaluator.device
        preprocessing = Preprocessing(images.mean, images.std)
        placed = self.evaluator.policy.placement.of(images)
        edges = [edge for edge in self._edges(images) if some.start <= edge <= some.stop]
        for start, read in slices(placed, list(itertools.pairwise(edges)), device):
            pixels = preprocessing.normalise(read, device)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            yield MicroBatch(pixels, start, len(pixels), images.name)


def _of(moved: Moved, some: slice) -> dict[int, Sequence[Tensor]]:
    """Those of the networks that have these numbers."""
    own, first = dict[int, Sequence[Tensor]](), 0
    for block, recipes in moved.items():
        taken = recipes[max(some.start - first, 0) : max(some.stop - first, 0)]
        if taken:
            own[block] = taken
        first += len(recipes)
    return own


def _alone(group: MicroBatch, most: int) -> Iterator[list[MicroBatch]]:
    yield [group]


class _InTraining:
    """The module itself, its norm layers with batch statistics, for networks without a graph."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._policy = evaluator.policy
        self._dim = evaluator.population.statistics_layout.dim
        forward = evaluator.forward
        self._modules = Modules(forward.module, forward.execution.workers.count)

    def prepare(self, row: Tensor, statistics: Tensor | None) -> tuple[dict[str, Tensor], set[str]]:
        """The network's tensors, and its norm layers."""
        apart = torch.zeros(self._dim, device=row.device)
        return self._policy.tensors_in_training(row.float(), apart)

    def run(self, prepared: tuple[dict[str, Tensor], set[str]], images: Tensor) -> Tensor:
        """Logits of one group."""
        tensors, norms = prepared
        with self._modules.take(images) as (model, own), norms_in_training(model, norms):
            return call(model, tensors, (own,))


class _Logits:
    """Keeps the logits of several networks on some images, or columns made of them."""

    def __init__(self, part: Part, columns: Columns | None) -> None:
        self._count, self._first = part.rows.stop - part.rows.start, part.images.start
        self._columns = columns
        self._parts: dict[tuple[int, int], Tensor] = {}

    def take(self, k: int, start: int, logits: Tensor) -> None:
        """Copies the k-th network's logits of the images from `start` on."""
        kept = logits.float().clone()
        if self._columns is not None:
            kept = self._columns(kept[None], slice(start, start + len(kept)))[0]
        self._parts[k, start] = kept

    def take_of_part(self, k: int, start: int, logits: Tensor) -> None:
        """Likewise, where images are counted from the part's first."""
        self.take(k, self._first + start, logits)

    def all(self) -> Tensor:
        """Logits float32 [K, N, classes], or columns."""
        starts = sorted({start for _, start in self._parts})
        return torch.stack(
            [torch.cat([self._parts[k, start] for start in starts]) for k in range(self._count)]
        )
