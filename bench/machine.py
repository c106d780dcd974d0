"""Facts about the machine, and the bytes that this process holds."""

from __future__ import annotations

import datetime
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

import deevo_ext
from bench import ROOT
from bench.summary import answer, commit, version
from deevo_ext.networks.engines.choose import cpu_model


def environment(device: str) -> dict[str, Any]:
    """Where and when: what every row carries."""
    facts = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_mhz": _cpu_mhz(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deevo_ext": deevo_ext.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2),
    }
    return facts | (_gpu() if device == "cuda" else {})


def _gpu() -> dict[str, Any]:
    """The GPU of this process and what drives it."""
    from deevo_ext import _build_info

    smi = ("nvidia-smi", "--format=csv,noheader,nounits", "--id=0")
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": answer(*smi, "--query-gpu=driver_version"),
        "torch_cuda": torch.version.cuda,
        "cuda": _build_info.cuda_version,
        "triton": version("triton"),
        # SM and memory in MHz, and what holds them down.
        "gpu_clocks": answer(*smi, "--query-gpu=clocks.sm,clocks.mem,clocks_event_reasons.active"),
    }


@cache
def _cpu_model() -> str:
    name = cpu_model() or os.uname().machine
    return " ".join(name.replace("(R)", "").replace("(TM)", "").split())


def _cpu_mhz() -> list[int] | None:
    """Slowest and fastest core, as the kernel sees them now; None where it does not say."""
    matches = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.M)
    clocks = [round(float(mhz)) for mhz in matches]
    return [min(clocks), max(clocks)] if clocks else None


@cache
def _commit() -> str | None:
    """The checkout's commit if deevo_ext runs in it, else the one that the package was built at."""
    if ROOT in Path(deevo_ext.__file__).resolve().parents:
        return commit(ROOT)
    try:
        from deevo_ext import _build_info
    except ImportError:
        return None
    return _build_info.git_commit


def peak_bytes(device: str) -> int:
    """Bytes that this process has held at most, on the device."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _bytes_of("VmHWM")


def held_bytes(device: str) -> int:
    """Bytes that this process holds now, on the device."""
    return torch.cuda.memory_allocated() if device == "cuda" else _bytes_of("VmRSS")


def _bytes_of(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    (kibibytes,) = re.findall(rf"^{field}:\s*(\d+) kB", status, re.M)
    return int(kibibytes) * 1024
