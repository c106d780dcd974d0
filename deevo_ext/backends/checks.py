"""What the operators refuse by value, before anything is written, as every backend must.

`reference` and Triton's interpreter ask these functions; the compiled backends have their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import (
    MAX_TERMS,
    ChoiceColumn,
    Setting,
    StateOffsets,
    StrategyColumn,
    TermCode,
)

LAST_GENERATION = 2**31 - 1


def require(operator: str, condition: bool, reason: str) -> None:
    """Raises DeevoError with the reason unless the condition holds."""
    if not condition:
        raise DeevoError(f"deevo::{operator}: {reason}")


def require_subnormals() -> None:
    """Raises when this thread, or one that torch computes on, flushes subnormals to zero.

    torch's own threads keep the setting of the thread that started them. The product is long enough
    to be spread over all of them (32768 elements each).
    """
    tiny = torch.tensor([1], dtype=torch.int32).view(torch.float32)
    products = tiny.expand(32768 * torch.get_num_threads()).contiguous() * 1.0
    if (products.view(torch.int32) == 0).any().item() or 2.0**-1074 * 1.0 == 0.0:
        raise DeevoError(
            "this backend needs subnormal numbers, but a thread of this process flushes "
            "them to zero: leave out torch.set_flush_denormal(True)"
        )


def check_generation(operator: str, generation: int) -> None:
    """Demands a generation that the counters and the plan can hold."""
    usable = 1 <= generation <= LAST_GENERATION
    require(operator, usable, f"generation is not in 1..{LAST_GENERATION}")


def alive_members(operator: str, alive: torch.Tensor) -> list[int]:
    """Returns the living members, ascending; demands at least two."""
    living = [member for member, lives in enumerate(alive.tolist()) if lives]
    require(operator, len(living) >= 2, "alive leaves fewer than two members")
    return living


def check_strategies(operator: str, strategies: list[list[float]]) -> None:
    """Demands a table whose terms exist."""
    for strategy in strategies:
        terms = strategy[StrategyColumn.NUM_TERMS]
        trig = strategy[StrategyColumn.KIND] != 0.0
        usable = terms == 2.0 if trig else 0.0 <= terms <= MAX_TERMS
        codes = strategy[StrategyColumn.TERM_CODES : StrategyColumn.TERM_CODES + MAX_TERMS]
        codes = [strategy[StrategyColumn.BASE_TERM], *codes]
        # Trigonometric mutation looks up the losses of its rows, which the archive does not keep.
        end = TermCode.ARCHIVE if trig else len(TermCode)
        usable = usable and all(0.0 <= code < end for code in codes)
        require(operator, usable, "strategies hold a term that does not exist")


def check_choices(
    operator: str,
    choices: list[list[int]],
    members: Iterable[int],
    population_rows: int,
    archive_rows: int,
) -> None:
    """Demands that the plan of these members names rows, thresholds and terms that exist."""
    for member in members:
        exists = 0 <= member < population_rows
        require(operator, exists, "members name a row that does not exist")
        choice = choices[member]
        good = 0 <= choice[ChoiceColumn.THRESHOLD] <= 65536
        require(operator, good, "choices hold a bad threshold")
        terms = choice[ChoiceColumn.TERMS]
        require(operator, 0 <= terms <= MAX_TERMS, "choices hold a bad term count")
        rows = [choice[ChoiceColumn.BASE_ROW]]
        rows += choice[ChoiceColumn.ROWS : ChoiceColumn.ROWS + terms]
        exist = all(0 <= row < population_rows + archive_rows for row in rows)
        require(operator, exist, "choices name a row that does not exist")


def check_genes(operator: str, genes: torch.Tensor) -> None:
    """Demands ascending starts of segments, the first at 0."""
    starts = genes.tolist()
    ascending = all(a < b for a, b in itertools.pairwise(starts))
    good = not starts or (starts[0] == 0 and ascending)
    require(operator, good, "genes are not ascending starts of segments, the first at 0")


def check_segments(
    operator: str, starts: torch.Tensor, block_of: torch.Tensor, blocks: int
) -> None:
    """Ascending starts of segments, the first at 0, each of a block that exists."""
    ascending = bool((starts[1:] > starts[:-1]).all()) and int(starts[0]) == 0
    require(operator, ascending, "starts are not ascending starts of segments, the first at 0")
    exist = bool(((block_of >= 0) & (block_of < blocks)).all())
    require(operator, exist, "block_of names a block that does not exist")


def check_archive_slots(slots: list[int], archive_rows: int) -> None:
    """Demands slots of accepted members (negative: not kept) that exist, each at most once."""
    kept = [slot for slot in slots if slot >= 0]
    exist = all(slot < archive_rows for slot in kept)
    require("commit", exist, "archive_slot names a row that does not exist")
    require("commit", len(set(kept)) == len(kept), "archive_slot names a row twice")


def check_told(
    settings: list[float],
    num_strategies: int,
    choices: list[list[int]],
    state: list[float],
    at: StateOffsets,
    generation: int,
) -> None:
    """Demands a plan and a state that belong to this generation and pool."""
    check_generation("tell", generation)
    for choice in choices:
        mine = choice[ChoiceColumn.GENERATION] == generation
        require("tell", mine, "choices are of another generation")
        exists = 0 <= choice[ChoiceColumn.STRATEGY] < num_strategies
        require("tell", exists, "choices name a strategy that does not exist")
    for k in range(num_strategies):
        inside = 0.0 <= state[at.pointer + k] < settings[Setting.MEMORY_SIZE]
        require("tell", inside, "state holds a memory pointer that does not exist")
    count = state[at.archive_count]
    possible = 0.0 <= count <= settings[Setting.ARCHIVE_CAPACITY]
    require("tell", possible, "state holds an archive count beyond the archive")
