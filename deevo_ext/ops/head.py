"""`torch.ops.deevo.head` and `loss_and_rank`: what a fitness needs of a network's last layers."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import STORAGE, Checker
from deevo_ext.ops.library import register

MAX_CLASSES = 2**20  # the fixed-point class sums have room for as many


def check_head(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Computes pool, linear layer, cross-entropy and rank of the true class for each sample.

    features [K, N, P, C]: activations, channels last, of P positions that are averaged in float32
    (P = 1: pooled already); weight [K, classes, C] in their dtype, float32, bfloat16 or float16;
    bias float32 [K, classes]; then as `loss_and_rank`, on float32 logits. Rows of K any stride.
    Traffic: features read once. Raises DeevoError naming the argument at fault.
    """
    c = Checker("head", features.device)
    c.rows("features", features, STORAGE, None, None, None, None)
    members, samples, positions, channels = features.shape
    c.rows("weight", weight, (features.dtype,), members, None, channels)
    c.rows("bias", bias, (torch.float32,), members, weight.shape[1])
    if positions < 1 or channels < 1:
        c.fail("features", f"of shape {tuple(features.shape)}", "positions and channels")
    check_outputs(c, (members, samples, weight.shape[1]), labels, smoothing, losses, ranks)


def check_loss_and_rank(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Computes cross-entropy and rank of the true class for each sample, from logits.

    logits [K, N, classes] float32, bfloat16 or float16; labels int64 [N], the same for all members;
    smoothing in [0, 1): label smoothing as in torch.nn.CrossEntropyLoss; losses float32 [K, N], in
    nats; ranks int32 [K, N]: how many logits are greater than the true class's, or equal and of a
    lower class, so that rank < k is a top-k hit. A sample with a NaN or infinite logit has loss
    +inf and rank `classes`; so has one whose loss overflows and, on a GPU, one with an impossible
    label, which is an error on the CPU. For label smoothing's mean over classes, logits more than
    2^20 below the largest count as 2^20 below. The same logits give the same bits on every backend.
    Traffic: logits read once. Raises DeevoError naming the argument at fault.
    """
    c = Checker("loss_and_rank", logits.device)
    c.rows("logits", logits, STORAGE, None, None, None)
    members, samples, classes = logits.shape
    check_outputs(c, (members, samples, classes), labels, smoothing, losses, ranks)


def check_outputs(
    c: Checker,
    shape: tuple[int, int, int],
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Checks what the two operators have in common, for logits of a shape [K, N, classes]."""
    members, samples, classes = shape
    if not 1 <= classes <= MAX_CLASSES:
        c.fail("the number of classes", classes, f"1..{MAX_CLASSES}")
    c.tensor("labels", labels, torch.int64, samples)
    if not 0.0 <= smoothing < 1.0:
        c.fail("smoothing", smoothing, "a number in [0, 1)")
    c.rows("losses", losses, (torch.float32,), members, samples)
    c.rows("ranks", ranks, (torch.int32,), members, samples)
    if labels.device.type == "cpu" and samples:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            values = f"values from {low} to {high}"
            c.fail("labels", values, f"0..{classes - 1}, as there are {classes} classes")


register("head", check_head, mutated=("losses", "ranks"))
register("loss_and_rank", check_loss_and_rank, mutated=("losses", "ranks"))
