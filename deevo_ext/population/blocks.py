"""Blocks: the groups of tensors that a recipe weighs together, each with its own coefficients.

A block is any set of a row's tensors, such as a layer's weight, bias and norm. A recipe gives each
block one coefficient a member; `compose` makes rows of recipes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.layout import Layout
from deevo_ext.population.population import Population


@dataclass(frozen=True)
class Blocks:
    """Which block each tensor of a row belongs to.

    names: the blocks' names, unique. tensors: the names of each block's tensors; together they are
    the layout's entries, each once.
    """

    names: tuple[str, ...]
    tensors: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names) or len(self.names) != len(self.tensors):
            raise DeevoError(f"blocks need different names, one a block; they are {self.names}")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def by_tensor(cls, layout: Layout) -> Blocks:
        """Makes every tensor a block of its own."""
        names = tuple(entry.name for entry in layout.entries)
        return cls(names, tuple((name,) for name in names))

    @classmethod
    def whole(cls, layout: Layout) -> Blocks:
        """Makes one block of the whole row: one coefficient a member."""
        return cls(("network",), (tuple(entry.name for entry in layout.entries),))

    @classmethod
    def by_patterns(cls, layout: Layout, patterns: Sequence[str]) -> Blocks:
        """Makes a block of the tensors that each fnmatch pattern matches, as ["stem.*", "*"].

        A tensor belongs to the first pattern that matches one of its names. Raises DeevoError for a
        pattern that is left without a tensor, and for tensors that no pattern matches.
        """
        groups: dict[str, list[str]] = {pattern: [] for pattern in patterns}
        left = []
        for entry in layout.entries:
            for pattern in patterns:
                if any(fnmatch.fnmatchcase(name, pattern) for name in entry.names):
                    groups[pattern].append(entry.name)
                    break
            else:
                left.append(entry.name)
        for pattern, names in groups.items():
            if not names:
                raise DeevoError(
                    f"blocks: pattern {pattern!r} matches no tensor that is left for it; tensors "
                    f"are called like {layout.entries[0].name!r}"
                )
        if left:
            raise DeevoError(
                f"blocks: no pattern matches {left[0]!r} and {len(left) - 1} more tensors; end the "
                'list with "*" to make one block of them'
            )
        return cls(tuple(groups), tuple(tuple(names) for names in groups.values()))

    @classmethod
    def of_groups(cls, layout: Layout, groups: Mapping[str, Sequence[str]]) -> Blocks:
        """Makes blocks of named groups of tensors (aliases too); what is in none is no block.

        Groups without a tensor of the row are left out. Raises DeevoError where a tensor of the row
        is in two groups or in none.
        """
        first = {name: entry.name for entry in layout.entries for name in entry.names}
        place: dict[str, str] = {}
        found: dict[str, list[str]] = {}
        for group, names in groups.items():
            for name in dict.fromkeys(first[name] for name in names if name in first):
                if place.setdefault(name, group) != group:
                    raise DeevoError(f"blocks: {name!r} is in {place[name]!r} and in {group!r}")
                found.setdefault(group, []).append(name)
        missing = [entry.name for entry in layout.entries if entry.name not in place]
        if missing:
            raise DeevoError(f"blocks: {missing[0]!r} is in no block, nor {len(missing) - 1} more")
        return cls(tuple(found), tuple(tuple(names) for names in found.values()))

    def segments(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Returns starts int64 [S] and block index int32 [S], as the operator `compose` takes them.

        Raises DeevoError unless the blocks hold every tensor of the layout exactly once.
        """
        block_of = {name: b for b, names in enumerate(self.tensors) for name in names}
        if sorted(block_of) != sorted(entry.name for entry in layout.entries) or len(
            block_of
        ) != sum(map(len, self.tensors)):
            raise DeevoError("the blocks are not those of this network: their tensors differ")
        starts = torch.tensor([entry.offset for entry in layout.entries], dtype=torch.int64)
        index = torch.tensor([block_of[entry.name] for entry in layout.entries], dtype=torch.int32)
        return starts, index

    def compose(self, population: Population, recipes: Tensor) -> Tensor:
        """Returns the rows [K, D] that recipes float32 [K, blocks, members] make of the members.

        The members are those that were read. Rows have the population's dtype and device; they are
        bit-identical on every device (`docs/contract.md`, "Recipes").
        """
        return self.compose_rows(
            population.layout, population.rows[: population.initial_size], recipes
        )

    def compose_part(self, population: Population, part: Layout, recipes: Tensor) -> Tensor:
        """Returns the same rows' tensors of a part of the layout alone, as rows of that part.

        Bits are those of `compose`. part: `Layout.part` of the population's layout.
        """
        held = set(part.names)
        tensors = tuple(tuple(name for name in names if name in held) for names in self.tensors)
        rows = columns_of(population.layout, part, population.rows[: population.initial_size])
        return Blocks(self.names, tensors).compose_rows(part, rows, recipes)

    def compose_rows(self, layout: Layout, rows: Tensor, recipes: Tensor) -> Tensor:
        """Does the same for any rows [members, D] of a layout, such as separate statistics."""
        return compose_segments(layout, rows, *self.segments(layout), recipes)


def columns_of(layout: Layout, part: Layout, rows: Tensor) -> Tensor:
    """Returns the columns of rows [K, D] of a layout that a part of it has, as rows of the part."""
    place = {entry.name: entry.offset for entry in layout.entries}
    ends = [*(entry.offset for entry in part.entries[1:]), part.dim]
    pieces = [
        rows[:, place[entry.name] :][:, : end - entry.offset]
        for entry, end in zip(part.entries, ends, strict=True)
    ]
    return torch.cat(pieces, dim=1)


def compose_segments(
    layout: Layout, rows: Tensor, starts: Tensor, index: Tensor, recipes: Tensor
) -> Tensor:
    """Returns rows [K, D] of recipes [K, parts, members] for segments of a layout.

    starts int64 [S], index int32 [S]: where each segment begins, and the part it belongs to.
    """
    out = torch.zeros(len(recipes), layout.stride, dtype=rows.dtype, device=rows.device)
    out = out[:, : layout.dim]
    torch.ops.deevo.compose(
        rows,
        recipes.to(rows.device, torch.float32).contiguous(),
        starts.to(rows.device),
        index.to(rows.device),
        layout.nonneg_start,
        out,
    )
    return out
