"""Compiles the convolution kernels for every layer of torchvision's ResNets, with no GPU needed.

Prints the version of Triton, then one JSON line per distinct kernel: engine, layer, the tensor core
instructions and loads in its PTX, its shared memory, and the registers and spilled bytes that ptxas
reports. Run in a process without TRITON_INTERPRET:
python -m support.compile_convolutions ARCHITECTURE DTYPE LAYER...

LAYER: names of layers; all of them if there is none.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from deevo_ext.backends.triton import pointwise
from deevo_ext.backends.triton.convolution import (
    Operands,
    Operation,
    convolution_kernel,
    launch_arguments,
)
from deevo_ext.backends.triton.launch import OPTIONS, power_of_two
from deevo_ext.backends.triton.pointwise import walk_of

POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def resnet_layers() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, sizes) of ResNet-18's and ResNet-50's convolutions at 224 x 224, ReLU folded in."""
    yield "stem", {"c": 4, "o": 64, "k": 7, "s": 2, "size": 224}
    size = 56
    for stage, width in enumerate((64, 128, 256, 512)):
        s = 1 if stage == 0 else 2
        for block in ("first", "later"):
            stride = s if block == "first" else 1
            into = size if block == "first" else size // s
            name = f"stage {stage + 1} {block}"
            # Bottlenecks
            inner = 64 if (stage, block) == (0, "first") else width * (2 if block == "first" else 4)
            yield f"{name} 1x1", {"c": inner, "o": width, "k": 1, "s": 1, "size": into}
            yield f"{name} 3x3", {"c": width, "o": width, "k": 3, "s": stride, "size": into}
            last = {"c": width, "o": 4 * width, "k": 1, "s": 1, "size": into // stride}
            shortcut = {"c2": inner, "s2": stride, "size2": into}
            extra = shortcut if block == "first" else {"residual": True}
            yield f"{name} 1x1 out", {**last, **extra}
            # Basic blocks
            inner = width // 2 if block == "first" and stage else width
            yield f"{name} basic 3x3", {"c": inner, "o": width, "k": 3, "s": stride, "size": into}
            last = {"c": width, "o": width, "k": 3, "s": 1, "size": into // stride}
            shortcut = {"c2": inner, "s2": stride, "size2": into}
            extra = shortcut if block == "first" and stage else {"residual": True}
            yield f"{name} basic out", {**last, **extra}
        size //= s


def operands_of(layer: dict[str, Any], dtype: torch.dtype) -> tuple[Operands, Operation]:
    """A layer's operands, without values."""
    members, samples = 1, 256

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    k, s, size = layer["k"], layer["s"], layer["size"]
    x = empty(members, samples, size, size, layer["c"])
    weight = empty(members, layer["o"], k, k, layer["c"])
    out = empty(members, samples, size // s, size // s, layer["o"])
    downsample = None
    if "c2" in layer:
        x2 = empty(members, samples, layer["size2"], layer["size2"], layer["c2"])
        stride2 = (layer["s2"], layer["s2"])
        downsample = (x2, empty(members, layer["o"], 1, 1, layer["c2"]), stride2)
    bias = empty(members, layer["o"], of=torch.float32)
    residual = out if layer.get("residual") else None
    operands = Operands(x, weight, bias, out, residual, downsample)
    operation = Operation((s, s), (k // 2, k // 2), activation="relu", precision="tf32")
    return operands, operation


def launches(layer: dict[str, Any], dtype: torch.dtype) -> Iterator[tuple[str, Any, Any, Any]]:
    """Engine, kernel, arguments and constants of each way to compute a layer."""
    operands, operation = operands_of(layer, dtype)
    _, arguments, meta = launch_arguments(operands, operation, None)
    yield "triton", convolution_kernel, arguments, meta
    terms = sum(map(power_of_two, (layer["c"], layer["c2"]) if "c2" in layer else (layer["c"],)))
    if layer["k"] == layer["s"] == 1 and walk_of(terms, layer["o"], dtype.itemsize):
        _, arguments, meta = pointwise.launch_arguments(operands, operation, 132)
        yield "pointwise", pointwise.pointwise_kernel, arguments, meta


def compile_kernel(kernel: Any, arguments: Any, meta: Any, architecture: int) -> tuple[Any, str]:
    """How to compile a kernel, specialised as Triton's launcher would, and its key."""
    options = {name: meta.pop(name) for name in ("num_warps", "num_stages") if name in meta}
    options |= OPTIONS
    names = list(inspect.signature(kernel.fn).parameters)
    signature = dict.fromkeys(names, "constexpr")
    constants: dict[tuple[int, ...], Any] = {(names.index(n),): v for n, v in meta.items()}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, value in enumerate(arguments):
        if isinstance(value, torch.Tensor):
            signature[names[i]] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif value == 1:
            constants[(i,)] = 1
        else:
            signature[names[i]] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    key = json.dumps([signature, sorted(map(str, constants.items())), sorted(attributes), options])
    source = ASTSource(kernel, signature, constants, attributes)
    return (lambda: triton.compile(source, GPUTarget("cuda", architecture, 32), options)), key


def resources(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers and bytes spilled, as ptxas reports them."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    ptxas = get_ptxas(architecture).path
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas, "-v", f"--gpu-name={target[1]}", str(source), "-o", f"{source}.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", report))
    registers = re.search(r"Used (\d+) registers", report)
    assert registers is not None, report
    return int(registers[1]), spills


def narrow_loads(ptx: str) -> int:
    """Loads from global memory of less than 4 bytes."""
    return len(re.findall(r"\bld\.global(?:\.\w+)*\.[bus](?:8|16)\b", ptx))


def main(architecture: int, dtype: torch.dtype, only: list[str]) -> None:
    """Prints the lines of the named layers, or of all."""
    print(json.dumps({"triton": triton.__version__}))
    seen: set[str] = set()
    for name, layer in resnet_layers():
        if only and name not in only:
            continue
        for engine, kernel, arguments, meta in launches(layer, dtype):
            compile_, key = compile_kernel(kernel, arguments, meta, architecture)
            if key in seen:
                continue
            seen.add(key)
            compiled = compile_()
            ptx = compiled.asm["ptx"]
            registers, spills = resources(ptx, architecture)
            record = {
                "layer": name,
                "engine": engine,
                "mma": len(re.findall(r"\b(?:wgmma\.mma_async\.sync|mma\.sync|tcgen05\.mma)", ptx)),
                "wide_loads": len(re.findall(r"cp\.async\.c[ag]\.shared\.global .*0x10", ptx)),
                "narrow_loads": narrow_loads(ptx),
                "registers": registers,
                "spills": spills,
                "shared": compiled.metadata.shared,
            }
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3:])
