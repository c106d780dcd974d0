"""How the operators of the CUDA backend reach `deevo_ext._C`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from deevo_ext import _extension
from deevo_ext.errors import DeevoError


def compiled() -> ModuleType:
    return _extension.load()


def queue_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The tensor's device by number, and the stream that is current there."""
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def call(operator: str, on: torch.Tensor, *arguments: Any) -> None:
    """Calls the launcher of an operator, for the device and stream of tensor `on`."""
    try:
        getattr(compiled(), f"cuda_{operator}")(queue_of(on), *arguments)
    except ValueError as error:
        raise DeevoError(f"deevo::{operator}: {error}") from None


def rows_of(rows: torch.Tensor) -> tuple[int, int, int]:
    """Address, count and stride of what lies along the first dimension."""
    return rows.data_ptr(), rows.shape[0], rows.stride(0)


def genes_of(genes: torch.Tensor, gene_mask: torch.Tensor) -> tuple[int, int, int]:
    """Addresses of the genes and of their mask, with the genes' number between them."""
    return genes.data_ptr(), genes.numel(), gene_mask.data_ptr()


def dtype_of(tensor: torch.Tensor) -> str:
    """A dtype as the extension names it."""
    return str(tensor.dtype).removeprefix("torch.")
