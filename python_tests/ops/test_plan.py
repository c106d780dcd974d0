"""plan against an oracle written from the contract, its statistics, and backend against backend."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.ops.tables import ChoiceColumn, ParameterColumn, Setting, Source, TermCode
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.pools import interpolation_pool
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import Strategy, parse
from support.operators import (
    BIG_SEED,
    NATIVE_BACKENDS,
    Evolution,
    configurations,
    evolution,
    serving,
)
from support.oracles import words

CONFIGURATIONS = configurations()
INF, NAN = math.inf, math.nan
FITNESS: dict[str, Callable[[int], torch.Tensor]] = {
    "random": lambda n: torch.rand(n, generator=torch.Generator().manual_seed(n)).double(),
    "equal": lambda n: torch.full((n,), 0.25, dtype=torch.float64),
    "zeros": lambda n: torch.tensor([0.0, -0.0] * n, dtype=torch.float64)[:n],
    "ties": lambda n: torch.arange(n, dtype=torch.float64) % 3 - 1,
    "gaps": lambda n: torch.tensor([NAN, 2.0, INF, 0.5, -1.0, NAN] * n, dtype=torch.float64)[:n],
    "lost": lambda n: torch.tensor([NAN, INF] * n, dtype=torch.float64)[:n],
    "one left": lambda n: torch.tensor([INF, 3.0] + [NAN] * n, dtype=torch.float64)[:n],
    "minus infinity": lambda n: torch.tensor([1.0, -INF, 5.0, INF] * n, dtype=torch.float64)[:n],
    "huge": lambda n: torch.tensor([1e308, -1e308, 1.7e308] * n, dtype=torch.float64)[:n],
    "subnormal": lambda n: torch.arange(n, dtype=torch.float64) * 5e-324,
}


@pytest.fixture(params=serving("plan", among=NATIVE_BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


def planned(configuration: Configuration, members: int, **kwargs: Any) -> Evolution:
    run = evolution(configuration, FITNESS["random"](members), **kwargs)
    run.plan()
    return run


def scrambled_state(run: Evolution) -> None:
    """Memories, odds and windows as after some generations, terminal values among them."""
    at, c = run.configuration.offsets(), run.configuration
    source = torch.Generator().manual_seed(3)
    memories = at.pointer
    run.state[:memories] = torch.rand(memories, generator=source, dtype=torch.float64)
    run.state[at.memory_cr] = -1.0
    run.state[at.memory_frequency] = 0.01
    odds = torch.rand(len(c.strategies), generator=source, dtype=torch.float64) + 0.1
    run.state[at.odds : at.sinusoid1_odds] = odds / odds.sum()
    run.state[at.sinusoid1_odds] = 0.3
    run.state[at.archive_count] = c.archive_size


# The oracle


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


# F


def linear_f(run: Evolution, source: Source) -> torch.Tensor:
    chosen = run.choices[:, ChoiceColumn.SOURCE] == int(source)
    assert chosen.any()
    return run.parameters[chosen, ParameterColumn.F]


def test_sinusoid_1_is_constant_at_frequency_one_half(backend: str) -> None:
    """Headline find 2 of the dossier: sin(pi g + pi) is 0 at whole g, exactly here."""
    for generation in (1, 2, 3, 17, 49):
        run = planned(configure("paper"), 30, generation=generation)
        assert (linear_f(run, Source.SINUSOID_1) == 0.6).all()


def test_sinusoid_1_decreases_at_other_frequencies() -> None:
    c = configure("paper", sinusoid_1_frequency=0.25, sinusoid="decreasing", f_max=2.0)
    for generation in range(1, 50):
        run = planned(c, 8, generation=generation)
        wave = [0.0, -1.0, 0.0, 1.0][generation % 4]
        expected = 0.6 * (1.0 + wave * (100 - generation) / 100)
        assert linear_f(run, Source.SINUSOID_1).tolist() == pytest.approx(
            [expected] * len(linear_f(run, Source.SINUSOID_1)), abs=1e-12
        )


def test_sinusoid_2_amplitude_grows_with_the_generation() -> None:
    c = configure("paper", sinusoid="increasing", f_min=-10.0, f_max=10.0, frequency_std=1.0)
    for generation in (1, 10, 49):
        run = planned(c, 400, generation=generation)
        f = linear_f(run, Source.SINUSOID_2)
        amplitude = 0.6 * generation / 100
        assert (f - 0.6).abs().max() <= amplitude * (1 + 1e-12)
        assert (f - 0.6).abs().max() > amplitude * 0.95
        chosen = run.choices[:, ChoiceColumn.SOURCE] == int(Source.SINUSOID_2)
        frequency = run.parameters[chosen, ParameterColumn.FREQUENCY]
        wave = torch.sin(2 * math.pi * frequency * generation)
        assert torch.allclose(f, 0.6 * (1 + wave * generation / 100), atol=1e-12)
        assert ((frequency > 0) & (frequency <= 1)).all()


@pytest.mark.parametrize("mean", [-1e6, 0.0])
def test_redraws_end(backend: str, mean: float) -> None:
    """The first valid of 32 attempts, else clipped."""
    c = configure("paper", sinusoid="increasing", frequency_std=0.0, switch=0.5, f_std=0.0,
                  f_distribution="cauchy")  # fmt: skip
    at = c.offsets()
    for generation in (3, 60):
        run = evolution(c, FITNESS["random"](6), generation=generation)
        run.state[: at.memory_cr] = mean
        run.state[at.memory_frequency : at.pointer] = mean
        run.plan()
        linear = run.choices[:, ChoiceColumn.SOURCE] != int(Source.NONE)
        assert (run.parameters[:, ParameterColumn.FREQUENCY] == 0.0).all()
        expected = 0.6 if generation == 3 else c.f_min
        assert (run.parameters[linear, ParameterColumn.F] == expected).all()


def test_sinusoids_end_at_the_switch() -> None:
    c = configure("paper", generations=20)
    before, after = planned(c, 100, generation=9), planned(c, 100, generation=10)
    sinusoids = {int(Source.NONE), int(Source.SINUSOID_1), int(Source.SINUSOID_2)}
    assert set(before.choices[:, ChoiceColumn.SOURCE].tolist()) == sinusoids
    memory = {int(Source.NONE), int(Source.MEMORY)}
    assert set(after.choices[:, ChoiceColumn.SOURCE].tolist()) == memory
    none = planned(configure("paper", sinusoid="none"), 100)
    assert set(none.choices[:, ChoiceColumn.SOURCE].tolist()) == memory


def assert_mean(values: torch.Tensor, mean: float, deviation: float) -> None:
    """Sample mean within 5 standard errors."""
    assert abs(values.mean().item() - mean) < 5.0 * deviation / math.sqrt(len(values))


def test_f_after_the_switch_is_normal_around_the_memory() -> None:
    run = planned(configure("paper", f_init=0.5), 20000, generation=60)
    f = linear_f(run, Source.MEMORY)
    assert_mean(f, 0.5, 0.05)
    assert f.std().item() == pytest.approx(0.05, rel=5.0 / math.sqrt(2 * len(f)))
    for quantile in (0.01, 0.25, 0.75, 0.99):
        below = (f < NormalDist(0.5, 0.05).inv_cdf(quantile)).double()
        assert_mean(below, quantile, math.sqrt(quantile * (1 - quantile)))


def test_cauchy_f_has_the_truncated_cauchy_quantiles() -> None:
    c = configure("paper", f_init=0.5, f_distribution="cauchy", f_std=0.1, f_max=1.0, f_min=0.0)
    f = linear_f(planned(c, 20000, generation=60), Source.MEMORY)

    def cdf(x: float) -> float:
        return 0.5 + math.atan((x - 0.5) / 0.1) / math.pi

    for x in (0.05, 0.3, 0.5, 0.7, 0.99):
        expected = (cdf(x) - cdf(0.0)) / (1 - cdf(0.0))
        assert_mean((f < x).double(), expected, math.sqrt(expected * (1 - expected)))
    assert_mean((f == 1.0).double(), (1 - cdf(1.0)) / (1 - cdf(0.0)), 0.3)


def test_cr_is_normal_around_the_memory_and_clipped() -> None:
    run = planned(configure("paper", cr_init=0.5), 20000)
    binomial = run.choices[:, ChoiceColumn.STRATEGY] < 4
    cr = run.parameters[binomial, ParameterColumn.CR]
    assert_mean(cr, 0.5, 0.05)
    assert cr.std().item() == pytest.approx(0.05, rel=5.0 / math.sqrt(2 * len(cr)))
    assert (run.parameters[~binomial, ParameterColumn.CR] == 1.0).all()
    assert (run.choices[~binomial, ChoiceColumn.THRESHOLD] == 65536).all()
    clipped = planned(configure("paper", cr_init=0.6, cr_min=0.59, cr_max=0.61, cr_std=0.5), 2000)
    cr = clipped.parameters[clipped.choices[:, ChoiceColumn.STRATEGY] < 4, ParameterColumn.CR]
    assert cr.min() == 0.59
    assert cr.max() == 0.61


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_f_and_cr_stay_inside_their_bounds(name: str) -> None:
    c = CONFIGURATIONS[name]
    for generation in range(1, 60, 7):
        run = evolution(c, FITNESS["random"](500), BIG_SEED, generation)
        scrambled_state(run)
        run.plan()
        linear = run.choices[:, ChoiceColumn.SOURCE] != int(Source.NONE)
        f = run.parameters[linear, ParameterColumn.F]
        assert ((f >= c.f_min) & (f <= c.f_max)).all()
        drawn = run.choices[:, ChoiceColumn.THRESHOLD] < 65536
        cr = run.parameters[drawn, ParameterColumn.CR]
        terminal = cr == 0.0
        assert (terminal | ((cr >= c.cr_min) & (cr <= c.cr_max))).all()


def test_terminal_cr_gives_0(backend: str) -> None:
    c = configure("paper", cr_init=0.9, cr_min=0.5, memory_size=1)
    run = evolution(c, FITNESS["random"](20))
    at = c.offsets()
    run.state[at.memory_cr : at.memory_cr + 5] = -1.0
    run.plan()
    binomial = run.choices[:, ChoiceColumn.STRATEGY] < 4
    assert (run.parameters[binomial, ParameterColumn.CR] == 0.0).all()
    assert (run.choices[binomial, ChoiceColumn.THRESHOLD] == 0).all()


@pytest.mark.parametrize(
    ("cr", "threshold"),
    [
        (0.0, 0),
        (1e-300, 1),
        (0.25 / 65536, 1),
        (1.0 / 65536, 1),
        (1.5 / 65536, 2),
        (2.5 / 65536, 2),  # halves to even
        (2.5000001 / 65536, 3),
        (0.5, 32768),
        (1.0 - 0.75 / 65536, 65535),
        (1.0 - 0.25 / 65536, 65536),
        (1.0, 65536),
    ],
)
def test_threshold_of_cr(backend: str, cr: float, threshold: int) -> None:
    run = planned(configure("paper", cr_init=cr, cr_std=0.0, cr_max=1.0), 12)
    binomial = run.choices[:, ChoiceColumn.STRATEGY] < 4
    assert (run.parameters[binomial, ParameterColumn.CR] == cr).all()
    assert (run.choices[binomial, ChoiceColumn.THRESHOLD] == threshold).all()


# Strategies and sinusoids


def assert_frequencies(counts: list[int], odds: list[float]) -> None:
    """Pearson's statistic below its mean plus 5 standard deviations."""
    total = sum(counts)
    used = [(have, p * total) for have, p in zip(counts, odds, strict=True) if p > 0]
    assert all(have == 0 for have, p in zip(counts, odds, strict=True) if p == 0)
    statistic = sum((have - want) ** 2 / want for have, want in used)
    freedom = len(used) - 1
    assert statistic < freedom + 5.0 * math.sqrt(2.0 * max(freedom, 1))


@pytest.mark.parametrize(
    "odds", [[0.2] * 5, [0.5, 0.05, 0.05, 0.0, 0.4], [0.0, 0.0, 1.0, 0.0, 0.0], [0.9, 0.1, 0, 0, 0]]
)
def test_strategies_follow_their_odds(odds: list[float]) -> None:
    run = evolution(configure("paper"), FITNESS["random"](5000))
    at = run.configuration.offsets()
    run.state[at.odds : at.sinusoid1_odds] = torch.tensor(odds, dtype=torch.float64)
    counts = [0] * 5
    for generation in range(1, 5):
        run.generation.fill_(generation)
        run.plan()
        for k, count in Counter(run.choices[:, ChoiceColumn.STRATEGY].tolist()).items():
            counts[k] += count
    assert_frequencies(counts, odds)


def test_the_last_possible_strategy_takes_the_remainder(backend: str) -> None:
    run = evolution(configure("paper"), FITNESS["random"](60))
    at = run.configuration.offsets()
    odds = torch.tensor([0.0, 1e-12, 0.0, 1e-12, 0.0], dtype=torch.float64)
    run.state[at.odds : at.sinusoid1_odds] = odds
    run.plan()
    assert (run.choices[:, ChoiceColumn.STRATEGY] == 3).all()


@pytest.mark.parametrize(("generation", "expected"), [(5, 0.5), (6, 0.8)])
def test_sinusoids_follow_their_odds_after_the_period(generation: int, expected: float) -> None:
    run = evolution(configure("paper"), FITNESS["random"](5000), generation=generation)
    run.state[run.configuration.offsets().sinusoid1_odds] = 0.8
    run.plan()
    sources = run.choices[:, ChoiceColumn.SOURCE]
    first = int((sources == int(Source.SINUSOID_1)).sum())
    second = int((sources == int(Source.SINUSOID_2)).sum())
    assert_frequencies([first, second], [expected, 1 - expected])


def test_memory_slots_are_drawn_evenly_and_independently() -> None:
    """Each (slot of F, slot of CR) pair of one strategy has a value of its own."""
    c = configure("paper", strategies=[("target + F*(r1 - target)", "bin")], sinusoid="none",
                  f_std=0.0, cr_std=0.0, memory_size=3)  # fmt: skip
    run = evolution(c, FITNESS["random"](6000))
    at = c.offsets()
    run.state[:3] = torch.tensor([0.1, 0.2, 0.3])
    run.state[at.memory_cr : at.memory_cr + 3] = torch.tensor([0.4, 0.5, 0.6])
    run.plan()
    pairs = Counter(map(tuple, run.parameters[:, :2].tolist()))
    assert len(pairs) == 9
    assert_frequencies(list(pairs.values()), [1 / 9] * 9)


def test_u_is_uniform() -> None:
    u = planned(configure("paper"), 20000).parameters[:, ParameterColumn.U]
    assert ((u > 0) & (u < 1)).all()
    assert_frequencies(
        torch.histc(u.float(), bins=20, min=0.0, max=1.0).int().tolist(), [0.05] * 20
    )


# Parents

ALL_R = Strategy("all", "r1 + F*(r2 - r3) + F*(r4 - r5)")


@pytest.mark.parametrize("members", [6, 7, 50])
def test_random_parents_are_distinct_and_uniform(members: int) -> None:
    run = evolution(configure("paper", strategies=[ALL_R]), FITNESS["random"](members))
    counts: list[Counter[tuple[int, int]]] = [Counter() for _ in range(5)]
    generations = 24000 // members
    for generation in range(1, generations + 1):
        run.generation.fill_(generation)
        run.plan()
        rows = run.choices[:, ChoiceColumn.BASE_ROW : ChoiceColumn.BASE_ROW + 5].tolist()
        for i, drawn in enumerate(rows):
            assert len({i, *drawn}) == 6
            assert all(0 <= row < members for row in drawn)
            for j, row in enumerate(drawn):
                counts[j][i, row] += 1
    for count in counts:
        pairs = [(i, row) for i in range(members) for row in range(members) if row != i]
        assert_frequencies([count[pair] for pair in pairs], [1 / len(pairs)] * len(pairs))


def test_pairs_of_parents_are_uniform() -> None:
    """r1 and r2 together: every ordered pair equally often."""
    members = 5
    run = evolution(configure("paper", strategies=[("r1 + F*(r2 - r1)", "bin")]),
                    FITNESS["random"](members))  # fmt: skip
    counts: Counter[tuple[int, int, int]] = Counter()
    for generation in range(1, 3001):
        run.generation.fill_(generation)
        run.plan()
        for i, row in enumerate(run.choices.tolist()):
            counts[i, row[ChoiceColumn.BASE_ROW], row[ChoiceColumn.ROWS]] += 1
    assert len(counts) == 5 * 4 * 3
    assert_frequencies(list(counts.values()), [1 / 60] * 60)


def rows_of(run: Evolution) -> list[int]:
    """Base rows of a pool whose only formula is a single row."""
    run.plan()
    return run.choices[:, ChoiceColumn.BASE_ROW].tolist()


def single(row: str, fitness: list[float], **changes: Any) -> Evolution:
    c = configure("paper", strategies=[(f"{row} + F*(r1 - {row})", "bin")], **changes)
    return evolution(c, torch.tensor(fitness, dtype=torch.float64))


@pytest.mark.parametrize(
    ("fitness", "excludes", "expected"),
    [
        ([3.0, 1.0, 2.0, 1.0], False, [1, 1, 1, 1]),  # equal: the lower index
        ([3.0, 1.0, 2.0, 1.0], True, [1, 3, 1, 1]),
        ([NAN, 5.0, INF, 7.0], False, [1, 1, 1, 1]),
        ([NAN, 5.0, INF, 7.0], True, [1, 3, 1, 1]),
        ([NAN, 5.0, INF, NAN], True, [1, 1, 1, 1]),  # no other finite member: itself
        ([NAN, INF, NAN], False, [0, 0, 0]),
        ([NAN, INF, NAN], True, [1, 0, 0]),
        ([0.0, -0.0, 0.0], False, [0, 0, 0]),
        ([2.0, -INF, 1.0], False, [1, 1, 1]),
    ],
)
def test_best(backend: str, fitness: list[float], excludes: bool, expected: list[int]) -> None:
    assert rows_of(single("best", fitness, best_excludes_target=excludes)) == expected


def test_pbest_is_one_of_the_best_evenly() -> None:
    """p = 0.2 of 20 members: the 4 best."""
    fitness = [float((7 * i) % 20) for i in range(20)]
    run = single("pbest", fitness, pbest_min=0.2, pbest_max=0.2)
    counts: Counter[float] = Counter()
    for generation in range(1, 301):
        run.generation.fill_(generation)
        counts.update(fitness[row] for row in rows_of(run))
    assert sorted(counts) == [0.0, 1.0, 2.0, 3.0]
    assert_frequencies(list(counts.values()), [0.25] * 4)


def test_pbest_share_is_uniform_between_its_bounds() -> None:
    """p uniform on (0, 1): the number of candidates is round(20 p), at least 1."""
    fitness = [float(i) for i in range(20)]
    run = single("pbest", fitness, pbest_min=0.0, pbest_max=1.0)
    counts = [0] * 20
    for generation in range(1, 501):
        run.generation.fill_(generation)
        for row in rows_of(run):
            counts[row] += 1
    share = [0.075 if m == 1 else 0.025 if m == 20 else 0.05 for m in range(1, 21)]
    odds = [sum(share[m - 1] / m for m in range(row + 1, 21)) for row in range(20)]
    assert sum(odds) == pytest.approx(1.0)
    assert_frequencies(counts, odds)


@pytest.mark.parametrize(
    "fitness", [[NAN, 4.0, INF, 2.0, NAN, INF], [NAN, 4.0, 1.0, INF, 2.0, 3.0]]
)
def test_pbest_is_finite_while_one_is(backend: str, fitness: list[float]) -> None:
    run = single("pbest", fitness, pbest_min=1.0, pbest_max=1.0)
    drawn = set()
    for generation in range(1, 15):
        run.generation.fill_(generation)
        drawn |= set(rows_of(run))
    assert drawn == {i for i, x in enumerate(fitness) if math.isfinite(x)}


def test_pbest_of_lost_populations_is_anyone() -> None:
    run = single("pbest", [INF, NAN, INF, NAN], pbest_min=1.0, pbest_max=1.0)
    drawn = set()
    for generation in range(1, 40):
        run.generation.fill_(generation)
        drawn |= set(rows_of(run))
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize("live", [0, 1, 6])
def test_archive_parents_exclude_target_and_r1(live: int) -> None:
    c = configure("paper", strategies=[("archive + F*(r1 - archive)", "bin")], archive_size=6)
    run = evolution(c, FITNESS["random"](5))
    run.state[c.offsets().archive_count] = live
    counts: Counter[tuple[int, int]] = Counter()
    for generation in range(1, 2001):
        run.generation.fill_(generation)
        run.plan()
        for i, choice in enumerate(run.choices.tolist()):
            row, r1 = choice[ChoiceColumn.BASE_ROW], choice[ChoiceColumn.ROWS]
            assert row not in (i, r1)
            counts[i, row] += 1
    rows = 5 + live
    assert {row for _, row in counts} == set(range(rows))
    # Given i, each archive row has 1/(rows-2); each other member that, unless it is r1 (1 in 4).
    each = 1 / (rows - 2)
    for i in range(5):
        odds = [0.0 if j == i else each * (0.75 if j < 5 else 1.0) for j in range(rows)]
        assert_frequencies([counts[i, j] for j in range(rows)], odds)


def test_small_populations_have_no_further_parents(backend: str) -> None:
    """With three members r3 and later cannot be drawn; the pool is refused by the caller."""
    run = single("r2", [1.0, 2.0, 3.0])
    run.plan()
    for i, choice in enumerate(run.choices.tolist()):
        assert {i, choice[ChoiceColumn.BASE_ROW], choice[ChoiceColumn.ROWS]} == {0, 1, 2}


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


def test_settings_table_is_read_by_name() -> None:
    """A setting moved in one of the two tables would show here."""
    run = evolution(configure("paper", sinusoid="none", f_std=0.0), FITNESS["random"](9))
    run.settings[Setting.F_MAX] = 0.125
    run.plan()
    assert (linear_f(run, Source.MEMORY) == 0.125).all()
    assert TermCode.ARCHIVE == 8
