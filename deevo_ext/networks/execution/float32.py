"""In what a GPU forms products of float32, for the time of a block.

torch has two ways to say it: `allow_tf32`, and `fp32_precision` since 2.9. Reading the first raises
where the two disagree, as after a user's setting of the second, and what was only forbidden by the
first falls back to what is set for all of torch. So both are set, and put back as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Forms them in tf32, or in float32, on any GPU within the with-block."""
    backends: Any = torch.backends  # mypy does not see all of them
    older = (backends.cudnn, backends.cuda.matmul)
    newer = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    allowed = [_allowed(backend) for backend in older]
    precisions = [backend.fp32_precision for backend in newer]
    try:
        for backend in older:
            backend.allow_tf32 = tf32
        for backend in newer:
            backend.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for backend, value in zip(older, allowed, strict=True):
            if value is not None:
                backend.allow_tf32 = value
        for backend, precision in zip(newer, precisions, strict=True):
            backend.fp32_precision = precision


def _allowed(backend: Any) -> bool | None:
    """The older switch; None where it disagrees with the newer one."""
    try:
        return backend.allow_tf32
    except RuntimeError:
        return None
