"""Memory for rows of weights, in huge pages where Linux gives them on request.

With 4 KiB pages a pass over a population spends a tenth of its time on looking up addresses, and
its first touch several times that of copying it. Linux grants requests where
`/sys/kernel/mm/transparent_hugepage/enabled` says "madvise", the usual setting, or "always".
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

import torch

_HUGE = 2 * 1024 * 1024


def zero_rows(
    count: int, stride: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Zeros [count, stride] that nothing else shares."""
    rows = torch.empty(count, stride, dtype=dtype, device=device)
    if rows.device.type == "cpu":
        request_huge_pages(rows)
    return rows.zero_()


def request_huge_pages(tensor: torch.Tensor) -> bool:
    """Asks for huge pages under a CPU tensor, where it has not been touched; True if granted.

    Values do not change. Smaller tensors than two huge pages are left alone.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
    advise = _madvise()
    if advise is None or end - start < _HUGE:
        return False
    return advise(start, end - start, mmap.MADV_HUGEPAGE) == 0


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
