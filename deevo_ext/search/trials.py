"""What waits for fitness values: rows that are made when they are asked for, and never kept."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence

import torch

from deevo_ext.arguments import check_arguments, usable_device
from deevo_ext.errors import DeevoError
from deevo_ext.population.allocation import sent
from deevo_ext.search.row_source import RowSource, version_of

_ROWS = "rows of trials were"
_Mark = tuple[int, torch.Tensor]
"""What shows whether rows were written to: their version counter, and BatchNorm's variances."""


class Trials:
    """What waits for fitness values: a generation's trials, or the parents themselves.

    generation: that of the trials; 0 for the initial parents.
    parents: whether the rows are the parents.
    members: int64, ascending: those whose rows need a score, which are all but those that
        population reduction has taken out.
    size: NP, the number of fitness values to tell.
    over: whether these have been told, or others asked for, since; set by the optimizer.
    thread: the thread that asked for them, which tells their fitness.

    Rows are made for whatever thread asks. They are to be read: where their version counters say
    that rows were written to, the next chunk or `tell` raises DeevoError.
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
        self.thread = threading.get_ident()
        self._population = self._mark(source.rows)
        if source.committed not in (None, self._population[0]):
            raise _written("the population was", "the last generation")
        self._given: list[tuple[weakref.ref[torch.Tensor], _Mark]] = []  # by `rows`

    def __repr__(self) -> str:
        what = "parents, to be scored" if self.parents else "trials"
        state = ", over" if self.over else ""
        return (
            f"Trials of generation {self.generation}: {what}, {self.members.numel()} rows of "
            f"{self._source.population.dim:,}{state}"
        )

    def rows(self, members: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Makes the rows of some members, [E, D], in new memory.

        members: int64 [E], or a sequence of whole numbers. Raises DeevoError for anything else,
        such as a mask, and for members that there are not.
        """
        chosen = self._chosen(members)
        out = self._source.new_rows(chosen.numel())
        self._fill(chosen, out)
        self._given.append((weakref.ref(out), self._mark(out)))
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
        Rows are valid until the next chunk, with which they share a buffer.
        The members yielded are on the CPU, to index with.
        """
        check_arguments(Trials.chunks, locals())
        if size < 1:
            raise DeevoError(f"size is {size!r}; expected at least one row per chunk")
        source = self._source
        chosen = self.members if members is None else self._chosen(members)
        there = source.rows.device if device is None else usable_device(device)
        most = min(size, max(self.members.numel(), chosen.numel()))
        unchanged: list[torch.Tensor] = []
        for some in chosen.split(size):
            if there != source.rows.device:
                staging = source.staging(most, there)
                self._fill(some, staging.near(some.numel()))
                rows = staging.send(some.numel())
            else:
                rows = source.chunk_buffer(most)[: some.numel()]
                self._fill(some, rows)
            mark = self._mark(rows)
            yield some, rows
            self._require_current()
            if rows.device.type == "cpu":
                self._require_unwritten(rows, mark)
                continue
            # Of a device the variances are looked at in the end, so that it is not waited for.
            version, variances = self._mark(rows)
            if version != mark[0]:
                raise _written(_ROWS, "ask()")
            unchanged.append((variances == mark[1]).all())
        if unchanged and not bool(torch.stack(unchanged).all()):
            raise _written(_ROWS, "ask()")

    def require_unwritten(self) -> None:
        """Raises DeevoError where the population, or rows that were given out, were written to."""
        self._require_unwritten(self._source.rows, self._population, "the population was")
        for given, mark in self._given:
            rows = given()
            if rows is not None:
                self._require_unwritten(rows, mark)

    def _mark(self, rows: torch.Tensor) -> _Mark:
        # Norm layers write their variances past the version counter.
        tail = self._source.population.layout.nonneg_start
        return version_of(rows), rows[:, tail:].clone()

    def _require_unwritten(self, rows: torch.Tensor, before: _Mark, what: str = _ROWS) -> None:
        version, variances = self._mark(rows)
        if version != before[0] or not torch.equal(variances, before[1]):
            raise _written(what, "ask()")

    def _chosen(self, members: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Members as int64 [E] on the CPU, if they are members."""
        try:
            chosen = torch.as_tensor(members)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DeevoError(f"members are no whole numbers ({error})") from None
        if not chosen.numel() and not isinstance(members, torch.Tensor):
            chosen = chosen.long()
        if chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.is_complex():
            raise DeevoError(
                f"members are {chosen.dtype} {list(chosen.shape)}; expected whole numbers in "
                f"0..{self.size - 1}, such as mask.nonzero() of a mask"
            )
        chosen = chosen.to("cpu", torch.int64).reshape(-1).contiguous()
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.size:
            raise DeevoError(
                f"members are {int(chosen.min())}..{int(chosen.max())}; expected whole numbers in "
                f"0..{self.size - 1}"
            )
        return chosen

    def _fill(self, members: torch.Tensor, out: torch.Tensor) -> None:
        with self._source.lock:
            self._require_current()
            make = self._source.copy_parents if self.parents else self._source.make_trials
            make(sent(members, self._source.rows.device), out)

    def _require_current(self) -> None:
        if self.over:
            raise DeevoError(
                f"these trials of generation {self.generation} are over: their fitness was told or "
                "others were asked for; call ask() again"
            )


def _written(what: str, since: str) -> DeevoError:
    return DeevoError(
        f"{what} written to since {since}, so that a fitness would belong to other weights: call "
        "model.eval() before evaluating (norm layers write in train mode), write to copies "
        "(row.clone()), let one thread at a time ask for chunks; then begin again on a freshly "
        "loaded population"
    )
