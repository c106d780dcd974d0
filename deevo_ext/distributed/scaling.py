"""What ranks send and hold, from the sizes of a run: what it takes before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deevo_ext.distributed.connection import head_of, room_of
from deevo_ext.distributed.shares import edges_of, foreign
from deevo_ext.distributed.slices import Slices

_OUTCOME, _NUMBER = 4, 8  # bytes of an image's outcome or a logit, and of a fitness
# What a message has beside its numbers: an array's header, a rank's list.
_OVERHEAD = 256
_VIRTUAL = 320_000  # bytes of what one virtual evolution did, generation by generation
# Rounds and linear models are made by packages that import this one: their numbers, once more.
_RIDGES, _LENGTHS, _FOLDS, _WAVES, _PROPOSALS = 9, 3, 5, 2, 24
_TESTS, _TOGETHER = 8, 64  # images that test, for one in the model; probes at a time
_ALL, _KEPT, _DRAWN = 100, 21, 10  # classes of which all are kept; else so many, and of the rest
_STEPS = 200  # of Newton's method in all fits of a round
# Directions from which on a step is made of products with the matrix; so many, in the mean.
_MANY, _PRODUCTS = 1024, 25
_CANDIDATES, _GENERATIONS = 64, 300  # of a virtual evolution


@dataclass(frozen=True)
class Sizes:
    """A network and how a population of it is evaluated.

    weights: D. statistics: BatchNorm's running ones, S. classes: the logits of an image. members:
    of the population. images: of a generation's batch, or of a round's linear model. micro_batch,
    chunk: images and rows that are evaluated together. blocks: of a recipe.
    """

    weights: int
    statistics: int
    classes: int
    members: int
    images: int
    micro_batch: int = 64
    chunk: int = 8
    blocks: int = 18


@dataclass(frozen=True)
class Scaling:
    """What a number of ranks comes to.

    received: bytes that a rank receives in a generation or round, at most. memory: bytes of the
    members' rows, the rows that are evaluated and, in a round, the linear model, on each rank.
    units: how many micro-batches of a row a rank evaluates between two exchanges, on average.
    useful: ranks up to which each has one.
    """

    received: int
    memory: int
    units: float
    useful: int


def of_generation(sizes: Sizes, ranks: int, weight: int = 4) -> Scaling:
    """Returns what a generation of a search of weights comes to.

    weight: bytes of one. Each image's outcome is gathered, so that races and metrics of whole sets
    have it; D is not in it.
    """
    units = sizes.members * -(-sizes.images // sizes.micro_batch)
    outcomes = _OUTCOME * sizes.members * sizes.images
    # Two rows that are made while two are evaluated.
    rows = sizes.members + 2 * sizes.chunk
    return Scaling(
        _gathered(outcomes, ranks) + _led(_NUMBER * sizes.members, ranks),
        rows * sizes.weights * weight,
        units / ranks,
        units,
    )


def of_round(sizes: Sizes, ranks: int, weight: int = 4, on_gpu: bool = True) -> Scaling:
    """Returns what a round of a search of coefficients comes to, along coordinates.

    on_gpu: whether the linear model lies on a GPU. A model that is shared (`slices`) leaves the
    columns of probes where they belong; its sums and derivatives are exchanged. Of one that lies
    whole on every rank columns are gathered, and rank 0 sends fits and what virtual evolutions did.
    Statistics of the networks that are proved are gathered.
    """
    few = sizes.classes <= _ALL
    kept, columns = (sizes.classes,) * 2 if few else (_KEPT, _KEPT + _DRAWN)
    slopes = columns if few else columns + 1  # those of the rest have the true class, too
    probes = sizes.blocks * (sizes.members - 1)
    directions = sizes.blocks * sizes.members
    device = torch.device("cuda" if on_gpu else "cpu")
    slices = Slices.of(sizes.images, directions * sizes.images * kept, device)
    held = slices.held(ranks)
    together = min(_TOGETHER, probes)
    groups = -(-probes // together)
    outcomes = _OUTCOME * (_PROPOSALS + 1 + 2 * _TESTS) * sizes.images
    statistics = _OUTCOME * sizes.statistics * (_PROPOSALS + 3)
    received = _gathered(_OUTCOME * sizes.images * sizes.classes, ranks)  # of the present network
    received += _gathered(outcomes + statistics, ranks, _PROPOSALS + 8)
    if slices.whole:
        received += _gathered(_OUTCOME * sizes.images * probes * columns, ranks, groups)
        received += _gathered(_OUTCOME * sizes.images * sizes.classes, ranks)  # of a correction
        fits = _RIDGES * _LENGTHS * _NUMBER * (sizes.images + _FOLDS * directions)
        received += _led(
            fits + _WAVES * _VIRTUAL + _PROPOSALS * _NUMBER * directions, ranks, _WAVES + 1
        )
    elif ranks > 1:
        edges = edges_of(sizes.images, sizes.micro_batch)
        received += groups * (
            foreign(together, edges, held) * _OUTCOME * columns + 2 * _heads(ranks)
        )
        received += foreign(1, edges, held) * _OUTCOME * sizes.classes + _heads(ranks)
        received += _fits(directions, sizes.images, slices, ranks)
    most = max(images.stop - images.start for images in held)
    units = together * -(-sizes.images // sizes.micro_batch)
    rows = (sizes.members + 2 * sizes.chunk) * sizes.weights * weight
    return Scaling(
        received,
        rows + _OUTCOME * (directions * most * slopes + sizes.images * sizes.classes),
        units / ranks,
        units,
    )


def _fits(directions: int, images: int, slices: Slices, ranks: int) -> int:
    """Bytes that rank 0 receives, more than others, for a model's fits and virtual evolutions."""
    nodes = [len(slices.nodes(rank, ranks)) for rank in range(ranks)]
    room = room_of(ranks)

    def added(numbers: int) -> int:
        """A sum's nodes."""
        each = [max(0, n * (_NUMBER * numbers + _OVERHEAD // 2) - room) for n in nodes[1:]]
        return _heads(ranks) + sum(each)

    def summed(numbers: int) -> int:
        """The same, of which each rank adds some numbers, where they are many."""
        mine = len(slices.adding(numbers, ranks)[0])
        rest = numbers - mine
        return added(mine) + (_heads(ranks) + _NUMBER * rest if rest else 0)

    if directions < _MANY:
        step = summed(directions * (directions + 3) // 2) + _led(_NUMBER * directions, ranks)
    else:
        # The gradient, then products: rank 0 receives sums, the others the next vector.
        sums = 1 + _PRODUCTS
        vectors = _led(_NUMBER * directions * (1 + sums), ranks, 1 + sums)
        step = max(sums * summed(directions), sums * _heads(ranks) + vectors)
    step += 2 * added(1)
    falls = _RIDGES * _gathered(_LENGTHS * images * (_OUTCOME + _NUMBER), ranks, 3)
    first = _led(_CANDIDATES * _OUTCOME * directions, ranks)
    return _STEPS * step + falls + _WAVES * (first + (_GENERATIONS + 3) * added(_CANDIDATES))


def _gathered(size: int, ranks: int, exchanges: int = 1) -> int:
    """Bytes that a rank receives where so many are gathered, in some exchanges."""
    return _of_others(size + exchanges * ranks * _OVERHEAD, ranks) + exchanges * _heads(ranks)


def _led(size: int, ranks: int, exchanges: int = 1) -> int:
    """Bytes that a rank receives from rank 0."""
    return size + exchanges * (_OVERHEAD + head_of(ranks)) if ranks > 1 else 0


def _heads(ranks: int) -> int:
    """Bytes of the heads of other ranks' messages."""
    return head_of(ranks) * (ranks - 1)


def _of_others(size: int, ranks: int) -> int:
    return size * (ranks - 1) // ranks


NETWORKS = {
    "ResNet-18": (11_689_512, 9_600, 10),
    "ResNet-50": (25_557_032, 53_120, 18),
    "ResNet-152": (60_192_808, 151_424, 52),
    "ViT-L/16": (304_326_632, 0, 26),
}
"""Weights, running statistics and modules of networks for 1,000 classes."""


def table() -> str:
    """Returns the table of docs/distributed.md: networks, members and ranks."""
    lines = [
        "| network | members | rows, GB | ranks | generation: MB, units | model, GB "
        "| round: MB, units |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (weights, statistics, blocks) in NETWORKS.items():
        for members in (8, 64, 256):
            for ranks in (1, 8, 64, 1024):
                one = Sizes(weights, statistics, 1000, members, 4096, blocks=blocks)
                two = Sizes(weights, statistics, 1000, members, 6400, blocks=blocks)
                plain, rounds = of_generation(one, ranks), of_round(two, ranks)
                model = rounds.memory - plain.memory
                first = (name, str(members), f"{plain.memory / 1e9:,.1f}")
                cells = [
                    *(("", "", "") if ranks > 1 else first),
                    f"{ranks:,}",
                    f"{plain.received / 1e6:.2f}, {plain.units:,.1f}",
                    f"{model / 1e9:.2f}",
                    f"{rounds.received / 1e6:,.0f}, {rounds.units:,.1f}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
