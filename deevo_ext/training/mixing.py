"""Images of a batch mixed with each other, labels in proportion: mixup and cutmix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .recipes import Recipe


@dataclass(frozen=True)
class Mixing:
    """share: of the batch itself in the labels; order: int64 [N], which image is mixed into each;
    box: (top, left, bottom, right) that is replaced under cutmix, None under mixup.
    """

    share: float
    order: Tensor
    box: tuple[int, int, int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The mixed batch, [N, C, H, W]; the batch itself where nothing is mixed in."""
        if self.share == 1:
            return images
        other = images[self.order.to(images.device)]
        if self.box is None:
            return self.share * images + (1 - self.share) * other
        top, left, bottom, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        return mixed


def draw_mixing(recipe: Recipe, step: int, size: int, height: int, width: int) -> Mixing:
    """What is mixed in at a step, from the recipe's seed.

    mixup (Zhang et al., arXiv 1710.09412): a share from Beta(alpha, alpha). cutmix (Yun et al.,
    arXiv 1905.04899): a box of such a share of the area, of the images' proportions, its centre
    anywhere, cut off at the borders; labels go by what is left. A recipe with both takes one of
    them for each batch, with probability 1/2.
    """
    if not (recipe.mixup or recipe.cutmix):
        return Mixing(1.0, torch.arange(size))
    generator = np.random.Generator(np.random.PCG64((recipe.seed, step)))
    cuts = recipe.cutmix > 0 and (not recipe.mixup or generator.random() < 0.5)
    alpha = recipe.cutmix if cuts else recipe.mixup
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(size))
    if not cuts:
        return Mixing(share, order)
    half = math.sqrt(1 - share) / 2
    y, x = generator.random(2) * (height, width)
    top, bottom = (round(min(max(y + d * half * height, 0), height)) for d in (-1, 1))
    left, right = (round(min(max(x + d * half * width, 0), width)) for d in (-1, 1))
    area = (bottom - top) * (right - left)
    return Mixing(1 - area / (height * width), order, (top, left, bottom, right))
