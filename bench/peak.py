"""The most products and sums that a CPU can do, by a kernel that does nothing else.

Independent chains of fused multiply-adds on full vectors in registers: no memory, no waiting, so
nothing that multiplies can be faster. In 16 bits they are the dot products of AVX512_BF16, where
the CPU has them; else 16-bit numbers are multiplied as float32, and so is their limit.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

from bench import measure

_SOURCE = r"""
#include <immintrin.h>
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define STEP(c) v##c = STEP_OF(v##c); asm volatile("" : "+v"(v##c));  // none is left out
#define SUM(c) + v##c

typedef float vector __attribute__((vector_size(BYTES)));

extern "C" float float32(long steps) {
  const vector factor = vector{} + 0.999f, term = vector{} + 0.001f;
#define BEGIN(c) vector v##c = vector{} + 0.1f * c;
#define STEP_OF(v) v * factor + term
  CHAINS(BEGIN)
  for (long s = 0; s < steps; ++s) { CHAINS(STEP) }
  const vector sum = vector{} CHAINS(SUM);
  return sum[0];
#undef BEGIN
#undef STEP_OF
}

#ifdef __AVX512BF16__
extern "C" float bfloat16(long steps) {
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.1f), _mm512_set1_ps(0.2f));
#define BEGIN(c) __m512 v##c = _mm512_set1_ps(0.1f * c);
#define STEP_OF(v) _mm512_dpbf16_ps(v, factor, factor)
  CHAINS(BEGIN)
  for (long s = 0; s < steps; ++s) { CHAINS(STEP) }
  const __m512 sum = _mm512_setzero_ps() CHAINS(SUM);
  return _mm512_cvtss_f32(sum);
}
#endif
"""
_CHAINS, _STEPS = 12, 1 << 22


def run(dtype_name: str, threads: int, repetitions: int) -> dict[str, Any]:
    """Times the kernel on so many threads at once, each on a core of its own; a row."""
    kernel, flops = _kernel(dtype_name)
    cores = sorted(os.sched_getaffinity(0))

    def work(core: int) -> None:
        # Threads that begin together share a core for as long as it takes to be moved.
        os.sched_setaffinity(0, {core})  # of this thread
        kernel(_STEPS)

    def everywhere() -> None:
        workers = [threading.Thread(target=work, args=(core,)) for core in cores[:threads]]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    times, _ = measure.interleaved(everywhere, effort=measure.Effort(repetitions))
    done = min(threads, len(cores)) * _STEPS * _CHAINS * flops
    return {**measure.summary(times), "bytes": 1, "flops": done}


def _kernel(dtype_name: str) -> tuple[Any, int]:
    """The kernel of a dtype, and the FLOP of one of its instructions."""
    library, vector = _compiled()
    if dtype_name == "bfloat16" and hasattr(library, "bfloat16"):
        kernel, flops = library.bfloat16, 4 * 16
    else:
        kernel, flops = library.float32, 2 * vector // 4
    kernel.argtypes, kernel.restype = [ctypes.c_long], ctypes.c_float
    return kernel, flops


@cache
def _compiled() -> tuple[ctypes.CDLL, int]:
    """The kernels, compiled for this CPU, and the bytes of its vectors."""
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text().partition("flags")[2]))
    vector = 64 if "avx512f" in flags else 32 if "avx2" in flags else 16
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise SystemExit("bench: what a CPU can multiply is measured by a kernel; install g++")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.cpp", Path(folder) / "peak.so"
        source.write_text(_SOURCE)
        command = [compiler, "-O3", "-march=native", "-ffp-contract=fast", f"-DBYTES={vector}"]
        command += ["-shared", "-fPIC", str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: {' '.join(command)}\n{done.stderr}")
        return ctypes.CDLL(str(library)), vector
