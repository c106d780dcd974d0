"""What to see first on a new GPU, in seconds: does each kernel run there, and is its result right?

Every operator once a dtype, cuDNN's fused convolution beside memory full of NaN, one network.
"""

from __future__ import annotations

import pytest
import torch

from deevo_ext import backends
from deevo_ext.networks.forward import PopulationForward
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
def test_a_linear_model_of_logits(likeliest: int | None) -> None:
    """Scores and the convex fit on the GPU come close to the CPU's."""
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
    (losses, fitted), (on_gpu, fitted_on_gpu) = results
    assert torch.allclose(on_gpu, losses, atol=1e-4)
    assert torch.allclose(fitted_on_gpu, fitted, atol=1e-3)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"), [(64, 1, 1), (64, 3, 1), (128, 3, 2), (512, 3, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cudnn_neither_reads_its_output_nor_hides_an_overflow(
    dtype: torch.dtype, channels: int, kernel: int, stride: int, residual: bool
) -> None:
    """torch gives the fused convolution memory that it has not written, with a weight of 0.

    0 times the NaN that lie there must not show. And a sum that is infinite or no number must not
    become a 0 by ReLU: the member's loss would be finite.
    """

    def draw(*shape: int) -> torch.Tensor:
        x = torch.randn(shape, device="cuda", dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    x, weight = draw(8, channels, 14, 14), draw(channels, channels, kernel, kernel) / channels
    bias, geometry = draw(channels), ((stride,) * 2, (kernel // 2,) * 2, (1, 1), 1)
    expected = torch.conv2d(x.float(), weight.float(), bias.float(), *geometry)
    other = draw(*expected.shape)

    def fused() -> torch.Tensor:
        if residual:
            return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *geometry)
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)

    for _ in range(3):
        poison = [torch.full_like(other, torch.nan) for _ in range(16)]
        del poison
        found = fused()
        assert bool(found.isfinite().all())
    expected = (expected + other.float() if residual else expected).relu()
    # Products of 16-bit numbers are exact in float32; inputs, sum and result are rounded.
    limit = 0.02 * float(expected.abs().max()) + 0.02
    assert float((found.float() - expected).abs().max()) <= limit
    for value in (torch.inf, -torch.inf, torch.nan):
        x[0, 0, 7, 7] = value
        at = 7 // stride  # where the kernel's element `tap` meets it
        tap = 7 + kernel // 2 - at * stride
        seen, hidden = fused()[0, :, at, at], weight[:, 0, tap, tap] * value
        # What overflows to minus infinity is 0 after ReLU, as in float32.
        assert not bool(seen[~(hidden == -torch.inf)].isfinite().any())


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
