"""Checks that several operators share; errors name the operator and the argument."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import (
    MAX_TERMS,
    NUM_CHOICE_COLUMNS,
    NUM_STRATEGY_COLUMNS,
    Setting,
    gene_words,
    state_offsets,
)

STORAGE = (torch.float32, torch.bfloat16, torch.float16)
_SIZES = (Setting.MEMORY_SIZE, Setting.STRATEGY_PERIOD, Setting.SINUSOID_PERIOD)


class Checker:
    """Checks the arguments of one operator call; every method raises DeevoError."""

    def __init__(self, operator: str, device: torch.device) -> None:
        self.operator = operator
        self.device = device

    def fail(self, argument: str, actual: object, expected: str) -> None:
        """Raises the one kind of error that operators have."""
        raise DeevoError(f"deevo::{self.operator}: {argument} is {actual}; expected {expected}")

    def tensor(
        self, argument: str, tensor: torch.Tensor, dtype: torch.dtype, *shape: int | None
    ) -> None:
        """Demands a contiguous tensor of a dtype and shape (None: any size) on the device."""
        self._kind(argument, tensor, (dtype,), shape)
        if not tensor.is_contiguous():
            self.fail(argument, f"of strides {tensor.stride()}", "a contiguous tensor")
        self._plain(argument, tensor)

    def rows(
        self,
        argument: str,
        tensor: torch.Tensor,
        dtypes: tuple[torch.dtype, ...],
        *shape: int | None,
    ) -> None:
        """Demands a tensor of one of the dtypes, contiguous but for a gap between its rows."""
        self._kind(argument, tensor, dtypes, shape)
        if tensor.shape[0] > 0 and not tensor[0].is_contiguous():
            expected = "contiguous data of unit stride in each row"
            self.fail(argument, f"of strides {tensor.stride()}", expected)
        if tensor.shape[0] > 1 and tensor.stride(0) < tensor[0].numel():
            self.fail(argument, f"of strides {tensor.stride()}", "rows that do not overlap")
        self._plain(argument, tensor)

    def population(self, population: torch.Tensor, archive: torch.Tensor) -> None:
        """Demands weights [NP, D] and an archive [A, D] in the same dtype, D free where A = 0."""
        self.rows("population", population, STORAGE, None, None)
        columns = None if archive.shape[:1] == (0,) else population.shape[1]
        self.rows("archive", archive, (population.dtype,), None, columns)

    def _kind(
        self,
        argument: str,
        tensor: torch.Tensor,
        dtypes: tuple[torch.dtype, ...],
        shape: tuple[int | None, ...],
    ) -> None:
        """Demands one of the dtypes and the shape (None: any size), on the call's device."""
        if tensor.device != self.device:
            self.fail(argument, f"on {tensor.device}", f"device {self.device}, as the others")
        if tensor.dtype not in dtypes:
            self.fail(argument, tensor.dtype, " or ".join(map(str, dtypes)))
        # Most shapes are given whole, and comparing them whole is ten times as fast.
        sizes_fit = tensor.shape == shape or (
            tensor.dim() == len(shape)
            and all(
                want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
            )
        )
        if not sizes_fit:
            expected = ", ".join("any" if want is None else str(want) for want in shape)
            self.fail(argument, f"of shape {tuple(tensor.shape)}", f"shape ({expected})")

    def _plain(self, argument: str, tensor: torch.Tensor) -> None:
        """Refuses what autograd records, and lazily negated or conjugated views."""
        if tensor.requires_grad:
            self.fail(argument, "a tensor that requires grad", "a plain one (use .detach())")
        if tensor.is_neg() or tensor.is_conj():
            self.fail(argument, "a lazily negated view", "a plain tensor (use .resolve_neg())")

    def disjoint(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Demands that no two of the named tensors share memory."""
        spans = [(name, *_span(tensor)) for name, tensor in tensors if tensor.numel() > 0]
        spans.sort(key=lambda span: span[1])
        for (name, _, end), (other, start, _) in itertools.pairwise(spans):
            if start < end:
                self.fail(other, f"memory that {name} overlaps", "memory of its own")

    def seed(self, seed: int) -> None:
        """Demands a seed of the contract's range."""
        if not 0 <= seed < 2**63:
            self.fail("seed", seed, "an integer in 0..2^63-1")

    def configuration(
        self, settings: torch.Tensor, strategies: torch.Tensor, state: torch.Tensor
    ) -> None:
        """Demands settings, strategies and a state of the size that they imply.

        On a GPU reading the settings would wait for it: there the kernels compare the sizes.
        """
        self.tensor("settings", settings, torch.float64, len(Setting))
        self.tensor("strategies", strategies, torch.float64, None, NUM_STRATEGY_COLUMNS)
        if strategies.shape[0] == 0:
            self.fail("strategies", "empty", "at least one strategy")
        if self.device.type != "cpu":
            self.tensor("state", state, torch.float64, None)
            return
        sizes = [settings[i].item() for i in _SIZES]
        if not all(1.0 <= size <= 2**31 and size == int(size) for size in sizes):
            names = ", ".join(setting.name.lower() for setting in _SIZES)
            self.fail("settings", f"{sizes} for {names}", "whole numbers from 1")
        memory_size, strategy_period, sinusoid_period = (int(size) for size in sizes)
        offsets = state_offsets(memory_size, strategies.shape[0], strategy_period, sinusoid_period)
        self.tensor("state", state, torch.float64, offsets.size)

    def plan(self, members: int, choices: torch.Tensor, coefficients: torch.Tensor | None) -> None:
        """Demands a plan's tensors for NP members."""
        self.tensor("choices", choices, torch.int32, members, NUM_CHOICE_COLUMNS)
        if coefficients is not None:
            self.tensor("coefficients", coefficients, torch.float32, members, MAX_TERMS)

    def genes(self, members: int, genes: torch.Tensor, gene_mask: torch.Tensor) -> None:
        """Demands the segments' starts and the plan's bits for them."""
        self.tensor("genes", genes, torch.int64, None)
        self.tensor("gene_mask", gene_mask, torch.int32, members, gene_words(genes.numel()))

    def bounds(self, lower: float, upper: float, dtype: torch.dtype) -> None:
        """Demands bounds around 0, which pads hold, that storage can hold exactly."""
        for argument, bound in (("lower", lower), ("upper", upper)):
            exact = math.isinf(bound) or torch.tensor(bound, dtype=dtype).item() == bound
            if not exact:
                self.fail(argument, bound, f"a number that {dtype} holds exactly")
        if not lower <= 0.0 <= upper:
            self.fail("lower", f"{lower} with upper {upper}", "lower <= 0 <= upper")

    def columns(self, nonneg_start: int, first_weight: int) -> None:
        """Demands the two column positions of trials and commit."""
        if nonneg_start < 0:
            self.fail("nonneg_start", nonneg_start, "0 or more (D for no non-negative tail)")
        if first_weight < 0 or first_weight % 8 != 0:
            self.fail("first_weight", first_weight, "a multiple of 8, 0 or more")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
