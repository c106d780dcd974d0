"""What successes teach, for tell: SHADE's memories, success windows and the odds from them."""

from __future__ import annotations

import triton
import triton.language as tl

from deevo_ext.backends.triton.adaptation import memory_slots, state_offsets
from deevo_ext.backends.triton.tables import (
    CR,
    CR_MEAN,
    CROSSOVER,
    FREQUENCY,
    KIND,
    ODDS_CAP,
    ODDS_FIXED,
    ODDS_FLOOR,
    PARAMETER_COLUMNS,
    SINUSOID_PERIOD,
    SOURCE_SINUSOID_1,
    SOURCE_SINUSOID_2,
    STRATEGY_COLUMNS,
    STRATEGY_PERIOD,
    F,
)


@triton.jit
def halving_sum(x, SIZE: tl.constexpr):
    """Sum of x [SIZE], a power of two, in the contract's order: repeatedly add halves.

    Every tl.sum here is of two numbers; over more, its order would be the compiler's.
    """
    STEPS: tl.constexpr = SIZE.bit_length() - 1
    for i in tl.static_range(STEPS):
        x = tl.sum(tl.reshape(x, [2, SIZE >> (i + 1)]), axis=0)
    return tl.max(x)  # of the one that is left


@triton.jit
def weighted_mean(below, x, SIZE: tl.constexpr):
    """sum below x / sum below, and the denominator, which is 0 where there is no mean."""
    top = halving_sum(below * x, SIZE)
    bottom = halving_sum(below, SIZE)
    return top / bottom, bottom


@triton.jit
def update_memories(
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
    from_second,
    SIZE: tl.constexpr,
):
    """SHADE's memories: of each strategy with a success one slot is written, the pointer moves on.

    Lehmer mean sum w x^2 / sum w x, arithmetic mean sum w x / sum w, w scaled to a largest of 1.
    """
    memory_size, memories = memory_slots(settings, num_strategies)
    pointers, _, _, _, _, _ = state_offsets(settings, num_strategies)
    parameter = parameters + member.to(tl.int64) * PARAMETER_COLUMNS
    f = tl.load(parameter + F, mask=exists, other=0.0)
    cr = tl.load(parameter + CR, mask=exists, other=0.0)
    frequency = tl.load(parameter + FREQUENCY, mask=exists, other=0.0)
    for k in range(0, num_strategies):
        linear = tl.load(strategies + k * STRATEGY_COLUMNS + KIND) == 0.0
        binomial = tl.load(strategies + k * STRATEGY_COLUMNS + CROSSOVER) != 0.0
        mine = taken & (strategy == k)
        largest = tl.max(tl.where(mine, improvement, 0.0))
        if (linear | binomial) & (largest > 0.0):
            w = improvement / largest
            pointer = tl.load(state + pointers + k).to(tl.int64)
            slot = state + pointer * num_strategies + k
            old_cr = tl.load(slot + memories)
            tl.debug_barrier()  # every thread has read what one is about to overwrite
            if linear:
                mean, weight = weighted_mean(tl.where(mine, w * f, 0.0), f, SIZE)
                tl.store(slot, mean, mask=weight > 0.0)
                below = tl.where(mine & from_second, w * frequency, 0.0)
                mean, weight = weighted_mean(below, frequency, SIZE)
                tl.store(slot + 2 * memories, mean, mask=weight > 0.0)
            if binomial:
                lehmer = tl.load(settings + CR_MEAN) == 0.0
                weighted = w * cr
                if lehmer == 0:
                    weighted = w
                mean, weight = weighted_mean(tl.where(mine, weighted, 0.0), cr, SIZE)
                # L-SHADE's terminal value: once only CR = 0 succeeded, the slot stays there.
                terminal = lehmer & ((weight > 0.0) == 0 | (old_cr < 0.0))
                value = tl.where(terminal, -1.0, mean)
                tl.store(slot + memories, value, mask=terminal | (weight > 0.0))
            tl.store(state + pointers + k, ((pointer + 1) % memory_size).to(tl.float64))


@triton.jit
def window_total(window, period, width, columns, exists, current, ROWS: tl.constexpr):
    """Sum over the window's rows but the current one of these columns, [columns].

    Counts are whole numbers, so that the order does not matter.
    """
    total = tl.zeros(columns.shape, tl.float64)
    for first in range(0, period, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        used = (row < period) & (row != current) & exists[None, :]
        at = window + row.to(tl.int64) * width + columns[None, :]
        total += tl.sum(tl.load(at, mask=used, other=0.0), axis=0)
    return total


@triton.jit
def count_strategies(
    settings,
    state,
    num_strategies,
    generation,
    living,
    taken,
    strategy,
    STRATEGIES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """This generation's row of SaDE's window; successes and failures of the whole, [STRATEGIES]."""
    _, _, _, _, window, _ = state_offsets(settings, num_strategies)
    period = tl.load(settings + STRATEGY_PERIOD).to(tl.int64)
    index = tl.arange(0, STRATEGIES)
    exists = index < num_strategies
    successes = tl.zeros([STRATEGIES], tl.float64)
    failures = tl.zeros([STRATEGIES], tl.float64)
    for k in range(0, num_strategies):
        mine = living & (strategy == k)
        succeeded = tl.sum((mine & taken).to(tl.int32))
        failed = tl.sum(mine.to(tl.int32)) - succeeded
        successes = tl.where(index == k, succeeded.to(tl.float64), successes)
        failures = tl.where(index == k, failed.to(tl.float64), failures)
    width = num_strategies * 2
    current = (generation - 1) % period
    row = state + window + current * width + index * 2
    tl.store(row, successes, mask=exists)
    tl.store(row + 1, failures, mask=exists)
    base = state + window
    successes += window_total(base, period, width, index * 2, exists, current, ROWS)
    failures += window_total(base, period, width, index * 2 + 1, exists, current, ROWS)
    return successes, failures


@triton.jit
def pick(vector, index, k):
    """Element k; the other terms of the sum are zeros."""
    return tl.sum(tl.where(index == k, vector, 0.0))


@triton.jit
def update_strategy_odds(
    settings, strategies, state, num_strategies, successes, failures, STRATEGIES: tl.constexpr
):
    """SaDE's odds: (successes + e) / (trials + e), at least e; normalised, then capped."""
    _, odds_at, _, _, _, _ = state_offsets(settings, num_strategies)
    floor = tl.load(settings + ODDS_FLOOR)
    index = tl.arange(0, STRATEGIES)
    exists = index < num_strategies
    row = strategies + index * STRATEGY_COLUMNS
    fixed = tl.load(row + ODDS_FIXED, mask=exists, other=0.0)
    cap = tl.load(row + ODDS_CAP, mask=exists, other=0.0)
    adapted = exists & (fixed < 0.0)

    trials = successes + failures
    score = tl.where(trials > 0.0, (successes + floor) / (trials + floor), floor)
    odds = tl.where(adapted, tl.where(score < floor, floor, score), fixed)
    fixed_sum = tl.cast(0.0, tl.float64)
    score_sum = tl.cast(0.0, tl.float64)
    for k in range(0, num_strategies):
        if pick(fixed, index, k) >= 0.0:
            fixed_sum = fixed_sum + pick(fixed, index, k)
        else:
            score_sum = score_sum + pick(odds, index, k)
    share = tl.maximum(1.0 - fixed_sum, 0.0)
    odds = tl.where(adapted, share * (odds / score_sum), odds)

    # Strategies above their caps give the excess to the others, pro rata, until none is above.
    rounds = num_strategies
    while rounds > 0:
        rest = share
        below = share * 0.0
        for k in range(0, num_strategies):
            if pick(fixed, index, k) < 0.0:
                if pick(odds, index, k) >= pick(cap, index, k):
                    rest = rest - pick(cap, index, k)
                else:
                    below = below + pick(odds, index, k)
        exceeded = tl.max((adapted & (odds > cap)).to(tl.int32))
        rounds -= 1
        if (below > 0.0) & (exceeded > 0):
            odds = tl.where(adapted, tl.where(odds >= cap, cap, odds * (rest / below)), odds)
        else:
            rounds = 0
    tl.store(state + odds_at + index, odds, mask=exists)


@triton.jit
def update_sinusoid_odds(
    settings, state, num_strategies, generation, living, taken, source, ROWS: tl.constexpr
):
    """cnEpSin's probability of sinusoid 1; a sinusoid without a trial has success rate 0."""
    _, _, odds_at, _, _, window = state_offsets(settings, num_strategies)
    period = tl.load(settings + SINUSOID_PERIOD).to(tl.int64)
    current = (generation - 1) % period
    # Columns: successes and failures of sinusoid 1, then of sinusoid 2.
    column = tl.arange(0, 4)
    counts = tl.zeros([4], tl.float64)
    for which in tl.static_range(2):
        mine = living & (source == (SOURCE_SINUSOID_1 if which == 0 else SOURCE_SINUSOID_2))
        succeeded = tl.sum((mine & taken).to(tl.int32))
        failed = tl.sum(mine.to(tl.int32)) - succeeded
        counts = tl.where(column == 2 * which, succeeded.to(tl.float64), counts)
        counts = tl.where(column == 2 * which + 1, failed.to(tl.float64), counts)
    tl.store(state + window + current * 4 + column, counts)
    counts += window_total(state + window, period, 4, column, column < 4, current, ROWS)
    floor = tl.load(settings + ODDS_FLOOR)
    s1, s2 = pick(counts, column, 0), pick(counts, column, 2)
    n1, n2 = s1 + pick(counts, column, 1), s2 + pick(counts, column, 3)
    first = tl.where(n1 > 0.0, s1 / n1, 0.0) + floor
    second = tl.where(n2 > 0.0, s2 / n2, 0.0) + floor
    tl.store(state + odds_at, first / (first + second))
