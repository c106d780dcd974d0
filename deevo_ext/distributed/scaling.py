"""What ranks send and hold, from the sizes of a run: what it takes before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

_OUTCOME, _NUMBER = 4, 8  # bytes of an image's outcome or a logit, and of a fitness
# What a message has beside its numbers: an array's header, a rank's list.
_OVERHEAD = 256
_VIRTUAL = 320_000  # bytes of what one virtual evolution did, generation by generation
_RIDGES, _FOLDS, _WAVES, _PROPOSALS = 27, 5, 2, 24


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
    overhead = (2 * ranks + 2) * _OVERHEAD + _NUMBER * sizes.members
    # Two rows that are made while two are evaluated.
    rows = sizes.members + 2 * sizes.chunk
    return Scaling(
        _of_others(outcomes, ranks) + _of_others(overhead, ranks),
        rows * sizes.weights * weight,
        units / ranks,
        units,
    )


def of_round(sizes: Sizes, ranks: int, weight: int = 4) -> Scaling:
    """Returns what a round of a search of coefficients comes to, along coordinates.

    Columns of the probes' logits are gathered: each rank holds the linear model. Of more than 100
    classes an image has 32 columns. Statistics of the networks that are proved are gathered, too,
    and rank 0 sends fits and what virtual evolutions did.
    """
    columns = sizes.classes if sizes.classes <= 100 else 32
    probes = sizes.blocks * (sizes.members - 1)
    directions = sizes.blocks * sizes.members
    model = _OUTCOME * sizes.images * (probes * columns + 2 * sizes.classes)
    proved = _OUTCOME * ((_PROPOSALS + 1) * sizes.images + 2 * 8 * sizes.images)
    statistics = _OUTCOME * sizes.statistics * (_PROPOSALS + 3)
    fits = _RIDGES * _NUMBER * (sizes.images + _FOLDS * directions)
    led = fits + _WAVES * _VIRTUAL + _PROPOSALS * _NUMBER * directions
    together = min(64, probes)
    exchanges = -(-probes // together) + _PROPOSALS + 8
    units = together * -(-sizes.images // sizes.micro_batch)
    gathered = model + proved + statistics + 2 * exchanges * ranks * _OVERHEAD
    held = _OUTCOME * directions * sizes.images * columns
    return Scaling(
        _of_others(gathered, ranks) + (led if ranks > 1 else 0),
        (sizes.members + 2 * sizes.chunk) * sizes.weights * weight + held,
        units / ranks,
        units,
    )


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
        "| network | members | rows, GB | model, GB | ranks | generation: MB, units "
        "| round: MB, units |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (weights, statistics, blocks) in NETWORKS.items():
        for members in (8, 64, 256):
            for ranks in (1, 8, 64, 1024):
                one = Sizes(weights, statistics, 1000, members, 4096, blocks=blocks)
                two = Sizes(weights, statistics, 1000, members, 6400, blocks=blocks)
                plain, rounds = of_generation(one, ranks), of_round(two, ranks)
                cells = [
                    *(("", "", "", "") if ranks > 1 else _first(name, members, plain, rounds)),
                    f"{ranks:,}",
                    f"{plain.received / 1e6:.2f}, {plain.units:,.1f}",
                    f"{rounds.received / 1e6:,.0f}, {rounds.units:,.1f}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _first(name: str, members: int, plain: Scaling, rounds: Scaling) -> tuple[str, ...]:
    model = rounds.memory - plain.memory
    return name, str(members), f"{plain.memory / 1e9:,.1f}", f"{model / 1e9:,.1f}"
