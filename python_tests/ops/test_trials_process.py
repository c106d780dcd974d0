"""The process around trials: subnormals that it flushes, the GIL, its threads and forks."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn
from deevo_ext.search.presets import configure
from support.operators import (
    OPERATORS,
    evolution,
    flush_denormal,
    instruction_set,
    num_threads,
    same_bits,
)
from support.weights import Weights, random_weights, reference_trials

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# Float environment


@pytest.mark.parametrize("threads", [1, 3])
def test_cpu_keeps_subnormals_where_the_caller_flushes_them(threads: int) -> None:
    def flushing() -> bool:
        return (torch.tensor([2e-38]) * 0.1).item() == 0.0

    w, expected_out = reference_trials(torch.float32, 70001, 6)
    with num_threads(threads), flush_denormal():
        assert flushing()
        out = w.trials()
        assert flushing()  # put back
        again = w.clone()
        accepted = torch.ones(6, dtype=torch.uint8)
        again.commit(accepted, torch.full((6,), -1, dtype=torch.int32))
        assert flushing()
    assert not flushing()
    assert same_bits(out, expected_out)
    assert same_bits(again.population, expected_out)


def test_cpu_plan_and_tell_keep_subnormals() -> None:
    def run() -> list[torch.Tensor]:
        e = evolution(configure("paper"), fitness, seed=3)
        e.plan()
        e.tell(trial_fitness)
        return list(e.tensors().values())

    def bits(values: list[int]) -> torch.Tensor:
        return torch.tensor(values).view(torch.float64)  # multiples of 2^-1074

    fitness, trial_fitness = bits([9, 8, 7, 6, 5, 4]), bits([8, 2, 9, 6, 1, 3])
    expected_tensors = run()
    assert expected_tensors[-2].tolist() == [1, 1, 0, 0, 1, 1]  # accepted
    with flush_denormal():
        flushed = run()
    assert all(same_bits(a, b) for a, b in zip(flushed, expected_tensors, strict=True))


def test_reference_refuses_to_flush_subnormals() -> None:
    w = random_weights(4, 8)
    e = evolution(configure("paper"), torch.ones(4, dtype=torch.float64))
    e.plan()
    members = torch.arange(4)
    accepted, slots = torch.ones(4, dtype=torch.uint8), torch.full((4,), -1, dtype=torch.int32)
    losses = torch.zeros(4, dtype=torch.float64)
    out = torch.zeros(4, 8)
    with backends.use("reference"), flush_denormal():
        for call in (
            lambda: OPERATORS.trials(*w.trials_arguments(members, out)),
            lambda: w.commit(accepted, slots),
            e.plan,
            lambda: e.tell(losses),
        ):
            with pytest.raises(DeevoError, match="needs subnormal numbers"):
                call()
    assert (out == 0.0).all()


STARTED_WHILE_FLUSHING = """
import torch
import deevo_ext.ops
from deevo_ext import backends
from deevo_ext.backends.checks import require_subnormals
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(2**20).mul_(2.0)
torch.set_flush_denormal(False)
require_subnormals()
"""


def test_reference_looks_at_torchs_threads_too() -> None:
    """They keep the setting of the thread that started them."""
    result = subprocess.run(
        [sys.executable, "-c", STARTED_WHILE_FLUSHING], capture_output=True, text=True, timeout=120
    )
    if "openmp" in torch.__config__.parallel_info().lower():
        assert "a thread of this process flushes them to zero" in result.stderr


# Threads and forks


def test_gil_is_free_during_trials() -> None:
    """Another Python thread wakes up many times within one call."""
    w = random_weights(4, 2_000_000, torch.bfloat16, archive_rows=0)
    w.choices[:, ChoiceColumn.THRESHOLD] = 30000
    members = torch.arange(4).repeat(16)
    out = torch.empty(64, 2_000_000, dtype=torch.bfloat16)
    wakes, stop = [0], threading.Event()

    def wake() -> None:
        while not stop.is_set():
            wakes[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=wake)
    interval = sys.getswitchinterval()
    with instruction_set("baseline"), num_threads(1):
        thread.start()
        sys.setswitchinterval(10.0)  # no thread takes the GIL from one that holds it
        try:
            before = wakes[0]
            OPERATORS.trials(*w.trials_arguments(members, out))
            during = wakes[0] - before
        finally:
            sys.setswitchinterval(interval)
            stop.set()
            thread.join()
    assert during > 20


def test_two_populations_from_two_threads() -> None:
    cases = [reference_trials(dtype, 2**16 + 1, 6) for dtype in DTYPES]
    wrong: list[int] = []

    def work(i: int) -> None:
        w, out = cases[i]
        for _ in range(20):
            if not same_bits(w.trials(), out):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _digest(w: Weights, out: torch.Tensor) -> str:
    OPERATORS.trials(*w.trials_arguments(torch.arange(6), out))
    return hashlib.sha256(out.numpy().tobytes()).hexdigest()


def _child(connection: Connection, w: Weights, out: torch.Tensor) -> None:
    connection.send(_digest(w, out))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use() -> None:
    w, _ = reference_trials(torch.float32, 70001, 6)
    out = torch.empty(6, 70001)
    with num_threads(2):
        here = _digest(w, out)
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=_child, args=(sender, w, torch.zeros(6, 70001)))
        child.start()
        answered = receiver.poll(60.0)
        if not answered:
            child.kill()
        child.join()
        assert answered, "the forked process hangs"
        assert receiver.recv() == here
