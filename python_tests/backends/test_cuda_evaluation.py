"""The kernels that evaluate networks on a GPU: reference's bits, graphs. All need one."""

from __future__ import annotations

import pytest
import torch

from deevo_ext import backends
from support.folding import DTYPES, Problem, varied
from support.gpu import no_synchronisation
from support.operators import OPERATORS, same_bits

pytestmark = pytest.mark.gpu


def on_gpu(p: Problem, dtype: torch.dtype) -> list[torch.Tensor]:
    """Fold's arguments; outputs with rows of their own stride."""
    arguments = [t.cuda() for t in p.arguments(dtype)]
    for position in (5, 6):
        width = arguments[position].shape[1]
        outer = arguments[position].new_full((arguments[position].shape[0], -(-width // 8) * 8), 7)
        arguments[position] = outer[:, :width]
    return arguments


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_folds(backend: str, source: torch.dtype, target: torch.dtype) -> None:
    for members in (1, 9):
        p = varied().problem(source, members=members, seed=members)
        with backends.use("reference"):
            expected = p.fold(target)
        arguments = on_gpu(p, target)
        OPERATORS.fold(*arguments)
        for found, wanted in zip(arguments[5:], expected, strict=True):
            assert same_bits(found.cpu().contiguous(), wanted.contiguous())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [1, 3, 10, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_ranks(backend: str, dtype: torch.dtype, classes: int, smoothing: float) -> None:
    draw = torch.Generator().manual_seed(classes)
    logits = (torch.randn(3, 70, classes, generator=draw) * 5.0).round().to(dtype)
    logits[1, 3, 0] = torch.nan
    labels = torch.randint(0, classes, (70,), generator=draw)
    results = []
    for device, name in (("cpu", "reference"), ("cuda", backend)):
        losses = torch.full((3, 70), 7.0, device=device)
        ranks = torch.full((3, 70), 7, dtype=torch.int32, device=device)
        with backends.use(name):
            OPERATORS.loss_and_rank(logits.to(device), labels.to(device), smoothing, losses, ranks)
        results.append((losses.cpu(), ranks.cpu()))
    for wanted, found in zip(*results, strict=True):
        assert same_bits(found, wanted)


def test_labels_that_do_not_exist_have_the_worst_loss(backend: str) -> None:
    logits = torch.zeros(1, 3, 4, device="cuda")
    losses = torch.zeros(1, 3, device="cuda")
    ranks = torch.zeros(1, 3, dtype=torch.int32, device="cuda")
    OPERATORS.loss_and_rank(logits, torch.tensor([4, 0, -1]).cuda(), 0.0, losses, ranks)
    assert torch.isinf(losses[0]).tolist() == [True, False, True]
    assert ranks[0].tolist() == [4, 0, 4]


def test_folding_neither_waits_nor_allocates_and_replays(backend: str) -> None:
    given = on_gpu(varied().problem(), torch.float16)
    OPERATORS.fold(*given)  # loads what is loaded once
    torch.cuda.synchronize()
    weights = given[-2]
    expected = weights.clone()
    with no_synchronisation():
        OPERATORS.fold(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        OPERATORS.fold(*given)
    weights.zero_()
    graph.replay()
    torch.cuda.synchronize()
    written = expected != 7.0
    assert same_bits(weights[written], expected[written])


@pytest.mark.parametrize(("positions", "channels", "classes"), [(49, 512, 1000), (3, 33, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads(dtype: torch.dtype, positions: int, channels: int, classes: int) -> None:
    """Bit for bit on backend cuda, which adds in reference's order; others have a tolerance."""
    if (reason := backends.why_unavailable("cuda")) is not None:
        pytest.skip(reason)
    draw = torch.Generator().manual_seed(channels)
    features = torch.randn(2, 37, positions, channels, generator=draw).to(dtype)
    weight = torch.randn(2, classes, channels, generator=draw).to(dtype)
    bias = torch.randn(2, classes, generator=draw)
    labels = torch.randint(0, classes, (37,), generator=draw)
    results = []
    for device, name in (("cpu", "reference"), ("cuda", "cuda")):
        losses = torch.full((2, 37), 7.0, device=device)
        ranks = torch.full((2, 37), 7, dtype=torch.int32, device=device)
        inputs = [t.to(device) for t in (features, weight, bias, labels)]
        with backends.use(name):
            OPERATORS.head(*inputs, 0.1, losses, ranks)
        results.append((losses.cpu(), ranks.cpu()))
    for wanted, found in zip(*results, strict=True):
        assert same_bits(found, wanted)
