"""What to see first on a new GPU, in seconds: does each kernel run there, and is its result right?

Every operator once a dtype, one network by each engine that runs it whole.
"""

from __future__ import annotations

import pytest
import torch

from deevo_ext import backends
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.search import cross_entropy
from deevo_ext.search.likeliest import LikeliestModel
from deevo_ext.search.linear_model import LinearModel
from support.convolutional import CifarResNet
from support.folding import DTYPES, varied
from support.gpu import moved, to_cuda
from support.operators import OPERATORS, same_bits
from support.recipes import random_recipes
from support.registration import NAMES, arguments, operator
from support.weights import random_weights
from support.zoo import as_row, pictures, randomised

pytestmark = [pytest.mark.gpu, pytest.mark.smoke]


@pytest.mark.parametrize("name", NAMES)
def test_operators_of_a_generation(backend: str, name: str) -> None:
    given = arguments(name)
    on_gpu = to_cuda(given)
    with backends.use("reference"):
        operator(name)(*given)
    operator(name)(*on_gpu)
    for expected, found in zip(given, on_gpu, strict=True):
        if isinstance(expected, torch.Tensor):
            assert same_bits(found.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_trials_of_whole_tiles(backend: str, dtype: torch.dtype) -> None:
    w = random_weights(8, 1_100_000, dtype, 3, forced=True)
    with backends.use("reference"):
        expected = w.trials(torch.arange(4))
    assert same_bits(moved(w, "cuda").trials(torch.arange(4).cuda()).cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fold_and_losses(backend: str, dtype: torch.dtype) -> None:
    p = varied().problem(dtype, members=2)
    with backends.use("reference"):
        expected = p.fold(torch.float16)
    on_gpu = [t.cuda() for t in p.arguments(torch.float16)]
    OPERATORS.fold(*on_gpu)
    for found, wanted in zip(on_gpu[5:], expected, strict=True):
        assert same_bits(found.cpu().contiguous(), wanted.contiguous())
    logits = torch.randn(2, 30, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for device, name in (("cpu", "reference"), ("cuda", backend)):
        losses, ranks = (torch.zeros(2, 30, dtype=t, device=device) for t in (None, torch.int32))
        with backends.use(name):
            labels = (torch.arange(30) % 10).to(device)
            OPERATORS.loss_and_rank(logits.to(device), labels, 0.1, losses, ranks)
        results.append((losses.cpu(), ranks.cpu()))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_recipes(backend: str, dtype: torch.dtype) -> None:
    for recipes in (1, 9):
        r = random_recipes(6, 600_000, dtype, recipes, segments=300)
        with backends.use("reference"):
            expected = r.rows()
        out = torch.zeros(recipes, 600_064, dtype=dtype, device="cuda")[:, :600_000]
        OPERATORS.compose(*to_cuda(r.arguments(out)))
        assert same_bits(out.cpu().contiguous(), expected)


@pytest.mark.parametrize("likeliest", [None, 5])
def test_a_linear_model_of_logits(likeliest: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and convex fits on the GPU come close to the CPU's."""
    draw = torch.Generator().manual_seed(0)
    classes = 10 if likeliest is None else 40
    z0 = torch.randn(300, classes, generator=draw)
    slopes = torch.randn(12, 300, classes, generator=draw)
    labels = torch.arange(300) % classes
    q = torch.randn(70, 12, generator=draw).double() / 4
    results = []
    for device in ("cpu", "cuda"):
        at, moves = z0.to(device), slopes.to(device)
        model = LinearModel(at, labels, 12)
        if likeliest is not None:
            model = LikeliestModel(at, labels, 12, likeliest)
        model.put(dict(enumerate(model.columns(at + moves) - model.present)))
        model.correct(q[0], at + moves[0])
        model.leave_out(3)
        results.append((model.losses_and_ranks(q)[0].cpu(), model.fit(0.1)))
        with monkeypatch.context() as patch:
            patch.setattr(cross_entropy, "MANY", 1)
            # Both lie within 2e-6 of the least loss, whose curvature is at least 2 * 0.1.
            assert float((model.fit(0.1) - results[-1][1]).norm()) <= 2 * (2e-6 / 0.1) ** 0.5
    (losses, fitted), (on_gpu, fitted_on_gpu) = results
    assert torch.allclose(on_gpu, losses, atol=1e-4)
    assert torch.allclose(fitted_on_gpu, fitted, atol=1e-3)


def test_a_network_in_float16() -> None:
    model = randomised(CifarResNet, 32)
    layout, row = as_row(model)
    rows = torch.stack([row, row * 1.01])
    x, y = pictures(20, 32), torch.arange(20) % 10
    exact = PopulationForward(model, layout, precision="float32", micro_batch=8)(rows, x, y)
    for engine in ("auto", "triton"):
        forward = PopulationForward(
            model, layout, precision="float16", micro_batch=8, device="cuda", engine=engine
        )
        found = forward(rows.cuda(), x, y)
        assert float((found.losses - exact.losses).abs().max()) <= 0.05 * float(exact.losses.max())
