"""plan against an oracle written from the contract, backend against backend, and its purity."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.ops.tables import ChoiceColumn, ParameterColumn, Source
from deevo_ext.search.pools import interpolation_pool
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import parse
from support.operators import (
    BIG_SEED,
    NATIVE_BACKENDS,
    Evolution,
    configurations,
    evolution,
    serving,
)
from support.oracles import words
from support.plans import FITNESS, planned, scrambled_state

CONFIGURATIONS = configurations()
INF, NAN = math.inf, math.nan

SERVING = serving("plan", among=NATIVE_BACKENDS)


def uniform(word: int) -> float:
    return (2 * word + 1) / 2**33


def oracle_member(run: Evolution, member: int) -> dict[str, Any]:
    """What the contract and the papers say that one member does."""
    c, g, seed = run.configuration, int(run.generation), run.seed
    at, state = c.offsets(), run.state.tolist()
    losses = [INF if math.isnan(x) else x for x in run.fitness.tolist()]
    living = [j for j, alive in enumerate(run.alive.tolist()) if alive]
    n, k_all = len(living), len(c.strategies)
    chance = words(3, g, member, 0, seed)
    u = uniform(words(3, g, member, 1, seed)[0])

    odds = state[at.odds : at.odds + k_all]
    possible = [k for k in range(k_all) if odds[k] > 0]
    hit = [k for k in possible if uniform(chance[0]) < sum(odds[j] for j in possible if j <= k)]
    k = hit[0] if hit else possible[-1]
    terms, crossover = parse(c.strategies[k].formula), c.strategies[k].crossover

    r, r_cr = (chance[2] * c.memory_size) >> 32, (chance[3] * c.memory_size) >> 32
    normal = NormalDist().inv_cdf
    f = frequency = 0.0
    source = Source.NONE
    if not terms.trigonometric:
        if c.sinusoid != "none" and g < c.switch * c.generations:
            p1 = 0.5 if g <= c.sinusoid_period else state[at.sinusoid1_odds]
            p1 = {"ensemble": p1, "decreasing": 1.0, "increasing": 0.0}[c.sinusoid]
            if uniform(chance[1]) < p1:
                source = Source.SINUSOID_1
                wave = math.sin(2 * math.pi * c.sinusoid_1_frequency * g + math.pi)
                f = c.f_init * (wave * (c.generations - g) / c.generations + 1)
            else:
                source = Source.SINUSOID_2
                mean = state[at.memory_frequency + r * k_all + k]
                draws = (uniform(words(7, g, member, a, seed)[0]) for a in range(32))
                tries = [mean + c.frequency_std * normal(draw) for draw in draws]
                frequency = min(next((x for x in tries if x > 0), 0.0), 1.0)
                wave = math.sin(2 * math.pi * frequency * g)
                f = c.f_init * (wave * g / c.generations + 1)
        else:
            source = Source.MEMORY
            mean = state[at.memory_f + r * k_all + k]
            if c.f_distribution == "normal":
                f = mean + c.f_std * normal(uniform(words(5, g, member, 0, seed)[0]))
            else:
                draws = (uniform(words(5, g, member, a, seed)[0]) for a in range(32))
                tries = [mean + c.f_std * math.tan(math.pi * (draw - 0.5)) for draw in draws]
                f = next((x for x in tries if x > 0), 0.0)
        f = min(max(f, c.f_min), c.f_max)
    cr = 1.0
    if crossover == "bin":
        mean = state[at.memory_cr + r_cr * k_all + k]
        cr = mean + c.cr_std * normal(uniform(words(6, g, member, 0, seed)[0]))
        cr = 0.0 if mean < 0 else min(max(cr, c.cr_min), c.cr_max)

    first, second = words(4, g, member, 0, seed), words(4, g, member, 1, seed)
    rows = {"target": member}
    used = {member}
    for i, word in enumerate([*first, second[0]], start=1):
        others = [j for j in living if j not in used]
        if others:
            rows[f"r{i}"] = others[(word * len(others)) >> 32]
            used.add(rows[f"r{i}"])
    ranked = sorted(living, key=lambda j: (losses[j], j))
    finite = sum(losses[j] < INF for j in living)
    rows["best"] = ranked[0]
    if c.best_excludes_target and ranked[0] == member and finite != 1:
        rows["best"] = ranked[1]
    p = c.pbest_min + (c.pbest_max - c.pbest_min) * uniform(second[3])
    count = min(max(round(n * p), 1), n, finite or n)
    rows["pbest"] = ranked[(second[2] * count) >> 32]
    kept = [len(losses) + j for j in range(int(state[at.archive_count]))]
    both = [j for j in (*living, *kept) if j not in (member, rows["r1"])]
    rows["archive"] = both[(second[1] * len(both)) >> 32]

    named = [terms.base, *terms.rows]
    if terms.trigonometric:
        offset = losses[ranked[0]] if c.trig_offset else 0.0
        cost = [abs(losses[rows[name]] - offset) for name in named]
        if math.isfinite(sum(cost)) and sum(cost) > 0:
            shares = [4 / 3 - 3 * x / sum(cost) for x in cost]
        else:
            shares = [float(math.isfinite(x)) for x in cost]
            shares = [x / sum(shares) if sum(shares) else 1 / 3 for x in shares]
        factors = shares[1:]
    else:
        factors = [
            one + by_f * f + by_u * u + by_fu * f * u
            for one, by_f, by_u, by_fu in terms.coefficients
        ]
    return {
        "strategy": k,
        "source": source,
        "rows": [rows[name] for name in named],
        "parameters": [f, cr, frequency, u],
        "coefficients": factors,
    }


def assert_follows_oracle(run: Evolution) -> None:
    generation = int(run.generation)
    for i, alive in enumerate(run.alive.tolist()):
        if not alive:  # its trial is itself
            assert run.choices[i].tolist() == [generation, 0, 0, 0, 0, *[i] * 6, -1]
            assert not run.parameters[i].any() and not run.coefficients[i].any()
            continue
        choice, expected = run.choices[i].tolist(), oracle_member(run, i)
        terms = len(expected["coefficients"])
        assert choice[ChoiceColumn.GENERATION] == generation
        assert choice[ChoiceColumn.STRATEGY] == expected["strategy"]
        assert choice[ChoiceColumn.SOURCE] == expected["source"]
        assert choice[ChoiceColumn.TERMS] == terms
        base = expected["rows"][0]
        assert choice[ChoiceColumn.BASE_ROW : ChoiceColumn.FORCED] == expected["rows"] + [base] * (
            5 - terms
        )
        parameters = run.parameters[i].tolist()
        assert parameters == pytest.approx(expected["parameters"], rel=1e-9, abs=1e-9)
        coefficients = run.coefficients[i].tolist()
        padded = expected["coefficients"] + [0.0] * (5 - terms)
        assert coefficients == pytest.approx(padded, rel=1e-6, abs=1e-6)
        cr = Fraction(parameters[ParameterColumn.CR])
        threshold = max(round(cr * 65536), 1) if cr > 0 else 0
        assert choice[ChoiceColumn.THRESHOLD] == threshold


@pytest.mark.parametrize("fitness", FITNESS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_cpu_follows_the_oracle(name: str, fitness: str) -> None:
    for members, seed, generation in ((6, 1, 1), (7, BIG_SEED, 5), (20, 2, 11), (9, 3, 13)):
        run = evolution(CONFIGURATIONS[name], FITNESS[fitness](members), seed, generation)
        if members >= 9:
            run.alive[[0, 4, members - 1]] = 0
        run.plan()
        assert_follows_oracle(run)
        scrambled_state(run)
        run.plan()
        assert_follows_oracle(run)


# Backends


@pytest.mark.parametrize("fitness", FITNESS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_backends_agree_bit_for_bit(name: str, fitness: str) -> None:
    needed = CONFIGURATIONS[name].members_needed
    for members, seed in ((needed, BIG_SEED), (11, 0)):
        for generation in (1, 7, 2**31 - 1):
            cpu = evolution(CONFIGURATIONS[name], FITNESS[fitness](members), seed, generation)
            if generation > 1:
                scrambled_state(cpu)
            if members > needed:
                cpu.alive[needed:] = 0
            reference = cpu.clone()
            cpu.plan()
            with backends.use("reference"):
                reference.plan()
            reference.assert_same(cpu)


@pytest.mark.parametrize("members", [5, 8, 63, 200])
def test_backends_agree_on_populations_of_any_size(members: int) -> None:
    for name, configuration in CONFIGURATIONS.items():
        if members < configuration.members_needed:
            continue
        cpu = evolution(configuration, FITNESS["gaps"](members), 2**63 - 1, 4)
        scrambled_state(cpu)
        reference = cpu.clone()
        cpu.plan()
        with backends.use("reference"):
            reference.plan()
        reference.assert_same(cpu), name


# Purity


def test_plan_changes_nothing_but_the_plan(backend: str) -> None:
    run = evolution(configure("paper"), FITNESS["gaps"](8))
    before = run.clone()
    random_state, again = torch.get_rng_state(), run.clone()
    run.plan()
    again.plan()
    again.assert_same(run)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name in ("settings", "strategies", "state", "fitness", "generation"):
        assert torch.equal(
            getattr(run, name).nan_to_num(nan=-9.0), getattr(before, name).nan_to_num(nan=-9.0)
        )


def test_members_and_generations_and_seeds_differ() -> None:
    c = configure("paper", strategies=interpolation_pool())
    u = planned(c, 8).parameters[:, ParameterColumn.U].tolist()
    assert len(set(u)) == 8
    for changed in (
        planned(c, 8, seed=2),
        planned(c, 8, seed=1 + 2**32),
        planned(c, 8, generation=2),
    ):
        assert not set(u) & set(changed.parameters[:, ParameterColumn.U].tolist())
