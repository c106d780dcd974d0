"""PopulationForward's memory: bounded by threads and graph, whatever the members and images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import child_environment
from support.peak import NETWORKS

# Code and primitives that oneDNN makes at first use, threads' stacks.
_LIBRARIES = 64 << 20
# What glibc keeps of each thread's freed memory: twice its largest threshold, mallopt(3).
_FREED = 64 << 20
_THREADS = 2


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="no kernel that resets peaks"
)
@pytest.mark.parametrize(("name", "members"), [("resnet20", 4), ("resnet18", 18)])
def test_peak_memory_is_bounded_by_threads_and_graph(
    name: str, members: int, tmp_path: Path
) -> None:
    given = [name, str(_THREADS), str(members)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "support.peak", *given],
        env=child_environment(DEEVO_CACHE_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # As documented: folded weights and oneDNN's packed ones of each member at hand, a weight that
    # is packed inside a call, prepared images.
    member = 2 * found["weights"]
    bound = _THREADS * (found["activations"] + found["largest"] + _FREED)
    bound += (_THREADS + 1) * member + found["images"] + _LIBRARIES
    assert found["peak"] <= bound, (found, bound)
    # What grows with members, or with members and micro-batches, would not fit.
    kept = members * max(found["weights"], NETWORKS[name].micro_batches * found["activations"])
    assert kept > 1.5 * bound, (kept, bound)
