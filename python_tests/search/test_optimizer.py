"""DifferentialEvolution: the ask/tell protocol, resuming, metrics, refusals."""

from __future__ import annotations

import copy
import io
import itertools
import math
from typing import Any

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.search.generation import diversity
from support.evolution import images, population, sphere
from support.networks import Net, members


def advance(de: deevo.DifferentialEvolution, generations: int) -> None:
    """Runs ask/tell with the sphere function; the first round scores the parents."""
    for _ in range(generations):
        trials = de.ask()
        fitness = torch.empty(trials.size, dtype=torch.float64)
        for chosen, rows in trials.chunks(3):
            fitness[chosen] = torch.tensor([sphere(row) for row in rows], dtype=torch.float64)
        de.tell(fitness)


def snapshot(de: deevo.DifferentialEvolution) -> list[torch.Tensor]:
    state = de.state_dict()
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


def assert_same(a: deevo.DifferentialEvolution, b: deevo.DifferentialEvolution) -> None:
    for x, y in zip(snapshot(a), snapshot(b), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("preset", sorted(deevo.PRESETS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_falls_and_never_rises(preset: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"generations": 40, "seed": 3}
    if preset == "l-shade":  # none is taken out so early
        options |= {"archive_size": 8, "evaluations": 10**5}
    de = deevo.DifferentialEvolution(population(8, dtype=dtype), preset, **options)
    advance(de, 1)
    first = de.fitness
    previous = first
    for _ in range(39):
        advance(de, 1)
        assert bool((de.fitness <= previous).all())
        previous = de.fitness
    assert float(previous.min()) < float(first.min())
    assert float(previous.max()) < float(first.mean())
    for member in range(8):  # the fitness kept is that of the row kept
        assert sphere(de.population.rows[member]) == float(previous[member])


def test_readme_example_runs_for_exactly_its_generations() -> None:
    pop = population()
    de = deevo.DifferentialEvolution(pop, preset="sa-shade-tri-ensin", generations=100, seed=0)
    advance(de, 100)
    assert de.generation == 99  # one round scored the parents
    model = Net()
    model.load_state_dict(pop.state_dict(de.best))


def test_first_ask_returns_the_parents() -> None:
    pop = population()
    de = deevo.DifferentialEvolution(pop)
    trials = de.ask()
    assert trials.parents and trials.generation == 0
    for chosen, rows in trials.chunks(3):
        assert torch.equal(rows, pop.rows[chosen])
    assert torch.equal(trials.rows([2, 0]), pop.rows[[2, 0]])


def test_chunk_size_and_repetition_do_not_change_trials() -> None:
    de = deevo.DifferentialEvolution(population(), seed=5)
    advance(de, 4)
    whole = de.ask().rows(range(8))
    trials = de.ask()
    parts = torch.cat([rows.clone() for _, rows in trials.chunks(3)])
    again = torch.cat([rows.clone() for _, rows in trials.chunks(1)])
    assert torch.equal(whole, parts) and torch.equal(whole, again)
    assert torch.equal(trials.rows([6, 1]), whole[[6, 1]])


@pytest.mark.parametrize("device", [None, "cpu:0"])
def test_a_chunk_may_hold_more_rows_than_there_are_members(device: str | None) -> None:
    de = deevo.DifferentialEvolution(population(), seed=5)
    for _ in range(2):  # the parents, then trials
        trials = de.ask()
        asked = torch.arange(8).repeat(5)
        ((chosen, rows),) = trials.chunks(64, device, members=asked)
        assert torch.equal(chosen, asked) and torch.equal(rows, trials.rows(asked))
        de.tell(torch.ones(8))


def test_accepted_trials_become_the_members_and_others_stay() -> None:
    de = deevo.DifferentialEvolution(population(), seed=1)
    advance(de, 1)
    before = de.population.rows.clone()
    rows = de.ask().rows(range(8))
    fitness = de.fitness + torch.tensor([-1.0, 1.0] * 4, dtype=torch.float64)
    result = de.tell(fitness)
    assert result is not None and result.accepted.tolist() == [True, False] * 4
    assert torch.equal(de.population.rows[0::2], rows[0::2])
    assert torch.equal(de.population.rows[1::2], before[1::2])
    assert de.fitness.tolist() == torch.minimum(fitness, result.parent_fitness).tolist()


@pytest.mark.parametrize("contract", [1, 2])
def test_resumes_bit_for_bit_through_a_file(contract: int) -> None:
    options = {"generations": 30, "seed": 11, "archive_size": 4}
    strategies = [
        ("target + F*(pbest - target) + F*(r1 - archive)", "bin"),
        ("trig(r1, r2, r3)", "none"),
    ]
    straight = deevo.DifferentialEvolution(population(), strategies=strategies, **options)
    advance(straight, 21)
    first = deevo.DifferentialEvolution(population(), strategies=strategies, **options)
    advance(first, 9)
    first.ask()  # asked but not told: the same trials come again after loading
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = deevo.DifferentialEvolution(population(seed=9), strategies=strategies, **options)
    state = torch.load(file, weights_only=True)
    assert state["contract"] == 2
    with pytest.raises(deevo.DeevoError, match="contract differs"):
        second.load_state_dict({**state, "contract": 3})
    second.load_state_dict({**state, "contract": contract})
    assert_same(first, second)
    advance(second, 12)
    assert_same(straight, second)


def test_loading_a_state_of_another_dtype_or_without_all_parts_is_refused() -> None:
    de = deevo.DifferentialEvolution(population())
    half = deevo.DifferentialEvolution(population(dtype=torch.bfloat16))
    before = copy.deepcopy(snapshot(half))
    with pytest.raises(deevo.DeevoError, match=r"rows is torch\.float32"):
        half.load_state_dict(de.state_dict())
    state = half.state_dict()
    del state["scored"]
    with pytest.raises(deevo.DeevoError, match="lacks 'scored'"):
        half.load_state_dict(state)
    for x, y in zip(before, snapshot(half), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"generations": 7}, {"cr_init": 0.5}, {"preset": "paper"}],
)
def test_loading_another_runs_state_is_refused_and_changes_nothing(change: dict) -> None:
    de = deevo.DifferentialEvolution(population(), generations=30)
    advance(de, 3)
    other = deevo.DifferentialEvolution(population(), **{"generations": 30, **change})
    before = copy.deepcopy(snapshot(other))
    with pytest.raises(deevo.DeevoError, match="differs"):
        other.load_state_dict(de.state_dict())
    for x, y in zip(before, snapshot(other), strict=True):
        assert torch.equal(x, y)


def test_same_seed_same_run_other_seed_other_run_and_torch_generator_untouched() -> None:
    populations = [population() for _ in range(3)]
    torch.manual_seed(7)
    expected = torch.random.get_rng_state()
    runs = []
    for pop, seed in zip(populations, (4, 4, 5), strict=True):
        de = deevo.DifferentialEvolution(pop, seed=seed)
        advance(de, 6)
        runs.append(de.population.rows.clone())
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_metrics_reach_callbacks_and_add_up() -> None:
    seen: list[dict[str, float]] = []
    de = deevo.DifferentialEvolution(population(), callbacks=[seen.append], generations=40)
    advance(de, 31)
    assert [m["generation"] for m in seen] == list(range(1, 31))
    names = [s.name for s in de.configuration.strategies]
    for m in seen:
        assert sum(m[f"strategy/{n}/trials"] for n in names) == 8
        assert sum(m[f"strategy/{n}/successes"] for n in names) == pytest.approx(
            m["success_rate"] * 8
        )
        assert math.isclose(sum(m[f"strategy/{n}/odds"] for n in names), 1.0, rel_tol=1e-12)
        for n in names:
            won = m[f"strategy/{n}/successes"]
            assert math.isnan(m[f"strategy/{n}/mean_improvement"]) == (won == 0)
        sources = ("sinusoid_1", "sinusoid_2", "memory")
        trig = m["strategy/trig/trials"]
        assert sum(m[f"{s}/trials"] for s in sources) + trig == 8
    assert any(m["memory/trials"] > 0 for m in seen[20:])
    assert all(m["memory/trials"] == 0 for m in seen[:19])


def test_trial_records_describe_what_was_done() -> None:
    de = deevo.DifferentialEvolution(population(), "paper", seed=2)
    advance(de, 1)
    de.ask()
    result = de.tell(torch.full((8,), -1.0, dtype=torch.float64))
    assert result is not None
    records = list(result.trials())
    assert [r["member"] for r in records] == list(range(8))
    for r in records:
        assert r["accepted"] == 1 and r["improvement"] == r["parent_fitness"] + 1.0
        parents = [int(p) for p in r["parents"].split()]
        if r["strategy"] == "trig":
            assert len({r["base"], *parents, r["member"]}) == 4 and r["cr"] == 1.0
        else:
            assert r["base"] == r["member"] and 1 <= len(parents) <= 2


def test_diversity_is_the_rms_distance_of_pairs() -> None:
    rows = torch.randn(6, 300_001, generator=torch.Generator().manual_seed(0))
    wide = rows.double()
    pairs = [(a, b) for a in range(6) for b in range(a)]
    mean = sum(float((wide[a] - wide[b]).square().sum()) for a, b in pairs) / len(pairs)
    # float32 differences carry 2^-24 relative error each, their float64 sum of squares twice that.
    assert diversity(rows, torch.arange(6)) == pytest.approx(math.sqrt(mean), rel=1e-6)
    some = [0, 2, 5]
    left = [(a, b) for a, b in pairs if a in some and b in some]
    mean = sum(float((wide[a] - wide[b]).square().sum()) for a, b in left) / len(left)
    assert diversity(rows, torch.tensor(some)) == pytest.approx(math.sqrt(mean), rel=1e-6)


def test_nan_and_infinite_fitness_follow_the_documented_rule() -> None:
    de = deevo.DifferentialEvolution(population(), seed=2)
    de.ask()
    de.tell([math.nan, math.inf, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert de.best == 2 and de.fitness[0] == math.inf
    de.ask()
    result = de.tell([0.5, math.inf, math.nan, 2.0, -math.inf, 9.0, 9.0, 9.0])
    assert result is not None
    assert result.accepted.tolist() == [True, False, False, False, True, False, False, False]
    assert bool(torch.isfinite(de.population.rows).all())


def test_all_equal_fitness_accepts_nothing_and_changes_nothing() -> None:
    de = deevo.DifferentialEvolution(population(), seed=2)
    before = de.population.rows.clone()
    for _ in range(5):
        de.ask()
        de.tell([1.0] * 8)
    assert torch.equal(de.population.rows, before) and de.best == 0


def test_refusals_name_the_argument_and_change_nothing() -> None:
    with pytest.raises(deevo.DeevoError, match=r"population has 3 members.*at least 4"):
        deevo.DifferentialEvolution(population(3))
    with pytest.raises(deevo.DeevoError, match=r"5 members.*at least 6"):
        deevo.DifferentialEvolution(population(5), strategies=[("r1+F*(r2-r3)+F*(r4-r5)", "bin")])
    with pytest.raises(deevo.DeevoError, match="preset is 'jade'"):
        deevo.DifferentialEvolution(population(), "jade")
    with pytest.raises(deevo.DeevoError, match="unknown parameter 'f_mean'"):
        deevo.DifferentialEvolution(population(), f_mean=1.0)
    for seed in (-1, 2**63, 1.5, True):
        with pytest.raises(deevo.DeevoError, match="seed is"):
            deevo.DifferentialEvolution(population(), seed=seed)
    de = deevo.DifferentialEvolution(population(), generations=2)
    with pytest.raises(deevo.DeevoError, match="ask"):
        de.tell([1.0] * 8)
    with pytest.raises(deevo.DeevoError, match="no member is best"):
        _ = de.best
    trials = de.ask()
    before = copy.deepcopy(snapshot(de))
    for bad in ([1.0] * 7, [[1.0] * 8], ["a"] * 8, 3.0):
        with pytest.raises(deevo.DeevoError, match="fitness"):
            de.tell(bad)
    for x, y in zip(before, snapshot(de), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(deevo.DeevoError, match="size is 0"):
        next(trials.chunks(0))
    de.tell([1.0] * 8)
    with pytest.raises(deevo.DeevoError, match="over"):
        trials.rows([0])
    for _ in range(2):
        de.ask()
        de.tell([0.5] * 8)
    with pytest.raises(deevo.DeevoError, match="all 2 generations"):
        de.ask()


def test_one_member_repeated_is_refused() -> None:
    state = members(Net, 1)[0]
    with pytest.raises(deevo.DeevoError, match="no differences to evolve"):
        deevo.Population.from_state_dicts(Net(), [state] * 8)


def test_a_model_in_train_mode_is_caught_before_its_statistics_are_taken_for_weights() -> None:
    pop = population()
    de = deevo.DifferentialEvolution(pop)
    before = pop.rows.clone()
    with pytest.raises(deevo.DeevoError, match=r"call model\.eval\(\)"):
        for _, rows in de.ask().chunks(4):
            torch.func.functional_call(Net().train(), pop.views(rows[0]), (images(20).images,))
    assert torch.equal(pop.rows, before)
    de.ask()
    torch.func.functional_call(Net().train(), pop.views(0), (images(20).images,))
    with pytest.raises(deevo.DeevoError, match=r"the population was .* model\.eval\(\)"):
        de.tell([1.0] * 8)


def test_no_member_is_best_when_no_fitness_is_finite() -> None:
    de = deevo.DifferentialEvolution(population())
    de.ask()
    de.tell([math.nan] * 8)
    with pytest.raises(deevo.DeevoError, match="every fitness is"):
        _ = de.best


def test_reduction_leaves_the_best_and_asks_for_no_other() -> None:
    pop = population(12)
    de = deevo.DifferentialEvolution(pop, generations=20, population_min=5, seed=1)
    advance(de, 1)
    assert de.living.tolist() == list(range(12))
    while de.generation < 20:
        before = de.fitness
        trials = de.ask()
        assert torch.equal(trials.members, de.living)
        fitness = torch.full((12,), math.nan, dtype=torch.float64)  # unread for the dead
        for chosen, rows in trials.chunks(4):
            fitness[chosen] = torch.tensor([sphere(row) for row in rows], dtype=torch.float64)
        told = de.tell(fitness)
        assert told is not None and torch.equal(told.members, trials.members)
        assert len(de.living) == round(12 - 7 * de.generation / 20)
        survivors = torch.where(told.accepted, told.trial_fitness, before[told.members])
        best = set(told.members[survivors.argsort(stable=True)][: len(de.living)].tolist())
        assert set(de.living.tolist()) == best
        assert de.best in best
        assert [trial["member"] for trial in told.trials()] == trials.members.tolist()
        assert told.metrics()["non_finite"] == 0.0
    dead = sorted(set(range(12)) - set(de.living.tolist()))
    assert (de.fitness[dead] == math.inf).all()
    with pytest.raises(DeevoError, match="population_min is 13, above the population's 12"):
        deevo.DifferentialEvolution(population(12), population_min=13)


def test_reduction_by_evaluations_ends_with_them() -> None:
    """NP_(g+1) = round((NP_min - NP_init) NFE / NFE_max + NP_init), Tanabe & Fukunaga 2014."""
    pop, evaluations = population(24), 600
    de = deevo.DifferentialEvolution(
        pop, "l-shade", archive_size=60, evaluations=evaluations, generations=80, seed=1
    )
    advance(de, 1)
    spent, count = 24, de.configuration.offsets().archive_count
    while spent < evaluations:
        spent += len(de.living)
        advance(de, 1)
        exact = 24 - 20 * spent / evaluations
        assert abs(len(de.living) - max(exact, 4)) <= 0.5
        assert de.state_dict()["state"][count] <= 60 * len(de.living) / 24 + 0.5
    assert len(de.living) == 4 and de.generation < 80
    advance(de, 1)
    assert len(de.living) == 4
    with pytest.raises(DeevoError, match="evaluations is 23, fewer than the population's 24"):
        deevo.DifferentialEvolution(pop, "l-shade", archive_size=60, evaluations=23)


@pytest.mark.parametrize(
    "options",
    [{"population_min": 4}, {"preset": "l-shade", "archive_size": 20, "evaluations": 70}],
)
def test_reduced_runs_resume_bit_for_bit(options: dict[str, Any]) -> None:
    def fresh() -> deevo.DifferentialEvolution:
        return deevo.DifferentialEvolution(population(9), generations=12, seed=2, **options)

    whole, cut = fresh(), fresh()
    advance(whole, 13)
    advance(cut, 7)
    state = cut.state_dict()
    resumed = fresh()
    resumed.load_state_dict(state)
    advance(resumed, 6)
    assert_same(resumed, whole)


@pytest.mark.parametrize("unit", ["channel", "tensor"])
def test_crossover_units_stay_together(unit: str) -> None:
    """Within a unit a trial is all parent or all mutant; pure mutants are a fixed average."""
    pop = population(8)
    pool = [("half", "0.5*r1 + 0.5*r2", "bin")]
    de = deevo.DifferentialEvolution(
        pop, strategies=pool, crossover_unit=unit, cr_init=0.5, j_rand=True, seed=5
    )
    advance(de, 1)
    rows = de.ask().rows(range(8))
    mixed = 0
    starts = [*pop.layout.genes(unit).tolist(), pop.dim]
    for row, parent in zip(rows, pop.rows, strict=True):
        taken = []
        for start, end in itertools.pairwise(starts):
            same = row[start:end] == parent[start:end]
            nonzero = parent[start:end] != 0.0  # pads are equal either way
            assert bool(same[nonzero].all()) or not bool(same[nonzero].any())
            taken.append(not bool(same[nonzero].all()))
        assert any(taken)  # j_rand
        mixed += not all(taken)
    assert mixed > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bounds_hold_all_the_way(dtype: torch.dtype) -> None:
    pop = population(8, dtype=dtype)
    pool = [("far", "target + 2.0*(r1 - r2)", "bin")]
    bound = 4.1  # no dtype holds it
    assert float(pop.rows[:, : pop.layout.nonneg_start].abs().max()) < bound
    de = deevo.DifferentialEvolution(pop, strategies=pool, lower=-bound, upper=bound)
    touched = 0
    for _ in range(6):
        trials = de.ask()
        rows = trials.rows(range(8))[:, : pop.layout.nonneg_start]
        assert float(rows.abs().max()) <= bound
        touched += int((rows.abs() > 0.5 * bound).sum())
        de.tell(torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        de.ask()
        de.tell(-torch.ones(8, dtype=torch.float64) * de.generation)  # take every trial
    assert touched > 0
    with pytest.raises(DeevoError, match="has weights outside"):
        deevo.DifferentialEvolution(population(8), lower=-0.01, upper=0.01)


# "cpu:0" is the CPU by another name, so without a GPU rows go the way they take to one.
@pytest.mark.parametrize(
    ("lies", "evaluated"),
    [
        ("cpu", "cpu:0"),
        pytest.param("cpu", "cuda", marks=pytest.mark.gpu),
        pytest.param("cuda", "cpu", marks=pytest.mark.gpu),
        pytest.param("cuda", "cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_population_and_evaluation_on_different_devices(
    lies: str, evaluated: str, dtype: torch.dtype
) -> None:
    """The bits of a run in one place: the fitness is computed on the CPU in either case."""

    def run(lies: str, evaluated: str | None) -> torch.Tensor:
        pop = population(9, dtype=dtype, device=lies)
        de = deevo.DifferentialEvolution(pop, generations=8, population_min=4, seed=8)
        for _ in range(9):
            trials = de.ask()
            fitness = torch.empty(9, dtype=torch.float64)
            for chosen, rows in trials.chunks(4, evaluated):
                assert evaluated is None or rows.device == torch.empty(0, device=evaluated).device
                assert torch.equal(rows.to(lies), trials.rows(chosen))
                fitness[chosen] = torch.tensor([sphere(row.cpu()) for row in rows]).double()
            de.tell(fitness)
        return pop.rows.cpu()

    assert torch.equal(run(lies, evaluated), run("cpu", None))


def test_staging_serves_chunks_of_any_size() -> None:
    de = deevo.DifferentialEvolution(population(9), seed=8)
    advance(de, 1)
    trials = de.ask()
    for size in (9, 2, 4, 100):
        seen = torch.cat([rows.clone() for _, rows in trials.chunks(size, "cpu:0")])
        assert torch.equal(seen, trials.rows(range(9)))
    with pytest.raises(DeevoError, match="size is 0"):
        next(trials.chunks(0, "cpu:0"))
