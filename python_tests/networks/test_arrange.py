"""Graphs as a GPU runs them: merged shortcuts, padded images, pools by engines.

Without a GPU they run on the CPU by ATen, and by our kernels in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.networks.engines import ENGINES, Bound
from deevo_ext.networks.execution.feed import MicroBatch
from deevo_ext.networks.execution.prefixes import Changed, PrefixRunner
from deevo_ext.networks.execution.program import FusedProgram
from deevo_ext.networks.execution.runner import DTYPES
from deevo_ext.networks.execution.sinks import FunctionSink
from deevo_ext.networks.execution.weights import Stager
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.arrange import arranged
from deevo_ext.networks.graph.network_graph import Convolution, Linear, NetworkGraph
from deevo_ext.networks.graph.pools import is_pool
from support.convolutional import CifarResNet, ResNet, SumOfBoth
from support.convolutions import DEVICE
from support.exact import MEAN, STD, bound_of, logits_of, rows_of
from support.zoo import as_row, randomised

INTERPRETED = pytest.mark.skipif(DEVICE == "cuda", reason="runs in the interpreter, without a GPU")
SIZE, SHAPE = 13, (3, 13, 13)
# With how many shortcuts that are merged; SumOfBoth's reads the images.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "basic": (lambda: ResNet(False), 1),
    "bottleneck": (lambda: ResNet(True), 2),
    "shortcuts without weights": (lambda: CifarResNet(1), 0),
    "of the images": (SumOfBoth, 0),
}


class Case:
    """A network of three members, its graph as it is and arranged."""

    def __init__(self, name: str, precision: str = "float32", device: str = "cpu") -> None:
        self.device, self.precision = torch.device(device), precision
        self.model = randomised(NETWORKS[name][0], SIZE)
        self.layout, row = as_row(self.model)
        self.rows = rows_of(row, 3)
        generator = torch.Generator().manual_seed(5)
        self.raw = torch.randint(0, 256, (2, *SHAPE), generator=generator, dtype=torch.uint8)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        images = ((self.raw / 255.0 - mean) / std).to(self.device, DTYPES[precision])
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.forward = PopulationForward(
            self.model, self.layout, engine="fused", precision=precision, micro_batch=2,
            device=device,
        )  # fmt: skip
        graph = self.forward.find_graph(SHAPE)
        assert graph is not None
        self.graph, self.arranged = graph, arranged(graph)
        self.ran: set[int] = set()

    def program(self, graph: NetworkGraph, engine: str) -> FusedProgram:
        """The graph by an engine, and by ATen where that does not serve."""
        bounds, served = {}, set()
        for index, layer in enumerate(graph.layers):
            if isinstance(layer, (Convolution, Linear)) or is_pool(layer):
                why = ENGINES[engine].why_not(layer, self.device)
                chosen = ENGINES["aten" if why else engine]
                bounds[index] = self.noted(index, chosen.bind(layer))
                served.add(chosen.name)
        assert engine in served
        stager = Stager(graph, self.forward._tensors, torch.float32, self.device)
        return FusedProgram(graph, stager, bounds)

    def noted(self, index: int, bound: Bound) -> Bound:
        """The same, which notes in `ran` that the engine was called."""

        def run(*arguments: Any) -> Tensor:
            self.ran.add(index)
            return bound.run(*arguments)

        return Bound(bound.prepare, run)

    def check(self, program: FusedProgram) -> None:
        """Members' logits are those of the module in float64, as far as rounding lets them be."""
        for row in self.rows:
            with torch.no_grad():
                found = program.run(program.prepare(row.to(self.device), None), self.images)
            expected = logits_of(self.model, self.layout, row, self.raw)
            bound = bound_of(self.model, expected, self.precision) / 2
            assert float((found.cpu() - expected).abs().max()) <= bound
        assert self.ran == set(program.bounds)


@INTERPRETED
@pytest.mark.parametrize(
    ("name", "engine"),
    [*((n, e) for n in NETWORKS for e in ("aten", "triton")), ("bottleneck", "pointwise")],
)
def test_networks(name: str, engine: str) -> None:
    case = Case(name)
    found = [p for p in case.arranged.layers if isinstance(p, Convolution)]
    merged = [p for p in found if p.shortcut is not None]
    assert len(merged) == NETWORKS[name][1]
    assert len(case.graph.layers) - len(case.arranged.layers) == len(merged)
    assert case.arranged.image_shape == (2, 4, 13, 13) and case.graph.image_shape[1] == 3
    assert case.arranged.flops == case.graph.flops
    case.check(case.program(case.arranged, engine))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("engine", ["aten", "triton", "pointwise"])
def test_networks_on_a_gpu(engine: str, precision: str) -> None:
    """Memory that is used anew is full of NaN, which must not show."""
    case = Case("bottleneck", precision, "cuda")
    poison = [torch.full((1 << 22,), torch.nan, device="cuda") for _ in range(8)]
    del poison
    case.check(case.program(case.arranged, engine))


def test_a_merged_layer_takes_a_shortcut_in_and_moves_fewer_bytes() -> None:
    case = Case("bottleneck")
    layers = {layer.name: layer for layer in case.graph.layers}
    [merged, _] = [p for p in case.arranged.layers if isinstance(p, Convolution) and p.shortcut]
    assert merged.name == "blocks.0.layers.2.0" and merged.activation is not None
    assert merged.fused[1:] == ("shortcut blocks.0.shortcut.0", "relu")
    apart = [layers["blocks.0.layers.2.0"], layers["blocks.0.shortcut.0"]]
    assert merged.in_shape == apart[0].in_shape and merged.out_shape == apart[1].out_shape
    out = 4 * torch.Size(merged.out_shape).numel()
    assert merged.bytes == apart[0].bytes + apart[1].bytes - 2 * out
    signatures = {merged.signature, *(layer.signature for layer in apart)}
    assert len(signatures) == 3


def test_images_are_padded_where_convolutions_alone_read_them() -> None:
    class Grouped(SumOfBoth):
        def __init__(self) -> None:
            super().__init__()
            self.conv3 = nn.Conv2d(3, 3, 1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(torch.relu(self.bn(self.conv(self.conv3(x)))))

    class Added(SumOfBoth):
        def forward(self, x: Tensor) -> Tensor:
            return self.tail(torch.relu(self.bn(self.conv(x))) + x[:, :1])

    for make in (Grouped, Added):
        model = make().eval()
        layout, _ = as_row(model)
        forward = PopulationForward(model, layout, engine="fused", micro_batch=2)
        graph = forward.find_graph(SHAPE)
        assert graph is not None and arranged(graph).image_shape == (2, *SHAPE)


@INTERPRETED
def test_blocks_are_cut_by_the_layers_as_they_were() -> None:
    case = Case("bottleneck")
    states = [case.layout.views(row) for row in case.rows]
    pop = deevo.Population.from_state_dicts(case.model, states)

    def blocks(engine: str) -> Any:
        return blocks_of(PopulationForward(case.model, pop, engine=engine), pop, SHAPE, "layer")

    merged, apart = blocks("triton"), blocks("fused")
    assert merged == apart and any("shortcut" in name for name in merged.blocks.names)


def test_networks_share_prefixes_up_to_a_merged_layer() -> None:
    """The bits are those of the changed networks that run alone."""
    case = Case("bottleneck")
    program = case.program(case.arranged, "aten")
    runner = PrefixRunner(program, case.forward._tensors, torch.float32, case.forward.execution)
    row, other = case.rows[0], case.rows[1]
    mixed, changes = [], []
    for part in ("blocks.0.shortcut", "blocks.0.layers.2", "stem", "blocks.1.layers"):
        names = tuple(n for n in case.layout.names if n.startswith(part))
        change = runner.change(names)
        mixed.append(row.clone())
        for name, tensor in case.layout.views(mixed[-1]).items():
            if name in names:
                tensor.copy_(case.layout.views(other)[name])
        own = torch.zeros(1, change.layout.dim)
        for name, tensor in change.layout.views(own[0]).items():
            tensor.copy_(case.layout.views(mixed[-1])[name])
        changes.append(Changed(change, lambda own=own: own, 1))
    found: dict[int, Tensor] = {}
    sink = FunctionSink(lambda number, start, logits: found.update({number: logits.clone()}))
    batch = MicroBatch(case.images, 0, 2, "images")
    runner.run(row, changes, lambda most: iter([[batch]]), sink)
    (alone,) = case.forward.execution.workers.run(
        [lambda: [program.run(program.prepare(one, None), case.images) for one in mixed]]
    )
    assert len({runner.change((n,)).first for n in case.layout.names}) > 4
    for number, expected in enumerate(alone):
        assert torch.equal(found[number], expected), number
        assert not torch.equal(expected, alone[number - 1])
