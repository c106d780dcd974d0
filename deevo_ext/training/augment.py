"""Augmentation of whole batches: small moves, mirroring, random erasing."""

import math

import torch


def augment(
    images: torch.Tensor, shift: int, mirror: bool, generator: torch.Generator
) -> torch.Tensor:
    """Each image moved by its own -shift..shift pixels, and mirrored half of the time.

    Args:
        images: [N, C, H, W], any dtype and device; not changed.
        shift: pixels, 0 for none; what comes in from outside repeats the border.
        mirror: whether to mirror left and right.
        generator: on the CPU; it moves by the same amount whatever it draws.

    Returns:
        [N, C, H, W], same dtype.
    """
    count, _, height, width = images.shape
    if shift == 0 and not mirror:
        return images
    moves = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + moves[1]).clamp(0, width - 1)
    if mirror:
        flipped = torch.randint(0, 2, (count, 1), generator=generator).bool()
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def erase(
    images: torch.Tensor,
    probability: float,
    value: tuple[float, ...],
    generator: torch.Generator,
) -> torch.Tensor:
    """Random erasing (Zhong et al., arXiv 1708.04896): a rectangle of some images is overwritten.

    Its share of the area is uniform in [0.02, 1/3], the logarithm of its height : width uniform
    between those of 0.3 and 1/0.3, as torchvision's and timm's; sides are cut to the image's.

    Args:
        images: [N, C, H, W], any dtype, on the CPU; not changed.
        probability: that an image loses a rectangle, in [0, 1].
        value: per channel, what it is overwritten with.
        generator: on the CPU; it moves by the same amount whatever it draws.

    Returns:
        [N, C, H, W], same dtype.
    """
    if not probability:
        return images
    count, channels, height, width = images.shape
    drawn = torch.rand(count, 5, generator=generator, dtype=torch.float64).tolist()
    ground = torch.tensor(value).to(images.dtype).reshape(channels, 1, 1)
    images = images.clone()
    for i, (chance, share, proportion, down, right) in enumerate(drawn):
        if chance >= probability:
            continue
        area = (0.02 + (1 / 3 - 0.02) * share) * height * width
        ratio = math.exp(math.log(0.3) * (1 - 2 * proportion))
        h = min(height, max(1, round(math.sqrt(area * ratio))))
        w = min(width, max(1, round(math.sqrt(area / ratio))))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        images[i, :, top : top + h, left : left + w] = ground
    return images
