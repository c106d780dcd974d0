"""linear_scores on CUDA devices: torch's matrix products, then the backend's loss_and_rank.

Logits are made for a slice of images and a group of candidates at a time. Groups are filled up with
candidates of zeros, so that every slice has one shape of product, and a candidate's scores do not
depend on how many there are beside it. Products and sums are float32, never TF32, in the order of
torch's library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

GROUP = 64  # candidates of a product
SLICE_BYTES = 64 << 20  # of a group's logits

LossAndRank = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor, torch.Tensor], None]


def linear_scores_with(loss_and_rank: LossAndRank) -> Callable[..., None]:
    """Returns linear_scores, with the arguments of its schema in `ops`, for a backend."""

    def linear_scores(
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
        candidates, directions = coefficients.shape
        images, classes = z0.shape
        padded = coefficients.new_zeros(-(-candidates // GROUP) * GROUP, directions)
        padded[:candidates] = coefficients
        at_once = max(1, SLICE_BYTES // (4 * GROUP * classes))
        for start in range(0, images, at_once):
            part = slice(start, min(start + at_once, images))
            size = part.stop - part.start
            flat = slopes[:, part].float().reshape(directions, size * classes)
            for first in range(0, candidates, GROUP):
                with _plain_float32():
                    product = torch.addmm(
                        z0[part].reshape(1, -1), padded[first : first + GROUP], flat
                    )
                rows = slice(first, min(first + GROUP, candidates))
                z = product[: rows.stop - first].view(-1, size, classes)
                rank = ranks[rows, part]
                loss_and_rank(z, labels[part], smoothing, losses[rows, part], rank)
                finite = rank < classes
                largest, best = z.max(dim=2)
                share = torch.exp(largest.double() - z.double().logsumexp(dim=2))
                predicted[rows, part] = torch.where(finite, best, -1).int()
                probability[rows, part] = torch.where(finite, share, 0.0).float()

    return linear_scores


@contextlib.contextmanager
def _plain_float32() -> Iterator[None]:
    """Float32 products without TF32, whatever the caller has chosen for networks."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = before
