"""Which tensors make a block: by layer, by module, by tensor, all in one, or by patterns.

Layers and modules come from the network graph, whatever the modules are called. Where a network is
served without a graph they come from module paths: a layer is a module with its own tensors, the
norms behind it included; a module is a child of the root.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from deevo_ext.errors import DeevoError
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import owner_of
from deevo_ext.networks.graph.parts import Part, common_path, parts_of
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.population import Population
from deevo_ext.text import text_table

UNITS = ("auto", "layer", "module", "tensor", "member")
"""What a block may be, beside a list of patterns."""
MOST_DIRECTIONS = 300
"""Unit "auto" takes layers while they have at most so many directions, blocks * (members - 1)."""


@dataclass(frozen=True)
class NetworkBlocks:
    """A network's blocks and what they are; print it for its table.

    unit: one of `UNITS` but "auto", or "patterns". source: where layers and modules come from,
    "the network graph" or "module paths". members: the number of those that the recipes weigh.
    weights: of each block, in columns of a row. flops: each block's share of a forward pass, in
    the order of the blocks, a tensor's operations being its layer's; None without a graph.
    """

    blocks: Blocks
    unit: str
    source: str
    members: int
    weights: tuple[int, ...]
    flops: tuple[float, ...] | None

    @property
    def directions(self) -> int:
        """Directions that differ, members - 1 a block, each a probe."""
        return len(self.blocks) * (self.members - 1)

    def __str__(self) -> str:
        count, total = len(self.blocks), sum(self.weights)
        shares = ["-"] * count if self.flops is None else [f"{share:.1%}" for share in self.flops]
        tensors = map(str, map(len, self.blocks.tensors))
        weights = (f"{weights / total:.1%}" for weights in self.weights)
        lines = list(zip(self.blocks.names, tensors, weights, shares, strict=True))
        found = f", from {self.source}" if self.unit in ("layer", "module") else ""
        return (
            f"{text_table(('block', 'tensors', 'weights', 'FLOPs'), lines)}\n"
            f"{count} {'block' if count == 1 else 'blocks'} by {self.unit}{found}; "
            f"{self.members} members: {self.directions:,} directions, a probe each "
            f"({self.members - 1} a block)"
        )


def blocks_of(
    forward: PopulationForward,
    population: Population,
    image_shape: tuple[int, ...],
    unit: str | Sequence[str] = "auto",
) -> NetworkBlocks:
    """Returns the blocks of a population's networks.

    forward: evaluates them; its precision is decided. image_shape: [C, H, W]. unit: "layer", a
    layer with its norm and the scales and shifts around it; "module", what lies between two places
    where a single activation goes on, such as a residual block, the stem or the classifier;
    "tensor"; "member", one block for the whole row; a sequence of fnmatch patterns of tensors'
    names, as `Blocks` takes them; or "auto", layers where their directions, blocks * (members - 1),
    are at most 300, else modules.

    A tensor that two layers share joins their blocks. A tensor of the row that the graph does not
    use goes to the block of the layer whose module path has most in common with its own, of equal
    ones the nearest in the order of the state dict. Raises DeevoError for another unit, and for
    patterns that leave a tensor out or match none.
    """
    patterns = None if isinstance(unit, str) else list(unit)
    if unit not in UNITS and not patterns:
        raise DeevoError(
            f"blocks is {unit!r}; expected one of {', '.join(UNITS)}, or a list of patterns such "
            'as ["stem.*", "*"]'
        )
    graph = forward.find_graph(image_shape, population.rows.dtype)
    parts = _completed(
        parts_of(graph) if graph is not None else _parts_by_path(population), population
    )
    layout, members = population.layout, population.initial_size
    if patterns:
        chosen, blocks = "patterns", Blocks.by_patterns(layout, patterns)
    elif unit == "tensor":
        chosen, blocks = "tensor", Blocks.by_tensor(layout)
    elif unit == "member":
        chosen, blocks = "member", Blocks.whole(layout)
    else:
        chosen, groups = "layer", _joined(parts, modules=False)
        if unit == "module" or (unit == "auto" and len(groups) * (members - 1) > MOST_DIRECTIONS):
            chosen, groups = "module", _joined(parts, modules=True)
        tensors = ([name for part in group for name in part.tensors] for group in groups)
        blocks = Blocks.of_groups(layout, dict(zip(_names(groups), tensors, strict=True)))
    size = {entry.name: entry.numel for entry in layout.entries}
    of_tensor: Counter[str] = Counter()
    for part in parts:  # a layer's operations are its largest tensor's
        of_tensor[max(part.tensors, key=size.__getitem__)] += part.flops
    flops = None
    if graph is not None and graph.flops:
        flops = tuple(sum(of_tensor[name] for name in b) / graph.flops for b in blocks.tensors)
    return NetworkBlocks(
        blocks,
        chosen,
        "module paths" if graph is None else "the network graph",
        members,
        tuple(sum(size[name] for name in names) for names in blocks.tensors),
        flops,
    )


def _parts_by_path(population: Population) -> list[Part]:
    """Parts by the names of modules: those with a weight, and the norms that follow each.

    A module whose tensors all are vectors is a norm, a scale or a shift; those at the beginning
    belong to the first that is none.
    """
    shape = {name: entry.shape for entry in population.layout.entries for name in entry.names}
    owned: dict[str, list[str]] = {}
    for name in population.inventory.order:
        if name in shape:
            owned.setdefault(owner_of(name), []).append(name)
    above = len(common_path(owned))
    modules: dict[str, int] = {}
    parts: list[Part] = []
    early: list[str] = []
    for path, names in owned.items():
        vectors = all(sum(length > 1 for length in shape[name]) < 2 for name in names)
        if vectors and parts:
            parts[-1].tensors += names
        elif vectors:
            early += names
        else:
            child = ".".join(path.split(".")[: above + 1])
            number = modules.setdefault(child, len(modules))
            parts.append(Part(path, [*names, *early], number))
            early = []
    if early:
        parts.append(Part(next(iter(owned)), early, 0))
    return parts


def _completed(parts: Iterable[Part], population: Population) -> list[Part]:
    """Parts with tensors of the row, by their first names, such that they hold all of it."""
    first = {name: entry.name for entry in population.layout.entries for name in entry.names}
    kept = []
    for part in parts:
        tensors = list(dict.fromkeys(first[name] for name in part.tensors if name in first))
        if tensors:  # a layer with a tied weight is called after the weight's first name
            path = owner_of(first[part.tensors[0]]) if part.tensors[0] in first else part.path
            kept.append(replace(part, path=path, tensors=tensors))
    held = {name for part in kept for name in part.tensors}
    left = [name for name in dict.fromkeys(first.values()) if name not in held]
    if not kept and left:
        return [Part(owner_of(left[0]), left, 0)]
    position = {name: i for i, name in enumerate(population.inventory.order)}

    def nearness(name: str, other: str) -> tuple[int, int]:
        common = len(common_path((owner_of(name), owner_of(other))))
        return common, -abs(position[name] - position[other])

    homes = {
        name: max(kept, key=lambda p: max(nearness(name, t) for t in p.tensors)) for name in left
    }
    for name, part in homes.items():
        part.tensors.append(name)
    return kept


def _joined(parts: Sequence[Part], *, modules: bool) -> list[list[Part]]:
    """Parts in groups: those that share a tensor and, with `modules`, those of one module."""
    group = list(range(len(parts)))

    def first(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    seen: dict[str | int, int] = {}
    for i, part in enumerate(parts):
        for mark in (*part.tensors, *((part.module,) if modules else ())):
            a, b = sorted((first(seen.setdefault(mark, i)), first(i)))
            group[b] = a
    joined: dict[int, list[Part]] = {}
    for i, part in enumerate(parts):
        joined.setdefault(first(i), []).append(part)
    return list(joined.values())


def _names(groups: Sequence[Sequence[Part]]) -> list[str]:
    """A name for each group: the shortest path that stands for it alone."""
    choices = []
    for group in groups:
        first, last = group[0].path, group[-1].path
        shared = ".".join(common_path(part.path for part in group)) or f"{first}..{last}"
        choices.append(list(dict.fromkeys((shared, first, group[0].tensors[0]))))
    taken = Counter(itertools.chain.from_iterable(choices))
    return [next(name for name in names if taken[name] == 1) for names in choices]
