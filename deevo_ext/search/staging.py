"""Rows for an evaluation on another device than the population's, chunk by chunk.

A population may be larger than a GPU: it stays in host memory, trials are made there into one of
two page-locked buffers and copied to the device, so that the next chunk is made while the device
still evaluates this one. Memory on each side: two chunks.
"""

from __future__ import annotations

import torch


class Staging:
    """Two buffers on each device, used in turn.

    What `send` returns stays valid until the next but one `send`; work on it belongs on the
    device's current stream.

    like: a matrix of rows [*, D], whose dtype, device and row stride the near buffers take.
    rows: the most rows that a chunk has.
    device: where the far buffers lie.
    """

    def __init__(self, like: torch.Tensor, rows: int, device: torch.device) -> None:
        self.rows, self.device, self._turn = rows, device, 0
        self._columns = like.shape[1]
        shape = rows, like.stride(0)
        on_gpu = "cuda" in (device.type, like.device.type)

        def buffer(where: torch.device) -> torch.Tensor:
            pinned = on_gpu and where.type == "cpu"  # page-locked: copies need no driver's staging
            return torch.zeros(shape, dtype=like.dtype, device=where, pin_memory=pinned)

        self._near = [buffer(like.device) for _ in range(2)]
        self._far = [buffer(device) for _ in range(2)]
        self._sent: list[torch.cuda.Event | None] = [None, None]

    def near(self, rows: int) -> torch.Tensor:
        """Returns the next near buffer, [rows, D], when no copy reads it any more, to be filled."""
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()
        return self._near[self._turn][:rows, : self._columns]

    def send(self, rows: int) -> torch.Tensor:
        """Copies the near buffer's first `rows` rows to the far device and returns them there."""
        near, far = self._near[self._turn][:rows], self._far[self._turn][:rows]
        to_gpu = self.device.type == "cuda"
        # Whole rows, pads and all: only contiguous memory is copied in one piece.
        far.copy_(near, non_blocking=to_gpu)  # towards the host the caller reads at once: wait
        if to_gpu and near.device.type == "cpu":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            self._sent[self._turn] = event
        self._turn = 1 - self._turn
        return far[:, : self._columns]
