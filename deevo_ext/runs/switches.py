"""Switches of torch that change the bits of scores: a run goes on under those it began with."""

from __future__ import annotations

from typing import Any

import torch


def torch_switches() -> dict[str, Any]:
    """Returns the present switches as JSON values for the journal's header.

    The number of threads is none of them: images are evaluated on one thread each. `float32`: in
    what products and convolutions of float32 are computed ("ieee" is float32 itself).
    """
    backends: Any = torch.backends  # mypy does not see all of them
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    float32 = {
        "cuda": backends.cuda.matmul,
        "cudnn": cudnn.conv,
        "mkldnn": mkldnn.matmul,
        "mkldnn_convolution": mkldnn.conv,
    }
    return {
        "autocast": {
            kind: str(torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
            if torch.is_autocast_enabled(kind)
        },
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        # What was never set says "none", and "ieee" once it was set and put back.
        "float32": {
            name: "ieee" if backend.fp32_precision == "none" else backend.fp32_precision
            for name, backend in float32.items()
        },
        "mkldnn": mkldnn.enabled,
        "cudnn": cudnn.enabled,
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
    }
