"""The windows that a pool slides over images, apart from its kernel: no Triton is needed here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A pool's windows, each pair for height and width.

    maximum: whether the pool takes the maximum or the mean. count_padding: whether a mean divides
    by the whole window where it reaches beyond the image.
    """

    maximum: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    count_padding: bool = True
