"""What would change weights unseen: written rows, nested and concurrent calls, interruptions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from deevo_ext import DeevoError, DifferentialEvolution
from deevo_ext.runs.soups import candidates_of
from deevo_ext.search.trials import Trials
from support.evolution import population, sphere

WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "in place": lambda rows: rows.mul_(2),
    "a view": lambda rows: rows[0].zero_(),
    "variances, as norm layers do": lambda rows: rows.data[:, 88:].add_(1),
}


def advance(de: DifferentialEvolution, generations: int) -> None:
    for _ in range(generations):
        de.tell([sphere(row) for row in de.ask().rows(range(de.population.size))])


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("parents", [True, False])
def test_written_rows_are_refused_and_change_nothing(write: str, parents: bool) -> None:
    de = DifferentialEvolution(population(), seed=1)
    assert de.population.layout.nonneg_start == 88
    if not parents:
        advance(de, 2)
    before = de.population.rows.clone()
    with pytest.raises(DeevoError, match="rows of trials were written to"):
        for _, rows in de.ask().chunks(3):
            WRITES[write](rows)
    rows = de.ask().rows([0, 1])
    WRITES[write](rows)
    with pytest.raises(DeevoError, match="rows of trials were written to"):
        de.tell([1.0] * 8)
    assert torch.equal(de.population.rows, before)
    advance(de, 1)  # nothing is lost


def test_a_population_written_between_generations_is_refused() -> None:
    def callback(metrics: dict[str, float]) -> None:
        de.population.rows[3].mul_(2)

    de = DifferentialEvolution(population(), seed=1)
    advance(de, 2)
    state = de.state_dict()
    de.callbacks.append(callback)
    advance(de, 1)
    with pytest.raises(DeevoError, match="the population was written to since the last generation"):
        de.ask()
    de.callbacks.clear()
    de.load_state_dict(state)
    advance(de, 2)
    plain = DifferentialEvolution(population(), seed=1)
    advance(plain, 4)
    assert torch.equal(de.population.rows, plain.population.rows)


def test_a_validation_score_that_writes_leaves_the_population_alone() -> None:
    members = population()
    before = members.rows.clone()

    def score(row: torch.Tensor, inherited: object) -> float:
        return float(row.mul_(0).sum()) + 1

    candidates_of(members, list(range(8)), score)
    assert torch.equal(members.rows, before)


def test_writes_past_every_counter_do_not_reach_the_population() -> None:
    """NumPy's are not seen, but what was handed out is a copy."""
    de = DifferentialEvolution(population(), seed=1)
    before = de.population.rows.clone()
    for _, rows in de.ask().chunks(3):
        rows[:, :10].numpy()[:] = 7
    assert torch.equal(de.population.rows, before)


@pytest.mark.parametrize("call", ["ask", "ask_parents", "tell"])
def test_a_fitness_function_that_asks_or_tells_is_refused(call: str) -> None:
    de = DifferentialEvolution(population(), seed=1)
    advance(de, 2)
    with pytest.raises(DeevoError, match="are over"):
        for _ in de.ask().chunks(3):
            de.tell([1.0] * 8) if call == "tell" else getattr(de, call)()


@pytest.mark.parametrize("call", ["ask", "ask_parents", "tell"])
def test_a_callback_that_asks_or_tells_is_refused(call: str) -> None:
    def callback(metrics: dict[str, float]) -> None:
        de.tell([1.0] * 8) if call == "tell" else getattr(de, call)()

    de = DifferentialEvolution(population(), seed=1, callbacks=[callback])
    plain = DifferentialEvolution(population(), seed=1)
    advance(de, 1)
    with pytest.raises(DeevoError, match="from within tell"):
        advance(de, 1)
    de.callbacks.clear()  # the generation was whole
    advance(de, 2)
    advance(plain, 4)
    assert torch.equal(de.population.rows, plain.population.rows)


@pytest.mark.parametrize("where", ["tell", "commit"])
def test_an_interruption_inside_tell_leaves_no_half_generation(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    de = DifferentialEvolution(population(), seed=1)
    advance(de, 3)
    state = de.state_dict()
    owner = de._adaptation if where == "tell" else de._source

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            advance(de, 1)
    for call in (de.ask, de.ask_parents, lambda: de.tell([1.0] * 8), de.state_dict):
        with pytest.raises(DeevoError, match=r"was interrupted .* load_state_dict\(\)"):
            call()
    de.load_state_dict(state)
    advance(de, 2)
    plain = DifferentialEvolution(population(), seed=1)
    advance(plain, 5)
    assert torch.equal(de.population.rows, plain.population.rows)


def test_rows_made_by_many_threads_are_right() -> None:
    de = DifferentialEvolution(population(), seed=1)
    advance(de, 3)
    trials = de.ask()
    expected = trials.rows(range(8))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: trials.rows([k % 8])[0], range(400)))
    assert all(torch.equal(row, expected[k % 8]) for k, row in enumerate(found))


def test_chunks_of_two_loops_at_once_are_refused() -> None:
    trials = DifferentialEvolution(population(), seed=1).ask()
    first, second = trials.chunks(4), trials.chunks(4)
    next(first), next(second)
    with pytest.raises(DeevoError, match="one thread at a time"):
        next(first)


def test_another_thread_does_not_tell() -> None:
    de = DifferentialEvolution(population(), seed=1)
    asked: list[Trials] = []
    thread = threading.Thread(target=lambda: asked.append(de.ask()))
    thread.start()
    thread.join()
    with pytest.raises(DeevoError, match="another thread than the one that asked"):
        de.tell([1.0] * 8)
    advance(de, 1)


@pytest.mark.parametrize(
    "members",
    [torch.ones(8, dtype=torch.bool), [2.9], [True, False], torch.tensor([1.0]), ["a"], [8], [-1]],
    ids=str,
)
def test_members_are_whole_numbers(members: object) -> None:
    trials = DifferentialEvolution(population(), seed=1).ask()
    with pytest.raises(DeevoError, match=r"^members are"):
        trials.rows(members)  # type: ignore[arg-type]
    assert trials.rows([]).shape[0] == 0


@pytest.mark.parametrize("value, mend", [(np.int64(3), r": give seed\.item\(\)"), ([3], "")])
def test_numpys_numbers_are_named_with_the_remedy(value: object, mend: str) -> None:
    with pytest.raises(DeevoError, match=rf"^seed is .*expected a whole number{mend}$"):
        DifferentialEvolution(population(), seed=value)  # type: ignore[arg-type]
