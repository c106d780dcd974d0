"""Virtual evolution: what it begins from, and where it ends on functions that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deevo_ext.search.presets import configure
from deevo_ext.search.virtual import INDIVIDUALS, evolve_virtually, first_individuals

TARGET = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.25])


def quadratic(q: Tensor) -> Tensor:
    """Least at `TARGET`."""
    scale = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    return (scale * (q - TARGET).square()).sum(dim=1).double()


def individuals(seed: int = 0, number: int = 2) -> Tensor:
    return first_individuals([torch.full((5,), 0.3), torch.zeros(5)], number, seed)


def test_the_least_of_a_quadratic_is_found() -> None:
    configuration = configure("sa-shade-tri-ensin", generations=150)
    found = evolve_virtually(quadratic, individuals(), configuration, 2, seed=1)
    assert found.fitness == float(quadratic(found.best.float()[None])[0])
    assert found.best.shape == (5,) and found.best.dtype == torch.float64
    # 150 generations of 64; at a rate of 10 a decade of error, float32 is what is left.
    assert found.fitness < 1e-6
    assert len(found.history) == 150
    best = [line["best_fitness"] for line in found.history]
    assert best == sorted(best, reverse=True) and best[-1] == found.fitness
    assert found.history[-1]["diversity"] < 0.01 * found.history[0]["diversity"]
    named = {key.rpartition("/")[2] for key in found.history[0] if key.startswith("strategy/")}
    assert named == {"trials", "successes", "mean_improvement", "odds"}


def test_an_evolution_depends_on_run_and_number_alone() -> None:
    configuration = configure("sa-shade-tri-ensin", generations=5)

    def run(seed: int, number: int, first: Tensor) -> Tensor:
        return evolve_virtually(quadratic, first, configuration, number, seed).best

    first = individuals()
    best = run(4, 2, first)
    state = torch.random.get_rng_state()
    assert torch.equal(run(4, 2, first.clone()), best)
    assert torch.equal(torch.random.get_rng_state(), state)
    # Neighbouring seeds and numbers do not meet, and the greatest seed is one, too.
    others = [run(4, 3, first), run(5, 2, first), run(3, 3, first), run(2**63 - 1, 3, first)]
    assert all(not torch.equal(a, b) for i, a in enumerate(others) for b in [best, *others[:i]])


def test_first_individuals_are_the_known_steps_and_normal_ones() -> None:
    fit = torch.full((400,), 0.5, dtype=torch.float64)
    fit[::2] = -0.5
    other = torch.ones(400)
    rows = first_individuals([fit, other, fit.clone(), torch.zeros(400)], 6, seed=3)
    assert rows.shape == (INDIVIDUALS, 400) and rows.dtype == torch.float32
    assert torch.equal(rows[:3], torch.stack([torch.zeros(400), fit.float(), other]))
    assert len(rows.unique(dim=0)) == INDIVIDUALS
    drawn = rows[3:].clone()
    drawn[::2] -= fit.float()  # individuals 3, 5, ...
    # Of 61 * 400 normal numbers of standard deviation 0.5, at four standard errors.
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * 0.5 / 24400**0.5)
    assert float(drawn.std()) == pytest.approx(0.5, abs=4 * 0.5 / 48800**0.5)
    assert float((drawn.abs() < 0.5).float().mean()) == pytest.approx(0.6827, abs=0.012)
    assert torch.equal(rows, first_individuals([fit, other], 6, seed=3))
    for different in (first_individuals([fit, other], 7, 3), first_individuals([fit, other], 6, 2)):
        assert not bool((different[3:] == rows[3:]).any(dim=1).all())


def test_no_more_individuals_than_there_is_room_for_and_no_equal_ones() -> None:
    many = [*torch.eye(70)]
    rows = first_individuals(many, 2, seed=0)
    assert torch.equal(rows, torch.cat([torch.zeros(1, 70), torch.eye(70)])[:INDIVIDUALS])
    still = first_individuals([torch.zeros(3)], 2, seed=0)  # nothing known but no step
    assert len(still.unique(dim=0)) == INDIVIDUALS
    assert float(still.abs().max()) < 0.01


def test_what_is_not_finite_is_never_the_best() -> None:
    def partly(q: Tensor) -> Tensor:
        values = quadratic(q)
        values[q[:, 0] > 0.4] = torch.nan
        return values

    configuration = configure("sa-shade-tri-ensin", generations=30)
    found = evolve_virtually(partly, individuals(), configuration, 2, seed=1)
    assert float(found.best[0]) <= 0.4 and found.fitness < 0.2
