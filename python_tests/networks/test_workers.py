"""Threads that evaluate: each keeps to one torch thread, whatever it was asked first."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import weakref
from concurrent.futures import Future

import pytest
import torch

from deevo_ext.networks.execution.workers import Workers
from support.operators import num_threads


def test_a_worker_keeps_to_one_thread_though_its_first_task_needed_none() -> None:
    with num_threads(3):
        workers = Workers(torch.device("cpu"))
        assert workers.run([lambda: 5, lambda: 7]) == [5, 7]  # no operator of torch
        assert workers.run([torch.get_num_threads] * 6) == [1] * 6
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_order_and_an_earlier_task_may_be_waited_for(threads: int) -> None:
    with num_threads(threads):
        workers, done = Workers(torch.device("cpu")), Future[int]()
        tasks = [lambda: done.set_result(4), done.result, *(lambda i=i: i for i in range(50))]
        assert workers.run(tasks) == [None, 4, *range(50)]
        assert workers.run([]) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_the_earliest_error_is_raised_and_nothing_begins_after_it(threads: int) -> None:
    """As many tasks fail as there are workers, all of them at once."""
    begun: list[int] = []
    failing = threading.Barrier(threads)

    def task(index: int) -> None:
        begun.append(index)
        if index < threads:
            failing.wait(10.0)
            raise ValueError(index)

    with num_threads(threads):
        workers = Workers(torch.device("cpu"))
        with pytest.raises(ValueError, match=r"^0$"):
            workers.run([functools.partial(task, index) for index in range(1000)])
        assert sorted(begun) == list(range(threads))
        assert workers.run([lambda: 1]) == [1]
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_holds_nothing_once_it_is_dealt_with(threads: int) -> None:
    """Members' weights among the locals of its traceback would lie in memory until a collection."""

    class Weights:
        pass

    held: list[weakref.ref[Weights]] = []

    def task() -> None:
        weights = Weights()
        held.append(weakref.ref(weights))
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        with num_threads(threads), contextlib.suppress(ValueError):
            Workers(torch.device("cpu")).run([task] * 5)
        assert held and [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()


def test_a_single_worker_is_the_thread_that_asks() -> None:
    with num_threads(1):
        workers = Workers(torch.device("cpu"))
    with num_threads(3):
        found = workers.run([lambda: (threading.get_ident(), torch.get_num_threads())])
        assert found == [(threading.get_ident(), 1)] and torch.get_num_threads() == 3
        assert workers.run([torch.is_grad_enabled]) == [False]
