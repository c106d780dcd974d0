"""Ranks of a machine have a population's rows in one place of its memory, each as its own."""

from __future__ import annotations

import os
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deevo_ext.distributed.joining import joined
from deevo_ext.population import one_copy
from deevo_ext.population.population import Population
from support.ranks import on_ranks

_SIZE, _WIDTH = 5, 1 << 19  # members, weights: rows of 2 MiB


def _read(dtype: torch.dtype = torch.float32) -> Population:
    model = nn.Sequential(nn.Linear(_WIDTH, 1, bias=False), nn.BatchNorm1d(1))
    generator = torch.Generator().manual_seed(0)
    states = []
    for k in range(_SIZE):
        state = {name: one.clone() for name, one in model.state_dict().items()}
        state["0.weight"] = torch.randn(1, _WIDTH, generator=generator)
        state["1.running_mean"] += k
        states.append(state)
    return Population.from_state_dicts(
        model, states, dtype=dtype, batchnorm="inherit", frozen="1.bias", spare=2
    )


def _memory(tensor: torch.Tensor) -> dict[str, int]:
    """What Linux says of the mapping that a tensor lies in, bytes."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if edges := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(edge, 16) for edge in edges.groups())
            inside = first <= tensor.data_ptr() < last
        elif inside and (size := re.match("([A-Za-z_]+): +([0-9]+) kB", line)):
            found[size[1]] = 1024 * int(size[2])
    return found


def _same(one: Population, other: Population) -> bool:
    return (
        torch.equal(one.rows, other.rows)
        and torch.equal(one.statistics, other.statistics)
        and one.manifest() == other.manifest()
        and all(torch.equal(one.fixed[name], other.fixed[name]) for name in other.fixed)
        and [*one.state_dict(1)] == [*other.state_dict(1)]
    )


def _no_memory(name: str) -> int:
    raise OSError(28, "No space left on device")


def _shared(dtype: torch.dtype, refused: int | None) -> dict[str, Any]:
    """What a rank has; refused: rank 0, which may make no file, or 1, which may not open it."""
    reads = 0

    def read() -> Population:
        nonlocal reads
        reads += 1
        return _read(dtype)

    with joined() as group, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if refused == group.rank == 0:
            one_copy.os.memfd_create = _no_memory  # type: ignore[attr-defined]
        if refused == group.rank == 1:
            one_copy.os.readlink = lambda path: f"{path} of another"  # type: ignore[attr-defined]
        population = one_copy.read_once_a_machine(read)
        same = _same(population, _read(dtype))  # every page is touched
        group.wait()
        before = _memory(population.rows)
        group.wait()
        if group.rank == 1:
            population.rows[2].zero_()
        population.append_average("mean", [0, 2])
        group.wait()
        after = _memory(population.rows)
        own = _read(dtype)
        if group.rank == 1:
            own.rows[2].zero_()
        own.append_average("mean", [0, 2])
        return {
            "reads": reads,
            "same": same and _same(population, own),
            "before": before,
            "after": after,
            "warned": [str(one.message) for one in caught],
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_lie_once_in_memory_and_are_each_ranks_own(dtype: torch.dtype) -> None:
    row = dtype.itemsize * _WIDTH
    found = on_ranks(3, _shared, dtype, None)
    assert [one["reads"] for one in found] == [1, 0, 0]
    for rank, one in enumerate(found):
        assert one["same"] and not one["warned"]
        before, after = one["before"], one["after"]
        # This rank sees all members, and a third of them is counted as its own.
        assert before["Rss"] >= _SIZE * row and before["Private_Dirty"] <= 1 << 16
        assert before["Pss"] <= 0.4 * before["Rss"]
        # What a rank writes it has for itself: the average, and rank 1 a member.
        written = (2 if rank == 1 else 1) * row
        assert written <= after["Private_Dirty"] <= written + (1 << 16)


@pytest.mark.parametrize("refused", [0, 1])
def test_ranks_that_cannot_share_have_copies(refused: int) -> None:
    found = on_ranks(2, _shared, torch.float32, refused)
    assert [one["reads"] for one in found] == [1, 1]
    assert all(one["same"] for one in found)
    (said,) = found[refused]["warned"]
    what = ("cannot put the population into memory", "cannot open the population")[refused]
    assert said.startswith(f"rank {refused} {what} that its machine's ranks could share")
    assert not found[1 - refused]["warned"]


def test_another_process_file_is_not_opened(tmp_path: Path) -> None:
    """Who opens a pipe waits for somebody who writes into it."""

    def waits(*_: Any) -> None:
        raise AssertionError("it is opened")

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "7").symlink_to(tmp_path / "pipe")
    kept = one_copy._Kept(str(tmp_path / "7"), "deevo-rows", (1, 1), 1, torch.float32, 1)
    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(5)
    try:
        with pytest.raises(FileNotFoundError, match=r"7 is .*pipe, not deevo-rows"):
            kept.opened()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
