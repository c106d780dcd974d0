"""Logits of a population's networks in float64, and what rounding may move losses by."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

import deevo_ext as deevo
from support.convolutions import ROUNDING

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def rows_of(row: Tensor, count: int) -> Tensor:
    """Networks 5 % apart; variances stay positive."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(count, row.numel(), generator=generator).clamp(-3, 3)
    return row * (1 + 0.05 * noise)


def logits_of(model: nn.Module, layout: deevo.Layout, row: Tensor, raw: Tensor) -> Tensor:
    own = copy.deepcopy(model)
    own.load_state_dict(layout.views(row), strict=False)
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        return own.double()((raw.double() / 255 - m) / s)


def bound_of(model: nn.Module, logits: Tensor, precision: str) -> float:
    """What roundings may move a loss by.

    Each layer rounds weights and activations once, relative error u each (float32: sums of hundreds
    of terms, 8 u), and a loss moves by at most twice the largest error of a logit. With errors
    taken as independent from layer to layer, a logit is off by about u sqrt(2 layers) times its
    root mean square; six times that is allowed.
    """
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    unit = max(ROUNDING[_TYPES[precision]][0], 8 * 2.0**-24)
    return 2 * 6 * unit * math.sqrt(2 * layers) * float(logits.square().mean().sqrt())
