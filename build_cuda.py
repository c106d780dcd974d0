"""Finds nvcc and decides how setup.py compiles csrc/cuda with it; nothing here looks at GPUs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Machine code for data-centre GPUs from the A100 on, and PTX for whatever comes after.
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
LEAST_CAPABILITY = 80  # asynchronous copies into shared memory, bfloat16 conversions


class CudaError(Exception):
    """A one-line explanation of what about CUDA is not as it must be."""


@dataclass(frozen=True)
class Toolkit:
    """nvcc and what belongs to it."""

    nvcc: tuple[str, ...]  # the command
    version: str
    include: Path
    library: Path  # the directory of libcudart_static.a

    def flags(self, host_compiler: str, includes: list[str], debug: bool) -> list[str]:
        """Compilation flags without the architectures.

        The contract: no multiplication and addition rounded as one, on the device and on the host.
        """
        optimisation = ["-O0", "-g"] if debug else ["-O3", "-lineinfo"]
        host = "-fPIC,-fvisibility=hidden,-ffp-contract=off"
        return ["-std=c++17", *optimisation, "-fmad=false", "-Xcompiler", host,
                "-ccbin", host_compiler, *includes]  # fmt: skip

    def link(self) -> list[str]:
        """The runtime is linked in: no other copy in the process, no driver needed to import."""
        return [f"-L{self.library}", "-lcudart_static", "-ldl", "-lrt"]


@dataclass(frozen=True)
class Architectures:
    """What to compile for; names as torch spells them, "9.0" or "10.0+PTX"."""

    names: tuple[str, ...]
    flags: tuple[str, ...]


def forced() -> bool | None:
    """FORCE_CUDA: True demands CUDA kernels, False leaves them out, None is as nvcc is found."""
    text = os.environ.get("FORCE_CUDA", "").strip().lower()
    return None if not text else text not in ("0", "off", "false", "no")


def find_toolkit() -> Toolkit:
    """The first nvcc of CUDACXX, CUDA_HOME, CUDA_PATH, PATH, PyPI's wheel and /usr/local/cuda."""
    command = _find_nvcc()
    version = re.search(r"release (\d+\.\d+)", _ask([*command, "--version"]))
    # nvcc on PATH may be a link or a script: only nvcc itself knows where its toolkit is.
    top = re.search(r"^#\$ TOP=(.*)$", _ask([*command, "--dryrun", "-x", "cu", "x.cu"]), re.M)
    if version is None or top is None:
        raise CudaError(f"{shlex.join(command)} does not answer as nvcc does")
    root = Path(top[1].strip()).resolve()
    target = root / "targets" / f"{os.uname().machine}-linux"
    include = _holding("cuda_runtime.h", [root / "include", target / "include"])
    library = _holding("libcudart_static.a", [root / "lib64", root / "lib", target / "lib"])
    return Toolkit(tuple(command), version[1], include, library)


def _find_nvcc() -> list[str]:
    if text := os.environ.get("CUDACXX"):
        command = shlex.split(text)
        if shutil.which(command[0]) is None:
            raise CudaError(f"CUDACXX names {command[0]!r}, which does not exist")
        return command
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    site_packages = dict.fromkeys([sysconfig.get_path("purelib"), *sys.path])
    wheels = [p for s in site_packages for p in sorted(Path(s).glob("nvidia/*/bin/nvcc"))]
    candidates = [*(Path(home) / "bin" / "nvcc" for home in homes), "nvcc", *wheels,
                  Path("/usr/local/cuda/bin/nvcc")]  # fmt: skip
    for candidate in candidates:
        if (program := shutil.which(str(candidate))) is not None:
            return [program]
    raise CudaError(
        "no nvcc in CUDACXX, CUDA_HOME, CUDA_PATH, PATH, nvidia-cuda-nvcc or /usr/local/cuda"
    )


def _holding(file: str, directories: list[Path]) -> Path:
    for directory in directories:
        if (directory / file).is_file():
            return directory
    raise CudaError(f"the CUDA toolkit lacks {file}: none in {' or '.join(map(str, directories))}")


def _ask(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CudaError(f"{shlex.join(command)} does not run: {error}") from None
    return result.stdout + result.stderr


def architectures(toolkit: Toolkit) -> Architectures:
    """TORCH_CUDA_ARCH_LIST, or those of the defaults that this nvcc knows."""
    known = set(re.findall(r"compute_(\d+)", _ask([*toolkit.nvcc, "--list-gpu-arch"])))
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    names = re.split(r"[;,\s]+", listed or DEFAULT_ARCHITECTURES)
    if not listed:
        fitting = [name for name in names if _digits(name) in known]
        if not fitting:
            raise CudaError(f"CUDA {toolkit.version} knows none of {DEFAULT_ARCHITECTURES}")
        names = [name.removesuffix("+PTX") for name in fitting]
        names[-1] += "+PTX"
    flags = []
    for name in filter(None, names):
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", name):
            raise CudaError(
                f'TORCH_CUDA_ARCH_LIST holds {name!r}; expected numbers such as "9.0" or "10.0+PTX"'
            )
        if _digits(name) not in known or int(_digits(name)) < LEAST_CAPABILITY:
            raise CudaError(
                f"TORCH_CUDA_ARCH_LIST holds {name!r}; CUDA {toolkit.version} and these kernels "
                f"have {' '.join(sorted(known, key=int))} from {LEAST_CAPABILITY} on"
            )
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return Architectures(tuple(filter(None, names)), tuple(flags))


def _digits(name: str) -> str:
    """ "9.0a+PTX" -> "90"."""
    return re.sub(r"\D", "", name.removesuffix("+PTX"))
