"""Rivals of the experiments: equal budgets, each method's own rules, and that they do search."""

from __future__ import annotations

import pytest
import torch

from deevo_ext.population.blocks import Blocks
from experiments import rivals, waves
from support.evolution import population

WAVES, EACH = 12, 14


def start(members: int = 12, seed: int = 3) -> waves.Start:
    pop = population(members, seed=seed)
    soups = torch.stack([pop.mean(range(members)), pop.mean([0, 1])])
    return waves.Start(pop, soups, Blocks.by_tensor(pop.layout), members + 2, seed)


def made(name: str, begin: waves.Start) -> waves.Rival:
    pytest.importorskip("cma")
    pytest.importorskip("pymoo")
    return rivals.RIVALS[name](begin)


def distance(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (rows - target).double().square().sum(1)


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_search_within_the_same_budget(name: str) -> None:
    """They come nearer to a network between the members than the greedy soup is."""
    begin = start()
    target = begin.population.mean([3, 4, 5])
    scored: list[tuple[int, torch.Tensor]] = []

    def score(rows: torch.Tensor, batch: int) -> torch.Tensor:
        scored.append((batch, rows))
        return distance(rows, target)

    def validate(row: torch.Tensor) -> float:
        return float(distance(row[None], target))

    def found() -> torch.Tensor:
        return waves.search(
            made(name, begin), WAVES, score, validate, waves_per_batch=4, validate_every=6
        )

    row = found()
    assert [batch for batch, _ in scored] == [wave // 4 for wave in range(WAVES)]
    assert all(len(rows) == EACH for _, rows in scored)
    tail = begin.population.layout.nonneg_start
    assert all(bool((rows[:, tail:] >= 0).all()) for _, rows in scored)
    assert validate(row) < validate(begin.centre)
    assert torch.equal(row, found())  # the seed decides


def test_greedy_soup_is_returned_where_nothing_better_is_found() -> None:
    begin = start()
    row = waves.search(
        made("openai-es", begin),
        4,
        lambda rows, _: torch.full((len(rows),), torch.nan, dtype=torch.float64),
        lambda row: float((row - begin.centre).abs().sum()),
        waves_per_batch=4,
        validate_every=2,
    )
    assert torch.equal(row, begin.centre)


@pytest.mark.parametrize("iterated", [False, True])
def test_sparse_mutations_with_infinite_losses(iterated: bool) -> None:
    rival = rivals.SparseMutations(start(), iterated)
    losses = torch.full((EACH,), torch.inf, dtype=torch.float64)
    rival.ask(fresh=True)
    rival.tell(losses)  # nobody is any good
    assert torch.equal(rival.candidates(), rival.start.centre[None])
    rows = rival.ask(fresh=False)
    losses[3] = 7.0  # one is, where the parent is not
    rival.tell(losses)
    assert torch.equal(rival.parent, rows[3] if iterated else rival.start.centre)
    assert any(torch.equal(row, rows[3]) for row in rival.candidates())
    kept = rival.parent
    rival.ask(fresh=False)
    losses[:] = torch.inf
    losses[0] = 7.0  # the parent alone
    rival.tell(losses)
    assert torch.equal(rival.parent, kept)


def test_sparse_mutations_are_parts_of_a_dense_one() -> None:
    begin = start()
    rival = rivals.SparseMutations(begin, iterated=True)
    rows = rival.ask(fresh=True)
    assert torch.equal(rows[0], begin.centre)
    changed = rows[1:] != begin.centre
    assert int(changed.sum(0).max()) == 1  # no weight in two of them
    held = begin.spread > 0
    assert bool(changed.any(0)[held].all()) and not bool(changed[:, ~held].any())
    losses = torch.ones(EACH, dtype=torch.float64)
    losses[5] = 0.5
    rival.tell(losses)
    assert torch.equal(rival.ask(fresh=False)[0], rows[5])
    rival.tell(losses.flip(0).clamp_min(1.0))  # none better: the parent stays
    assert torch.equal(rival.ask(fresh=False)[0], rows[5])
    once = rivals.SparseMutations(begin, iterated=False)
    once.ask(fresh=True)
    once.tell(losses)
    assert torch.equal(once.ask(fresh=False)[0], begin.centre)


def test_openai_es_steps_against_the_losses() -> None:
    begin = start()
    rival = rivals.OpenAIES(begin)
    rows = rival.ask(fresh=True)
    assert torch.allclose(rows[:7] + rows[7:], 2 * begin.centre.expand(7, -1), atol=1e-6)
    rival.tell((rows[:, 0] - begin.centre[0]).double())
    moved = rival.candidates()[0] - begin.centre
    assert -1.01 * rival.RATE <= float(moved[0] / begin.spread[0]) < 0


def test_pymoo_scores_its_population_again_on_a_fresh_batch() -> None:
    begin = start()
    rival = made("ga", begin)
    first = rival.ask(fresh=True)
    assert torch.equal(first, torch.cat([begin.rows, begin.soups]))
    rival.tell(torch.arange(EACH).double())
    assert not torch.equal(rival.ask(fresh=False), first)
    rival.tell(torch.full((EACH,), 100.0, dtype=torch.float64))
    again = rival.ask(fresh=True)
    assert torch.equal(again, rival.candidates()) and torch.equal(again, first)
    rival.tell(torch.arange(EACH).flip(0).double())
    rival.ask(fresh=False)
    rival.tell(torch.full((EACH,), 0.5, dtype=torch.float64))
    assert torch.equal(rival.candidates()[0], first[-1])  # by its new score


@pytest.mark.parametrize("name", ["cma-member", "cma-layer"])
def test_coefficients_add_up_to_one(name: str) -> None:
    """Soups of members that are one network are that network, whatever the coefficients."""
    begin = start()
    begin.rows.copy_(begin.rows[0].clone().expand_as(begin.rows))
    rows = made(name, begin).ask(fresh=True)
    assert torch.equal(rows, begin.rows[0].expand_as(rows))


def test_a_learned_soup_of_one_coefficient_a_member_stays_in_their_hull() -> None:
    begin = start()
    rows = made("cma-member", begin).ask(fresh=True).double()
    base = begin.rows[0].double()
    span = (begin.rows[1:].double() - base).T
    away = (rows - base).T
    inside = span @ torch.linalg.lstsq(span, away).solution
    tail = begin.population.layout.nonneg_start
    assert torch.allclose(inside[:tail], away[:tail], atol=1e-5)
