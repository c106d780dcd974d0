"""What waits for fitness values: rows that are made when they are asked for, and never kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.search.row_source import RowSource


class Trials:
    """What waits for fitness values: a generation's trials, or the parents themselves.

    generation: that of the trials; 0 for the initial parents.
    parents: whether the rows are the parents.
    members: int64, ascending: those whose rows need a score, which are all but those that
        population reduction has taken out.
    size: NP, the number of fitness values to tell.
    over: whether these have been told, or others asked for, since; set by the optimizer.
    """

    def __init__(
        self, source: RowSource, generation: int, members: torch.Tensor, *, parents: bool
    ) -> None:
        self._source = source
        self.generation = generation
        self.parents = parents
        self.members = members
        self.size = source.population.size
        self.over = False
        self._variances = source.variances.clone()

    def rows(self, members: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Makes the rows of some members, [E, D], in new memory."""
        chosen = torch.as_tensor(members, dtype=torch.int64).reshape(-1).contiguous()
        out = self._source.new_rows(chosen.numel())
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

        members: fewer of them, int64 on the CPU. device: where the rows go, by default the
        population's device; on the way to another one they pass through two page-locked buffers.
        Rows are valid until the next chunk: trials share one buffer, parents are the population.
        The members yielded are on the CPU, to index with.
        """
        if size < 1:
            raise DeevoError(f"size is {size}; expected at least one row per chunk")
        source = self._source
        chosen = self.members if members is None else members
        there = source.rows.device if device is None else torch.empty(0, device=device).device
        if there != source.rows.device:
            staging = source.staging(min(size, self.members.numel()), there)
            for some in chosen.split(size):
                self._fill(some, staging.near(some.numel()))
                yield some, staging.send(some.numel())
        elif self.parents and chosen.numel() == self.size:
            for some in chosen.split(size):
                self._require_current()
                start = int(some[0])
                yield some, source.rows[start : start + some.numel()]
        else:
            buffer = source.chunk_buffer(min(size, self.members.numel()))
            for some in chosen.split(size):
                self._fill(some, buffer[: some.numel()])
                yield some, buffer[: some.numel()]

    def population_was_written(self) -> bool:
        """Whether BatchNorm variances changed since ask(): a model in train mode writes views."""
        variances = self._source.variances
        return variances.numel() > 0 and not torch.equal(variances, self._variances)

    def _fill(self, members: torch.Tensor, out: torch.Tensor) -> None:
        self._require_current()
        make = self._source.copy_parents if self.parents else self._source.make_trials
        make(members.to(self._source.rows.device), out)

    def _require_current(self) -> None:
        if self.over:
            raise DeevoError(
                f"these trials of generation {self.generation} are over: their fitness was told or "
                "others were asked for; call ask() again"
            )
