"""What evaluation asks of a set of labelled images, wherever their pixels lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError

Indices = Tensor | Sequence[int]
"""int64 [n], or a sequence of whole numbers."""


class LabelledImages(ABC):
    """N images and their labels. Pixels are read by slices, when they are needed.

    name: for messages and reports. labels: int64 [N], in memory. image_shape: C, H, W. dtype: of
    the pixels, uint8, or float32 where they are normalised. mean, std: per channel, of values in
    0..1, what uint8 pixels are normalised with on their way into a network; None where `pixels` are
    normalised. in_memory: whether reading pixels costs nothing worth doing beside something else.
    """

    name: str
    labels: Tensor
    image_shape: tuple[int, int, int]
    dtype: torch.dtype
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    in_memory: bool = True

    @abstractmethod
    def pixels(self, start: int, stop: int) -> Tensor:
        """Returns images start..stop-1, [n, C, H, W] of `dtype`; a view where that is possible."""

    @abstractmethod
    def subset(self, indices: Indices, name: str | None = None) -> LabelledImages:
        """Returns the images at `indices` (in 0..N-1, repeats allowed), in that order.

        Raises DeevoError: no index, an index outside 0..N-1, or not a list of whole numbers.
        """

    @abstractmethod
    def digest(self) -> str:
        """Returns a SHA-256 (hex) that two sets share if they hold the same.

        That is the same images, labels and normalisation.
        """

    def slice(self, start: int, stop: int, name: str | None = None) -> LabelledImages:
        """Returns images start..stop-1, without copying pixels where that is possible.

        Raises DeevoError: not 0 <= start < stop <= N.
        """
        return self.subset(self.range_of(start, stop), name)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__} {self.name!r}: {len(self):,} images {shape}, {dtype}"

    def __len__(self) -> int:
        return self.labels.numel()

    def range_of(self, start: int, stop: int) -> Tensor:
        """Returns int64 start..stop-1; raises as `slice` does."""
        self.require_range(start, stop)
        return torch.arange(start, stop)

    def require_range(self, start: int, stop: int) -> None:
        """Raises DeevoError unless 0 <= start < stop <= N, both whole numbers."""
        check_arguments(LabelledImages.range_of, {"start": start, "stop": stop})
        if not 0 <= start < stop <= len(self):
            raise DeevoError(
                f"{self.name}: images {start}..{stop} (exclusive) do not fit {len(self)} images"
            )

    def checked(self, indices: Indices) -> Tensor:
        """Returns indices as int64 [n] where the labels are; raises as `subset` does."""
        try:
            chosen = torch.as_tensor(indices, device=self.labels.device)
        except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is one
            raise DeevoError(f"{self.name}: indices are no whole numbers ({error})") from None
        if (
            chosen.ndim != 1
            or chosen.is_floating_point()
            or chosen.dtype == torch.bool
            or chosen.is_complex()
        ):
            raise DeevoError(
                f"{self.name}: indices must be whole numbers [n], "
                f"got {chosen.dtype} {list(chosen.shape)}"
            )
        if len(chosen) == 0:
            raise DeevoError(f"{self.name}: a subset needs at least one image")
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise DeevoError(
                f"{self.name}: indices {int(chosen.min())}..{int(chosen.max())} "
                f"do not fit {len(self)} images"
            )
        return chosen.to(torch.int64)

    def named(self, name: str | None) -> str:
        """Returns a name that was given, or else this set's."""
        check_arguments(LabelledImages.named, locals())
        return name or self.name

    def check_labels(self, images: int) -> None:
        """Raises DeevoError unless labels are int64, not negative, and one for each image."""
        labels = self.labels
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise DeevoError(
                f"{self.name}: labels must be int64 [N], got {labels.dtype} {list(labels.shape)}"
            )
        if len(labels) != images:
            raise DeevoError(f"{self.name}: {images} images but {len(labels)} labels")
        if not images:
            raise DeevoError(f"{self.name}: no images")
        if int(labels.min()) < 0:
            raise DeevoError(f"{self.name}: labels hold a negative value, {int(labels.min())}")
