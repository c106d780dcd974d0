"""Compiles fold's, head's, the pool's and linear_scores' Triton kernels with no GPU.

Prints the version of Triton, then a JSON line for each.
Run without TRITON_INTERPRET: python -m support.compile_evaluation ARCHITECTURE
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from deevo_ext.backends.triton.fold import BLOCK, fold_kernel
from deevo_ext.backends.triton.head import (
    STAGES,
    WARPS,
    head_kernel,
    head_tiles,
    loss_tiles,
    losses_kernel,
    sums,
)
from deevo_ext.backends.triton.launch import OPTIONS
from deevo_ext.backends.triton.linear_scores import (
    PARTS,
    REGISTERS,
    SPLIT_BLOCK,
    score_tiles,
    scores_kernel,
    split_kernel,
)
from deevo_ext.backends.triton.linear_scores import STAGES as SCORE_STAGES
from deevo_ext.backends.triton.linear_scores import WARPS as SCORE_WARPS
from deevo_ext.backends.triton.pooling import mean_kernel
from support.compile_convolutions import narrow_loads, resources

CLASSES, CHANNELS = 1000, 2048
SUMS = sums(CLASSES, 0.1)
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "fold float32 to float16": (
        fold_kernel,
        {"rows": "*fp32", "table": "*i64", "eps": "*fp64", "weights": "*i16", "vectors": "*i32"},
        {"ENTRIES": 64, "BLOCK": BLOCK, "KIND": 2},
    ),
    "fold bfloat16 to float32": (
        fold_kernel,
        {"rows": "*i16", "table": "*i64", "eps": "*fp64", "weights": "*i32", "vectors": "*i32"},
        {"ENTRIES": 64, "BLOCK": BLOCK, "KIND": 0},
    ),
    "head float16": (
        head_kernel,
        {"weight": "*fp16", "labels": "*i64", "ranks": "*i32"},
        {**SUMS, **head_tiles(CLASSES, CHANNELS, torch.float16)},
    ),
    "head float32": (
        head_kernel,
        {"labels": "*i64", "ranks": "*i32"},
        {**SUMS, **head_tiles(CLASSES, CHANNELS, torch.float32)},
    ),
    "loss_and_rank float16": (
        losses_kernel,
        {"logits": "*fp16", "labels": "*i64", "ranks": "*i32"},
        {**SUMS, **loss_tiles(CLASSES)},
    ),
    "mean float16": (mean_kernel, {"x": "*fp16"}, {"BLOCK_P": 16, "BLOCK_C": 128}),
}
# Types in Triton and torch, and classes: a tile of several images, and tiles of one, whose classes
# are a multiple of 8.
SCORES = (
    *(("fp16", torch.float16, 10), ("fp16", torch.float16, 1000), ("bf16", torch.bfloat16, 1000)),
    *(("fp32", torch.float32, 10), ("fp32", torch.float32, 1000)),
)
POINTERS = ("coefficients", "z0", "slopes", "parts", "inverses", "predicted", "probability",
            "rows", "statistics", "constants", "table", "eps", "weights", "vectors", "workspace",
            "x", "weight", "bias", "labels", "losses", "ranks", "logits", "out")  # fmt: skip


def score_kernels(architecture: int) -> dict[str, tuple[Any, dict[str, str], dict[str, Any]]]:
    """linear_scores for an architecture, as KERNELS."""
    integers = {"labels": "*i64", "ranks": "*i32", "predicted": "*i32", "smoothing": "fp32"}
    result = {}
    for stored, dtype, classes in SCORES:
        tiles = score_tiles(classes, dtype, architecture // 10 == 9)
        constants = {**tiles, "WIDE": classes % 8 == 0, "SMOOTHING": True}
        types = {"slopes": f"*{stored}", "parts": f"*{stored}", **integers}
        result[f"linear_scores {stored} {classes}"] = (scores_kernel, types, constants)
        constants = {"PARTS": PARTS[dtype], "BLOCK": SPLIT_BLOCK}
        result[f"split {stored}"] = (split_kernel, {"parts": f"*{stored}"}, constants)
    return result


def main(architecture: int) -> None:
    print(json.dumps({"triton": triton.__version__}))
    for name, (kernel, types, constants) in (KERNELS | score_kernels(architecture)).items():
        names = list(inspect.signature(kernel.fn).parameters)
        signature, attributes = {}, {}
        for i, argument in enumerate(names):
            if argument in constants:
                signature[argument] = "constexpr"
                continue
            default = "*fp32" if argument in POINTERS else "i32"
            signature[argument] = types.get(argument, "fp32" if argument == "inverse" else default)
            if argument in POINTERS or argument in (
                *("channels", "weight_member", "x_member", "padded", "part"),
            ):
                attributes[(i,)] = [["tt.divisibility", 16]]
        values = {(names.index(n),): value for n, value in constants.items()}
        source = ASTSource(kernel, signature, values, attributes)
        target = GPUTarget("cuda", architecture, 32)
        options = {"num_warps": WARPS, "num_stages": STAGES}
        if kernel is scores_kernel:
            options = {"num_warps": SCORE_WARPS, "num_stages": SCORE_STAGES, "maxnreg": REGISTERS}
        ptx = triton.compile(source, target, {**options, **OPTIONS}).asm["ptx"]
        registers, spills = resources(ptx, architecture)
        record = {
            "kernel": name,
            "mma": len(re.findall(r"\b(?:(?:wgmma\.mma_async|mma)\.sync|tcgen05\.mma)", ptx)),
            "fused": len(re.findall(r"\bfma\.rn\.f(?:32|64)", ptx)),
            "approximate": len(re.findall(r"\b(?:div\.full|sqrt\.approx|ex2|lg2)\b", ptx)),
            "flushes": ptx.count(".ftz"),
            "narrow_loads": narrow_loads(ptx),
            "registers": registers,
            "spills": spills,
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
