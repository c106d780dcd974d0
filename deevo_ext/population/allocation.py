"""Memory for rows of weights, and how much of it can be had.

Rows lie in huge pages where Linux gives them on request. With 4 KiB pages a pass over a population
spends a tenth of its time on looking up addresses, and its first touch several times that of
copying it. `/sys/kernel/mm/transparent_hugepage/enabled` says whether requests are heard
("madvise", the usual setting, or "always").
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

import torch

from deevo_ext.errors import DeevoError

_HUGE = 2 * 1024 * 1024


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Returns the bytes that can be had on a device.

    On a GPU that is what is free there and what torch holds without using it; on the host it is
    what Linux expects to give without swapping.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise DeevoError("/proc/meminfo lacks MemAvailable: Linux 3.14 or newer is needed")


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a tensor on a device, without waiting for what a GPU has been given to do before.

    Towards a GPU it goes through page-locked memory: of other memory the host waits for the copy,
    and thereby for everything in front of it.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def zero_rows(
    count: int, stride: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Returns zeros [count, stride] that share no memory with anything else.

    Raises DeevoError where there is not so much memory.
    """
    try:
        rows = torch.empty(count, stride, dtype=dtype, device=device)
    except RuntimeError as error:  # torch's out of memory is one, too
        size = count * stride * dtype.itemsize / 2**30
        raise DeevoError(
            f"{count:,} rows of {stride:,} weights need {size:,.1f} GiB of {device} memory, which "
            f"cannot be had ({str(error).splitlines()[0]}); use fewer members or 16-bit rows"
        ) from error
    if rows.device.type == "cpu":
        _request_huge_pages(rows)
    return rows.zero_()


def _request_huge_pages(tensor: torch.Tensor) -> None:
    """Asks for huge pages under a CPU tensor that has not been touched yet.

    Values do not change. A tensor that holds no whole huge page is left alone.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
    if start < end:
        _madvise()(start, end - start, mmap.MADV_HUGEPAGE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
