"""compose: rows from recipes.

`v = x_0`; for m = 1..M-1 in order `v = v + a[m] (x_m - x_0)` in float32, each operation
rounded, terms whose coefficient is 0 left out, with the coefficients a of the weight's block.
Only `*`, `+` and `-` are used: torch's addcmul, lerp and add(alpha=) round differently.
"""

from __future__ import annotations

import torch

from deevo_ext.backends.checks import check_segments, require_subnormals
from deevo_ext.backends.reference.trials import to_storage, widen


def compose(
    population: torch.Tensor,
    recipes: torch.Tensor,
    starts: torch.Tensor,
    block_of: torch.Tensor,
    nonneg_start: int,
    out: torch.Tensor,
) -> None:
    """Writes to out[k] the row that recipes[k] makes of the members."""
    require_subnormals()
    check_segments("compose", starts, block_of, recipes.shape[1])
    members, columns = population.shape
    flat = torch.arange(columns)
    block = block_of.long()[torch.searchsorted(starts, flat, right=True) - 1]
    base = widen(population[0])
    least = base
    for m in range(1, members):
        x = widen(population[m])
        least = torch.where(x < least, x, least)
    for k in range(recipes.shape[0]):
        v = base
        for m in range(1, members):
            a = recipes[k, :, m][block]
            v = torch.where(a == 0.0, v, v + a * (widen(population[m]) - base))
        v = torch.where((flat >= nonneg_start) & ~(v > 0.0), 0.5 * least, v)
        stored = to_storage(v, out.dtype)
        out[k] = torch.where(torch.isfinite(stored), stored, population[0])
