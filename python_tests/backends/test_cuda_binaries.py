"""What nvcc made of the CUDA kernels, for every architecture in the installed extension.

Read off the machine code with cuobjdump: no GPU is needed.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from deevo_ext import _build_info, _extension

REGISTERS = 65_536  # of a multiprocessor, on every architecture from 8.0 on
# Threads that must fit: blocks of launch bounds, as many as the kernel's occupancy plan has on a
# multiprocessor. tile_kernel has one block of 512 by its shared memory; gather_kernel hides L2's
# latency with two of 256; the tables' kernels are a single block.
# Those of an evaluation launch as many as are said to fit.
THREADS = {
    **{"tile": 512, "compose": 512, "gather": 512, "plan": 256, "gene_mask": 256, "tell": 256},
    **{"fold": 4 * 256, "loss_and_rank": 4 * 256, "head": 2 * 256},
}
ELEMENTWISE = (
    "tile",
    "gather",
    "compose",
)  # of trials, commit and compose: no fused multiplication and addition


def cuobjdump() -> str | None:
    """From PATH, or out of Triton's wheel."""
    if (found := shutil.which("cuobjdump")) is not None:
        return found
    triton = importlib.util.find_spec("triton")
    places = triton.submodule_search_locations if triton else None
    for place in places or ():
        tool = Path(place) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if tool.is_file():
            return str(tool)
    return None


pytestmark = [
    pytest.mark.skipif(
        _build_info.cuda_version is None, reason="the extension was built without CUDA kernels"
    ),
    pytest.mark.skipif(
        cuobjdump() is None, reason="neither CUDA's nor Triton's cuobjdump is there"
    ),
]


def dump(what: str) -> str:
    tool = cuobjdump()
    assert tool is not None
    library = _extension.load().__file__
    result = subprocess.run([tool, what, library], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def kernel(name: str) -> str:
    names = "tile|gather|compose|plan|gene_mask|tell|fold|head|loss_and_rank"
    found = re.search(rf"\d({names})_kernel", name)
    assert found, name
    return found[1]


@functools.cache
def instructions() -> dict[tuple[str, str, str], list[tuple[int, str]]]:
    """Addresses and instructions, without predicates, by architecture, kernel and full name."""
    code: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    architecture, name = "", ""
    for line in dump("-sass").splitlines():
        if found := re.match(r"arch = sm_(\w+)", line):
            architecture = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            name = found[1]
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ +)?([A-Z].*?);", line):
            code[architecture, kernel(name), name].append((int(found[1], 16), found[2]))
    return code


@functools.cache
def machine_code() -> dict[tuple[str, str, str], Counter[str]]:
    """How often each instruction occurs."""
    return {
        key: Counter(text.split()[0] for _, text in code) for key, code in instructions().items()
    }


def inner_loops(code: list[tuple[int, str]]) -> Iterator[Counter[str]]:
    """What each loop without loops inside consists of: the first part of instructions' names."""
    place = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (_, text) in enumerate(code):
        if (found := re.match(r"BRA\b.*?0x([0-9a-f]+)", text)) and place[int(found[1], 16)] <= i:
            loops.append((place[int(found[1], 16)], i))
    for first, last in loops:
        if not any(first <= f and end <= last and (f, end) != (first, last) for f, end in loops):
            names = (text.split()[0].split(".")[0] for _, text in code[first : last + 1])
            yield Counter(names)


@functools.cache
def usage() -> dict[tuple[str, str, str], dict[str, int]]:
    """Registers, stack and local memory, in the same way."""
    usages = {}
    architecture, name = "", ""
    for line in dump("-res-usage").splitlines():
        if found := re.match(r"arch = sm_(\w+)", line):
            architecture = found[1]
        elif found := re.search(r"Function (\S+):", line):
            name = found[1]
        elif "REG:" in line:
            numbers = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
            usages[architecture, kernel(name), name] = numbers
    return usages


def test_every_architecture_has_every_kernel() -> None:
    built = {name.removesuffix("+PTX").replace(".", "") for name in _build_info.cuda_architectures}
    expected = {
        **{"tile": 6, "gather": 3, "compose": 6, "plan": 1, "gene_mask": 1, "tell": 1},
        **{"fold": 9, "loss_and_rank": 3, "head": 6},
    }
    for table in (machine_code(), usage()):
        assert {architecture for architecture, _, _ in table} == built
        for architecture in built:
            assert Counter(k for a, k, _ in table if a == architecture) == expected, architecture


def test_nothing_spills_or_lives_in_local_memory() -> None:
    for key, numbers in usage().items():
        assert numbers["STACK"] == 0 and numbers["LOCAL"] == 0, key
    for key, counts in machine_code().items():
        local = [op for op in counts if re.match(r"(LDL|STL)\b", op)]
        assert not local, (key, local)


def test_registers_leave_room_for_the_planned_threads() -> None:
    for key, numbers in usage().items():
        granted = -(-numbers["REG"] // 8) * 8
        assert granted * THREADS[key[1]] <= REGISTERS, (key, numbers["REG"])


def test_weights_are_never_made_by_fused_multiplication_and_addition() -> None:
    checked = 0
    for key, counts in machine_code().items():
        if key[1] not in ELEMENTWISE:
            continue
        fused = [op for op in counts if re.match(r"[FD]FMA", op)]
        assert not fused, (key, fused)
        assert any(op.startswith("FMUL") for op in counts), key
        assert any(op.startswith("FADD") for op in counts), key
        checked += 1
    assert checked


def test_no_kernel_asks_for_a_fused_operation() -> None:
    """In PTX: what division and square root become in machine code is full of them."""
    if not any(name.endswith("+PTX") for name in _build_info.cuda_architectures):
        pytest.skip("the extension holds no PTX")
    text = dump("-ptx")
    entries = map(kernel, re.findall(r"\.entry (\w+)", text))
    assert {"plan", "tell", "fold", "head", "loss_and_rank"} <= set(entries)
    assert "mul.f64" in text or "mul.rn.f64" in text
    assert not re.findall(r"^\s*(?:fma|mad)\.\w*\.?f(?:32|64)\b.*", text, re.M)


def test_weights_move_16_bytes_at_a_time() -> None:
    for key, counts in machine_code().items():
        architecture, which, name = key
        if which not in ELEMENTWISE:
            continue

        def has(pattern: str, counts: Counter[str] = counts) -> bool:
            return any(re.match(pattern, op) for op in counts)

        assert has(r"STG\.E\.EF\.128"), key
        if which == "gather":
            assert has(r"LDG\.E\.128"), key
            continue
        assert has(r"LDS\.128"), key
        bulk = int(re.sub(r"\D", "", architecture)) >= 90
        assert has(r"UBLKCP" if bulk else r"LDGSTS\.E.*\.128"), key
        if "Float32" not in name:
            assert has(r"F2FP"), key  # two weights rounded by one instruction


# Instructions of a warp for 512 bytes of trials, by the number of terms. An H200 has slots for
# about 249 in the time in which memory takes in 512 bytes and gives 512.
MOST_INSTRUCTIONS = {"Float32": {1: 54, 2: 67, 3: 80}, "Float16": {1: 116, 2: 150, 3: 185}}
MOST_INSTRUCTIONS["BFloat16"] = MOST_INSTRUCTIONS["Float16"]
MOST_MORE_OF_COMMIT = 7  # which stores what it replaces, too


def test_a_step_of_a_trial_takes_few_instructions() -> None:
    """A step is a loop that makes two vectors of every lane, random bits included."""
    keys = [key for key in instructions() if key[:2] == ("90", "tile")]
    if not keys:
        pytest.skip("the extension was not compiled for sm_90")
    assert len(keys) == 6
    for key in keys:
        found = re.search(r"B?Float\d\d", key[2])
        assert found is not None
        commit = "Lb1" in key[2]
        loops = list(inner_loops(instructions()[key]))
        for terms, most in MOST_INSTRUCTIONS[found[0]].items():
            products = 2 * terms * (4 if found[0] == "Float32" else 8)
            steps = [
                loop.total() / 2
                for loop in loops
                if loop["FMUL"] == products and loop["LDS"] == 2 * (2 + terms) and loop["ISETP"] > 8
            ]
            assert len(steps) == 1, (key, terms, steps)
            assert steps[0] <= most + commit * MOST_MORE_OF_COMMIT, (key, terms, steps[0])


# Instructions of a warp for a term of 512 bytes of a recipe, of which 8 and 16 are the product and
# the sum of each of a lane's weights.
MOST_A_TERM = {"Float32": 13, "Float16": 27, "BFloat16": 27}


def test_a_term_of_a_recipe_takes_few_instructions() -> None:
    """A term is a loop that adds it to four recipes, in two vectors of float32, or one of 16."""
    checked = 0
    for key, code in instructions().items():
        if key[:2] != ("90", "compose") or "Li4E" not in key[2]:
            continue
        found = re.search(r"B?Float\d\d", key[2])
        assert found is not None
        vectors = 2 if found[0] == "Float32" else 1
        terms = [
            loop.total() / 4 / vectors
            for loop in inner_loops(code)
            if loop["FMUL"] == 32 and loop["FADD"] == 40 and loop["LDS"] == 1 + vectors
        ]
        assert len(terms) == 1, key
        assert terms[0] <= MOST_A_TERM[found[0]], (key, terms)
        checked += 1
    if not checked:
        pytest.skip("the extension was not compiled for sm_90")
    assert checked == 3


def test_genes_are_searched_by_whole_warps() -> None:
    """32 are asked for at a time."""
    for key, counts in machine_code().items():
        if key[1] in ("tile", "compose"):
            assert any(op.startswith("VOTE") for op in counts), key


def test_folded_weights_move_16_bytes_at_a_time() -> None:
    """Read as they are stored, and written channels last."""
    checked = 0
    for key, counts in machine_code().items():
        if key[1] != "fold":
            continue
        assert any(re.match(r"LDG\.E\.128", op) for op in counts), key
        assert any(re.match(r"STG\.E(\.\w+)*\.128", op) for op in counts), key
        if key[0] == "90":  # on 8.0 a loop may end with a call of the next instruction
            # Division in 64 bits is a function of a hundred instructions; 1 store: of shifts.
            writing = [loop for loop in inner_loops(instructions()[key]) if loop["STG"] > 1]
            assert writing and all(loop["CALL"] == 0 for loop in writing), key
        # A name has the source's type and the target's; the same one twice is written once.
        if re.findall(r"B?Float\d\d", key[2])[-1] != "Float32":
            assert any(op.startswith("F2FP") for op in counts), key  # rounded by an instruction
        checked += 1
    assert checked


def test_lanes_exchange_what_they_found_in_registers() -> None:
    for key, counts in machine_code().items():
        if key[1] in ("loss_and_rank", "head"):
            assert any(re.match(r"SHFL\.BFLY", op) for op in counts), key


def test_features_are_read_16_bytes_at_a_time() -> None:
    for key, counts in machine_code().items():
        if key[1] == "head":
            assert any(re.match(r"LDG\.E\.128", op) for op in counts), key
