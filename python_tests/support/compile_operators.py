"""Compiles the Triton operators for one GPU architecture, with no GPU needed.

Prints the version of Triton, then one JSON line per kernel: what
test_triton_operators_compiled.py looks at. Run in a process without TRITON_INTERPRET:
python -m support.compile_operators ARCHITECTURE
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from deevo_ext.backends.triton.commit import REGISTERS, commit_kernel
from deevo_ext.backends.triton.compose import REGISTERS as COMPOSE_REGISTERS
from deevo_ext.backends.triton.compose import WARPS as COMPOSE_WARPS
from deevo_ext.backends.triton.compose import compose_kernel, compose_shape
from deevo_ext.backends.triton.launch import OPTIONS, WEIGHT_WARPS, contracts, tile_shape
from deevo_ext.backends.triton.trials import trials_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
STORED = {"float32": ("*fp32", 4), "bfloat16": ("*i16", 2), "float16": ("*fp16", 2)}
ADDRESSES = {
    **dict.fromkeys(("choices", "gene_mask", "archive_slot", "block_of"), "*i32"),
    **dict.fromkeys(("genes", "members", "starts"), "*i64"),
    "accepted": "*u8",
    **dict.fromkeys(("coefficients", "recipes"), "*fp32"),
}
NUMBERS = {
    **dict.fromkeys(("seed", "nonneg_start", "first_weight"), "i64"),
    **dict.fromkeys(("lower", "upper"), "fp32"),
}


def compile_kernel(
    kernel: Any, constants: dict[str, Any], architecture: int, stored: str = "", **options: Any
) -> Any:
    """As a launch would on tensors that start at multiples of 16 bytes; other numbers are int32."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("population", "archive", "out", "workspace"):
            signature[name] = stored
        else:
            signature[name] = ADDRESSES.get(name) or NUMBERS.get(name, "i32")
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*")
    }
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, values, aligned)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={**OPTIONS, **options})


def weight_kernels(architecture: int) -> Iterator[tuple[str, Any]]:
    """trials and commit of 50 members for every storage type, with all they can do and bare."""
    for dtype, (stored, size) in STORED.items():
        for everything in (True, False) if architecture == 90 else (True,):
            members, tile = tile_shape(52 if everything else 50, 50, size)
            constants = {
                "MEMBERS": members,
                "TILE": tile,
                "WIDE": True,
                "ARCHIVE": everything,
                "BOUNDED": everything,
                "GENES": everything,
            }
            name = f"{dtype}{', everything' if everything else ''}"
            common = (constants, architecture, stored)
            yield (
                f"trials, {name}",
                compile_kernel(trials_kernel, *common, num_warps=WEIGHT_WARPS),
            )
            yield (
                f"commit, {name}",
                compile_kernel(
                    commit_kernel,
                    *common,
                    num_warps=WEIGHT_WARPS,
                    maxnreg=REGISTERS,
                ),
            )


def recipe_kernels(architecture: int) -> Iterator[tuple[str, Any]]:
    """compose of many recipes for every storage type."""
    for dtype, (stored, _) in STORED.items():
        constants = {**compose_shape(8), "WIDE": True}
        options = {"num_warps": COMPOSE_WARPS, "maxnreg": COMPOSE_REGISTERS}
        kernel = compile_kernel(compose_kernel, constants, architecture, stored, **options)
        yield f"compose, {dtype}", kernel


def busiest_loop(dump: str) -> int:
    """Instructions of the innermost loop that has most multiplications."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", dump, re.M)
    places = {int(address, 16): n for n, (address, _) in enumerate(lines)}
    loops = []
    for end, (_, text) in enumerate(lines):
        to = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        begin = places.get(int(to.group(1), 16), end) if to else end
        products = sum("FMUL" in body for _, body in lines[begin:end])
        loops.append((products, begin - end - 1))
    return -max(loops)[1]


def facts(kernel: Any) -> dict[str, Any]:
    """Counts of instructions: vectors of 16 bytes and contractions in PTX, the rest in SASS."""
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sass = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z].*?);", dump, re.M)
    # ptxas writes constants by HFMA2 with RZ; the kernels have no half arithmetic to contract.
    contracted = [i for i in sass if re.match(r"[FD]FMA|HFMA2(?!.*RZ)", i)]
    registers = re.search(r"REG:(\d+)", dump)
    assert registers is not None and len(sass) > 100
    return {
        "wide_loads": len(re.findall(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
        "narrow_loads": len(re.findall(r"LDG\.E\.(?:U16|S16|U8\.S)", "\n".join(sass))),
        "wide_stores": len(re.findall(r"st\.global[\w.:]*\.v4\.b32", ptx)),
        "ptx_fma": len(re.findall(r"\bfma\.", ptx)),
        "flushing": len(re.findall(r"\.ftz\b|\.approx\b", ptx)),
        "sass_fma": len(contracted),
        "spills": len([i for i in sass if re.match(r"LDL|STL", i)]),
        "philox_products": len(re.findall(r"\bmul\.hi\.u32", ptx)),
        "barriers": len(re.findall(r"\bbar\.sync", ptx)),
        "registers": int(registers.group(1)),
        "loop": busiest_loop(dump),
    }


if __name__ == "__main__":
    architecture = int(sys.argv[1])
    fused = contracts(architecture)
    print(json.dumps({"triton": triton.__version__}))
    for name, kernel in (*weight_kernels(architecture), *recipe_kernels(architecture)):
        print(json.dumps({"kernel": name, "contracts": fused, **facts(kernel)}), flush=True)
