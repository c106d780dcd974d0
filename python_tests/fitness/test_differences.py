"""Differences as directions: their slopes are those of networks made by hand, and cost a pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.differences import DIRECTIONS, Differences
from deevo_ext.population.genes import Drawn, Genes
from deevo_ext.population.recipes import uniform
from support.operators import num_threads
from support.rounds import Normed, Plain, Problem


def differences(problem: Problem, chunk: int = 5) -> Differences:
    blocks = problem.blocks.blocks
    genes = Genes.of(problem.population.layout, blocks)
    recipe = uniform(len(blocks), problem.population.initial_size, [0, 2])
    return Differences.of(problem.probing(chunk=chunk), genes, recipe, 3, problem.seed)


def test_slopes_are_those_of_networks_made_by_hand() -> None:
    problem = Problem(members=4, images=60)
    along = differences(problem)
    changes = torch.zeros(len(along.genes), 4)
    model, left_out = along.model(changes, problem.images)
    assert not left_out and model.slopes.shape == (DIRECTIONS, 60, 4)
    states = [problem.population.state_dict(m) for m in range(4)]
    drawn = Drawn.of(3, DIRECTIONS, len(along.genes), 4, problem.seed)

    def logits(k: int | None) -> torch.Tensor:
        gene, made = 0, {}
        for name in states[0]:
            made[name] = (states[0][name].double() + states[2][name].double()) / 2
            for c in range(len(made[name])):
                if k is not None:
                    r1, r2 = (states[int(r[k, gene])][name][c] for r in (drawn.r1, drawn.r2))
                    made[name][c] += drawn.factor[k, gene] * (r1.double() - r2.double())
                gene += 1
        network = Plain().double().eval()
        network.load_state_dict(made)
        with torch.no_grad():
            return network(problem.images.images.double())

    for k in (0, 1, DIRECTIONS - 1):
        exact = logits(k) - logits(None)
        found = model.slopes[k].double() * model.scale[k]
        # Some hundred float32 operations between numbers of the logits' size.
        bound = 400 * 2.0**-24 * float(logits(k).abs().max() + logits(None).abs().max())
        assert float((found - exact).abs().max()) <= bound


@pytest.mark.parametrize("factory", [Plain, Normed])
def test_bits_depend_neither_on_chunks_nor_on_threads(factory: Callable[[], nn.Module]) -> None:
    policy = {"batchnorm": "recalibrate"} if factory is Normed else {}
    found = []
    for threads, chunk in ((1, 48), (2, 7)):
        with num_threads(threads):
            problem = Problem(factory, members=4, images=120, **policy)
            along = differences(problem, chunk)
            changes = torch.zeros(len(along.genes), 4)
            found.append(along.model(changes, problem.images)[0])
            assert problem.evaluator.forward_passes == 120 * (1 + DIRECTIONS)
    assert torch.equal(found[0].z0, found[1].z0)
    assert torch.equal(found[0].slopes, found[1].slopes)


def test_members_that_cannot_be_mixed_are_refused() -> None:
    problem = Problem(members=3, images=20)
    along = differences(problem)
    problem.population.rows[1] = 1e38
    with pytest.raises(DeevoError, match="cannot be mixed"):
        along.model(torch.zeros(len(along.genes), 3), problem.images)
