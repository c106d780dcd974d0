"""Backend `cuda-on-host`: the CUDA kernels' sources compiled as C++ and run by fibres on the CPU.

Test support alone. `play` chooses the machine: its multiprocessors, shared memory, threads of a
block, the order in which they run, and whether copies are made in bulk.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from deevo_ext import backends
from deevo_ext.backends import native
from support.paths import ROOT

HERE = Path(__file__).resolve().parent
NAME = "cuda-on-host"
ORDERS = ("forward", "reverse", "shuffled")
KERNELS = ("plan", "tell", "trials", "commit", "compose", "fold", "head", "loss_and_rank")
SOURCES = (
    *(ROOT / "csrc" / "cuda" / f"{name}.cu" for name in KERNELS),
    ROOT / "csrc" / "python" / "cuda.cpp",
    HERE / "cuda_on_host.cpp",
)


def compile_module(directory: Path, *flags: str) -> Path:
    """Compiles the kernels' sources with g++ into a module in a directory."""
    import pybind11

    includes = (ROOT / "csrc" / "include", ROOT / "csrc", HERE)
    system = (pybind11.get_include(), sysconfig.get_path("include"))
    command = [shutil.which("g++") or "g++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden"]
    # The contract's flags, as for every other translation unit.
    command += ["-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", *flags]
    command += [f"-I{path}" for path in includes] + [f"-isystem{path}" for path in system]
    objects = [directory / f"{source.name}.o" for source in SOURCES]
    commands = [
        [*command, "-x", "c++", "-c", str(source), "-o", str(target)]
        for source, target in zip(SOURCES, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run, commands))
    module = directory / f"deevo_cuda_on_host{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    run([command[0], "-shared", *flags, *map(str, objects), "-o", str(module)])
    return module


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"


def load_module(path: Path) -> ModuleType:
    """The compiled module at a path."""
    spec = importlib.util.spec_from_file_location("deevo_cuda_on_host", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def compiled() -> ModuleType:
    """The module at the path DEEVO_CUDA_ON_HOST, made by the first process that asks for it."""
    path = Path(os.environ["DEEVO_CUDA_ON_HOST"])
    with path.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_module(path.parent)
    return load_module(path)


@functools.cache
def register() -> None:
    """Makes the backend known, for CPU tensors: the real one's caller on the host's kernels."""
    operators = native.backend(compiled, lambda first: (0, 0))
    backends.register_backend(NAME, **vars(operators))


@contextlib.contextmanager
def play(
    multiprocessors: int = 3,
    shared_bytes: int = 232_448,
    threads: int = 64,
    order: str = "forward",
    bulk: bool = False,
) -> Iterator[ModuleType]:
    """Forces the backend on a machine with these properties."""
    register()
    machine = compiled()
    machine.play(multiprocessors, shared_bytes, threads, ORDERS.index(order), bulk)
    try:
        with backends.use(NAME):
            yield machine
    finally:
        machine.play(3, 232_448, 64, 0, False)
