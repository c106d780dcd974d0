"""The flat row: which columns of a population's row belong to which tensor.

A row is one network's evolved weights, end to end, in the order of the model's state dict::

    | conv.weight ... pad | conv.bias ... pad | ... | bn.running_var ... pad |  (to the stride)
    ^ 0                   ^ multiple of 8           ^ nonneg_start           ^ dim

* Each tensor starts at a multiple of 8 weights, in every dtype, so that each slice is aligned for
  16-byte loads. The pads between tensors count in `dim` and hold +0.
* Entries that must stay positive (BatchNorm's running_var) lie last, from `nonneg_start` on.
  Without such entries `nonneg_start == dim`.
* Rows lie `stride` elements apart: `dim` rounded up to a multiple of 64.

A layout is plain data: written to JSON and read back, it turns checkpoints into rows and rows into
tensors with no `nn.Module` at hand, which is what lets a journal be replayed years later.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.tensors import check_finite, check_nonnegative, dtype_name, dtype_of, pick

_JSON_VERSION = 1
_PIECE = 1 << 18  # weights looked at in one go


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor's place in the row.

    `name` is its name in the state dict and `aliases` are the further names of the same tensor
    (tied weights). `dtype` is that of the original tensor, such as `"float32"`; the row has
    its own. Columns `offset` to `offset + numel` hold it in C order.
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
    """A frozen description of the flat row; see the module's text for the picture.

    `entries` are in the order of their offsets. An inconsistent description (overlapping or
    misaligned entries, a name twice) raises DeevoError.
    """

    entries: tuple[Entry, ...]
    dim: int
    nonneg_start: int

    align: ClassVar[int] = 8
    stride_align: ClassVar[int] = 64

    def __post_init__(self) -> None:
        end, seen = 0, set[str]()
        for entry in self.entries:
            if entry.offset != end or entry.numel != math.prod(entry.shape):
                raise DeevoError(
                    f"layout entry {entry.name!r} starts at {entry.offset} with {entry.numel} "
                    f"weights of shape {list(entry.shape)}; expected offset {end} and "
                    f"{math.prod(entry.shape)} weights"
                )
            if seen.intersection(entry.names) or len(set(entry.names)) < len(entry.names):
                raise DeevoError(f"layout entry {entry.name!r} repeats a name: {entry.names}")
            seen.update(entry.names)
            dtype_of(entry.dtype)
            end = _round_up(entry.end, self.align)
        if self.dim != end:
            raise DeevoError(f"layout dim is {self.dim}; its entries with their pads end at {end}")
        if self.nonneg_start not in {entry.offset for entry in self.entries} | {end}:
            raise DeevoError(
                f"layout nonneg_start {self.nonneg_start} is not the start of an entry"
            )

    @classmethod
    def build(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        nonneg: Collection[str] = (),
    ) -> Layout:
        """Lays out `tensors` in their order, those named in `nonneg` last.

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
        """Columns up to the last one that is no pad."""
        return max((entry.end for entry in self.entries if entry.numel), default=0)

    def genes(self, unit: str) -> Tensor:
        """Where each unit of crossover starts, int64 [G], ascending.

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
        """The same layout with other original dtypes for the entries named in `dtypes`."""
        entries = tuple(
            dataclasses.replace(e, dtype=dtype_name(dtypes[e.name])) if e.name in dtypes else e
            for e in self.entries
        )
        return dataclasses.replace(self, entries=entries)

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """Zero-copy tensors of `row` ([dim] or longer, any dtype), by name.

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

        A tied tensor may be given under one of its names or under several; names that are not in
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

    def to_json(self) -> str:
        """The layout as JSON text; `from_json` reads it back equal."""
        record = {
            "version": _JSON_VERSION,
            "align": self.align,
            "dim": self.dim,
            "nonneg_start": self.nonneg_start,
            "entries": [dataclasses.asdict(entry) for entry in self.entries],
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Reads what `to_json` wrote; raises DeevoError for anything else."""
        try:
            record: dict[str, Any] = json.loads(text)
            version, align = record["version"], record["align"]
            entries = tuple(_entry_from(fields) for fields in record["entries"])
            dim, nonneg_start = int(record["dim"]), int(record["nonneg_start"])
        except (ValueError, TypeError, KeyError) as error:
            raise DeevoError(f"not the JSON of a layout: {error!r}") from error
        if (version, align) != (_JSON_VERSION, cls.align):
            raise DeevoError(
                f"layout JSON has version {version} and align {align}; this package reads "
                f"version {_JSON_VERSION} with align {cls.align}"
            )
        return cls(entries, dim, nonneg_start)

    def _check_row(self, row: Tensor) -> None:
        if row.dim() != 1 or row.numel() < self.dim or (row.numel() > 1 and row.stride(0) != 1):
            raise DeevoError(
                f"row has shape {list(row.shape)} and strides {list(row.stride())}; "
                f"expected one contiguous row of at least {self.dim} weights"
            )


def _entry_from(fields: Mapping[str, Any]) -> Entry:
    shape = tuple(int(size) for size in fields["shape"])
    aliases = tuple(str(name) for name in fields["aliases"])
    offset, numel = int(fields["offset"]), int(fields["numel"])
    return Entry(str(fields["name"]), shape, str(fields["dtype"]), offset, numel, aliases)
