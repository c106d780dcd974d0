"""Clock, memcpy yardstick, cold caches, and facts about the machine."""

from __future__ import annotations

import ctypes
import datetime
import itertools
import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deevo_ext
from bench import ROOT

LEAST_REPETITIONS = 5
_MOST_SETS = 512

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcpy.restype = ctypes.c_void_p


@dataclass
class Yardstick:
    """glibc's memcpy of one tensor's memory to another's, in one part per thread.

    ctypes releases the interpreter's lock, so the parts run at the same time. Both tensors must
    have been written before: the first touch of a page costs more than copying it.
    """

    source: torch.Tensor
    target: torch.Tensor
    threads: int

    @property
    def bytes_copied(self) -> int:
        return min(_bytes(self.source), _bytes(self.target))

    def __call__(self) -> None:
        size, parts = self.bytes_copied, self.threads
        if size < 1 << 20:
            parts = 1
        cuts = [size * part // parts // 64 * 64 for part in range(parts)] + [size]
        source, target = self.source.data_ptr(), self.target.data_ptr()
        workers = [
            threading.Thread(target=_memcpy, args=(target + a, source + a, b - a))
            for a, b in pairwise(cuts[1:])
        ]
        for worker in workers:
            worker.start()
        _memcpy(target, source, cuts[1])
        for worker in workers:
            worker.join()


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def sets_for(bytes_of_one: int, quick: bool = False) -> int:
    """How many sets of buffers, used in turn, leave nothing of a set in the caches; quick: 2."""
    return max(
        1, min(2 if quick else _MOST_SETS, -(-2 * last_level_cache() // max(1, bytes_of_one)))
    )


def in_turn(functions: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A function that calls the next of them each time."""
    if len(functions) == 1:
        return functions[0]
    ring = itertools.cycle(functions)
    return lambda: next(ring)()


def cold(sets: int) -> str:
    """What a row says of its caches."""
    return f"{sets} sets of buffers in turn" if sets > 1 else "larger than the caches"


def interleaved(
    run: Callable[[], Any],
    yardstick: Callable[[], Any],
    repetitions: int,
    reset: Callable[[], None] = lambda: None,
    budget_s: float = float("inf"),
    least: int = LEAST_REPETITIONS,
    warm_up: bool = True,
) -> tuple[list[float], list[float]]:
    """Seconds of each repetition of `run` and of `yardstick`, alternating, after one of each.

    reset: called before each `run`, not timed. budget_s: after so many seconds no more repetitions
    begin, once there are `least`. warm_up: False where `run` was called before.
    """
    times: tuple[list[float], list[float]] = ([], [])
    begun = time.perf_counter()
    for repetition in range(0 if warm_up else 1, repetitions + 1):
        reset()
        for function, seconds in zip((run, yardstick), times, strict=True):
            start = time.perf_counter()
            function()
            if repetition > 0:
                seconds.append(time.perf_counter() - start)
        if repetition >= least and time.perf_counter() - begun > budget_s:
            break
    return times


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """median_s, p20_s and p80_s."""
    p20, median, p80 = np.percentile(seconds, [20, 50, 80]).tolist()
    return {"median_s": median, "p20_s": p20, "p80_s": p80}


def environment() -> dict[str, Any]:
    """Where and when: what every row carries."""
    return {
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


@cache
def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.M)
    name = found[1] if found else os.uname().machine
    return " ".join(name.replace("(R)", "").replace("(TM)", "").split())


def _cpu_mhz() -> list[int] | None:
    """Slowest and fastest core, as the kernel sees them now; None where it does not say."""
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.M)
    clocks = [round(float(mhz)) for mhz in found]
    return [min(clocks), max(clocks)] if clocks else None


@cache
def last_level_cache() -> int:
    """Bytes of the largest cache; 32 MiB where the kernel does not say."""
    sizes = [
        int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1:] in ("K", "M")
    ]
    return max(sizes, default=32 << 20)


def status_bytes(field: str) -> int:
    """A size out of this process's /proc/self/status."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


@cache
def _commit() -> str | None:
    """The checkout's commit if deevo_ext runs in it, else the one that the package was built at."""
    if ROOT not in Path(deevo_ext.__file__).resolve().parents:
        try:
            from deevo_ext import _build_info
        except ImportError:
            return None
        return _build_info.git_commit
    describe = "git --no-optional-locks describe --always --abbrev=40 --dirty --exclude=*"
    try:
        result = subprocess.run(describe.split(), cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() or None
