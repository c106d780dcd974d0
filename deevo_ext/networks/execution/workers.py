"""Threads that evaluate beside each other, one torch thread each.

Threads inside an operator wait for each other at every layer, which small networks and busy
machines pay dearly, and their number would change the last bits. So each task has one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from deevo_ext.threads import one_thread

T = TypeVar("T")

# glibc's largest threshold of `_keep_freed_blocks`, less what a block of memory has around it.
_LARGEST_BLOCK = (32 << 20) - (64 << 10)


class Workers:
    """Runs tasks torch.get_num_threads() at a time on the CPU; one after the other elsewhere.

    A single worker is the thread that asks: handing tiny networks over to another one and waiting
    costs more than they do. A process that was forked has none of its parent's threads and gets its
    own.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._on_cpu = device.type == "cpu"
        self._pool: ThreadPoolExecutor | None = None
        if self._on_cpu:
            _keep_freed_blocks()
        if self.count > 1:
            self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self.count, "deevo", initializer=_one_thread)

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """The tasks' results, in order; started in order, so that one may wait for an earlier.

        After an error no further task begins, and that of the earliest task is raised.
        """
        if self._pool is None:
            with torch.no_grad(), one_thread(self._on_cpu):
                return [task() for task in tasks]
        if self._process != os.getpid():
            self._start()
        waiting = deque(enumerate(tasks))
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}
        # A worker takes one task after the other; each handed over alone would cost as much as a
        # small network.
        crew = [
            self._pool.submit(_work, waiting, results, errors)
            for _ in range(min(self.count, len(tasks)))
        ]
        try:
            for worker in crew:
                worker.result()
        finally:
            waiting.clear()  # where this thread was interrupted
            # The workers' torch.set_num_threads(1) became the default of threads yet to start.
            torch.set_num_threads(torch.get_num_threads())
        if errors:
            try:
                raise errors[min(errors)]
            finally:
                errors.clear()  # its traceback holds this frame, which would hold it
        return [results[index] for index in range(len(tasks))]


@torch.no_grad()
def _work(
    waiting: deque[tuple[int, Callable[[], T]]],
    results: dict[int, T],
    errors: dict[int, BaseException],
) -> None:
    """Runs tasks until none waits; nobody begins another after an error."""
    while True:
        try:
            index, task = waiting.popleft()
        except IndexError:
            return
        try:
            results[index] = task()
        except BaseException as error:
            errors[index] = error
            waiting.clear()
        del task  # before the next one: it may hold a member's weights


def _one_thread() -> None:
    """Makes torch's operators use one thread when this thread calls them.

    A thread takes over the process's number at its first parallel operator, after which that number
    may long be another: so it is asked for first.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)


def _keep_freed_blocks() -> None:
    """Makes glibc keep what layers free for the layers that follow.

    It maps blocks above a threshold anew each time, and gives freed memory beyond twice the
    threshold back to the kernel, whose fresh pages cost small networks a sixth of their time. The
    threshold follows the largest block that was freed (mallopt(3), M_MMAP_THRESHOLD), so one is.
    Other allocators are not moved by this.
    """
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)
