"""Switches of torch that change the bits of scores: a run goes on under those it began with."""

from __future__ import annotations

from typing import Any

import torch


def torch_switches() -> dict[str, Any]:
    """Returns the present switches as JSON values for the journal's header.

    The number of threads is none of them: images are evaluated on one thread each.
    """
    cudnn = torch.backends.cudnn
    return {
        "autocast": {
            kind: str(torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
            if torch.is_autocast_enabled(kind)
        },
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": cudnn.enabled,
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
    }
