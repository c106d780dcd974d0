"""plan: what each member does in a generation.

Strategy by roulette over SaDE's odds (Qin et al. 2009), F from the ensemble of sinusoids (Awad et
al. 2016, 2017) or SHADE's memories (Tanabe & Fukunaga 2013), CR from its memory, distinct parents,
coefficients of v = row[base] + sum_m c[m] (row[idx[m]] - row[base]), trigonometric ones included
(Fan & Lampinen 2003). A few hundred bytes a member, no weights.

A program plans MEMBERS members, one a lane. Ranks come from NP^2 comparisons in every program: so
nothing passes between programs, and one launch is enough. Genes' bits are a second one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deevo_ext.backends.reference.checks import (
    alive_members,
    check_generation,
    check_strategies,
)
from deevo_ext.backends.triton.adaptation import load_fitness, memory_slots, state_offsets
from deevo_ext.backends.triton.exact_math import is_finite, rint
from deevo_ext.backends.triton.gene_mask import draw_gene_mask, forced_mutant
from deevo_ext.backends.triton.launch import launch, power_of_two, require_device
from deevo_ext.backends.triton.parameters import draw_cr, draw_f
from deevo_ext.backends.triton.parents import draw_parents, row_of_term
from deevo_ext.backends.triton.philox import below, first_word, uniform
from deevo_ext.backends.triton.tables import (
    BASE_ROW,
    BASE_TERM,
    CHOICE_COLUMNS,
    CR,
    CROSSOVER,
    FORCED,
    FREQUENCY,
    GENERATION,
    KIND,
    MAX_TERMS,
    NUM_TERMS,
    PARAMETER_COLUMNS,
    PURPOSE_CHOICE,
    ROWS,
    SOURCE,
    STRATEGY,
    STRATEGY_COLUMNS,
    TERM_CODES,
    TERM_COEFFICIENTS,
    TERMS,
    THRESHOLD,
    TRIG_OFFSET,
    F,
    U,
)

MEMBERS = 128
CHUNK = 32
WARPS = 4
REGISTERS = 255  # else ptxas may spill to fit more warps, of which there are few anyway


@triton.jit
def roulette(u, odds, num_strategies):
    """The strategy that u falls on; the last one with odds > 0 takes the remainder."""
    last = tl.zeros(u.shape, tl.int32)
    decided = tl.zeros(u.shape, tl.int32)
    cumulative = tl.cast(0.0, tl.float64)
    for k in range(0, num_strategies):
        p = tl.load(odds + k)
        if p > 0.0:
            cumulative = cumulative + p
            last = tl.where(decided == 0, k, last)
            decided = tl.where(u < cumulative, 1, decided)
    return last


@triton.jit
def trig_costs(fitness, num_members, offset, row0, row1, row2):
    """|f - offset| of a trigonometric mutation's three rows; 0 for a row that is no member."""
    c0 = tl.abs(load_fitness(fitness, row0, row0 < num_members) - offset)
    c1 = tl.abs(load_fitness(fitness, row1, row1 < num_members) - offset)
    c2 = tl.abs(load_fitness(fitness, row2, row2 < num_members) - offset)
    return c0, c1, c2


@triton.jit
def trig_coefficient(cost, total, finite):
    """4/3 - 3 cost / total; all costs 0: 1/3; total not finite: equal shares for the finite."""
    usual = 4.0 / 3.0 - 3.0 * (cost / total)
    third = tl.full(cost.shape, 1.0 / 3.0, tl.float64)
    share = tl.where(is_finite(cost), 1.0 / finite.to(tl.float64), 0.0)
    other = tl.where(finite == 0, third, share)
    return tl.where(is_finite(total) & (total > 0.0), usual, other)


@triton.jit(do_not_specialize=["num_members", "num_strategies", "gene_words", "seed"])
def plan_kernel(
    settings,
    strategies,
    state,
    fitness,
    alive,
    generation,
    choices,
    parameters,
    coefficients,
    num_members,
    num_strategies,
    gene_words,
    seed: tl.int64,
    MEMBERS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    member = tl.program_id(0) * MEMBERS + tl.arange(0, MEMBERS)
    exists = member < num_members
    lives = tl.load(alive + member, mask=exists, other=0) != 0
    now = tl.load(generation)
    counter = now.to(tl.int32)
    memory_size, _ = memory_slots(settings, num_strategies)
    _, odds, _, archive_count, _, _ = state_offsets(settings, num_strategies)

    w0, sinusoid_word, w2, w3 = tl.philox(seed, PURPOSE_CHOICE, counter, member, 0)
    u = uniform(first_word(seed, PURPOSE_CHOICE, counter, member, 1))
    k = roulette(uniform(w0), state + odds, num_strategies)
    strategy = strategies + k * STRATEGY_COLUMNS
    trig = tl.load(strategy + KIND) != 0.0
    binomial = tl.load(strategy + CROSSOVER) != 0.0

    memories = memory_size.to(tl.uint32) + tl.zeros(k.shape, tl.uint32)
    slot = below(w2, memories).to(tl.int64) * num_strategies + k
    cr_slot = below(w3, memories).to(tl.int64) * num_strategies + k
    linear = lives & (trig == 0)
    f, frequency, source = draw_f(
        settings, state, num_strategies, seed, now, member, linear, sinusoid_word, slot
    )
    cr = draw_cr(settings, state, num_strategies, seed, now, member, binomial, cr_slot)
    threshold = rint(cr * 65536.0).to(tl.int32)
    threshold = tl.where((threshold < 1) & (cr > 0.0), 1, threshold)

    count = tl.load(state + archive_count).to(tl.int32)
    best, pbest, r1, r2, r3, r4, r5, archive, first_row = draw_parents(
        settings, count, fitness, alive, num_members, seed, counter, member, CHUNK
    )

    choice = choices + member.to(tl.int64) * CHOICE_COLUMNS
    coefficient = coefficients + member.to(tl.int64) * MAX_TERMS
    terms = tl.load(strategy + NUM_TERMS).to(tl.int32)
    base_code = tl.load(strategy + BASE_TERM).to(tl.int32)
    base = row_of_term(base_code, member, best, pbest, r1, r2, r3, r4, r5, archive)
    code0 = tl.load(strategy + TERM_CODES).to(tl.int32)
    code1 = tl.load(strategy + TERM_CODES + 1).to(tl.int32)
    row0 = row_of_term(code0, member, best, pbest, r1, r2, r3, r4, r5, archive)
    row1 = row_of_term(code1, member, best, pbest, r1, r2, r3, r4, r5, archive)
    offset = tl.load(fitness + first_row)
    offset = tl.where(offset == offset, offset, float("inf"))
    offset = tl.where(tl.load(settings + TRIG_OFFSET) != 0.0, offset, 0.0)
    c0, c1, c2 = trig_costs(fitness, num_members, offset, base, row0, row1)
    total = (c0 + c1) + c2
    finite = is_finite(c0).to(tl.int32) + is_finite(c1).to(tl.int32) + is_finite(c2).to(tl.int32)

    for m in tl.static_range(MAX_TERMS):
        code = tl.load(strategy + TERM_CODES + m).to(tl.int32)
        row = row_of_term(code, member, best, pbest, r1, r2, r3, r4, r5, archive)
        row = tl.where(m < terms, row, base)
        a = strategy + TERM_COEFFICIENTS + 4 * m
        c = tl.load(a) + tl.load(a + 1) * f
        c = (c + tl.load(a + 2) * u) + tl.load(a + 3) * (f * u)
        if m == 0:
            c = tl.where(trig, trig_coefficient(c1, total, finite), c)
        if m == 1:
            c = tl.where(trig, trig_coefficient(c2, total, finite), c)
        c = tl.where(lives & (m < terms), c, 0.0)
        tl.store(coefficient + m, c.to(tl.float32), mask=exists)
        tl.store(choice + ROWS + m, tl.where(lives, row, member), mask=exists)

    forced = forced_mutant(settings, seed, counter, member, binomial)
    forced = tl.where(lives & (gene_words == 0), forced, -1)
    tl.store(choice + GENERATION, tl.zeros(k.shape, tl.int32) + counter, mask=exists)
    tl.store(choice + STRATEGY, tl.where(lives, k, 0), mask=exists)
    tl.store(choice + SOURCE, tl.where(lives, source, 0), mask=exists)
    tl.store(choice + THRESHOLD, tl.where(lives, threshold, 0), mask=exists)
    tl.store(choice + TERMS, tl.where(lives, terms, 0), mask=exists)
    tl.store(choice + BASE_ROW, tl.where(lives, base, member), mask=exists)
    tl.store(choice + FORCED, forced, mask=exists)

    parameter = parameters + member.to(tl.int64) * PARAMETER_COLUMNS
    tl.store(parameter + F, tl.where(lives, f, 0.0), mask=exists)
    tl.store(parameter + CR, tl.where(lives, cr, 0.0), mask=exists)
    tl.store(parameter + FREQUENCY, tl.where(lives, frequency, 0.0), mask=exists)
    tl.store(parameter + U, tl.where(lives, u, 0.0), mask=exists)


def plan(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    state: torch.Tensor,
    fitness: torch.Tensor,
    alive: torch.Tensor,
    generation: torch.Tensor,
    seed: int,
    choices: torch.Tensor,
    parameters: torch.Tensor,
    coefficients: torch.Tensor,
    gene_mask: torch.Tensor,
) -> None:
    """As `deevo_ext.backends.reference.plan`. On a CUDA device values are not read back."""
    device = fitness.device
    require_device("plan", plan_kernel, device)
    num_strategies = strategies.shape[0]
    if device.type == "cpu":
        check_generation("plan", int(generation.item()))
        check_strategies("plan", strategies.tolist())
        alive_members("plan", alive)
    num_members = fitness.numel()
    members = min(MEMBERS, power_of_two(num_members))
    launch(
        plan_kernel,
        triton.cdiv(num_members, members),
        device,
        settings,
        strategies,
        state,
        fitness,
        alive,
        generation,
        choices,
        parameters,
        coefficients,
        num_members,
        num_strategies,
        gene_mask.shape[1],
        seed,
        MEMBERS=members,
        CHUNK=min(CHUNK, power_of_two(num_members)),
        num_warps=WARPS,
        maxnreg=REGISTERS,
    )
    draw_gene_mask(settings, strategies, alive, choices, seed, gene_mask)
