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
    """Global average pool, linear layer, cross-entropy and rank of the true class, per sample.

    features [K, N, P, C]: activations, channels last, of P positions that are averaged in float32
    (P = 1: pooled already); weight [K, classes, C] in their dtype, float32, bfloat16 or float16;
    bias float32 [K, classes]; then as `loss_and_rank`, on float32 logits. Rows of K any stride.
    Traffic: features read once. Raises DeevoError naming the argument at fault.
    """
    c = Checker("head", features.device)
    check_strided(c, "features", features, STORAGE, (None, None, None, None))
    members, samples, positions, channels = features.shape
    check_strided(c, "weight", weight, (features.dtype,), (members, None, channels))
    check_strided(c, "bias", bias, (torch.float32,), (members, weight.shape[1]))
    if positions < 1 or channels < 1:
        c.fail("features", f"of shape {tuple(features.shape)}", "positions and channels")
    check_outputs(c, members, samples, weight.shape[1], labels, smoothing, losses, ranks)
    c.disjoint(
        features=features, weight=weight, bias=bias, labels=labels, losses=losses, ranks=ranks
    )


def check_loss_and_rank(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """Cross-entropy and rank of the true class, per sample, from logits.

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
    check_strided(c, "logits", logits, STORAGE, (None, None, None))
    members, samples, classes = logits.shape
    check_outputs(c, members, samples, classes, labels, smoothing, losses, ranks)
    c.disjoint(logits=logits, labels=labels, losses=losses, ranks=ranks)


def check_outputs(
    c: Checker,
    members: int,
    samples: int,
    classes: int,
    labels: torch.Tensor,
    smoothing: float,
    losses: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    """What the two operators have in common."""
    if not 1 <= classes <= MAX_CLASSES:
        c.fail("the number of classes", classes, f"1..{MAX_CLASSES}")
    c.tensor("labels", labels, torch.int64, samples)
    if not 0.0 <= smoothing < 1.0:
        c.fail("smoothing", smoothing, "a number in [0, 1)")
    check_strided(c, "losses", losses, (torch.float32,), (members, samples))
    check_strided(c, "ranks", ranks, (torch.int32,), (members, samples))
    if labels.device.type == "cpu" and samples:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            given = f"values from {low} to {high}"
            c.fail("labels", given, f"0..{classes - 1}, as there are {classes} classes")


def check_strided(
    c: Checker,
    argument: str,
    tensor: torch.Tensor,
    types: tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
) -> None:
    """That dtype and shape (None: any), contiguous but for the stride of the first dimension."""
    if tensor.device != c.device:
        c.fail(argument, f"on {tensor.device}", f"device {c.device}, as the others")
    if tensor.dtype not in types:
        c.fail(argument, tensor.dtype, " or ".join(str(dtype) for dtype in types))
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        c.fail(argument, f"of shape {tuple(tensor.shape)}", f"shape ({wanted})")
    if tensor.shape[0] > 0 and not tensor[0].is_contiguous():
        c.fail(argument, f"of strides {tensor.stride()}", "contiguous data for each member")
    if tensor.shape[0] > 1 and tensor.stride(0) < tensor[0].numel():
        c.fail(argument, f"of strides {tensor.stride()}", "members that do not overlap")
    c.plain(argument, tensor)


register(
    "head(Tensor features, Tensor weight, Tensor bias, Tensor labels, float smoothing, "
    "Tensor(a!) losses, Tensor(b!) ranks) -> ()",
    check_head,
    mutated=(5, 6),
)
register(
    "loss_and_rank(Tensor logits, Tensor labels, float smoothing, Tensor(a!) losses, "
    "Tensor(b!) ranks) -> ()",
    check_loss_and_rank,
    mutated=(3, 4),
)
