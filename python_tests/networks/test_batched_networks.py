"""Whole ResNets of several members through fold, the Triton engine and head, against eager."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from support.convolutional import ResNet
from support.convolutions import DEVICE, ROUNDING
from support.operators import same_bits
from support.residual import Engine

DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_small_resnets(bottleneck: bool, dtype: torch.dtype) -> None:
    """Losses of members and samples that differ by far more than the bound on the error.

    Bound: each layer rounds weights and activations once, relative error u each, and a loss moves
    by at most twice the largest error of a logit. With errors taken as independent from layer to
    layer, a logit is off by about u sqrt(2 layers) times its root mean square; six times that is
    allowed.
    """
    torch.manual_seed(0)
    models = [ResNet(bottleneck) for _ in range(2)]
    images = torch.randn(3, 3, 21, 18)
    labels = torch.tensor([0, 3, 6])
    with torch.no_grad():
        logits = torch.stack([copy.deepcopy(m).double()(images.double()) for m in models])
    expected = torch.stack([functional.cross_entropy(z, labels, reduction="none") for z in logits])
    engine = Engine(models, dtype, DEVICE)
    features = engine.features(models[0], images)
    losses, ranks = (t.cpu() for t in engine.losses(features, labels))
    layers = sum(isinstance(m, torch.nn.Conv2d) for m in models[0].modules()) + 1
    unit = max(ROUNDING[dtype][0], 8 * 2.0**-24)  # float32: sums of hundreds of terms
    bound = 2 * 6 * unit * (2 * layers) ** 0.5 * float(logits.square().mean().sqrt())
    error = (losses - expected).abs().max()
    assert error <= bound, (error, bound)
    assert (expected[0] - expected[1]).abs().max() > 10 * bound, "nothing would be shown"
    own = logits.gather(2, labels.expand(2, 3)[..., None])
    assert torch.equal(ranks, (logits > own).sum(2).int())

    alone = Engine(models[1:], dtype, DEVICE)
    found = alone.features(models[1], images)
    assert same_bits(found[0].cpu(), features[1].cpu()), "a member does not depend on the others"


def test_an_overflow_inside_is_an_infinite_loss() -> None:
    torch.manual_seed(0)
    models = [ResNet(False) for _ in range(2)]
    with torch.no_grad():
        models[0].blocks[0].layers[0][1].weight *= 1e6
    engine = Engine(models, torch.float16, DEVICE)
    images, labels = torch.randn(2, 3, 21, 18), torch.tensor([1, 2])
    losses, ranks = engine.losses(engine.features(models[0], images), labels)
    assert losses[0].isinf().all() and losses[1].isfinite().all()
    assert (ranks[0] == 7).all() and (ranks[1] < 7).all()
