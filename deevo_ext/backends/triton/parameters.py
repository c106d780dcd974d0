"""F, its frequency and CR of the members that one program of plan works on."""

from __future__ import annotations

import triton
import triton.language as tl

from deevo_ext.backends.triton.adaptation import memory_slots, state_offsets
from deevo_ext.backends.triton.exact_math import (
    cauchy_quantile,
    clip,
    normal_quantile,
    sin2pi,
)
from deevo_ext.backends.triton.philox import first_word, uniform
from deevo_ext.backends.triton.tables import (
    CR_MAX,
    CR_MIN,
    CR_STD,
    F_DISTRIBUTION,
    F_INIT,
    F_MAX,
    F_MIN,
    F_STD,
    FREQUENCY_STD,
    GENERATIONS,
    PURPOSE_CR,
    PURPOSE_F,
    PURPOSE_FREQUENCY,
    SINUSOID_1_FREQUENCY,
    SINUSOID_MODE,
    SINUSOID_PERIOD,
    SOURCE_MEMORY,
    SOURCE_NONE,
    SOURCE_SINUSOID_1,
    SOURCE_SINUSOID_2,
    SWITCH_GENERATION,
)

ATTEMPTS = tl.constexpr(32)


@triton.jit
def positive_draw(
    seed,
    purpose: tl.constexpr,
    generation,
    member,
    wanted,
    mean,
    scale,
    CAUCHY: tl.constexpr,
):
    """mean + scale * quantile of the first of 32 attempts that is positive, else 0.

    Attempts go on until every wanted member has its value; where not wanted it is 0.
    """
    value = tl.zeros(member.shape, tl.float64)
    attempt = 0
    waiting = wanted.to(tl.int32)
    while (attempt < ATTEMPTS) & (tl.max(waiting) > 0):
        word = first_word(seed, purpose, generation, member, attempt)
        if CAUCHY:
            x = mean + scale * cauchy_quantile(uniform(word))
        else:
            x = mean + scale * normal_quantile(uniform(word))
        hit = (waiting != 0) & (x > 0.0)
        value = tl.where(hit, x, value)
        waiting = tl.where(hit, 0, waiting)
        attempt += 1
    return value


@triton.jit
def draw_f(settings, state, num_strategies, seed, generation, member, linear, word, slot):
    """F, frequency and source of F; all 0 for members whose strategy is not linear.

    Sinusoid 1 (decreasing): F0 (sin(2 pi f g + pi) (G - g)/G + 1); sinusoid 2 (increasing, adapted
    frequency): F0 (sin(2 pi f_i g) g/G + 1); from the switch on, the memory's F.
    """
    g = generation.to(tl.float64)
    horizon = tl.load(settings + GENERATIONS)
    mode = tl.load(settings + SINUSOID_MODE).to(tl.int32)
    _, memories = memory_slots(settings, num_strategies)
    _, _, sinusoid1_odds, _, _, _ = state_offsets(settings, num_strategies)
    early = generation <= tl.load(settings + SINUSOID_PERIOD).to(tl.int64)
    odds = tl.where(early, 0.5, tl.load(state + sinusoid1_odds))
    odds = tl.where(mode == 1, 1.0, tl.where(mode == 2, 0.0, odds))
    waves = ((mode != 3) & (g < tl.load(settings + SWITCH_GENERATION))).to(tl.int32)
    first = linear & (waves != 0) & (uniform(word) < odds)
    second = linear & (waves != 0) & (first == 0)
    remembered = linear & (waves == 0)

    frequency = positive_draw(
        seed,
        PURPOSE_FREQUENCY,
        generation.to(tl.int32),
        member,
        second,
        tl.load(state + 2 * memories + slot),
        tl.load(settings + FREQUENCY_STD),
        False,
    )
    frequency = tl.where(frequency > 1.0, 1.0, frequency)
    phase = tl.load(settings + SINUSOID_1_FREQUENCY) * g + 0.5
    falling = sin2pi(phase) * ((horizon - g) / horizon)
    rising = sin2pi(frequency * g) * (g / horizon)
    f = tl.load(settings + F_INIT) * (tl.where(first, falling, rising) + 1.0)

    mean, scale = tl.load(state + slot), tl.load(settings + F_STD)
    if tl.load(settings + F_DISTRIBUTION).to(tl.int32) == 1:
        drawn = positive_draw(
            seed, PURPOSE_F, generation.to(tl.int32), member, remembered, mean, scale, True
        )
    else:
        word = first_word(seed, PURPOSE_F, generation.to(tl.int32), member, 0)
        drawn = mean + scale * normal_quantile(uniform(word))
    f = tl.where(remembered, drawn, f)
    f = clip(f, tl.load(settings + F_MIN), tl.load(settings + F_MAX))
    source = tl.where(first, SOURCE_SINUSOID_1, tl.where(second, SOURCE_SINUSOID_2, SOURCE_MEMORY))
    return tl.where(linear, f, 0.0), frequency, tl.where(linear, source, SOURCE_NONE)


@triton.jit
def draw_cr(settings, state, num_strategies, seed, generation, member, binomial, slot):
    """CR from its memory, 1 without crossover; a negative memory is L-SHADE's terminal CR = 0."""
    _, memories = memory_slots(settings, num_strategies)
    mean = tl.load(state + memories + slot)
    word = first_word(seed, PURPOSE_CR, generation.to(tl.int32), member, 0)
    cr = mean + tl.load(settings + CR_STD) * normal_quantile(uniform(word))
    cr = clip(cr, tl.load(settings + CR_MIN), tl.load(settings + CR_MAX))
    return tl.where(binomial, tl.where(mean < 0.0, 0.0, cr), 1.0)
