"""Search by waves of rows, as a rival of evolution does it: the same passes, the same validation.

A rival proposes rows in waves of one size, and hears their losses on the batches that a search of
weights has, a batch for as many waves (one for the parents, one for each generation's trials). It
is validated as often, by the same candidates (best, average and greedy soup of the rows it puts
forward), so it takes the same number of forward passes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import deevo_ext as deevo
from deevo_ext.population.blocks import Blocks
from deevo_ext.runs.soups import greedy_soup


@dataclass(frozen=True)
class Start:
    """What a rival begins with.

    soups: the uniform and the greedy one, [2, D]. layers: the blocks of the network's layers. wave:
    the number of rows that are scored at once.
    """

    population: deevo.Population
    soups: Tensor
    layers: Blocks
    wave: int
    seed: int

    @property
    def rows(self) -> Tensor:
        """The members, [M, D]."""
        return self.population.rows

    @property
    def centre(self) -> Tensor:
        """The greedy soup."""
        return self.soups[1]

    @cached_property
    def spread(self) -> Tensor:
        """Root mean square of what members differ from their mean by, tensor by tensor, [D]."""
        away = self.rows - self.rows.mean(0)
        spread = torch.zeros_like(self.centre)
        for entry in self.population.layout.entries:
            tensor = slice(entry.offset, entry.end)
            spread[tensor] = away[:, tensor].square().mean().sqrt()
        return spread


class Rival(ABC):
    """A search by waves of rows; its numbers come from `start.seed` alone."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.numbers = torch.Generator().manual_seed(start.seed)

    @abstractmethod
    def ask(self, fresh: bool) -> Tensor:
        """Proposes rows [wave, D]. fresh: whether they are scored on a batch not seen before."""

    @abstractmethod
    def tell(self, losses: Tensor) -> None:
        """Hears the losses float64 [wave] of what was proposed, +inf where one is not finite."""

    @abstractmethod
    def candidates(self) -> Tensor:
        """The rows [at most wave, D] that validation chooses among."""

    def noise(self, count: int) -> Tensor:
        return torch.randn(count, self.start.rows.shape[1], generator=self.numbers)


def search(
    rival: Rival,
    waves: int,
    score: Callable[[Tensor, int], Tensor],
    validate: Callable[[Tensor], float],
    waves_per_batch: int,
    validate_every: int,
) -> Tensor:
    """Runs a rival; returns the row that validation prefers to all others and the greedy soup.

    score: (rows, batch) -> losses float64. validate: a row -> its loss on the validation images.
    """
    start = rival.start
    chosen, least = start.centre, validate(start.centre)
    # Variances stay positive, as in our trials: where they do not, half the members' least.
    tail = start.population.layout.nonneg_start
    floor = start.rows[:, tail:].amin(0) / 2

    def usable(rows: Tensor) -> Tensor:
        rows = rows.clone()
        rows[:, tail:] = torch.where(rows[:, tail:] > 0, rows[:, tail:], floor)
        return rows

    for wave in range(waves):
        rows = usable(rival.ask(wave % waves_per_batch == 0))
        losses = score(rows, wave // waves_per_batch)
        rival.tell(torch.where(losses.isfinite(), losses, math.inf))
        if (wave + 1) % validate_every == 0 or wave + 1 == waves:
            rows = usable(rival.candidates())
            found, loss = _best_of(start.population, rows, validate)
            if loss < least:
                chosen, least = found, loss
    return chosen


def _best_of(
    population: deevo.Population, rows: Tensor, validate: Callable[[Tensor], float]
) -> tuple[Tensor, float]:
    """The best of rows, their average and their greedy soup, and its loss."""

    def average_of(members: Sequence[int]) -> tuple[Tensor, None]:
        return rows[list(members)].double().mean(0).float(), None

    everyone = list(range(len(rows)))
    losses = [validate(row) for row in rows]
    soup, of_soup = greedy_soup(
        population, everyone, losses, lambda row, _: validate(row), average_of
    )
    mean = average_of(everyone)[0]
    found = [
        *zip(losses, rows, strict=True),
        (of_soup, average_of(soup)[0]),
        (validate(mean), mean),
    ]
    loss, row = min(found, key=lambda candidate: candidate[0])
    return row, loss
