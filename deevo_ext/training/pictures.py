"""Augmentation of single uint8 pictures by torchvision's operations, with draws of our own.

torchvision's transforms draw from torch's global generator; here every image of a batch draws its
parameters from a given one, always as many, so that a batch can be had again from its seed, in
whatever thread and however often a run was interrupted. The operations are
torchvision.transforms.v2.functional's, imported when used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import DeevoError
from ..extras import import_extra
from .recipes import Choices, Recipe

_RATIO = (3 / 4, 4 / 3)
_BINS = 31  # magnitudes of TrivialAugment


def functional() -> Any:
    """torchvision.transforms.v2.functional; DeevoError where it cannot be imported."""
    try:
        return import_extra("torchvision.transforms.v2.functional")
    except DeevoError as error:
        raise DeevoError(
            f"the augmentations crop, jitter and trivial are torchvision's; {error}; or leave them "
            "out of --augment"
        ) from error


def require_operations(recipe: Recipe | Choices) -> None:
    """Raises DeevoError where a recipe draws what torchvision does and that cannot be imported."""
    if recipe.crop or recipe.jitter or recipe.trivial:
        functional()


def change_pictures(
    images: Tensor, crop: float, jitter: float, trivial: bool, generator: torch.Generator
) -> Tensor:
    """Each image by its own draws: random resized crop, colour jitter, TrivialAugment, in order.

    Args:
        images: uint8 [N, C, H, W], C 1 or 3, on the CPU; not changed.
        crop: least share of the area that a crop takes, see `draw_crop`; 0 for none.
        jitter: brightness, contrast and saturation, in an order of its own for each image, by
            factors from 1 - jitter to 1 + jitter; 0 for none.
        trivial: TrivialAugment's wide space (Müller and Hutter, arXiv 2103.10158): one operation
            of 14 at one magnitude of 31.
        generator: on the CPU.

    Returns:
        uint8 [N, C, H, W].

    Raises:
        DeevoError: the images are not uint8, or torchvision cannot be imported.
    """
    if not (crop or jitter or trivial):
        return images
    if images.dtype != torch.uint8:
        raise DeevoError(
            f"images are {images.dtype}; crop, jitter and trivial change uint8 images, as a cache "
            "holds them: make one by `deevo cache`"
        )
    ops = functional()
    height, width = images.shape[2:]
    count = len(images)
    crops = torch.rand(count, 20, 2, generator=generator, dtype=torch.float64)
    places = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    factors = 1 + jitter * (2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1)
    orders = torch.rand(count, 3, generator=generator, dtype=torch.float64).argsort(dim=1)
    which = torch.randint(0, len(OPERATIONS), (count,), generator=generator).tolist()
    magnitudes = torch.randint(0, _BINS, (count,), generator=generator).tolist()
    signs = torch.randint(0, 2, (count,), generator=generator).tolist()
    changed = torch.empty_like(images, memory_format=torch.contiguous_format)
    colours = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation)
    for i in range(count):
        image = images[i].contiguous()
        if crop:
            box = draw_crop(crop, height, width, crops[i].tolist(), places[i].tolist())
            image = ops.resized_crop(image, *box, size=[height, width], antialias=True)
        if jitter:
            for kind in orders[i].tolist():
                image = colours[kind](image, float(factors[i, kind]))
        if trivial:
            name = tuple(OPERATIONS)[which[i]]
            image = trivial_operation(ops, image, name, magnitudes[i], bool(signs[i]))
        changed[i] = image
    return changed


def draw_crop(
    least: float, height: int, width: int, tries: list[list[float]], place: list[float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop (Szegedy et al., arXiv 1409.4842).

    Its share of the area is uniform in [least, 1] and the logarithm of its width : height uniform
    between those of 3/4 and 4/3, as torchvision's RandomResizedCrop has it; where no try fits in,
    the whole picture is taken.

    tries: pairs of uniform numbers in [0, 1) for share and proportions; place: two more.
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for share, proportion in tries:
        area = (least + (1 - least) * share) * height * width
        ratio = math.exp(low + (high - low) * proportion)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1)), h, w
    return 0, 0, height, width


def trivial_operation(ops: Any, image: Tensor, name: str, magnitude: int, negative: bool) -> Tensor:
    """One operation of OPERATIONS on uint8 [C, H, W], magnitude 0..30 of its range."""
    (first, last), signed, apply = OPERATIONS[name]
    value = float(torch.linspace(first, last, _BINS)[magnitude])  # in float32, as torchvision's
    return apply(ops, image, -value if negative and signed else value)


def _affine(ops: Any, image: Tensor, shear: list[float], move: list[int]) -> Tensor:
    centre = [0.0, 0.0] if any(shear) else None
    return ops.affine(image, 0.0, move, 1.0, shear, center=centre)


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


# Name: (first and last magnitude, whether its sign is drawn, what is done). The magnitudes of
# brightness and its like are distances from 1, posterize's are bits that stay.
OPERATIONS: dict[str, tuple[tuple[float, float], bool, Callable[[Any, Tensor, float], Tensor]]] = {
    "Identity": ((0, 0), False, lambda ops, x, m: x),
    "ShearX": ((0, 0.99), True, lambda ops, x, m: _affine(ops, x, [_degrees(m), 0.0], [0, 0])),
    "ShearY": ((0, 0.99), True, lambda ops, x, m: _affine(ops, x, [0.0, _degrees(m)], [0, 0])),
    "TranslateX": ((0, 32), True, lambda ops, x, m: _affine(ops, x, [0.0, 0.0], [int(m), 0])),
    "TranslateY": ((0, 32), True, lambda ops, x, m: _affine(ops, x, [0.0, 0.0], [0, int(m)])),
    "Rotate": ((0, 135), True, lambda ops, x, m: ops.rotate(x, m)),
    "Brightness": ((0, 0.99), True, lambda ops, x, m: ops.adjust_brightness(x, 1 + m)),
    "Color": ((0, 0.99), True, lambda ops, x, m: ops.adjust_saturation(x, 1 + m)),
    "Contrast": ((0, 0.99), True, lambda ops, x, m: ops.adjust_contrast(x, 1 + m)),
    "Sharpness": ((0, 0.99), True, lambda ops, x, m: ops.adjust_sharpness(x, 1 + m)),
    "Posterize": ((8, 2), False, lambda ops, x, m: ops.posterize(x, round(m))),
    "Solarize": ((1, 0), False, lambda ops, x, m: ops.solarize(x, 255 * m)),
    "AutoContrast": ((0, 0), False, lambda ops, x, m: ops.autocontrast(x)),
    "Equalize": ((0, 0), False, lambda ops, x, m: ops.equalize(x)),
}
