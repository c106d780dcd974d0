"""How work is divided among ranks: units in order, in runs of equal length.

Where networks evaluate images, a unit is one micro-batch of one row: with fewer rows than ranks,
ranks share a row's images. A unit's result depends on nothing beside it, so neither number nor
speed of the ranks changes a bit of what is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks


def share(units: int, rank: int, count: int) -> range:
    """Returns the units of a rank among `count` ranks: their numbers differ by one at most."""
    return range(units * rank // count, units * (rank + 1) // count)


@dataclass(frozen=True)
class Part:
    """Some rows on some images: both are runs of consecutive ones."""

    rows: slice
    images: slice


def parts_of(units: range, rows: int, edges: Sequence[int]) -> list[Part]:
    """Returns units as parts, row by row; three at most.

    rows: how many there are. edges: the first image of each micro-batch, and at last the number of
    images. A unit is number `row * micro-batches + micro-batch`.
    """
    batches = len(edges) - 1
    parts = []
    row, batch = divmod(units.start, batches)
    last_row, last_batch = divmod(units.stop, batches)
    whole = slice(0, edges[-1])
    if row == last_row:
        if batch < last_batch:
            parts.append(Part(slice(row, row + 1), slice(edges[batch], edges[last_batch])))
        return parts
    if batch:
        parts.append(Part(slice(row, row + 1), slice(edges[batch], edges[-1])))
        row += 1
    if row < last_row:
        parts.append(Part(slice(row, last_row), whole))
    if last_batch:
        parts.append(Part(slice(last_row, last_row + 1), slice(0, edges[last_batch])))
    return parts


def parts_by_images(units: range, rows: int, edges: Sequence[int]) -> list[Part]:
    """Returns units as parts, micro-batch by micro-batch; three at most.

    A unit is number `micro-batch * rows + row`: so a part has few images of many rows.
    """
    turned = parts_of(units, len(edges) - 1, range(rows + 1))
    return [
        Part(part.images, slice(edges[part.rows.start], edges[part.rows.stop])) for part in turned
    ]


def edges_of(images: int, micro_batch: int) -> list[int]:
    """Returns the first image of each micro-batch, and at last the number of images."""
    return [*range(0, images, micro_batch), images]


def evaluated(
    rows: int,
    edges: Sequence[int],
    evaluate: Callable[[Part], Sequence[Tensor]],
    divide: Callable[[range, int, Sequence[int]], list[Part]] = parts_of,
) -> list[Tensor]:
    """Returns tensors [rows, images, ...] of which each rank evaluates its share.

    evaluate: function(part) -> tensors [k, n, ...] of k rows on n images. edges: as of `parts_of`.
    divide: makes parts of units: `parts_of` or `parts_by_images`. With several ranks the tensors
    come back on the CPU.
    """
    group = ranks()
    if group.count == 1:
        return list(evaluate(Part(slice(0, rows), slice(0, edges[-1]))))
    units = rows * (len(edges) - 1)
    every = [divide(share(units, r, group.count), rows, edges) for r in range(group.count)]
    own = [[t.cpu().contiguous().numpy() for t in evaluate(part)] for part in every[group.rank]]
    whole: list[Tensor] = []
    for parts, found in zip(every, group.gather(own), strict=True):
        for part, arrays in zip(parts, found, strict=True):
            tensors = [torch.from_numpy(array) for array in arrays]
            if not whole:
                whole = [t.new_empty(rows, edges[-1], *t.shape[2:]) for t in tensors]
            for all_of_it, tensor in zip(whole, tensors, strict=True):
                all_of_it[part.rows, part.images] = tensor
    return whole


def each(count: int, compute: Callable[[int], Tensor]) -> list[Tensor]:
    """Returns compute(0), ..., compute(count - 1), of which each rank computes its share."""
    group = ranks()
    if group.count == 1:
        return [compute(k) for k in range(count)]
    own = share(count, group.rank, group.count)
    arrays = [compute(k).cpu().contiguous().numpy() for k in own]
    return [torch.from_numpy(array) for some in group.gather(arrays) for array in some]
