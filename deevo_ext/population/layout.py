"""The flat row: which columns of a population's row belong to which tensor.

A row is one network's evolved weights, end to end, in the order of the model's state dict::

    | conv.weight ... pad | conv.bias ... pad | ... | bn.running_var ... pad |  (to the stride)
    ^ 0                   ^ multiple of 8           ^ nonneg_start           ^ dim

* Each tensor starts at a multiple of 8 weights, in every dtype, so that each slice is aligned for
  16-byte loads. The pads between tensors count in `dim` and hold +0.
* Entries that must stay positive (BatchNorm's running_var) lie last, from `nonneg_start` on.
  Without such entries `nonneg_start == dim`.
* Rows lie `stride` elements apart: `dim` rounded up to a multiple of 64.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.tensors import check_finite, check_nonnegative, dtype_name, pick

_PIECE = 1 << 18  # weights looked at in one go


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor's place in the row.

    name: its name in the state dict; aliases: the further names of the same tensor (tied weights).
    dtype: that of the tensor in the checkpoints, such as `"float32"`, whatever the row's is.
    offset, numel: columns `offset` to `offset + numel` hold the tensor in C order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    numel: int
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name and then the aliases."""
        return (self.name, *self.aliases)

    @property
    def end(self) -> int:
        """The column after the last one."""
        return self.offset + self.numel


@dataclasses.dataclass(frozen=True)
class Layout:
    """Says where tensors lie in a row; the module's docstring has the picture.

    entries: the tensors' places, in the order of their offsets. dim: columns of a row, pads
    included. nonneg_start: the first column of the entries that must stay positive.
    """

    entries: tuple[Entry, ...]
    dim: int
    nonneg_start: int

    align: ClassVar[int] = 8
    stride_align: ClassVar[int] = 64

    @classmethod
    def build(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        nonneg: Collection[str] = (),
    ) -> Layout:
        """Lays out `tensors` in their order, but those named in `nonneg` last.

        Only names, shapes and dtypes are read, so tensors on the meta device will do. `aliases`
        gives the further names of a tensor.
        """
        entries: list[Entry] = []
        end = 0
        nonneg_start: int | None = None
        for name in sorted(tensors, key=lambda name: name in nonneg):  # stable: keeps the order
            tensor = tensors[name]
            if name in nonneg and nonneg_start is None:
                nonneg_start = end
            others = tuple((aliases or {}).get(name, ()))
            dtype = dtype_name(tensor.dtype)
            entries.append(Entry(name, tuple(tensor.shape), dtype, end, tensor.numel(), others))
            end = _round_up(entries[-1].end, cls.align)
        return cls(tuple(entries), end, end if nonneg_start is None else nonneg_start)

    def part(self, names: Collection[str]) -> Layout:
        """Returns a layout of these tensors alone (aliases too), in the same order."""
        entries: list[Entry] = []
        end = 0
        nonneg_start: int | None = None
        for entry in self.entries:
            if any(name in names for name in entry.names):
                if entry.offset >= self.nonneg_start and nonneg_start is None:
                    nonneg_start = end
                entries.append(dataclasses.replace(entry, offset=end))
                end = _round_up(entries[-1].end, self.align)
        return Layout(tuple(entries), end, end if nonneg_start is None else nonneg_start)

    @property
    def stride(self) -> int:
        """Elements from one row to the next: `dim` rounded up to a multiple of 64."""
        return _round_up(self.dim, self.stride_align)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, aliases included, in row order."""
        return tuple(name for entry in self.entries for name in entry.names)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of names, shapes, dtypes, offsets, `dim` and `nonneg_start`.

        Aliases are left out: they are further names for the same columns and change no number.
        """
        entries = [[e.name, list(e.shape), e.dtype, e.offset] for e in self.entries]
        record = {"dim": self.dim, "entries": entries, "nonneg_start": self.nonneg_start}
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def weights(self) -> int:
        """The number of columns up to the last one that is no pad."""
        return max((entry.end for entry in self.entries if entry.numel), default=0)

    def genes(self, unit: str) -> Tensor:
        """Returns the column where each gene starts, int64 [G], ascending.

        unit: "tensor", "channel" (a slice along a tensor's first dimension) or "weight", for which
        there are no genes (G = 0). Pads belong to the gene before them.
        """
        starts: list[Tensor] = []
        for entry in self.entries:
            if entry.numel and unit == "tensor":
                starts.append(torch.tensor([entry.offset]))
            elif entry.numel and unit == "channel":
                channels = entry.shape[0] if entry.shape else 1
                step = entry.numel // channels
                starts.append(torch.arange(entry.offset, entry.end, step))
        return torch.cat(starts) if starts else torch.empty(0, dtype=torch.int64)

    def with_dtypes(self, dtypes: Mapping[str, torch.dtype]) -> Layout:
        """Returns the layout with other original dtypes for the entries named in `dtypes`."""
        entries = tuple(
            dataclasses.replace(e, dtype=dtype_name(dtypes[e.name])) if e.name in dtypes else e
            for e in self.entries
        )
        return dataclasses.replace(self, entries=entries)

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """Returns zero-copy tensors of `row` ([dim] or longer, any dtype), by name.

        Aliases are included and map to the very same tensor object, which is what
        `torch.func.functional_call` wants for tied weights.
        """
        self._check_row(row)
        tensors: dict[str, Tensor] = {}
        for entry in self.entries:
            view = row[entry.offset : entry.end].view(entry.shape)
            tensors.update(dict.fromkeys(entry.names, view))
        return tensors

    @torch.no_grad()
    def flatten(
        self, tensors: Mapping[str, Tensor], out_row: Tensor, *, source: str = "the state dict"
    ) -> Tensor:
        """Writes `tensors` into `out_row` ([dim] or longer), pads as +0, and returns it.

        A tied tensor may be there under one of its names or under several; names that are not in
        the layout are ignored. Values are converted to the row's dtype. Raises DeevoError, which
        names `source` and the tensor, before anything is written: for a tensor that is missing,
        has another shape, is not floating point, or differs between its tied names.
        """
        self._check_row(out_row)
        values = [pick(tensors, e.names, e.shape, source) for e in self.entries]
        end = 0
        for entry, tensor in zip(self.entries, values, strict=True):
            out_row[end : entry.offset].zero_()
            out_row[entry.offset : entry.end].view(entry.shape).copy_(tensor)
            end = entry.end
        out_row[end : self.dim].zero_()
        return out_row

    def check_values(self, row: Tensor, *, source: str) -> None:
        """Refuses a row with an infinity or NaN, or with a negative value in the tail."""
        self._check_row(row)
        # In pieces: temporaries of a row's size would stay with the allocator and add to the peak.
        whole, tail = row[: self.dim], row[self.nonneg_start : self.dim]
        finite = all(bool(torch.isfinite(piece).all()) for piece in whole.split(_PIECE))
        if finite and not any(bool((piece < 0).any()) for piece in tail.split(_PIECE)):
            return
        for entry in self.entries:  # only a bad row pays for the search
            check_finite(row[entry.offset : entry.end], entry.name, source)
            if entry.offset >= self.nonneg_start:
                check_nonnegative(row[entry.offset : entry.end], entry.name, source)

    def _check_row(self, row: Tensor) -> None:
        if not isinstance(row, Tensor) or row.layout != torch.strided:
            raise DeevoError(
                f"row is {reprlib.repr(row)}; expected a tensor, [{self.dim}] or longer"
            )
        if row.dim() != 1 or row.numel() < self.dim or (row.numel() > 1 and row.stride(0) != 1):
            raise DeevoError(
                f"row has shape {list(row.shape)} and strides {list(row.stride())}; "
                f"expected one contiguous row of at least {self.dim} weights"
            )
