"""How work is divided among ranks: units in order, in runs of equal length or by speed.

Where networks evaluate images, a unit is one micro-batch of one row: with fewer rows than ranks,
ranks share a row's images. A unit's result depends on nothing beside it, so neither number nor
speed of the ranks changes a bit of what is gathered, and no speed need be recorded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import Speeds, ranks

_ALIKE = 1.1  # how much faster one rank may be than another before shares differ
_SLOWEST = 0.01
_LEAST_SECONDS = 0.1


def share(units: int, rank: int, count: int) -> range:
    """Returns the units of a rank among `count` ranks: their numbers differ by one at most."""
    return range(units * rank // count, units * (rank + 1) // count)


def shares_by_speed(units: int, speeds: Sequence[float]) -> list[range]:
    """Returns the units of each rank, by their speeds; equal ones where these hardly differ."""
    if max(speeds) <= _ALIKE * min(speeds):
        return [share(units, rank, len(speeds)) for rank in range(len(speeds))]
    ends = [0, *itertools.accumulate(speeds)]
    edges = [round(units * end / ends[-1]) for end in ends]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def speeds_after(speeds: Sequence[float], units: Sequence[int], seconds: Sequence[float]) -> Speeds:
    """Returns ranks' speeds, in units of their mean, after each did so many units in its time.

    They are the mean of what they were and are now: a moment's load weighs half. What is over in
    less than a tenth of a second says nothing. A rank that had no unit is taken for faster by a
    quarter, so that it gets one again.
    """
    busy = [(n, s) for n, s in zip(units, seconds, strict=True) if n]
    if not busy or min(s for _, s in busy) < _LEAST_SECONDS:
        return tuple(speeds)
    mean = sum(n / s for n, s in busy) / len(busy)
    new = [n / s / mean if n else 1.5 * a for a, n, s in zip(speeds, units, seconds, strict=True)]
    return tuple(max(_SLOWEST, (a + b) / 2) for a, b in zip(speeds, new, strict=True))


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
    held: Sequence[slice] | None = None,
) -> list[Tensor]:
    """Returns tensors [rows, images, ...] of which each rank evaluates its share.

    evaluate: function(part) -> tensors [k, n, ...] of k rows on n images. edges: as of `parts_of`.
    divide: makes parts of units: `parts_of` or `parts_by_images`. Shares follow the speed at which
    ranks have evaluated so far. held: the images, consecutive ones, that each rank gets the results
    of; None: all of them get those of all images. With several ranks the tensors come back on the
    CPU.
    """
    group, whole = ranks(), slice(0, edges[-1])
    if group.count == 1:
        return list(evaluate(Part(slice(0, rows), whole)))
    shares = shares_by_speed(rows * (len(edges) - 1), group.speeds)
    every = [divide(units, rows, edges) for units in shares]
    began = time.perf_counter()
    own = [[t.cpu().contiguous().numpy() for t in evaluate(part)] for part in every[group.rank]]
    took = time.perf_counter() - began
    if held is None:
        both, wanted = group.gather((own, took)), whole
    else:
        wanted = held[group.rank]
        both = group.exchange([(_cut(every[group.rank], own, images), took) for images in held])
    found, seconds = zip(*both, strict=True)
    group.speeds = speeds_after(group.speeds, [*map(len, shares)], seconds)
    result: list[Tensor] = []
    for parts, some in zip(every, found, strict=True):
        for part, arrays in zip(parts, some, strict=True):
            tensors = [torch.from_numpy(array) for array in arrays]
            if not result:
                size = wanted.stop - wanted.start
                result = [t.new_empty(rows, size, *t.shape[2:]) for t in tensors]
            at = _common(part.images, wanted, wanted.start)
            for all_of_it, tensor in zip(result, tensors, strict=True):
                all_of_it[part.rows, at] = tensor
    return result


def foreign(rows: int, edges: Sequence[int], held: Sequence[slice]) -> int:
    """Returns how many results of an image a rank gets from others, at most.

    The arguments are those of `evaluated`, where parts are made by images.
    """
    count, units = len(held), rows * (len(edges) - 1)
    most = 0
    for rank, images in enumerate(held):
        own = parts_by_images(share(units, rank, count), rows, edges)
        cuts = [(part.rows, _common(part.images, images, 0)) for part in own]
        kept = sum((r.stop - r.start) * (cut.stop - cut.start) for r, cut in cuts)
        most = max(most, rows * (images.stop - images.start) - kept)
    return most


def _common(images: slice, others: slice, first: int) -> slice:
    """The images that are among others, too, counted from `first`."""
    start = max(images.start, others.start)
    stop = max(start, min(images.stop, others.stop))
    return slice(start - first, stop - first)


def _cut(parts: Sequence[Part], arrays: Sequence[list[Any]], images: slice) -> list[list[Any]]:
    """What some parts gave for some images."""
    cuts = [_common(part.images, images, part.images.start) for part in parts]
    return [[one[:, cut] for one in some] for cut, some in zip(cuts, arrays, strict=True)]


def each(count: int, compute: Callable[[int], Tensor]) -> list[Tensor]:
    """Returns compute(0), ..., compute(count - 1), of which each rank computes its share."""
    group = ranks()
    if group.count == 1:
        return [compute(k) for k in range(count)]
    own = share(count, group.rank, group.count)
    arrays = [compute(k).cpu().contiguous().numpy() for k in own]
    return [torch.from_numpy(array) for some in group.gather(arrays) for array in some]
