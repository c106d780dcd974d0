"""Staging: rows made on one device, evaluated on another. Both are the CPU without a GPU."""

from __future__ import annotations

import pytest
import torch

from deevo_ext.search.staging import Staging

DEVICES = [
    pytest.param("cpu", "cpu"),
    pytest.param("cpu", "cuda", marks=pytest.mark.gpu),
    pytest.param("cuda", "cpu", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(("near", "far"), DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_arrive_and_last_until_the_next_but_one(
    near: str, far: str, dtype: torch.dtype
) -> None:
    rows = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).to(near, dtype)
    like = torch.zeros(1, 64, dtype=dtype, device=near)[:, :50]
    staging = Staging(like, 3, torch.device(far))
    arrived: list[torch.Tensor] = []
    for start in (0, 3, 6):
        chunk = rows[start : start + 3, :50]
        buffer = staging.near(chunk.shape[0])
        assert buffer.shape == chunk.shape and buffer.stride(0) == 64
        buffer.copy_(chunk)
        arrived.append(staging.send(chunk.shape[0]))
        for i in range(max(len(arrived) - 2, 0), len(arrived)):
            expected = rows[3 * i : 3 * i + 3, :50]
            assert arrived[i].device.type == far and arrived[i].dtype == dtype
            assert torch.equal(arrived[i].to(near), expected)
    assert arrived[0].data_ptr() == arrived[2].data_ptr()  # two buffers, however many chunks
    assert arrived[0].data_ptr() != arrived[1].data_ptr()
