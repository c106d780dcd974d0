"""Which images a batch holds: seeded, by counters alone, so that any batch can be had again."""

from __future__ import annotations

import numpy as np
import torch

from deevo_ext.backends.reference.philox import ROUNDS, key_of, philox4x32
from deevo_ext.tables import POPULATION_MEMBER, Purpose


def image_keys(count: int, batch: int, seed: int) -> np.ndarray:
    """A Philox word (purpose 11) for each of `count` images, uint32 values in uint64 [count]."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counter = (int(Purpose.BATCH), batch, POPULATION_MEMBER, blocks)
    return np.stack(philox4x32(counter, key_of(seed), ROUNDS), axis=1).reshape(-1)[:count]


def batch_order(labels: torch.Tensor, size: int, batch: int, seed: int) -> torch.Tensor:
    """Indices int64 [size] of batch number `batch`: class-balanced, without repeats, shuffled.

    Each image gets a Philox key; within its class it is ranked by key, and the images whose (rank +
    1/2) / class size is least are taken, in this order: so every class is represented in
    proportion, in each stretch of the batch as well as in the whole.
    """
    own = labels.cpu().numpy()
    keys = image_keys(own.size, batch, seed)
    position = np.empty(own.size, dtype=np.float64)
    for label in np.unique(own):
        members = np.flatnonzero(own == label)
        ranks = np.empty(members.size, dtype=np.int64)
        ranks[np.argsort(keys[members], kind="stable")] = np.arange(members.size)
        position[members] = (ranks + 0.5) / members.size
    return torch.from_numpy(np.lexsort((keys, position))[:size].copy())


def batch_indices(labels: torch.Tensor, size: int, batch: int, seed: int) -> torch.Tensor:
    """The indices of `batch_order`, ascending."""
    return batch_order(labels, size, batch, seed).sort().values
