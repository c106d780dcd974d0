"""One copy of a population's rows in a machine's memory, for all ranks there.

The first rank of each machine reads the population and puts its rows into a file without a name, in
memory (memfd_create(2)). All ranks there map this file, each privately: Linux copies a page for the
rank that writes into it, so that none sees what others write, and rows that nobody writes lie in
memory once. The file is gone with the last rank, however that ends.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import secrets
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks
from deevo_ext.population.population import Population


def read_once_a_machine(read: Callable[[], Population]) -> Population:
    """Returns read()'s population, whose rows lie once in a machine's memory; not those on GPUs.

    All ranks call it. Where the first of a machine cannot make the file, or another one may not
    open it, a warning says so, and ranks read copies of their own.
    """
    group, host = ranks(), socket.gethostname()
    if group.count == 1:
        return read()
    population = read() if group.first_of_node else None
    with contextlib.ExitStack() as until_all_have_opened:
        kept = None
        if population is not None and group.on_node > 1 and population.rows.device.type == "cpu":
            try:
                kept, population = _kept(population, until_all_have_opened), None
            except OSError as error:
                _warn(f"rank {group.rank} cannot put the population into memory that its", error)
        # More than one where machines have the same name.
        firsts = [k for where, k in group.gather((host, kept)) if where == host and k is not None]
        for place, one in enumerate(firsts, start=1):
            try:
                population = one.opened()
                break
            except OSError as error:
                if place == len(firsts):
                    _warn(f"rank {group.rank} cannot open the population that its", error)
        group.wait()
    return read() if population is None else population


def _warn(what: str, error: OSError) -> None:
    warnings.warn(
        f"{what} machine's ranks could share ({error}): it holds a copy of its own", stacklevel=3
    )


@dataclass(frozen=True)
class _Kept:
    """A population in a file in memory: its rows, and behind them all else, pickled.

    path: of the file, where it is open. name: that Linux shows for it. shape, stride, dtype: of all
    rows. size: how many of them are members.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    stride: int
    dtype: torch.dtype
    size: int

    def opened(self) -> Population:
        """Returns the population; raises OSError where there is no such file."""
        # It may be a pipe of another process, which would be waited for.
        if self.name not in (found := os.readlink(self.path)):
            raise FileNotFoundError(f"{self.path} is {found}, not {self.name}")
        with open(self.path, "rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        count, width = self.shape
        numbers = torch.frombuffer(pages, dtype=self.dtype, count=count * self.stride)
        rows, rest = numbers.view(count, -1)[:, :width], memoryview(pages)[numbers.nbytes :]
        population: Population = _Unpickler(io.BytesIO(rest), rows, self.size).load()
        return population


def _kept(population: Population, closing: contextlib.ExitStack) -> _Kept:
    """Writes a population into a file in memory, which is open until `closing` is left."""
    name, rows = f"deevo-{secrets.token_hex(8)}", population.all_rows
    stride = rows.stride(0)
    descriptor = os.memfd_create(name)
    closing.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        padded = rows.as_strided((len(rows), stride), (stride, 1))
        file.write(padded.view(torch.uint8).numpy().data)
        _Pickler(file, population).dump(population)
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    return _Kept(path, name, tuple(rows.shape), stride, rows.dtype, population.size)


class _Pickler(pickle.Pickler):
    """Pickles a population without its rows."""

    def __init__(self, file: IO[bytes], population: Population) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._population = population

    def persistent_id(self, value: Any) -> str | None:
        """Returns what stands for rows."""
        if value is self._population.all_rows:
            return "all"
        return "members" if value is self._population.rows else None


class _Unpickler(pickle.Unpickler):
    """Gives a population rows that lie elsewhere."""

    def __init__(self, file: IO[bytes], rows: Tensor, size: int) -> None:
        super().__init__(file)
        self._rows = {"all": rows, "members": rows[:size]}

    def persistent_load(self, name: str) -> Tensor:
        """Returns the rows that a name stands for."""
        return self._rows[name]
