"""The rows that strategies name: best, pbest, distinct random parents, archive.

Random rows are drawn among the living as positions in their ascending list. Positions and ranks are
counted by comparing with every member, CHUNK members at a time; all sums here are of integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deevo_ext.backends.triton.adaptation import is_better, load_fitness
from deevo_ext.backends.triton.exact_math import rint
from deevo_ext.backends.triton.philox import below, uniform
from deevo_ext.backends.triton.tables import (
    BEST_EXCLUDES_TARGET,
    PBEST_MAX,
    PBEST_MIN,
    PURPOSE_PARENTS,
    TERM_ARCHIVE,
    TERM_BEST,
    TERM_PBEST,
    TERM_R1,
    TERM_R2,
    TERM_R3,
    TERM_R4,
    TERM_R5,
)


@triton.jit
def census(fitness, alive, num_members, member, CHUNK: tl.constexpr):
    """Number of living members, of those with finite fitness, and living members before each."""
    living = 0
    valid = 0
    position = tl.zeros(member.shape, tl.int32)
    for first in range(0, num_members, CHUNK):
        other = first + tl.arange(0, CHUNK)
        lives = tl.load(alive + other, mask=other < num_members, other=0) != 0
        finite = load_fitness(fitness, other, other < num_members) < float("inf")
        living += tl.sum(lives.to(tl.int32))
        valid += tl.sum((lives & finite).to(tl.int32))
        before = lives[None, :] & (other[None, :] < member[:, None])
        position += tl.sum(before.to(tl.int32), axis=1)
    return living, valid, position


@triton.jit
def standing(fitness, alive, num_members, member, CHUNK: tl.constexpr):
    """Rank among the living and position in their list, -1 for the others."""
    exists = member < num_members
    lives = tl.load(alive + member, mask=exists, other=0) != 0
    f = load_fitness(fitness, member, exists)
    rank = tl.zeros(member.shape, tl.int32)
    position = tl.zeros(member.shape, tl.int32)
    for first in range(0, num_members, CHUNK):
        other = first + tl.arange(0, CHUNK)
        there = tl.load(alive + other, mask=other < num_members, other=0) != 0
        other_f = load_fitness(fitness, other, other < num_members)
        better = is_better(f[:, None], member[:, None], other_f[None, :], other[None, :])
        rank += tl.sum((there[None, :] & better).to(tl.int32), axis=1)
        before = there[None, :] & (other[None, :] < member[:, None])
        position += tl.sum(before.to(tl.int32), axis=1)
    return tl.where(lives, rank, -1), tl.where(lives, position, -1)


@triton.jit
def holder(member, key, wanted):
    """For each wanted key the member that has it, 0 if none here."""
    return tl.sum(tl.where(key[None, :] == wanted[:, None], member[None, :], 0), axis=1)


@triton.jit
def past(index, taken):
    """An index moved past one that is taken."""
    return index + (taken <= index).to(tl.int32)


@triton.jit
def draw_distinct(w1, w2, w3, w4, w5, n, own):
    """Five distinct positions other than one's own, which stands where n leaves none.

    Each is drawn among those not excluded yet and moved past the excluded ones in ascending order;
    s, t, u, v and own are kept ascending.
    """
    s = own
    r1 = past(below(w1, n - 1 + own * 0), s)

    s, t = tl.minimum(own, r1), tl.maximum(own, r1)
    r2 = past(past(below(w2, n - 2 + own * 0), s), t)

    s, x = tl.minimum(s, r2), tl.maximum(s, r2)
    t, u = tl.minimum(t, x), tl.maximum(t, x)
    r3 = past(past(past(below(w3, n - 3 + own * 0), s), t), u)

    s, x = tl.minimum(s, r3), tl.maximum(s, r3)
    t, x = tl.minimum(t, x), tl.maximum(t, x)
    u, v = tl.minimum(u, x), tl.maximum(u, x)
    r4 = past(past(past(past(below(w4, n - 4 + own * 0), s), t), u), v)

    s, x = tl.minimum(s, r4), tl.maximum(s, r4)
    t, x = tl.minimum(t, x), tl.maximum(t, x)
    u, x = tl.minimum(u, x), tl.maximum(u, x)
    v, w = tl.minimum(v, x), tl.maximum(v, x)
    r5 = past(past(past(past(past(below(w5, n - 5 + own * 0), s), t), u), v), w)
    return (
        tl.where(n > 1, r1, own),
        tl.where(n > 2, r2, own),
        tl.where(n > 3, r3, own),
        tl.where(n > 4, r4, own),
        tl.where(n > 5, r5, own),
    )


@triton.jit
def draw_parents(
    settings,
    archive_count,
    fitness,
    alive,
    num_members,
    seed,
    generation,
    member,
    CHUNK: tl.constexpr,
):
    """Rows of best, pbest, r1 to r5 and archive for each member, and the row that ranks first."""
    w1, w2, w3, w4 = tl.philox(seed, PURPOSE_PARENTS, generation, member, 0)
    w5, archive_word, pbest_word, share_word = tl.philox(
        seed, PURPOSE_PARENTS, generation, member, 1
    )
    n, num_valid, own = census(fitness, alive, num_members, member, CHUNK)
    p1, p2, p3, p4, p5 = draw_distinct(w1, w2, w3, w4, w5, n, own)

    low, high = tl.load(settings + PBEST_MIN), tl.load(settings + PBEST_MAX)
    share = low + (high - low) * uniform(share_word)
    candidates = rint(tl.cast(n, tl.float64) * share).to(tl.int32)
    candidates = tl.minimum(tl.maximum(candidates, 1), n)
    candidates = tl.where(num_valid > 0, tl.minimum(candidates, num_valid), candidates)
    pbest_rank = below(pbest_word, candidates)

    together = n + archive_count
    alone = p1 == own
    pool = tl.where(alone, together - 1, together - 2)
    p6 = past(below(archive_word, pool), tl.minimum(own, p1))
    p6 = tl.where(alone, p6, past(p6, tl.maximum(own, p1)))

    first_row, second_row = 0, 0
    pbest = tl.zeros(member.shape, tl.int32)
    r1, r2, r3 = pbest, pbest, pbest
    r4, r5, r6 = pbest, pbest, pbest
    for first in range(0, num_members, CHUNK):
        other = first + tl.arange(0, CHUNK)
        rank, position = standing(fitness, alive, num_members, other, CHUNK)
        first_row += tl.sum(tl.where(rank == 0, other, 0))
        second_row += tl.sum(tl.where(rank == 1, other, 0))
        pbest += holder(other, rank, pbest_rank)
        if n < num_members:  # else a position is its member
            r1 += holder(other, position, p1)
            r2 += holder(other, position, p2)
            r3 += holder(other, position, p3)
            r4 += holder(other, position, p4)
            r5 += holder(other, position, p5)
            r6 += holder(other, position, p6)
    all_live = n == num_members
    r1, r2, r3 = tl.where(all_live, p1, r1), tl.where(all_live, p2, r2), tl.where(all_live, p3, r3)
    r4, r5, r6 = tl.where(all_live, p4, r4), tl.where(all_live, p5, r5), tl.where(all_live, p6, r6)
    archive = tl.where(p6 < n, r6, num_members + p6 - n)
    archive = tl.where(pool > 0, archive, member)

    excludes = (tl.load(settings + BEST_EXCLUDES_TARGET) != 0.0).to(tl.int32)
    excludes = tl.where(num_valid == 1, 0, excludes)
    best = tl.where((member == first_row) & (excludes != 0), second_row, first_row)
    return best, pbest, r1, r2, r3, r4, r5, archive, first_row


@triton.jit
def row_of_term(code, member, best, pbest, r1, r2, r3, r4, r5, archive):
    """The row that a strategy's term stands for."""
    row = tl.where(code == TERM_BEST, best, member)
    row = tl.where(code == TERM_PBEST, pbest, row)
    row = tl.where(code == TERM_R1, r1, row)
    row = tl.where(code == TERM_R2, r2, row)
    row = tl.where(code == TERM_R3, r3, row)
    row = tl.where(code == TERM_R4, r4, row)
    row = tl.where(code == TERM_R5, r5, row)
    return tl.where(code == TERM_ARCHIVE, archive, row)
