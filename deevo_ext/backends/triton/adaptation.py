"""What plan and tell share: the state's layout, fitness as it is compared, the order of ranks."""

from __future__ import annotations

import triton
import triton.language as tl

from deevo_ext.backends.triton.tables import MEMORY_SIZE, STRATEGY_PERIOD


@triton.jit
def memory_slots(settings, num_strategies):
    """Memories H and H x K, int64: memory_f is the first [H, K], then memory_cr and frequency."""
    memory_size = tl.load(settings + MEMORY_SIZE).to(tl.int64)
    return memory_size, memory_size * num_strategies


@triton.jit
def state_offsets(settings, num_strategies):
    """Offsets of pointer, odds, sinusoid1_odds, archive_count and the windows of strategies and
    sinusoids: `deevo_ext.ops.tables.state_offsets`."""
    pointer = 3 * memory_slots(settings, num_strategies)[1]
    odds = pointer + num_strategies
    sinusoid1_odds = odds + num_strategies
    strategy_window = sinusoid1_odds + 2
    rows = tl.load(settings + STRATEGY_PERIOD).to(tl.int64)
    sinusoid_window = strategy_window + rows * num_strategies * 2
    return pointer, odds, sinusoid1_odds, sinusoid1_odds + 1, strategy_window, sinusoid_window


@triton.jit
def load_fitness(fitness, member, exists):
    """Fitness, NaN read as +inf."""
    x = tl.load(fitness + member, mask=exists, other=0.0)
    return tl.where(x == x, x, float("inf"))


@triton.jit
def is_better(f, member, other_f, other):
    """Whether other ranks before member: smaller fitness, equal fitness by lower index."""
    return (other_f < f) | ((other_f == f) & (other < member))
