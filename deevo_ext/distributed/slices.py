"""Fixed slices of a model's images: each rank works on some, and sums are the same for any number.

What is summed over all images is summed slice by slice, and the slices' sums are added in a binary
tree over their numbers: its nodes are the same whoever computes them. A rank adds what lies within
its own slices, so that a node or a few of each rank are sent, not all slices.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks
from deevo_ext.distributed.shares import share

T = TypeVar("T", Tensor, "np.ndarray[Any, Any]")
Node = tuple[int, int]
"""Slices from the first up to, but without, the last."""

SLICES = 64
"""How many there are at most: as many ranks share a model."""
WORTH, WORTH_OF_GPUS = 1 << 21, 1 << 28
"""Numbers of a model from which on it is shared out.

One look at so many by 64 candidates takes about 10 ms of a core, several times what an exchange
takes. A GPU works so fast that sending a fit's curvature takes longer: there, memory counts.
Smaller models lie whole on every rank.
"""
NUMBERS = 1 << 16
"""Those of a slice, at least: else it costs more to begin an operation than to do it."""
_FEW = 1 << 17  # numbers that one rank adds sooner than several could exchange them


@dataclass(frozen=True)
class Slices:
    """Which images of a model lie on which rank.

    edges: the first image of each slice, and at last the number of images. One slice is a model
    that lies whole on every rank.
    """

    edges: tuple[int, ...]

    @classmethod
    def of(cls, images: int, numbers: int, device: torch.device) -> Slices:
        """Returns the slices of a model of so many numbers: by its size alone, not by the ranks."""
        worth = WORTH if device.type == "cpu" else WORTH_OF_GPUS
        most = min(SLICES, images, numbers // NUMBERS)
        count = 1 if numbers < worth else 1 << (most.bit_length() - 1)
        return cls(tuple(images * k // count for k in range(count + 1)))

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.edges) - 1

    @property
    def recorded(self) -> int | None:
        """What a record says of them: how many, None where the model is whole."""
        return None if self.whole else self.count

    @property
    def whole(self) -> bool:
        """Whether every rank holds all images."""
        return self.count == 1

    @property
    def own(self) -> slice:
        """The images that this rank holds."""
        return self._images(self._own)

    def each(self) -> Iterator[slice]:
        """Yields the images of each slice that this rank holds."""
        for k in self._own:
            yield self._images(range(k, k + 1))

    def held(self, count: int) -> list[slice]:
        """Returns the images that each of so many ranks holds."""
        return [self._images(self._of(rank, count)) for rank in range(count)]

    def nodes(self, rank: int, count: int) -> list[Node]:
        """Returns the largest nodes within the slices of one of so many ranks: what it sends."""
        own = self._of(rank, count)

        def within(first: int, last: int) -> Iterator[Node]:
            if first >= own.stop or last <= own.start:
                return
            if own.start <= first and last <= own.stop:
                yield first, last
                return
            middle = (first + last) // 2
            yield from within(first, middle)
            yield from within(middle, last)

        return list(within(0, self.count))

    def added(self, values: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sums float64 [P] of values [P, n] over all images, and rank 0's `beside`.

        values: of the images that this rank holds. beside: float64 [P]; processors may differ in
        last bits of what each rank computes by itself, and all go on with rank 0's.
        """
        if self.whole and values.device.type != "cpu":
            return values.sum(dim=1, dtype=torch.float64).cpu(), beside
        own, sums = self._own, np.empty((len(values), 0))
        if len(own):
            starts = [self.edges[k] - self.edges[own.start] for k in own]
            sums = np.add.reduceat(values.double().cpu().numpy(), starts, axis=1)
        nodes = self._nodes(lambda k: sums[:, k - own.start])
        if self._shared:
            found = ranks().gather((nodes, beside if ranks().leads else beside[:0]))
            nodes = {node: one for some, _ in found for node, one in some.items()}
            beside = found[0][1]
        return torch.from_numpy(self._sum((0, self.count), nodes).copy()), beside

    def summed(
        self, numbers: int, compute: Callable[[slice], Tensor], packed: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """Returns the packed sum of what is computed of each slice, on rank 0; else None.

        compute: function(images) -> tensor on the CPU. packed: function(tensor) -> the numbers of
        it that matter, [numbers]; these are sent. Where they are many each rank adds some of them,
        so that none receives those of all others.
        """
        nodes = self._nodes(lambda k: compute(self._images(range(k, k + 1))))
        if not self._shared:
            return packed(self._sum((0, self.count), nodes))
        group = ranks()
        parts = self.adding(numbers, group.count)
        sent = {node: packed(one).numpy() for node, one in nodes.items()}
        given = [
            {node: one[part.start : part.stop] for node, one in sent.items()} for part in parts
        ]
        found = {node: one for some in group.exchange(given) for node, one in some.items()}
        added = self._sum((0, self.count), found)
        if len(parts[0]) < numbers:
            back = [added if rank == 0 else added[:0] for rank in range(group.count)]
            added = np.concatenate(group.exchange(back))
        return torch.from_numpy(added) if group.leads else None

    @staticmethod
    def adding(numbers: int, count: int) -> list[range]:
        """Returns which of a sum's numbers each of so many ranks adds: rank 0 all, if few."""
        if numbers * count <= _FEW:
            return [range(numbers), *[range(0)] * (count - 1)]
        return [share(numbers, rank, count) for rank in range(count)]

    def gathered(self, values: Tensor, dim: int = 0) -> Tensor:
        """Returns values of all images, on the CPU, of those of this rank's along a dimension."""
        values = values.cpu()
        if not self._shared:
            return values
        parts = ranks().gather(values.contiguous().numpy())
        return torch.cat([torch.from_numpy(part) for part in parts], dim=dim)

    def dealt(self, values: Tensor | None) -> Tensor:
        """Returns rank 0's values [k, all images, ...] of the images that this rank holds.

        values: None on the others.
        """
        group = ranks()
        if not self._shared:
            return group.lead(lambda: cast(Tensor, values))
        own = None if values is None else values.numpy()
        parts = [None if own is None else own[:, images] for images in self.held(group.count)]
        return torch.from_numpy(group.exchange(parts)[0])

    def judged(self, values: Tensor, judge: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Returns what is judged of P sets of values [P, n, ...], each of all images: float64 [P].

        judge: function(values [p, all images, ...], which of the sets) -> float64 [p] on the CPU.
        Each rank judges some of the sets, so that what is sent to each, and judged, becomes less
        with more ranks.
        """
        if not self._shared:
            return judge(values, slice(0, len(values)))
        group, values = ranks(), values.cpu().contiguous()
        parts = [share(len(values), rank, group.count) for rank in range(group.count)]
        given = group.exchange([values[part.start : part.stop].numpy() for part in parts])
        found = torch.empty(0, dtype=torch.float64)
        if own := parts[group.rank]:
            whole = torch.cat([torch.from_numpy(some) for some in given], dim=1)
            found = judge(whole, slice(own.start, own.stop))
        return torch.cat([torch.from_numpy(some) for some in group.gather(found.numpy())])

    def everywhere(self, holds: bool) -> bool:
        """Whether something holds of the images of all ranks."""
        return all(ranks().gather(holds)) if self._shared else holds

    @property
    def _shared(self) -> bool:
        """Whether other ranks hold other images."""
        return not self.whole and ranks().count > 1

    @property
    def _own(self) -> range:
        return self._of(ranks().rank, ranks().count)

    def _of(self, rank: int, count: int) -> range:
        return range(1) if self.whole else share(self.count, rank, count)

    def _images(self, slices: range) -> slice:
        return slice(self.edges[slices.start], self.edges[slices.stop])

    def _nodes(self, leaf: Callable[[int], T]) -> dict[Node, T]:
        """The sums of the largest nodes that lie within this rank's slices, of each slice's."""
        return {node: self._sum(node, {}, leaf) for node in self.nodes(ranks().rank, ranks().count)}

    def _sum(
        self, node: Node, known: Mapping[Node, T], leaf: Callable[[int], T] | None = None
    ) -> T:
        """The sum of a node, from those that are known or from slices'."""
        if node in known:
            return known[node]
        first, last = node
        if last - first == 1:
            assert leaf is not None
            return leaf(first)
        middle = (first + last) // 2
        halves = (self._sum(half, known, leaf) for half in ((first, middle), (middle, last)))
        return functools.reduce(operator.add, halves)
