"""Images of other kinds than networks were trained on: five changes, each mild or strong.

Of the kind of Hendrycks and Dietterich's (arXiv 1903.12261), for small grey images: noise of a
sensor, a lens out of focus, less contrast around each image's own mean, an object that is not in
the middle, and JPEG's artefacts.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deevo_ext.data.images import ImageSet

SAME = "same"
"""The kind of the images as they are."""
SEVERITIES = (1, 2)


def changed(images: ImageSet, train: ImageSet, kind: str, severity: int, seed: int) -> ImageSet:
    """Returns images of a kind, in the range from black to white of the train images.

    kind: of `KINDS`, or `SAME`. severity: 1 or 2. seed: of what is drawn.
    """
    if kind == SAME:
        return images
    black, white = float(train.images.min()), float(train.images.max())
    generator = torch.Generator().manual_seed(seed)
    change, *strengths = KINDS[kind]
    pixels = (images.images - black) / (white - black)
    pixels = change(pixels, strengths[severity - 1], generator).clamp(0.0, 1.0)
    return replace(images, images=pixels * (white - black) + black)


def _noise(pixels: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return pixels + deviation * torch.randn(pixels.shape, generator=generator)


def _blur(pixels: Tensor, deviation: float, _: torch.Generator) -> Tensor:
    line = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * deviation**2))
    kernel = (line[:, None] * line)[None, None] / line.sum() ** 2
    return F.conv2d(F.pad(pixels, (3, 3, 3, 3), mode="replicate"), kernel)


def _contrast(pixels: Tensor, factor: float, _: torch.Generator) -> Tensor:
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (pixels - mean)


def _shift(pixels: Tensor, by: float, _: torch.Generator) -> Tensor:
    """To the right and down, black coming in."""
    side, by = pixels.shape[-1], int(by)
    return F.pad(pixels, (by, 0, by, 0))[..., :side, :side]


def _jpeg(pixels: Tensor, quality: float, _: torch.Generator) -> Tensor:
    found = np.empty(pixels.shape, np.float32)
    for i, image in enumerate((pixels * 255).round().byte().numpy()):
        file = io.BytesIO()
        Image.fromarray(image[0]).save(file, format="JPEG", quality=int(quality))
        found[i, 0] = np.asarray(Image.open(file), np.float32) / 255
    return torch.from_numpy(found)


KINDS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], float, float]] = {
    "noise": (_noise, 0.1, 0.25),
    "blur": (_blur, 0.8, 1.2),
    "contrast": (_contrast, 0.4, 0.2),
    "shift": (_shift, 1, 2),
    "jpeg": (_jpeg, 15, 4),
}
"""The changes by name, with their strengths by severity: standard deviations (white being 1, and in
pixels), the contrast that is left, pixels, and JPEG's quality."""
