"""Small fold problems, and what fold must make of them, element by element in NumPy."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deevo_ext import backends
from deevo_ext.ops.fold_table import Space, address, with_tiles
from support.operators import OPERATORS
from support.oracles import bfloat16_nearest, numpy_rows
from support.weights import random_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass
class Entry:
    """One entry; sources are (space, offset) or None."""

    out: int
    channels: int = 1
    taps: int = 1
    padded: int = 0
    weight: tuple[Space, int] | None = None
    bias: tuple[Space, int] | None = None
    gamma: tuple[Space, int] | None = None
    beta: tuple[Space, int] | None = None
    mean: tuple[Space, int] | None = None
    var: tuple[Space, int] | None = None
    to_weight: int = -1
    to_shift: int = -1
    eps: float = 1e-5

    def row(self) -> list[int]:
        names = ("weight", "bias", "gamma", "beta", "mean", "var")
        sources = [getattr(self, name) for name in names]
        addresses = [-1 if s is None else address(*s) for s in sources]
        sizes = [self.out, self.channels, self.taps, max(self.padded, self.channels)]
        return [*addresses, *sizes, self.to_weight, self.to_shift]


@dataclass
class Problem:
    """Arguments of fold."""

    entries: list[Entry]
    rows: torch.Tensor
    statistics: torch.Tensor
    constants: torch.Tensor
    weights: int
    vectors: int

    def table(self) -> torch.Tensor:
        rows = [entry.row() for entry in self.entries]
        return with_tiles(torch.tensor(rows, dtype=torch.int64).reshape(-1, 12))

    def eps(self) -> torch.Tensor:
        return torch.tensor([entry.eps for entry in self.entries], dtype=torch.float64)

    def arguments(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
        """Fold's arguments; outputs are filled with 7 and have rows of their own stride."""
        members = self.rows.shape[0]
        stride = -(-self.weights // 8) * 8 + 16
        weights = torch.full((members, stride), 7.0, dtype=dtype)[:, : self.weights]
        vectors = torch.full((members, self.vectors + 3), 7.0)[:, : self.vectors]
        inputs = (self.rows, self.statistics, self.constants, self.table(), self.eps())
        return tuple(t.to(device) for t in (*inputs, weights, vectors))

    def fold(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        arguments = self.arguments(dtype)
        OPERATORS.fold(*arguments)
        return arguments[5], arguments[6]


class Builder:
    """Adds entries one after another, with operands of the size that they need."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.sizes = {space: 0 for space in Space}
        self.variances: list[tuple[Space, int, int]] = []
        self.weights = self.vectors = 0

    def place(self, space: Space, count: int) -> tuple[Space, int]:
        start = self.sizes[space]
        self.sizes[space] = -(-(start + count) // 8) * 8
        return space, start

    def add(
        self,
        out: int,
        channels: int = 1,
        taps: int = 1,
        *,
        weight: Space | None = Space.ROWS,
        bias: bool = False,
        affine: Space | None = Space.ROWS,
        statistics: Space | None = Space.ROWS,
        padded: int = 0,
        eps: float = 1e-5,
    ) -> Builder:
        e = Entry(out, channels, taps, max(padded, channels), eps=eps)
        if weight is not None:
            e.weight = self.place(weight, out * channels * taps)
            e.to_weight = self.weights
            self.weights = -(-(self.weights + out * taps * e.padded) // 8) * 8 + 8  # a pad between
        e.bias = self.place(Space.ROWS, out) if bias else None
        if affine is not None:
            e.gamma, e.beta = self.place(affine, out), self.place(affine, out)
        if statistics is not None:
            e.mean, e.var = self.place(statistics, out), self.place(statistics, out)
            self.variances.append((*e.var, out))
        e.to_shift, self.vectors = self.vectors, self.vectors + out + 1
        self.entries.append(e)
        return self

    def problem(
        self, dtype: torch.dtype = torch.float32, members: int = 2, seed: int = 0
    ) -> Problem:
        draw = torch.Generator().manual_seed(seed)
        columns = {space: self.sizes[space] for space in Space}
        rows = random_rows(members, columns[Space.ROWS], dtype, draw)
        statistics = random_rows(members, columns[Space.STATISTICS], torch.float32, draw)
        constants = random_rows(1, columns[Space.CONSTANTS], torch.float32, draw)
        operands = {Space.ROWS: rows, Space.STATISTICS: statistics, Space.CONSTANTS: constants}
        for space, start, count in self.variances:
            operands[space][:, start : start + count].abs_()
        operand = (rows, statistics, constants[0])
        return Problem(self.entries, *operand, self.weights, self.vectors)


def varied() -> Builder:
    """Every kind of entry, with sizes on both sides of a tile and of a vector's length."""
    b = Builder()
    b.add(5, 3, 49, padded=4)  # a stem
    b.add(16, 24, 9)
    b.add(2, 600, 9, padded=608)  # a channel larger than a tile, cut in three
    b.add(33, 130, 1, bias=True, affine=None, statistics=None)  # a linear layer
    b.add(7, 5, 4, bias=True, statistics=Space.STATISTICS)
    b.add(2, 4100, 1, weight=Space.CONSTANTS)
    b.add(9, 1, 25, affine=Space.CONSTANTS, statistics=Space.STATISTICS, eps=1e-3)  # depthwise
    b.add(130, weight=None)  # a BatchNorm with nothing before it
    b.add(6, 7, 2, affine=None)
    b.add(1, 4097, 3, affine=None, statistics=None)
    return b


def stored(value: np.float32, dtype: torch.dtype) -> int:
    """Bits of the value of dtype nearest to a float32, NaN as the one quiet NaN."""
    if np.isnan(value):
        return {torch.float32: 0x7FC00000, torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}[dtype]
    if dtype == torch.float32:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return int(value.astype(np.float16).view(np.uint16))
    if np.isinf(value):
        return 0xFF80 if value < 0 else 0x7F80
    return bfloat16_nearest(float(value))


def oracle(p: Problem, member: int, dtype: torch.dtype) -> tuple[dict[int, int], dict[int, int]]:
    """The bits that fold must write: {place: bits} in weights and vectors of one member."""
    row = p.rows[member]
    wide = numpy_rows(row) if row.dtype != torch.float16 else row.numpy().astype(np.float32)
    spaces = {
        Space.ROWS: wide,
        Space.STATISTICS: p.statistics[member].numpy(),
        Space.CONSTANTS: p.constants.numpy(),
    }
    weights: dict[int, int] = {}
    vectors: dict[int, int] = {}
    with np.errstate(all="ignore"):
        for e in p.entries:

            def at(source: tuple[Space, int] | None, i: int, absent: float) -> np.float64:
                return np.float64(absent if source is None else spaces[source[0]][source[1] + i])

            for o in range(e.out):
                scale = at(e.gamma, o, 1.0)
                if e.var is not None:
                    scale = scale / np.sqrt(at(e.var, o, 0.0) + np.float64(e.eps))
                shift = (at(e.bias, o, 0.0) - at(e.mean, o, 0.0)) * scale + at(e.beta, o, 0.0)
                if e.to_shift >= 0:
                    vectors[e.to_shift + o] = stored(np.float32(shift), torch.float32)
                if e.weight is None:
                    continue
                source = spaces[e.weight[0]][e.weight[1] :]
                for r in range(e.taps):
                    for c in range(e.padded):
                        place = e.to_weight + (o * e.taps + r) * e.padded + c
                        value = np.float32(0.0)
                        if c < e.channels:
                            w = source[(o * e.channels + c) * e.taps + r]
                            value = w * np.float32(scale)
                        weights[place] = stored(value, dtype)
    return weights, vectors


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's bits as unsigned integers."""
    unsigned = {4: np.uint32, 2: np.uint16}[tensor.element_size()]
    return tensor.contiguous().view(INTEGERS[tensor.dtype]).numpy().view(unsigned)


def check_every_half(backend: str) -> None:
    """All 16-bit patterns as sources; products that fall on and beside every half's midpoints."""
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    b = Builder().add(1, 2**16, 1, affine=None, statistics=None)
    with backends.use(backend):
        rows = halves[None]
        p = Problem(b.entries, rows, torch.empty(1, 0), torch.empty(0), b.weights, b.vectors)
        weights, _ = p.fold(torch.float32)
        nan = torch.isnan(halves)
        expected = torch.where(nan, torch.nan, halves.float())
        assert np.array_equal(weights[0, : 2**16].numpy(), expected.numpy(), equal_nan=True)

        below = torch.from_numpy(np.arange(0x7C00, dtype=np.uint16).view(np.float16)).double()
        above = torch.from_numpy(np.arange(1, 0x7C01, dtype=np.uint16).view(np.float16)).double()
        above[-1] = 65536.0
        middle = ((below + above) / 2).float()
        near = [
            middle,
            torch.nextafter(middle, below.float()),
            torch.nextafter(middle, above.float()),
        ]
        values = torch.cat([x * s for x in near for s in (1.0, -1.0)])
        b = Builder().add(1, values.numel(), 1, affine=None, statistics=None)
        p = Problem(
            b.entries, values[None], torch.empty(1, 0), torch.empty(0), b.weights, b.vectors
        )
        weights, _ = p.fold(torch.float16)
        with np.errstate(over="ignore"):
            wanted = values.numpy().astype(np.float16)
        assert np.array_equal(bits(weights[0, : values.numel()]), wanted.view(np.uint16))
