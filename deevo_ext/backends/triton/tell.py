"""tell: what a generation teaches.

Greedy selection (a success is trial < parent), SHADE's memories by the weighted Lehmer mean, SaDE's
strategy odds and the odds of the two sinusoids from success windows, archive slots, L-SHADE's
linear population reduction. NP numbers move, no weights.

One program, one lane a member (NP padded to a power of two): the sums over members have the
contract's order, and nothing needs to pass between programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.reference.checks import alive_members, check_told
from deevo_ext.backends.reference.plan import offsets_of
from deevo_ext.backends.triton.adaptation import is_better, load_fitness, state_offsets
from deevo_ext.backends.triton.exact_math import is_finite, rint
from deevo_ext.backends.triton.launch import launch, power_of_two, require_device
from deevo_ext.backends.triton.memories import (
    count_strategies,
    update_memories,
    update_sinusoid_odds,
    update_strategy_odds,
)
from deevo_ext.backends.triton.philox import below, first_word
from deevo_ext.backends.triton.tables import (
    ADAPT_MEMORIES,
    ADAPT_START,
    ADAPT_STRATEGIES,
    ARCHIVE_CAPACITY,
    CHOICE_COLUMNS,
    GENERATIONS,
    POPULATION_MIN,
    PURPOSE_ARCHIVE,
    SOURCE,
    SOURCE_SINUSOID_2,
    STRATEGY,
)

# Lanes x CHUNK comparisons at a time in registers.
COMPARISONS = 4096
WIDEST_CHUNK = 16
WINDOW_ROWS = 16


@triton.jit
def archive_slots(
    settings,
    state,
    archive_slot,
    num_strategies,
    num_members,
    seed,
    generation,
    member,
    exists,
    taken,
    CHUNK: tl.constexpr,
):
    """Slot of each replaced parent or -1: free slots first, then drawn ones.

    Of two members that draw one slot the higher wins. Slots pass between threads through
    archive_slot itself.
    """
    _, _, _, count_at, _, _ = state_offsets(settings, num_strategies)
    capacity = tl.load(settings + ARCHIVE_CAPACITY).to(tl.int32)
    live = tl.load(state + count_at).to(tl.int32)
    count = taken.to(tl.int32)
    free = live + tl.cumsum(count, 0) - count
    word = first_word(seed, PURPOSE_ARCHIVE, generation.to(tl.int32), member, 0)
    drawn = below(word, capacity + tl.zeros_like(member))
    slot = tl.where(free < capacity, free, drawn)
    slot = tl.where(taken & (capacity > 0), slot, -1)
    tl.store(archive_slot + member, slot, mask=exists)
    tl.debug_barrier()
    lost = tl.zeros(member.shape, tl.int32)
    for first in range(0, num_members, CHUNK):
        other = first + tl.arange(0, CHUNK)
        other_slot = tl.load(archive_slot + other, mask=other < num_members, other=-1)
        same = (other_slot[None, :] == slot[:, None]) & (other[None, :] > member[:, None])
        lost = tl.maximum(lost, tl.max(same.to(tl.int32), axis=1))
    tl.debug_barrier()
    tl.store(archive_slot + member, tl.where(lost != 0, -1, slot), mask=exists)
    live = tl.minimum(live + tl.sum(count), capacity)
    tl.store(state + count_at, live.to(tl.float64))


@triton.jit
def survivors(
    settings,
    fitness,
    trial_fitness,
    alive,
    num_members,
    generation,
    member,
    living,
    kept,
    CHUNK: tl.constexpr,
):
    """L-SHADE's linear reduction with generations as the clock: the best of the living.

    NP + (minimum - NP) g / G of NP physical rows, rounded; kept is the fitness after selection.
    """
    minimum = tl.load(settings + POPULATION_MIN)
    size = tl.cast(num_members, tl.float64)
    share = generation.to(tl.float64) / tl.load(settings + GENERATIONS)
    target = rint(size + (minimum - size) * share).to(tl.int32)
    target = tl.maximum(target, minimum.to(tl.int32))
    rank = tl.zeros(member.shape, tl.int32)
    for first in range(0, num_members, CHUNK):
        other = first + tl.arange(0, CHUNK)
        there = other < num_members
        lives = tl.load(alive + other, mask=there, other=0) != 0
        parent = load_fitness(fitness, other, there)
        trial = load_fitness(trial_fitness, other, there)
        other_kept = tl.where(trial < parent, trial, parent)
        better = is_better(kept[:, None], member[:, None], other_kept[None, :], other[None, :])
        rank += tl.sum((lives[None, :] & better).to(tl.int32), axis=1)
    return living & (rank < target)


@triton.jit(do_not_specialize=["num_members", "num_strategies", "seed"])
def tell_kernel(
    settings,
    strategies,
    trial_fitness,
    choices,
    parameters,
    state,
    fitness,
    alive,
    generation,
    accepted,
    archive_slot,
    num_members,
    num_strategies,
    seed: tl.int64,
    MEMBERS: tl.constexpr,
    STRATEGIES: tl.constexpr,
    CHUNK: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
):
    member = tl.arange(0, MEMBERS)
    exists = member < num_members
    living = tl.load(alive + member, mask=exists, other=0) != 0
    now = tl.load(generation)
    parent = load_fitness(fitness, member, exists)
    trial = load_fitness(trial_fitness, member, exists)
    choice = choices + member.to(tl.int64) * CHOICE_COLUMNS
    strategy = tl.load(choice + STRATEGY, mask=exists, other=0)
    source = tl.load(choice + SOURCE, mask=exists, other=0)

    taken = living & (trial < parent)
    kept = tl.where(taken, trial, parent)
    improvement = tl.where(taken, parent - trial, 0.0)
    finite = is_finite(improvement)
    largest = tl.max(tl.where(finite, improvement, 0.0))
    improvement = tl.where(finite, improvement, tl.where(largest > 0.0, largest, 1.0))

    if tl.load(settings + ADAPT_MEMORIES) != 0.0:
        update_memories(
            settings,
            strategies,
            state,
            parameters,
            num_strategies,
            member,
            exists,
            taken,
            improvement,
            strategy,
            source == SOURCE_SINUSOID_2,
            MEMBERS,
        )
    successes, failures = count_strategies(
        settings,
        state,
        num_strategies,
        now,
        living,
        taken,
        strategy,
        STRATEGIES,
        WINDOW_ROWS,
    )
    adapts = tl.load(settings + ADAPT_STRATEGIES) != 0.0
    if adapts & (now >= tl.load(settings + ADAPT_START).to(tl.int64)):
        update_strategy_odds(
            settings, strategies, state, num_strategies, successes, failures, STRATEGIES
        )
    update_sinusoid_odds(settings, state, num_strategies, now, living, taken, source, WINDOW_ROWS)
    archive_slots(
        settings,
        state,
        archive_slot,
        num_strategies,
        num_members,
        seed,
        now,
        member,
        exists,
        taken,
        CHUNK,
    )
    survives = living
    if tl.load(settings + POPULATION_MIN) != 0.0:
        survives = survivors(
            settings,
            fitness,
            trial_fitness,
            alive,
            num_members,
            now,
            member,
            living,
            kept,
            CHUNK,
        )
    tl.debug_barrier()  # every thread has read fitness, alive and generation
    tl.store(fitness + member, tl.where(survives, kept, float("inf")), mask=exists)
    tl.store(alive + member, survives.to(tl.uint8), mask=exists)
    tl.store(accepted + member, taken.to(tl.uint8), mask=exists)
    tl.store(generation, now + 1)


def chunk(members: int) -> int:
    """Members that all are compared with at a time."""
    return min(max(COMPARISONS // members, 1), WIDEST_CHUNK, members)


def num_warps(members: int) -> int:
    """Warps of the one program: few members a lane, so that nothing is spilled."""
    return min(max(members // 64, 4), 16)


def tell(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    trial_fitness: torch.Tensor,
    choices: torch.Tensor,
    parameters: torch.Tensor,
    seed: int,
    state: torch.Tensor,
    fitness: torch.Tensor,
    alive: torch.Tensor,
    generation: torch.Tensor,
    accepted: torch.Tensor,
    archive_slot: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.tell`. On a CUDA device values are not read back."""
    device = fitness.device
    require_device("tell", tell_kernel, device)
    num_strategies = strategies.shape[0]
    if device.type == "cpu":
        alive_members("tell", alive)
        numbers, told = settings.tolist(), int(generation.item())
        at = offsets_of(numbers, num_strategies)
        check_told(numbers, num_strategies, choices.tolist(), state.tolist(), at, told)
    num_members = fitness.numel()
    members = power_of_two(num_members)
    launch(
        tell_kernel,
        1,
        device,
        settings,
        strategies,
        trial_fitness,
        choices,
        parameters,
        state,
        fitness,
        alive,
        generation,
        accepted,
        archive_slot,
        num_members,
        num_strategies,
        seed,
        MEMBERS=members,
        STRATEGIES=power_of_two(num_strategies),
        CHUNK=chunk(members),
        WINDOW_ROWS=WINDOW_ROWS,
        num_warps=num_warps(members),
    )
