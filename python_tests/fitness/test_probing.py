"""Probes: slopes of networks that are known, batch statistics, kinks, what is left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deevo_ext.data.images import ImageSet
from deevo_ext.distributed.slices import Slices
from deevo_ext.errors import DeevoError
from deevo_ext.fitness import probing as module
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after, uniform
from support.operators import num_threads
from support.rounds import Normed, Plain, Problem, State, labelled

ROUNDING = 2.0**-24  # float32, relative


def recipe_of(blocks: int, members: int, seed: int = 0) -> Tensor:
    """A recipe around the uniform one."""
    generator = torch.Generator().manual_seed(seed)
    step = 0.2 * torch.randn(blocks, members, generator=generator)
    return after(uniform(blocks, members, range(members)), step, 1.0)


def exact_logits(problem: Problem, recipe: Tensor, images: Tensor) -> Tensor:
    """Logits in float64 of the network that a recipe makes, by hand."""
    states = [problem.population.state_dict(m) for m in range(recipe.shape[1])]
    block_of = {n: b for b, names in enumerate(problem.blocks.blocks.tensors) for n in names}
    made = {
        name: sum(float(recipe[block_of[name], m]) * s[name].double() for m, s in enumerate(states))
        for name in states[0]
    }
    model = problem.model.__class__().double().eval()
    model.load_state_dict(made)
    with torch.no_grad():
        return model(images.double())


def along(recipe: Tensor, block: int, member: int, eps: float) -> Tensor:
    """The recipe w + eps (x_m - w) on one block, in float64."""
    moved = recipe.double().clone()
    moved[block] *= 1.0 - eps
    moved[block, member] += eps
    return moved


def test_slopes_of_a_linear_block_are_exact_and_so_is_the_dependent_direction() -> None:
    problem = Problem(members=5, images=60)
    recipe, images = recipe_of(3, 5), problem.images
    model, left_out = problem.probing(eps=0.25).model(recipe, images)
    assert not left_out and model.slopes.shape == (15, 60, 4)
    z0 = exact_logits(problem, recipe.double(), images.images)
    assert float((model.z0 - z0).abs().max()) <= 200 * ROUNDING * float(z0.abs().max())
    slopes = model.slopes.double() * model.scale[:, None, None]
    for m in range(5):  # the head, a linear layer: one of the five has had no probe
        exact = exact_logits(problem, along(recipe, 2, m, 1.0), images.images) - z0
        # Two logits of some 30 rounded terms each, over eps; the combination adds up four of them.
        bound = 4 * 2 * 60 * ROUNDING * float(z0.abs().max() + exact.abs().max()) / 0.25
        assert float((slopes[10 + m] - exact).abs().max()) <= bound


@pytest.mark.parametrize("block", [0, 1])
def test_slopes_tend_to_the_derivatives_as_probes_shrink(block: int) -> None:
    problem = Problem(members=4, images=60)
    recipe, images = recipe_of(3, 4), problem.images
    z0 = exact_logits(problem, recipe.double(), images.images)
    missed = []
    for eps in (0.4, 0.04):
        model, _ = problem.probing(eps=eps).model(recipe, images)
        slopes = model.slopes.double() * model.scale[:, None, None]
        found = slopes[block * 4 : block * 4 + 4]
        tiny = [along(recipe, block, m, 1e-6) for m in range(4)]
        exact = torch.stack([(exact_logits(problem, w, images.images) - z0) / 1e-6 for w in tiny])
        missed.append(
            (found - exact).square().mean(dim=(1, 2)).sqrt() / exact.square().mean().sqrt()
        )
    dependent = int(recipe[block].abs().argmax())
    # A smooth network's slopes err in proportion to eps; the share of images that cross a ReLU's
    # kink is in proportion, too, which makes its root mean square fall by sqrt(10).
    assert float(missed[1].norm()) < 0.5 * float(missed[0].norm())
    assert float(missed[1][dependent]) < 0.5 * float(missed[0][dependent]) + 0.05


@pytest.mark.parametrize("factory", [Plain, Normed])
def test_bits_depend_neither_on_chunks_nor_on_threads(factory: Callable[[], nn.Module]) -> None:
    policy = {"batchnorm": "recalibrate"} if factory is Normed else {}
    found = []
    for threads, chunk in ((1, 1), (1, 5), (2, 3), (2, 100)):
        with num_threads(threads):
            problem = Problem(factory, members=4, images=600, **policy)
            probing = problem.probing(chunk=chunk)
            found.append(probing.model(recipe_of(len(probing.blocks), 4), problem.images)[0])
    for model in found[1:]:
        assert torch.equal(model.z0, found[0].z0) and torch.equal(model.scale, found[0].scale)
        assert torch.equal(model.slopes, found[0].slopes)


def test_forward_passes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE", torch.inf)
    for policy in ({}, {"batchnorm": "recalibrate"}):
        problem = Problem(Normed if policy else Plain, members=4, images=60, **policy)
        probing = problem.probing()
        probing.model(recipe_of(len(probing.blocks), 4), problem.images)
        assert problem.evaluator.forward_passes == 60 * (1 + 3 * len(probing.blocks))


def test_norms_use_the_statistics_of_equal_groups_and_write_nothing() -> None:
    problem = Problem(Normed, members=3, images=1100, batchnorm="recalibrate")
    population, images = problem.population, problem.images
    before = [t.clone() for t in (population.rows, population.statistics)]
    counters = {name: t.clone() for name, t in population.fixed.items()}
    logits = ProbeForward(problem.evaluator)(population.rows, images)
    assert problem.evaluator.forward_passes == 3 * 1100
    for m in range(3):
        model = Normed().train()
        model.load_state_dict(population.state_dict(m))
        with torch.no_grad():  # 500 images make a group: two of 550
            expected = torch.cat([model(part) for part in images.images.split(550)])
            whole = model(images.images)
        size = float(expected.abs().max())
        torch.testing.assert_close(logits[m], expected, rtol=0, atol=100 * ROUNDING * size)
        assert float((logits[m] - whole).abs().max()) > 1e-3 * size  # and not of all together
    assert torch.equal(population.rows, before[0]) and torch.equal(population.statistics, before[1])
    assert all(torch.equal(population.fixed[name], tensor) for name, tensor in counters.items())


def test_statistics_that_are_frozen_are_not_written_either() -> None:
    problem = Problem(
        Normed, members=3, images=60, batchnorm="recalibrate", frozen="bn.running_mean"
    )
    mean = problem.population.fixed["bn.running_mean"]
    kept = mean.clone()
    problem.probing().model(recipe_of(2, 3), problem.images)
    assert torch.equal(mean, kept)


class Gate(nn.Module):
    """A linear classifier, and a weight behind a ReLU that moves all logits of its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        background = torch.tensor([200.0, -200.0, 0.0, 0.0])
        return self.head(x.flatten(1)) + torch.relu(self.gate) * background


def gated(gates: list[float]) -> Probing:
    """Probes of networks with these gates."""
    generator = torch.Generator().manual_seed(1)
    states: list[State] = [
        {
            "gate": torch.tensor([gate]),
            "head.weight": torch.randn(4, 16, generator=generator),
            "head.bias": torch.randn(4, generator=generator),
        }
        for gate in gates
    ]
    population = Population.from_state_dicts(Gate(), states)
    evaluator = Evaluator(Gate(), population, engine="eager")
    blocks = Blocks.by_patterns(population.layout, ["gate", "head.weight", "head.bias"])
    return Probing(ProbeForward(evaluator), blocks, 0.25, 8)


@pytest.fixture
def images() -> ImageSet:
    return labelled(Problem(images=10).model, 80, 5)


@pytest.mark.parametrize(
    ("gates", "first"),
    [
        # Members 1 to 3 lie beyond the kink at 0, where w is, and 4 on the other side.
        ([1.0, 1.0, 1.0, 1.0, -4.0], 0.2),
        # w is member 0 for the most part; the combination that stands for it is small and wrong.
        ([0.0, 1.0, 1.0, 1.0, -3.0], 0.96),
    ],
)
def test_directions_across_a_kink_are_left_out(
    images: ImageSet, gates: list[float], first: float
) -> None:
    recipe = torch.tensor([[first] + [(1.0 - first) / 4] * 4] * 3)
    _, left_out = gated(gates).model(recipe, images)
    assert left_out == [0, 1, 2, 3, 4]


def test_a_large_direction_without_a_kink_is_kept(images: ImageSet) -> None:
    recipe = torch.full((3, 5), 0.2)
    model, left_out = gated([10.0, 11.0, 12.0, 13.0, 14.0]).model(recipe, images)
    assert left_out == [2]  # member 2 is w there
    used = model.scale[model.scale > 0]
    assert float(model.scale[0]) > 3 * float(used.median())


def test_members_that_are_alike_on_a_block_have_no_direction_there(images: ImageSet) -> None:
    recipe = torch.full((3, 5), 0.2)
    assert gated([1.5] * 5).model(recipe, images)[1] == [0, 1, 2, 3, 4]
    # Differences of a rounding or two are rounding, not directions.
    near = [1.5 + k * 2.0**-23 for k in range(5)]
    assert gated(near).model(recipe, images)[1] == [0, 1, 2, 3, 4]


def test_two_members_have_one_probe_a_block_and_two_directions(images: ImageSet) -> None:
    probing = gated([10.0, 12.0])
    model, left_out = probing.model(torch.tensor([[0.75, 0.25]] * 3), images)
    assert not left_out
    assert probing.forward.evaluator.forward_passes == 80 * (1 + 3) + 80 * 2  # the gate's second
    torch.testing.assert_close(model.slopes[0], -model.slopes[1], rtol=0, atol=1e-5)
    assert float(model.scale[1]) == pytest.approx(3 * float(model.scale[0]), rel=1e-5)


def test_networks_that_overflow_are_left_out_or_refused(images: ImageSet) -> None:
    recipe = uniform(3, 3, [0])
    assert 1 in gated([1.0, 3e38, 2.0]).model(recipe, images)[1]
    broken = gated([1.0, 3e38, 3.1e38])
    whole = replace(broken, blocks=Blocks.whole(broken.population.layout))
    with pytest.raises(DeevoError, match="no probe gives finite logits"):
        whole.model(recipe[:1], images)
    with pytest.raises(DeevoError, match="present network gives logits that are not finite"):
        gated([3e38, 1.0, 2.0]).model(recipe, images)


def test_what_was_kept_takes_the_place_of_probes() -> None:
    problem = Problem(members=4, images=60)
    recipe, kept = recipe_of(3, 4), {}

    def keep(blocks: range, _: Slices, compute: Callable[[], Tensor]) -> Tensor:
        return kept.setdefault(blocks, compute())

    model, _ = problem.probing().model(recipe, problem.images, keep)
    assert {*itertools.chain(*kept)} == {0, 1, 2}
    assert all(one.shape == (3 * len(blocks), 60, 4) for blocks, one in kept.items())
    passes = problem.evaluator.forward_passes
    again, _ = problem.probing().model(recipe, problem.images, lambda blocks, *_: kept[blocks])
    assert torch.equal(again.slopes, model.slopes)
    assert problem.evaluator.forward_passes - passes == passes - 60 * 9


def test_slopes_of_16_bits_are_those_of_float32_rounded() -> None:
    problem = Problem(members=4, images=60)
    recipe = recipe_of(3, 4)
    exact, _ = problem.probing().model(recipe, problem.images)
    for dtype, share in ((torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)):
        model, _ = problem.probing(dtype=dtype).model(recipe, problem.images)
        assert model.slopes.dtype == dtype and torch.equal(model.scale, exact.scale)
        missed = (model.slopes.float() - exact.slopes).abs()
        assert bool((missed <= share * exact.slopes.abs() + 2.0**-25).all())
