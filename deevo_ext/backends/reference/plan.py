"""plan: what each member does in a generation.

Strategy by roulette over SaDE's odds (Qin et al. 2009); F from the ensemble of sinusoids (Awad et
al. 2016, 2017) or SHADE's memories (Tanabe & Fukunaga 2013); CR from its memory; distinct parents;
coefficients of `v = row[base] + sum_m c[m] (row[idx[m]] - row[base])`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from deevo_ext.backends.checks import (
    alive_members,
    check_generation,
    check_strategies,
    require_subnormals,
)
from deevo_ext.backends.reference.exact_math import cauchy_quantile, normal_quantile, sin2pi
from deevo_ext.backends.reference.inputs import Plan, clean_fitness, offsets_of
from deevo_ext.ops.philox import draw, mask_draws, mulhi, uniform
from deevo_ext.ops.tables import (
    MAX_TERMS,
    NUM_PARAMETER_COLUMNS,
    NUM_STRATEGY_COLUMNS,
    Purpose,
    Setting,
    Source,
    StrategyColumn,
    TermCode,
    gene_words,
)

ATTEMPTS = 32


def clip(x: float, low: float, high: float) -> float:
    """x moved into [low, high]."""
    return low if x < low else min(x, high)


def roulette(u: float, odds: list[float]) -> int:
    """The strategy that u falls on; the last one with odds > 0 takes the remainder."""
    cumulative = 0.0
    last = 0
    for k, p in enumerate(odds):
        if not p > 0.0:
            continue
        cumulative = cumulative + p
        last = k
        if u < cumulative:
            break
    return last


def positive_draw(
    p: Plan, member: int, purpose: Purpose, mean: float, scale: float, quantile: Callable
) -> float:
    """mean + scale * quantile of the first of 32 attempts that is positive, else 0."""
    for attempt in range(ATTEMPTS):
        u = uniform(draw(purpose, p.generation, member, attempt, p.seed)[0])
        x = mean + scale * quantile(u)
        if x > 0.0:
            return x
    return 0.0


def _sinusoid1_probability(p: Plan) -> float:
    mode = int(p.settings[Setting.SINUSOID_MODE])
    if mode in (1, 2):
        return 1.0 if mode == 1 else 0.0
    if p.generation <= int(p.settings[Setting.SINUSOID_PERIOD]):
        return 0.5
    return p.state[p.at.sinusoid1_odds]


def plan_f(p: Plan, member: int, sinusoid_word: int, slot: int) -> tuple[float, float, Source]:
    """F, frequency and the source of F for a linear strategy.

    Sinusoid 1 (decreasing): F0 (sin(2 pi f g + pi) (G - g)/G + 1); sinusoid 2 (increasing, adapted
    frequency): F0 (sin(2 pi f_i g) g/G + 1); from the switch on, the memory's F.
    """
    s = p.settings
    g, horizon = float(p.generation), s[Setting.GENERATIONS]
    frequency = 0.0
    if int(s[Setting.SINUSOID_MODE]) != 3 and g < s[Setting.SWITCH_GENERATION]:
        if uniform(sinusoid_word) < _sinusoid1_probability(p):
            source = Source.SINUSOID_1
            wave = sin2pi(s[Setting.SINUSOID_1_FREQUENCY] * g + 0.5) * ((horizon - g) / horizon)
        else:
            source = Source.SINUSOID_2
            mean = p.state[p.at.memory_frequency + slot]
            scale = s[Setting.FREQUENCY_STD]
            drawn = positive_draw(p, member, Purpose.FREQUENCY, mean, scale, normal_quantile)
            frequency = min(drawn, 1.0)
            wave = sin2pi(frequency * g) * (g / horizon)
        f = s[Setting.F_INIT] * (wave + 1.0)
    else:
        source = Source.MEMORY
        mean, scale = p.state[p.at.memory_f + slot], s[Setting.F_STD]
        if int(s[Setting.F_DISTRIBUTION]) == 1:
            f = positive_draw(p, member, Purpose.F, mean, scale, cauchy_quantile)
        else:
            u = uniform(draw(Purpose.F, p.generation, member, 0, p.seed)[0])
            f = mean + scale * normal_quantile(u)
    return clip(f, s[Setting.F_MIN], s[Setting.F_MAX]), frequency, source


def plan_cr(p: Plan, member: int, slot: int) -> float:
    """CR from its memory; a negative memory is L-SHADE's terminal value, CR = 0."""
    mean = p.state[p.at.memory_cr + slot]
    if mean < 0.0:
        return 0.0
    u = uniform(draw(Purpose.CR, p.generation, member, 0, p.seed)[0])
    cr = mean + p.settings[Setting.CR_STD] * normal_quantile(u)
    return clip(cr, p.settings[Setting.CR_MIN], p.settings[Setting.CR_MAX])


def distinct(word: int, n: int, excluded: list[int]) -> int:
    """Uniform on 0..n-1 without the excluded (ascending), which then include the result."""
    index = mulhi(word, n - len(excluded))
    for taken in excluded:
        if taken <= index:
            index += 1
    excluded.append(index)
    excluded.sort()
    return index


def draw_parents(p: Plan, member: int) -> list[int]:
    """The row of each `TermCode` for one member; random rows are drawn among the living."""
    n = len(p.living)
    position = p.living.index(member)
    first = draw(Purpose.PARENTS, p.generation, member, 0, p.seed)
    second = draw(Purpose.PARENTS, p.generation, member, 1, p.seed)
    rows = [member] * len(TermCode)

    excluded = [position]
    for code, word in zip(range(TermCode.R1, TermCode.R5 + 1), (*first, second[0]), strict=True):
        if n > len(excluded):  # a pool that needs more parents than there are is refused earlier
            rows[code] = p.living[distinct(word, n, excluded)]

    rows[TermCode.BEST] = p.by_rank[0]
    if p.settings[Setting.BEST_EXCLUDES_TARGET] and p.by_rank[0] == member and p.num_valid != 1:
        rows[TermCode.BEST] = p.by_rank[1]

    low, high = p.settings[Setting.PBEST_MIN], p.settings[Setting.PBEST_MAX]
    candidates = round(n * (low + (high - low) * uniform(second[3])))
    candidates = min(max(candidates, 1), n)
    if p.num_valid > 0:
        candidates = min(candidates, p.num_valid)
    rows[TermCode.PBEST] = p.by_rank[mulhi(second[2], candidates)]

    with_archive = n + int(p.state[p.at.archive_count])
    taken = sorted({position, p.living.index(rows[TermCode.R1])})
    if with_archive > len(taken):
        drawn = distinct(second[1], with_archive, taken)
        rows[TermCode.ARCHIVE] = p.living[drawn] if drawn < n else len(p.fitness) + drawn - n
    return rows


def trigonometric(p: Plan, rows: list[int]) -> list[float]:
    """c_k = 4/3 - 3 |f_k| / sum |f| for three parents (Fan & Lampinen 2003).

    All losses 0: 1/3 each. A sum that is not finite: equal shares for the finite parents, none for
    the others (1/3 each if none is finite).
    """
    offset = p.fitness[p.by_rank[0]] if p.settings[Setting.TRIG_OFFSET] else 0.0
    cost = [abs(p.fitness[row] - offset) for row in rows]
    total = (cost[0] + cost[1]) + cost[2]
    if math.isfinite(total) and total > 0.0:
        return [4.0 / 3.0 - 3.0 * (c / total) for c in cost]
    finite = sum(math.isfinite(c) for c in cost)
    if finite == 0:
        return [1.0 / 3.0] * 3
    return [1.0 / finite if math.isfinite(c) else 0.0 for c in cost]


def _threshold(cr: float) -> int:
    threshold = round(cr * 65536.0)
    return 1 if threshold < 1 and cr > 0.0 else threshold


def forced_mutant(p: Plan, member: int, binomial: bool) -> int:
    """j_rand: the weight or gene that takes the mutant whatever CR says; -1: none."""
    candidates = int(p.settings[Setting.J_RAND_RANGE])
    if candidates == 0 or not binomial:
        return -1
    return mulhi(draw(Purpose.J_RAND, p.generation, member, 0, p.seed)[0], candidates)


def gene_mask(p: Plan, member: int, threshold: int, forced: int) -> list[int]:
    """Words of 32 genes: bit k % 32 of word k // 32 says whether gene k takes the mutant."""
    genes = int(p.settings[Setting.GENES])
    draws = mask_draws(Purpose.GENE_MASK, 0, genes, p.generation, member, p.seed)
    taken = draws.astype(np.int64) < threshold
    if forced >= 0 and genes > 0:
        taken[forced] = True
    bits = np.zeros(32 * gene_words(genes), dtype=np.uint8)
    bits[:genes] = taken
    return np.packbits(bits, bitorder="little").view("<i4").tolist()


def plan_member(p: Plan, member: int) -> tuple[list[int], list[float], list[float], list[int]]:
    """One row of choices, parameters, coefficients and gene_mask."""
    if member not in p.living:
        nothing = [p.generation, 0, int(Source.NONE), 0, 0, *[member] * (1 + MAX_TERMS), -1]
        mask = [0] * gene_words(int(p.settings[Setting.GENES]))
        return nothing, [0.0] * NUM_PARAMETER_COLUMNS, [0.0] * MAX_TERMS, mask
    chance = draw(Purpose.CHOICE, p.generation, member, 0, p.seed)
    u = uniform(draw(Purpose.CHOICE, p.generation, member, 1, p.seed)[0])
    count = len(p.strategies)
    k = roulette(uniform(chance[0]), p.state[p.at.odds : p.at.odds + count])
    strategy = p.strategies[k]
    trig = strategy[StrategyColumn.KIND] != 0.0
    binomial = strategy[StrategyColumn.CROSSOVER] != 0.0

    memories = int(p.settings[Setting.MEMORY_SIZE])
    slot = mulhi(chance[2], memories) * count + k
    cr_slot = mulhi(chance[3], memories) * count + k
    f, frequency, source = (0.0, 0.0, Source.NONE) if trig else plan_f(p, member, chance[1], slot)
    cr = plan_cr(p, member, cr_slot) if binomial else 1.0

    row_of = draw_parents(p, member)
    terms = int(strategy[StrategyColumn.NUM_TERMS])
    base = row_of[int(strategy[StrategyColumn.BASE_TERM])]
    codes = strategy[StrategyColumn.TERM_CODES : StrategyColumn.TERM_CODES + terms]
    rows = [row_of[int(code)] for code in codes]
    if trig:
        coefficients = trigonometric(p, [base, *rows])[1:]
    else:
        coefficients = []
        for m in range(terms):
            start = StrategyColumn.TERM_COEFFICIENTS + 4 * m
            a = strategy[start : start + 4]
            coefficients.append(((a[0] + a[1] * f) + a[2] * u) + a[3] * (f * u))

    padding = MAX_TERMS - terms
    threshold = _threshold(cr)
    forced = forced_mutant(p, member, binomial)
    mask = gene_mask(p, member, threshold, forced)
    choices = [p.generation, k, int(source), threshold, terms, base, *rows, *[base] * padding]
    return (
        [*choices, forced if not mask else -1],
        [f, cr, frequency, u],
        [*coefficients, *[0.0] * padding],
        mask,
    )


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
    """Fills choices, parameters, coefficients and gene_mask (shapes: `deevo_ext.ops.tables`)."""
    require_subnormals()
    table = strategies.reshape(-1, NUM_STRATEGY_COLUMNS).tolist()
    check_generation("plan", int(generation.item()))
    check_strategies("plan", table)
    losses = clean_fitness(fitness)
    living = alive_members("plan", alive)
    numbers = settings.tolist()
    p = Plan(
        settings=numbers,
        strategies=table,
        state=state.tolist(),
        fitness=losses,
        living=living,
        by_rank=sorted(living, key=lambda i: losses[i]),
        num_valid=sum(losses[i] < math.inf for i in living),
        generation=int(generation.item()),
        seed=seed,
        at=offsets_of(numbers, len(table)),
    )
    rows = [plan_member(p, member) for member in range(len(losses))]
    choices.copy_(torch.tensor([row[0] for row in rows], dtype=torch.int32))
    parameters.copy_(torch.tensor([row[1] for row in rows], dtype=torch.float64))
    rounded = np.array([row[2] for row in rows], dtype=np.float64).astype(np.float32)
    coefficients.copy_(torch.from_numpy(rounded))
    gene_mask.copy_(torch.tensor([row[3] for row in rows], dtype=torch.int32))
