"""`torch.ops.deevo.linear_scores`: losses of many candidates from a linear model of logits."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import STORAGE, Checker
from deevo_ext.ops.head import check_outputs
from deevo_ext.ops.library import register


def check(
    z0: torch.Tensor,
    slopes: torch.Tensor,
    coefficients: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
    predicted: torch.Tensor,
    probability: torch.Tensor,
) -> None:
    """Scores candidates whose logits are z0 plus their coefficients times the slopes.

    z0 float32 [n, classes]; slopes [d, n, classes] float32, bfloat16 or float16, directions any
    stride apart: what a step along each direction adds to the logits; coefficients float32 [P, d];
    labels int64 [n]; smoothing as in `loss_and_rank`. Candidate p's logits, float32, are z0 + sum
    of coefficients[p, k] slopes[k]; they are never stored as a whole. losses float32 [P, n], in
    nats, and ranks int32 [P, n] as in `loss_and_rank`; predicted int32 [P, n], the class of the
    largest logit, the lowest of equals; probability float32 [P, n], what softmax gives that class.
    A logit that is not finite, or a loss that overflows: loss +inf, rank `classes`, predicted -1,
    probability 0. Rows of the outputs any stride apart. Not the same bits on every backend: sums
    over directions are rounded as each does it. Traffic: slopes read once. Raises DeevoError naming
    the argument at fault.
    """
    c = Checker("linear_scores", z0.device)
    c.tensor("z0", z0, torch.float32, None, None)
    images, classes = z0.shape
    c.rows("slopes", slopes, STORAGE, None, images, classes)
    c.tensor("coefficients", coefficients, torch.float32, None, slopes.shape[0])
    candidates = coefficients.shape[0]
    check_outputs(c, (candidates, images, classes), labels, smoothing, losses, ranks)
    c.rows("predicted", predicted, (torch.int32,), candidates, images)
    c.rows("probability", probability, (torch.float32,), candidates, images)


register("linear_scores", check, mutated=("losses", "ranks", "predicted", "probability"))
