"""Where the rows of trials and parents come from, and where accepted trials go."""

from __future__ import annotations

import math
import threading

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.library import BoundOperator
from deevo_ext.population.allocation import zero_rows
from deevo_ext.population.population import Population
from deevo_ext.search.adaptation import Adaptation
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.staging import Staging


class RowSource:
    """The weights of a run, population and archive, and the operators `trials` and `commit`.

    It also owns the buffers that chunks of rows are made in, one set for all generations.
    """

    def __init__(
        self,
        population: Population,
        configuration: Configuration,
        adaptation: Adaptation,
        seed: int,
    ) -> None:
        self.population, self.adaptation, self.seed = population, adaptation, seed
        self.archive = self.new_rows(configuration.archive_size)
        self._lower, self._upper = _held_bounds(configuration, population)
        self._buffer: torch.Tensor | None = None
        self._staging: Staging | None = None
        self._bound_to: tuple[object, ...] = ()
        self.committed: int | None = None  # the rows' version counter, where it has to be that
        self.lock = threading.Lock()  # the operators are bound to one set of arguments

    @property
    def rows(self) -> torch.Tensor:
        """The members, [NP, D]."""
        return self.population.rows

    def new_rows(self, count: int) -> torch.Tensor:
        """Makes zeroed rows like the population's, [count, D] with its stride and dtype."""
        rows, stride = self.population.rows, self.population.layout.stride
        return zero_rows(count, stride, rows.dtype, rows.device)[:, : rows.shape[1]]

    def chunk_buffer(self, count: int) -> torch.Tensor:
        """Returns the one buffer that chunks of trials share."""
        if self._buffer is None or self._buffer.shape[0] != count:
            self._buffer = None  # freed before the next is made
            self._buffer = self.new_rows(count)
        return self._buffer

    def staging(self, count: int, device: torch.device) -> Staging:
        """Returns the buffers through which chunks reach another device."""
        if self._staging is None or (self._staging.rows, self._staging.device) != (count, device):
            self._staging = None  # freed before the next is made
            self._staging = Staging(self.new_rows(1), count, device)
        return self._staging

    def copy_parents(self, members: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the rows of `members`, on the population's device, to `out`."""
        torch.index_select(self.rows, 0, members, out=out)

    def make_trials(self, members: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the planned trials of `members`, on the population's device, to `out`."""
        self._bind()
        self._trials(members=members, out=out)

    def commit(self) -> None:
        """Puts the accepted trials in their parents' places, and these into the archive."""
        self._bind()
        self._commit()
        self.committed = version_of(self.rows)

    def _bind(self) -> None:
        """Binds the operators, anew where the population has got other rows since."""
        rows = self.population.rows
        identity = (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype)
        if identity == self._bound_to:
            return
        adaptation = self.adaptation
        shared = {
            "population": rows,
            "archive": self.archive,
            "choices": adaptation.choices,
            "coefficients": adaptation.coefficients,
            "genes": adaptation.genes,
            "gene_mask": adaptation.gene_mask,
            "seed": self.seed,
            "nonneg_start": self.population.layout.nonneg_start,
            "first_weight": 0,
            "lower": self._lower,
            "upper": self._upper,
        }
        nobody = torch.empty(0, dtype=torch.int64, device=rows.device)
        self._trials = BoundOperator("trials", **shared, members=nobody, out=rows[:0])
        self._commit = BoundOperator(
            "commit",
            **shared,
            accepted=adaptation.accepted,
            archive_slot=adaptation.archive_slot,
        )
        self._bound_to = identity


def version_of(rows: torch.Tensor) -> int:
    """Returns how often rows were written to; always -1 in inference mode, which does not count."""
    return -1 if rows.is_inference() else rows._version


def _rounded_to_0(bound: float, dtype: torch.dtype) -> float:
    """Returns the outermost number of a dtype that does not lie beyond the bound, seen from 0."""
    rounded = torch.tensor([bound], dtype=torch.float64).to(dtype)
    if abs(rounded.item()) > abs(bound):
        bits = rounded.view(torch.int32 if dtype == torch.float32 else torch.int16)
        bits -= 1  # the next number towards 0: sign and magnitude
    return rounded.item()


def _held_bounds(configuration: Configuration, population: Population) -> tuple[float, float]:
    """Returns the bounds (lower, upper) as the rows' dtype holds them, infinite where not set.

    Raises DeevoError, naming the member, for weights outside.
    """
    dtype = population.rows.dtype
    lower = -math.inf if configuration.lower is None else _rounded_to_0(configuration.lower, dtype)
    upper = math.inf if configuration.upper is None else _rounded_to_0(configuration.upper, dtype)
    bounded = population.rows[:, : population.layout.nonneg_start]
    if lower == -math.inf and upper == math.inf:
        return lower, upper
    for member, row in zip(population.names, bounded, strict=True):
        if bool((row < lower).any()) or bool((row > upper).any()):
            raise DeevoError(
                f"member {member!r} has weights outside [lower, upper] = [{lower}, {upper}]; widen "
                "the bounds"
            )
    return lower, upper
