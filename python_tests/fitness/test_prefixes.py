"""Probes that share prefixes: bits of networks that run alone, what is kept, what is counted."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deevo_ext.data.images import ImageSet
from deevo_ext.fitness import probing as probing_module
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.probes import Moved, ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.networks import build
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.networks.execution import prefixes
from deevo_ext.networks.graph.batch_statistics import batch_norm
from deevo_ext.networks.graph.export import Capture
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.genes import Genes
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after, uniform
from support import convolutional as nets
from support.networks import members
from support.operators import num_threads

ROUNDING = 2.0**-24  # float32, relative
MEMBERS, SIZE = 3, 12
SmallResNet = functools.partial(nets.CifarResNet, 1, 5)

NETWORKS: list[Callable[[], nn.Module]] = [
    nets.Residual,
    nets.ActivationBeforeSum,
    nets.SumOfBoth,
    nets.ReadTwice,
    nets.NormFirst,
    nets.Standardised,
    nets.Viewed,
    nets.Perceptron,
    SmallResNet,
]


class Case:
    """Probes of some members, twice along different recipes on each block."""

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        batchnorm: str = "evolve",
        unit: str = "layer",
        count: int = 70,
        engine: str = "fused",
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        pixels = torch.randn(count, 3, SIZE, SIZE, generator=generator)
        self.images = ImageSet(pixels, torch.arange(count) % 5, "images")
        self.factory = factory
        states = members(factory, MEMBERS)
        self.population = Population.from_state_dicts(factory(), states, batchnorm=batchnorm)
        self.evaluator = Evaluator(
            factory(),
            self.population,
            micro_batch=16,
            calibration=self.images if batchnorm == "recalibrate" else None,
            engine=engine,
        )
        forward, shape = self.evaluator.forward, self.images.image_shape
        self.blocks = blocks_of(forward, self.population, shape, unit).blocks
        self.probes = ProbeForward(self.evaluator)
        step = 0.3 * torch.randn(len(self.blocks), MEMBERS, generator=generator)
        self.recipe = after(uniform(len(self.blocks), MEMBERS, range(MEMBERS)), step, 1.0)
        self.probing = Probing(self.probes, self.blocks, 0.3, 4)

    def change(self) -> None:
        """Lets differences add to the coefficients of every channel."""
        genes = Genes.of(self.population.layout, self.blocks)
        changes = 0.1 * torch.randn(len(genes), MEMBERS, generator=torch.Generator().manual_seed(5))
        self.probing = replace(self.probing, genes=genes, changes=changes)

    def moved(self) -> dict[int, list[Tensor]]:
        """Two recipes a block, the last block first."""
        found: dict[int, list[Tensor]] = {}
        for b in reversed(range(len(self.blocks))):
            for m in (0, 2):
                step = torch.zeros_like(self.recipe)
                step[b, m] = 1.0
                found.setdefault(b, []).append(after(self.recipe, step, 0.3))
        return found

    def alone(self, moved: Moved) -> Tensor:
        """Logits of the same networks, evaluated one by one."""
        recipes = torch.stack([recipe for some in moved.values() for recipe in some])
        return self.probes(self.probing.compose(recipes), self.images)

    def together(self, moved: Moved) -> Tensor:
        """Logits of networks that share prefixes."""
        return self.probes.by_blocks(
            self.blocks, self.probing.compose, self.recipe, moved, self.images
        )


@pytest.mark.parametrize("unit", ["layer", "tensor"])
@pytest.mark.parametrize("batchnorm", ["evolve", "recalibrate"])
@pytest.mark.parametrize("factory", NETWORKS)
def test_networks_that_share_prefixes_have_the_bits_they_have_alone(
    factory: Callable[[], nn.Module], batchnorm: str, unit: str
) -> None:
    case = Case(factory, batchnorm, unit)
    moved = case.moved()
    alone = case.alone(moved)
    assert case.probes.shares(case.images)
    assert torch.equal(case.together(moved), alone)
    assert float((alone[0] - alone[-1]).abs().max()) > 1e-3 * float(alone.abs().max())


@pytest.mark.parametrize("batchnorm", ["evolve", "recalibrate"])
def test_so_have_networks_that_differences_have_changed(batchnorm: str) -> None:
    case = Case(nets.Residual, batchnorm, "layer")
    moved = case.moved()
    before = case.alone(moved)
    case.change()
    alone = case.alone(moved)
    assert torch.equal(case.together(moved), alone)
    assert float((alone - before).abs().max()) > 1e-3 * float(alone.abs().max())


@pytest.mark.parametrize("factory", [nets.Residual, nets.NormFirst, SmallResNet])
def test_statistics_are_those_of_each_network_and_group(factory: Callable[[], nn.Module]) -> None:
    case = Case(factory, "recalibrate", count=1101)  # 500 images make a group: two
    moved = {b: some[:1] for b, some in case.moved().items()}
    found = case.together(moved)
    recipes = torch.stack([some[0] for some in moved.values()])
    for row, logits in zip(case.blocks.compose(case.population, recipes), found, strict=True):
        model = factory().train()
        model.load_state_dict(case.population.layout.views(row), strict=False)
        pixels = case.images.images
        with torch.no_grad():
            groups = (pixels[:550], pixels[550:])
            single = torch.cat([model(part) for part in groups])
            model.double()
            exact = torch.cat([model(part.double()) for part in groups])
            whole = model(pixels.double())
        # Another order of sums errs as much as the module's own; twice, for another largest one.
        bound = 100 * ROUNDING * float(exact.abs().max()) + 2 * float((single - exact).abs().max())
        assert float((logits - exact).abs().max()) <= bound
        assert float((logits - whole).abs().max()) > 4 * bound  # and not of all together


@pytest.mark.parametrize("batchnorm", ["evolve", "recalibrate"])
def test_what_is_counted_is_predicted_and_a_share_of_all_passes(
    batchnorm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing_module, "_LARGE", torch.inf)
    case = Case(SmallResNet, batchnorm)
    probing = Probing(case.probes, case.blocks, 0.3, 4)
    before = case.evaluator.forward_passes
    probing.model(case.recipe, case.images)
    counted = case.evaluator.forward_passes - before
    assert counted == probing.passes(MEMBERS, case.images, 5)
    # By hand: stem, 3 blocks of two convolutions, head; FLOPs an image.
    convs = [(3, 16, 12), (16, 16, 12), (16, 16, 12), (16, 32, 6), (32, 32, 6), (32, 64, 3)]
    flops = [2 * 9 * a * b * s * s for a, b, s in [*convs, (64, 64, 3)]] + [2 * 64 * 5]
    behind = [sum(flops[i:]) for i in range(len(flops))]
    spent = sum(flops) + sum(flops[:-1]) + (MEMBERS - 1) * sum(behind)
    assert counted == 70 + -(-70 * (spent - sum(flops)) // sum(flops))
    monkeypatch.setattr(probing_module, "_TOGETHER", 4)  # two blocks at a time
    before = case.evaluator.forward_passes
    probing.model(case.recipe, case.images)
    more = case.evaluator.forward_passes - before
    assert more == probing.passes(MEMBERS, case.images, 5) > counted


def test_bits_do_not_depend_on_which_probes_are_evaluated_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(nets.Residual, "recalibrate")
    found = []
    for together in (1, 4, 64):
        monkeypatch.setattr(probing_module, "_TOGETHER", together)
        found.append(Probing(case.probes, case.blocks, 0.3, 4).model(case.recipe, case.images)[0])
    for model in found[1:]:
        assert torch.equal(model.slopes, found[0].slopes)
        assert torch.equal(model.scale, found[0].scale)


def test_kept_activations_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(SmallResNet, count=160)
    moved = case.moved()
    alone = case.alone(moved)
    one = 16 * 16 * SIZE * SIZE * 4  # bytes of a micro-batch's widest activation
    alive: dict[int, tuple[weakref.ref[Any], int]] = {}
    peaks = []
    make = prefixes._Shared.make

    def noted(shared: Any, compute: Callable[[], Any]) -> None:
        def computed() -> Any:
            value = compute()
            if isinstance(value, list):  # registers; the parameters of a graph are none
                for tensor in value:
                    if isinstance(tensor, Tensor) and tensor.ndim:
                        memory = tensor.untyped_storage()
                        alive[memory.data_ptr()] = weakref.ref(tensor), memory.nbytes()
                peaks.append(sum(size for ref, size in alive.values() if ref() is not None))
            return value

        make(shared, computed)

    monkeypatch.setattr(prefixes._Shared, "make", noted)
    for micro_batches in (1, 3):
        bound = 2 * 2 * micro_batches * one  # a block's sum and what it adds to are live together
        monkeypatch.setitem(prefixes.KEPT_BYTES, "cpu", bound)
        peaks.clear()
        with num_threads(1):
            fresh = Case(SmallResNet, count=160)
            assert torch.equal(fresh.together(moved), alone)
        assert one * micro_batches < max(peaks) <= bound


def test_tensors_that_nothing_reads_change_nothing() -> None:
    class Idle(nets.Residual):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.ones(3))

    case = Case(Idle, unit="tensor")
    moved = {case.blocks.names.index("idle"): case.moved()[case.blocks.names.index("idle")]}
    present = case.probes(case.blocks.compose(case.population, case.recipe[None]), case.images)
    before = case.evaluator.forward_passes
    assert torch.equal(case.together(moved), present.expand(2, -1, -1))
    assert case.evaluator.forward_passes - before == 70  # the present network's, to the end


class OwnNorm(nn.BatchNorm2d):
    """A norm computed by hand, which no graph pattern knows."""

    def __init__(self) -> None:
        super().__init__(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        return (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()


class HandMade(nets.Body):
    def __init__(self) -> None:
        super().__init__()
        self.bn2 = OwnNorm()

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.bn2(self.conv2(self.bn(self.conv(x))))))


def test_norms_that_are_not_known_and_engines_without_a_graph_share_nothing() -> None:
    for case in (
        Case(HandMade, "recalibrate"),
        Case(nets.Residual, "recalibrate", engine="eager"),
        Case(nets.Residual, engine="eager"),
    ):
        assert not case.probes.shares(case.images)
        before = case.evaluator.forward_passes
        probing = Probing(case.probes, case.blocks, 0.3, 4)
        probing.model(case.recipe, case.images)
        assert case.evaluator.forward_passes - before >= probing.passes(MEMBERS, case.images, 5)
        assert probing.passes(MEMBERS, case.images, 5) == 70 * (1 + 2 * len(case.blocks))


def test_a_graph_that_is_not_the_module_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = build.with_batch_statistics

    def wrong(capture: Capture, statistics: Any) -> Capture:
        for node in right(capture, statistics).graph.nodes:
            if node.op == "call_function" and node.target is batch_norm:
                node.args = (*node.args[:3], 10.0, node.args[4])  # eps
        return capture

    good = Case(nets.Residual, "recalibrate", engine="eager")
    rows = good.population.rows
    expected = good.probes(rows, good.images)
    monkeypatch.setattr(build, "with_batch_statistics", wrong)
    case = Case(nets.Residual, "recalibrate")
    with pytest.warns(UserWarning, match="served by functional_call"):
        assert torch.equal(case.probes(rows, case.images), expected)
    assert not case.probes.shares(case.images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_of_the_rows_has_their_bits(dtype: torch.dtype) -> None:
    states = members(SmallResNet, MEMBERS)
    population = Population.from_state_dicts(SmallResNet(), states, dtype=dtype)
    blocks = Blocks.by_tensor(population.layout)
    recipes = torch.randn(4, len(blocks), MEMBERS, generator=torch.Generator().manual_seed(1))
    whole = blocks.compose(population, recipes)
    names = {e.name for e in population.layout.entries[1::3]} | {"bn.running_var"}
    part = population.layout.part(names)
    rows = blocks.compose_part(population, part, recipes)
    assert {e.name for e in part.entries} == names and part.dim < population.layout.dim
    for row, expected in zip(rows, whole, strict=True):
        views = population.layout.views(expected)
        for name, tensor in part.views(row).items():
            assert torch.equal(tensor, views[name])
