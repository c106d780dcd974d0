"""Which images a batch holds: seeded, by counters alone, so that any batch can be had again."""

from __future__ import annotations

import numpy as np
import torch

from deevo_ext.ops.philox import ROUNDS, key_of, philox4x32, words
from deevo_ext.ops.tables import POPULATION_MEMBER, Purpose

_FEW_OF_A_CLASS = 20  # with more, half an image more or less in a slice is less than 3 %


def image_keys(count: int, batch: int, seed: int, purpose: Purpose = Purpose.BATCH) -> np.ndarray:
    """Returns a Philox word an image: uint32 values in uint64 [count]."""
    return words(purpose, batch, POPULATION_MEMBER, count, seed)


def batch_order(
    labels: torch.Tensor, size: int, batch: int, seed: int, purpose: Purpose = Purpose.BATCH
) -> torch.Tensor:
    """Returns indices int64 [size] of batch number `batch`: class-balanced, distinct, shuffled.

    Each image gets a Philox key; within its class it is ranked by key, and the images whose (rank +
    1/2) / class size is least are taken, in this order: so every class is represented in
    proportion, in each slice of the batch as well as in the whole. In a class of few images the 1/2
    is a random number: or all classes with one image would have it in the middle of the order.
    """
    classes = labels.cpu().numpy()
    keys = image_keys(classes.size, batch, seed, purpose)
    return torch.from_numpy(_class_balanced(classes, keys)[:size].copy())


def _class_balanced(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """All positions, ordered by rank by key within the class over the size of the class."""
    position = np.empty(labels.size, dtype=np.float64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks = np.empty(members.size, dtype=np.int64)
        ranks[np.argsort(keys[members], kind="stable")] = np.arange(members.size)
        start = 0.5
        if members.size < _FEW_OF_A_CLASS:
            # The sum of keys depends on none of them alone: each image has the same chances.
            start = (float(np.add.reduce(keys[members]) % 2**32) + 0.5) / 2.0**32
        position[members] = (ranks + start) / members.size
    return np.lexsort((keys, position))


def batch_indices(labels: torch.Tensor, size: int, batch: int, seed: int) -> torch.Tensor:
    """Returns the indices of `batch_order`, ascending."""
    return batch_order(labels, size, batch, seed).sort().values


def size_of_whole_batches(labels: torch.Tensor) -> int:
    """Returns the least size of batches each of which has every class that has images.

    It suffices for every draw of `batch_order`; less may not. Of the rarest class, of m images, the
    first one stands before 1/m, or at 1/2 / m where it is not one of few images: behind as many
    images of each other class as can stand before that.
    """
    sizes = np.unique(labels.cpu().numpy(), return_counts=True)[1]
    m, few = sizes.min(), sizes < _FEW_OF_A_CLASS
    if m < _FEW_OF_A_CLASS:  # ceil(n / m), less a half for classes that begin at 1/2
        before = np.where(few, -(-sizes // m), -((m - 2 * sizes) // (2 * m)))
    else:
        before = (sizes + m) // (2 * m)  # with those that stand at the same place
    return int(before.sum())


def size_of_whole_slices(labels: torch.Tensor) -> int:
    """Returns a size of slices of `batch_order`, each of which has every class that has images.

    It suffices for every draw and wherever a slice begins. Between two images of the rarest class,
    of m images, which are 1/m apart, are at most n // m + 1 of a class of n.
    """
    sizes = np.sort(np.unique(labels.cpu().numpy(), return_counts=True)[1])
    return int((sizes[1:] // sizes[0] + 1).sum()) + 1


def rarest(labels: torch.Tensor) -> tuple[int, int]:
    """Returns the class with the fewest images, of those that have some, and their number."""
    classes, counts = labels.unique(return_counts=True)
    return int(classes[counts.argmin()]), int(counts.min())


def fold_numbers(labels: torch.Tensor, folds: int, seed: int) -> torch.Tensor:
    """Returns the fold 0..folds-1 of each image, int64 [N], for cross-validation.

    Images are dealt to the folds in turn, class by class, each class shuffled by Philox (purpose
    14): the folds' sizes differ by one image at most, and so do each class's shares of them.
    Classes of few images come last, by their size: so do the shares of all that have one image.
    """
    classes = labels.cpu().numpy()
    keys = image_keys(classes.size, 0, seed, Purpose.PART)
    sizes = np.bincount(classes)[classes]
    sizes[sizes >= _FEW_OF_A_CLASS] = 0
    numbers = np.empty(classes.size, dtype=np.int64)
    numbers[np.lexsort((keys, classes, sizes))] = np.arange(classes.size) % folds
    return torch.from_numpy(numbers)


def fold_places(labels: torch.Tensor, folds: int, seed: int) -> list[torch.Tensor]:
    """Returns the positions int64 of each fold's images, by `fold_numbers`."""
    numbers = fold_numbers(labels, folds, seed)
    return [(numbers == k).nonzero().flatten() for k in range(folds)]


def inclusion_probabilities(difficulty: np.ndarray, size: int) -> np.ndarray:
    """Returns probabilities float64 [N] in (0, 1], of sum `size`, in proportion to difficulty.

    difficulty: positive float64 [N], N >= size. Images whose probability would exceed 1 are taken
    for certain, and the others share what is left (Särndal, Swensson & Wretman,
    Model Assisted Survey Sampling, 1992, 3.6.2).
    """
    certain = np.zeros(difficulty.size, dtype=bool)
    if size >= difficulty.size:
        return np.ones(difficulty.size)
    while True:
        rest = size - int(certain.sum())
        probabilities = np.where(certain, 1.0, difficulty * (rest / difficulty[~certain].sum()))
        more = (probabilities >= 1.0) & ~certain
        if not more.any():
            return probabilities
        certain |= more


def importance_order(
    labels: torch.Tensor, difficulty: np.ndarray, size: int, batch: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns indices int64 [size] and weights float64 [size]; hard images are likelier.

    Systematic sampling (Madow, Ann. Math. Statist. 20, 1949) along the images sorted by class, each
    class shuffled: one random start, steps of 1 on the cumulated inclusion probabilities pi, so
    that classes get their share of them. The weight of an image, size / (N pi), makes the weighted
    mean of the batch Horvitz and Thompson's estimator of the mean over all N images: unbiased
    whatever the difficulties are. The order is shuffled, class by class in proportion.
    """
    classes = labels.cpu().numpy()
    keys = image_keys(classes.size, batch, seed)
    probabilities = inclusion_probabilities(difficulty, size)
    line = np.lexsort((keys, classes))
    ends = np.cumsum(probabilities[line])
    ends *= size / ends[-1]  # what rounding added or took
    last_block = (int(Purpose.BATCH), batch, POPULATION_MEMBER, np.array([0xFFFFFFFF], np.uint64))
    start = (float(philox4x32(last_block, key_of(seed), ROUNDS)[0][0]) + 0.5) / 2.0**32
    places = np.searchsorted(ends, start + np.arange(size), "right")
    taken = line[np.minimum(places, classes.size - 1)]
    order = taken[_class_balanced(classes[taken], keys[taken])]
    weights = size / (classes.size * probabilities[order])
    return torch.from_numpy(order.copy()), torch.from_numpy(weights)
