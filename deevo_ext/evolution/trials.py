"""What waits for fitness values: rows on demand, never kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from deevo_ext.errors import DeevoError

if TYPE_CHECKING:
    from deevo_ext.evolution.optimizer import DifferentialEvolution


class Trials:
    """What waits for fitness values: a generation's trials, or the parents themselves.

    Attributes: `generation` (0 for the initial parents), `parents` (True when the rows are the
    parents), `members` (int64, ascending: whose rows want a score; all of them but those that
    population reduction has taken out), `size` (NP: the fitness values to tell).
    """

    def __init__(self, owner: DifferentialEvolution, generation: int, parents: bool) -> None:
        self._owner = owner
        self.generation = generation
        self.parents = parents
        self._tail = self._variances().clone()
        self.members = owner.living
        self.size = owner.population.size

    def rows(self, members: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The rows of some members, [E, D], in new memory."""
        chosen = torch.as_tensor(members, dtype=torch.int64).reshape(-1).contiguous()
        out = self._owner.new_rows(chosen.numel())
        self._fill(chosen, out)
        return out

    def chunks(
        self,
        size: int,
        device: torch.device | str | None = None,
        *,
        members: torch.Tensor | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (members int64 [e], rows [e, D]) for all of `members`, at most `size` at a time.

        members: fewer of them, int64 on the CPU. device: where the rows are wanted, the
        population's by default; on the way to another one they go through two page-locked buffers.
        Rows are valid until the next chunk: trials share one buffer, parents are the population.
        The members yielded are on the CPU, to index with.
        """
        if size < 1:
            raise DeevoError(f"size is {size}; expected at least one row per chunk")
        wanted = self.members if members is None else members
        if device is not None and (there := torch.empty(0, device=device).device) != self._device:
            staging = self._owner.staging(min(size, self.members.numel()), there)
            for some in wanted.split(size):
                self._fill(some, staging.near(some.numel()))
                yield some, staging.send(some.numel())
            return
        count, rows = wanted.numel(), self._owner.population.rows
        in_place = self.parents and count == rows.shape[0]
        buffer = rows if in_place else self._owner.chunk_buffer(min(size, self.members.numel()))
        for some in wanted.split(size):
            if in_place:
                self._require_current()
                start = int(some[0])
                yield some, rows[start : start + some.numel()]
            else:
                self._fill(some, buffer[: some.numel()])
                yield some, buffer[: some.numel()]

    def population_was_written(self) -> bool:
        """Whether BatchNorm variances changed since ask(): a model in train mode writes views."""
        return self._tail.numel() > 0 and not torch.equal(self._variances(), self._tail)

    def _variances(self) -> torch.Tensor:
        population = self._owner.population
        return population.rows[:, population.layout.nonneg_start :]

    @property
    def _device(self) -> torch.device:
        return self._owner.population.rows.device

    def _fill(self, members: torch.Tensor, out: torch.Tensor) -> None:
        self._require_current()
        members = members.to(self._device)
        if self.parents:
            torch.index_select(self._owner.population.rows, 0, members, out=out)
        else:
            self._owner.make_trials(members, out)

    def _require_current(self) -> None:
        if self._owner.pending is not self:
            raise DeevoError(
                f"these trials of generation {self.generation} are over: their fitness was told or "
                "others were asked for; call ask() again"
            )
