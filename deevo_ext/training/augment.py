"""Augmentation of whole batches: small moves and mirroring."""

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
