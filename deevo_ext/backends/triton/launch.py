"""How the kernels are launched: where they can run, in which tiles, with which options."""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from deevo_ext.backends.checks import require_subnormals
from deevo_ext.errors import DeevoError

# Never contracted: the contract rounds every operation.
OPTIONS = {"enable_fp_fusion": False}

# Bytes of one step (members x columns): a 16-byte access a row and thread. Bytes of a tile that the
# L1 cache shall hold, several programs sharing it.
WEIGHT_WARPS = 8
STEP_BYTES = 16 * 32 * WEIGHT_WARPS
TILE_BYTES = 64 * 1024
NARROWEST, WIDEST = 64, 1024

PROGRAMS_ON_CPU = 2  # the interpreter's; more than one tile each, as on a device


def require_device(operator: str, kernel: object, device: torch.device) -> None:
    """Raises DeevoError unless the kernel, compiled or interpreted, can run on the device."""
    if device.type != "cpu":
        return
    if not isinstance(kernel, InterpretedFunction):
        raise DeevoError(
            f"deevo::{operator}: tensors are on the CPU, where Triton's kernels run in its "
            "interpreter only: set TRITON_INTERPRET=1 before Triton is imported, move the tensors "
            "to a CUDA device, or choose the backend cpu"
        )
    require_subnormals()


def contracts(capability: int) -> bool:
    """Says whether Triton compiles products and sums of weights to fused ones for a GPU.

    capability is 10 times the compute capability. Triton 3.6 brings CUDA 12.9's assembler, which
    on Blackwell fuses pairs of float32 although their instructions say that each is rounded.
    """
    return capability >= 100 and triton.__version__.startswith("3.6.")


def require_rounding(operator: str, device: torch.device) -> None:
    """Raises DeevoError where trials would not have the bits that every backend gives."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if contracts(10 * major + minor):
        raise DeevoError(
            f"deevo::{operator}: Triton {triton.__version__} rounds products and sums of weights "
            f"together on {torch.cuda.get_device_name(device)}, so that runs would not be "
            "reproducible; expected Triton 3.7 or newer: update it, or build the extension where "
            "nvcc is found, which needs no Triton here"
        )


def require_conversions(operator: str, x: torch.Tensor) -> None:
    """Raises DeevoError for bfloat16 in the interpreter, which converts it wrongly."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        raise DeevoError(
            f"deevo::{operator}: bfloat16 on the CPU, where Triton's interpreter converts it "
            "wrongly; expected float32 or float16"
        )


def num_programs(device: torch.device, per_multiprocessor: int) -> int:
    """Returns how many programs a kernel whose programs take tiles in turn is launched with."""
    if device.type == "cpu":
        return PROGRAMS_ON_CPU
    return per_multiprocessor * torch.cuda.get_device_properties(device).multi_processor_count


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **meta: Any
) -> None:
    """Runs a grid of programs on the device's current stream; nothing if the grid is empty."""
    if 0 in grid:
        return
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*arguments, **meta, **OPTIONS)
    else:
        kernel[grid](*arguments, **meta)


_workspaces: dict[tuple[torch.device, int], torch.Tensor] = {}


def workspace(device: torch.device, size: int) -> torch.Tensor:
    """Returns at least `size` bytes for one launch on the device's current stream.

    They are allocated once for a stream, whose launches follow each other. A captured graph, which
    may be replayed beside the stream's later launches, gets its own from the graph's memory pool.
    """
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return torch.empty(size, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    key = (device, stream)
    if key not in _workspaces or _workspaces[key].numel() < size:
        _workspaces[key] = torch.empty(size, dtype=torch.uint8, device=device)
    return _workspaces[key]


def power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least n, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def stored(rows: torch.Tensor) -> torch.Tensor:
    """Returns the rows as a kernel gets them: bfloat16 as its bits (see `storage`)."""
    return rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows


def wide(*matrices: torch.Tensor) -> bool:
    """Says whether columns and row strides are multiples of 8 weights, as layouts make them."""
    return all(
        rows.shape[1] % 8 == 0 and rows.stride(0) % 8 == 0 for rows in matrices if rows.numel() > 0
    )


def in_units(count: int, in_blocks: bool) -> int:
    """Returns a column count or stride as a kernel wants it: in blocks of 8 if wide."""
    return count // 8 if in_blocks else count


def tile_shape(rows: int, members: int, itemsize: int) -> tuple[int, int]:
    """Returns the members of a step and the columns of a tile for a kernel.

    The kernel keeps `rows` rows of a tile in the L1 cache.
    """
    columns = WIDEST
    while columns > NARROWEST and rows * columns * itemsize > TILE_BYTES:
        columns //= 2
    step = STEP_BYTES // itemsize
    members = min(max(step // columns, 1), power_of_two(members))
    return members, min(step // members, WIDEST)


def bounded(lower: float, upper: float) -> bool:
    """Says whether there is a bound at all."""
    return lower > -float("inf") or upper < float("inf")
