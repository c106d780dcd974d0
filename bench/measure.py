"""Clock, memcpy yardstick, and facts about the machine."""

from __future__ import annotations

import ctypes
import datetime
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deevo_ext
from bench import ROOT
from deevo_ext.info import read_cpuinfo

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


def interleaved(
    run: Callable[[], None],
    yardstick: Callable[[], None],
    repetitions: int,
    reset: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Seconds of each repetition of `run` and of `yardstick`, alternating, after one of each.

    reset: called before each `run`, not timed.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        reset()
        for function, seconds in zip((run, yardstick), times, strict=True):
            start = time.perf_counter()
            function()
            if repetition > 0:
                seconds.append(time.perf_counter() - start)
    return times


def summary(seconds: list[float]) -> dict[str, float]:
    """median_s, p20_s and p80_s."""
    p20, median, p80 = np.percentile(seconds, [20, 50, 80]).tolist()
    return {"median_s": median, "p20_s": p20, "p80_s": p80}


def environment() -> dict[str, Any]:
    """Where and when: what every row carries."""
    return {
        "torch": torch.__version__,
        "cpu": _cpu_model(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2),
    }


@cache
def _cpu_model() -> str:
    name = read_cpuinfo(Path("/proc/cpuinfo").read_text())[0] or os.uname().machine
    return " ".join(name.replace("(R)", "").replace("(TM)", "").split())


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
