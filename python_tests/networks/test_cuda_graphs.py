"""Programs by CUDA graphs, on graphs that the host replays: bits, shapes, and when they serve."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deevo_ext.networks.engines import ENGINES
from deevo_ext.networks.execution import cuda_graphs
from deevo_ext.networks.execution.cuda_graphs import GraphedProgram, Slot
from deevo_ext.networks.execution.program import FusedProgram
from deevo_ext.networks.execution.weights import Stager
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.arrange import arranged
from deevo_ext.networks.graph.network_graph import Convolution, Linear
from support.convolutional import ResNet
from support.exact import rows_of
from support.host_graphs import Device, host_graphs
from support.zoo import as_row, randomised


@pytest.fixture
def device() -> Iterator[Device]:
    with torch.no_grad(), host_graphs() as device:
        yield device


class Clocked:
    """A program whose passes take the device's time."""

    def __init__(self, program: Any, device: Device) -> None:
        self.program, self.device = program, device

    def prepare(self, rows: Tensor, statistics: Tensor | None) -> Any:
        return self.program.prepare(rows, statistics)

    def run(self, prepared: Any, images: Tensor) -> Tensor:
        self.device.clock += self.device.launched
        return self.program.run(prepared, images)


class Scores:
    """K members' scores [K, N] of images [N, C]: a small program of several members."""

    def prepare(self, rows: Tensor, statistics: Tensor | None) -> Tensor:
        return rows * 2.0 if statistics is None else rows * 2.0 + statistics

    def run(self, prepared: Tensor, images: Tensor) -> Tensor:
        return prepared @ images.mT


def scores(device: Device) -> GraphedProgram:
    return GraphedProgram(Clocked(Scores(), device), 8, 1, lambda: torch.zeros(4, 3))


def network() -> tuple[FusedProgram, Tensor, int]:
    """A ResNet with a merged shortcut by ATen, rows of five members and their stride."""
    model = randomised(lambda: ResNet(False), 9)
    layout, row = as_row(model)
    forward = PopulationForward(model, layout, engine="fused", micro_batch=2)
    graph = forward.find_graph((3, 9, 9))
    assert graph is not None
    graph = arranged(graph)
    bounds = {
        index: ENGINES["aten"].bind(layer)
        for index, layer in enumerate(graph.layers)
        if isinstance(layer, (Convolution, Linear))
    }
    stager = Stager(graph, forward._tensors, torch.float32, torch.device("cpu"))
    return FusedProgram(graph, stager, bounds), rows_of(row, 5), layout.stride


@pytest.mark.parametrize("slots", [1, 2])
def test_members_have_the_bits_of_kernels_launched_one_by_one(
    device: Device, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)
    program, rows, stride = network()
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(2, 4, 9, 9, generator=draw) for _ in range(2)]
    images = [x.contiguous(memory_format=torch.channels_last) for x in images]
    expected = [[program.run(program.prepare(r, None), x) for x in images] for r in rows]
    graphed = GraphedProgram(Clocked(program, device), stride, slots, program.example)
    ahead = [graphed.prepare(rows[0], None)]
    for k in range(5):
        if slots == 2 and k < 4:  # the next member is prepared before this one runs
            ahead.append(graphed.prepare(rows[k + 1], None))
        for x, logits in zip(images, expected[k], strict=True):
            assert torch.equal(graphed.run(ahead[k], x), logits)
        if slots == 1 and k < 4:
            ahead.append(graphed.prepare(rows[k + 1], None))
    assert not isinstance(ahead[0], Slot) and all(isinstance(p, Slot) for p in ahead[1:])
    assert len({id(slot) for slot in ahead[1:]}) == slots
    assert device.captures == 2 * slots
    assert not torch.equal(expected[1][0], expected[2][0])


def test_graphs_belong_to_shapes(device: Device) -> None:
    graphed, draw = scores(device), torch.Generator().manual_seed(0)
    pictures = torch.randn(4, 3, generator=draw)

    def check(members: int, captures: int, statistics: Tensor | None = None) -> None:
        rows = torch.randn(members, 3, generator=draw)
        before = device.captures
        prepared = graphed.prepare(rows, statistics)
        weights = rows * 2.0 if statistics is None else rows * 2.0 + statistics
        for x in (pictures, pictures[:3], -pictures):  # one micro-batch is of another shape
            assert torch.equal(graphed.run(prepared, x), weights @ x.mT)
        assert device.captures - before == captures

    def often(members: int, statistics: Tensor | None = None) -> None:
        for _ in range(cuda_graphs.OFTEN):
            check(members, 0, statistics)  # what comes seldom is not captured
        check(members, 2, statistics)
        check(members, 0, statistics)

    often(3)
    often(2)
    check(3, 0)
    often(3, torch.randn(3, 1))  # two shapes are kept: the one of two members goes
    check(3, 0)
    often(2)
    assert device.replays > 20


def test_a_graph_that_is_slower_is_not_used(device: Device) -> None:
    graphed, rows, pictures = scores(device), torch.ones(2, 3), torch.ones(4, 3)
    device.replayed = 1.01 * device.launched
    for _ in range(2 * cuda_graphs.OFTEN):
        prepared = graphed.prepare(rows, None)
        assert not isinstance(prepared, Slot)
        assert torch.equal(graphed.run(prepared, pictures), torch.full((2, 4), 6.0))
    assert device.captures == 2  # it was tried once


def test_networks_run_where_no_graph_can_be_captured(device: Device) -> None:
    graphed, rows, pictures = scores(device), torch.ones(2, 3), torch.ones(4, 3)
    device.fails = True
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted"):
        for _ in range(20):
            prepared = graphed.prepare(rows, None)
    assert torch.equal(graphed.run(prepared, pictures), torch.full((2, 4), 6.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        for _ in range(20):
            assert not isinstance(graphed.prepare(torch.ones(3, 3), None), Slot)
