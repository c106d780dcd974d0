"""Rows in huge pages: asked for where there are any, and zero either way; what memory there is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from deevo_ext.population import allocation

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags(address: int) -> list[str]:
    """VmFlags of the mapping that holds an address; hg: huge pages were asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 64), (3, 64), (5, 2**22)])
def test_rows_are_zero_and_contiguous(shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows = allocation.zero_rows(*shape, dtype)
    assert rows.shape == shape and rows.dtype == dtype and rows.is_contiguous()
    assert not rows.any()


@pytest.mark.skipif(not ENABLED.exists(), reason="this kernel has no huge pages")
def test_huge_pages_are_asked_for_under_large_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = allocation.zero_rows(4, 2**24, torch.float32)
    assert "hg" in flags(rows.data_ptr() + rows.nbytes // 2)
    # Small rows may lie where larger ones were: what counts is that nothing is asked for.
    monkeypatch.setattr(allocation, "_madvise", lambda: pytest.fail("asked for"))
    allocation.zero_rows(4, 64, torch.float32)


def test_available_bytes_is_part_of_what_the_machine_has() -> None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < allocation.available_bytes() <= installed


@pytest.mark.gpu
def test_what_torch_holds_unused_on_a_gpu_is_available() -> None:
    before = allocation.available_bytes("cuda")
    block = torch.empty(2**26, device="cuda")
    assert allocation.available_bytes("cuda") <= before - block.nbytes
    del block
    assert allocation.available_bytes("cuda") >= before - 2**26
