"""The batches that a network learns from: shuffled epochs, augmented images.

What happens to an image depends on the run's seed, the epoch and the image's number alone, so that
a batch can be had again in any process, and by a run that was interrupted. Moves and mirroring are
those of `fitness.augmentation`; everything else is done by torchvision.transforms.v2, which is
imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.extras import import_extra
from deevo_ext.fitness.augmentation import Augmentation, image_words
from deevo_ext.threads import one_thread
from deevo_ext.training.hyper_parameters import Choices, HyperParameters, derived_seed

_PICTURES = ("crop", "jitter", "trivial", "erase")  # each changes an image on its own
_MIXTURES = ("mixup", "cutmix")  # the images of a batch are mixed with each other
_ORDER, _MOVES = 1, 3  # what a seed is derived for


def require_torchvision(augmentations: HyperParameters | Choices) -> None:
    """Raises DeevoError where an augmentation needs torchvision and that cannot be imported."""
    if any(getattr(augmentations, name) for name in _PICTURES + _MIXTURES):
        _transforms()


def changes_pictures(hyper: HyperParameters) -> bool:
    """Returns whether torchvision changes single images, which is worth processes of its own."""
    return any(getattr(hyper, name) for name in _PICTURES)


def batch_mixing(
    hyper: HyperParameters, classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Returns mixup or cutmix of (float images, labels), None for neither.

    It draws from the global generator. The labels become shares of the classes, float [n, classes].
    """
    alphas = {name: getattr(hyper, name) for name in _MIXTURES if getattr(hyper, name)}
    if not alphas:
        return None
    v2 = _transforms()
    kinds = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
    return v2.RandomChoice(
        [kinds[name](alpha=alpha, num_classes=classes) for name, alpha in alphas.items()]
    )


class TrainingBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is the batch of that step: images [n, C, H, W] of their dtype, labels int64 [n].

    Epochs are shuffled, and what is left at their end that fills no batch is skipped.

    images: N, of which a batch is at most all; on the CPU if torchvision is to change them.

    Raises DeevoError: torchvision is needed and cannot be imported, or cannot change such images.
    """

    def __init__(self, images: LabelledImages, hyper: HyperParameters) -> None:
        self._images, self._seed = images, hyper.seed
        self._size = min(hyper.batch_size, len(images))
        self._moves = Augmentation(mirror=hyper.mirror, shift=hyper.shift)
        self._transform = _picture_transform(hyper, images) if changes_pictures(hyper) else None
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(step, len(self._images) // self._size)
        if epoch != self._epoch:
            seed = derived_seed(derived_seed(self._seed, _ORDER), epoch)
            generator = torch.Generator().manual_seed(seed)
            self._epoch, self._order = epoch, torch.randperm(len(self._images), generator=generator)
        chosen = self._order[number * self._size : (number + 1) * self._size]
        batch = self._images.subset(chosen)
        words = image_words(chosen, epoch, derived_seed(self._seed, _MOVES))
        pixels = self._moves.apply(batch.pixels(0, self._size), words)
        if self._transform is not None:
            # The last word, which moves and mirroring leave alone, seeds torchvision's draws.
            pixels = _each(self._transform, pixels, words[:, 7].tolist())
        return pixels, batch.labels


def _each(transform: Callable[[Tensor], Tensor], pixels: Tensor, seeds: list[int]) -> Tensor:
    """Every image transformed under its own seed; the global generator is left as it was."""
    # One thread, as in a DataLoader's worker: sums depend on their number.
    with one_thread(), torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(pixels, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(transform(image.contiguous()))
    return torch.stack(changed)


def _picture_transform(hyper: HyperParameters, images: LabelledImages) -> Callable[..., Tensor]:
    """Random resized crop, colour jitter, TrivialAugment and random erasing, those asked for."""
    v2 = _transforms()
    channels, height, width = images.image_shape
    steps: list[Any] = []
    if hyper.crop:
        steps.append(v2.RandomResizedCrop((height, width), scale=(hyper.crop, 1.0)))
    if hyper.jitter:
        steps.append(v2.ColorJitter(hyper.jitter, hyper.jitter, hyper.jitter))
    if hyper.trivial:
        steps.append(v2.TrivialAugmentWide())
    if steps and images.dtype != torch.uint8:
        raise DeevoError(
            f"images are {images.dtype}; crop, jitter and trivial change uint8 images, as a cache "
            "holds them: make one by `deevo cache`"
        )
    if hyper.erase:
        # The mean colour, which is zero once normalised.
        mean = images.mean or (0.0,) * channels
        steps.append(v2.RandomErasing(hyper.erase, value=[round(255 * value) for value in mean]))
    return v2.Compose(steps)


def _transforms() -> Any:
    try:
        return import_extra("torchvision.transforms.v2")
    except DeevoError as error:
        raise DeevoError(
            f"the augmentations {', '.join(_PICTURES + _MIXTURES)} are torchvision's; {error}; or "
            "leave them out of --augment"
        ) from error
