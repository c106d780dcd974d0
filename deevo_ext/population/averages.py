"""Averages of rows, with the same bits on every device and thread count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError

# Columns averaged at a time. On the CPU 256 KiB of float64 sums stay in a core's cache, and torch
# starts no threads for that few elements, which here cost more than they save.
_CHUNK = {"cpu": 1 << 15, "cuda": 1 << 22}


def average_rows(
    matrix: Tensor, chosen: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """Returns the average of the `chosen` rows of `matrix` [N, D], float32 [D].

    It is a float64 sum in the order of `chosen`, divided by their number (by the float64 sum of the
    weights), rounded once to float32. Raises DeevoError for no rows, and for weights that are not
    as many finite numbers >= 0, one of them above 0.
    """
    if not chosen:
        raise DeevoError("mean of no members; give at least one")
    if weights is not None:
        good = len(weights) == len(chosen) and all(0 <= w < math.inf for w in weights)
        if not good or not 0 < sum(weights) < math.inf:
            raise DeevoError(
                f"weights must be {len(chosen)} finite numbers >= 0, not all 0; they are {weights}"
            )
    total = float(len(chosen) if weights is None else sum(weights))
    out = torch.empty(matrix.shape[1], dtype=torch.float32, device=matrix.device)
    chunk = _CHUNK.get(matrix.device.type, 1 << 20)
    for start in range(0, matrix.shape[1], chunk):
        columns = slice(start, start + chunk)
        acc = torch.zeros_like(out[columns], dtype=torch.float64)
        for k, i in enumerate(chosen):
            value = matrix[i, columns].to(torch.float64)
            # Multiplied apart from the sum: add with alpha may contract to an fma.
            acc.add_(value if weights is None else value.mul_(float(weights[k])))
        out[columns] = acc.div_(total)
    return out
