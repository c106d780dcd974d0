"""What ranks ask of their store, and how they know of each other that they live."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from deevo_ext.distributed.ranks import RankError

T = TypeVar("T")

BEATS = 8
"""Signs of life in a timeout."""


class AskedStore(threading.Thread):
    """Asks the store from a thread of its own: where it does not answer, only that one is stuck.

    lost: whether it did not answer.
    """

    def __init__(self, store: Store, rank: int, timeout: float) -> None:
        super().__init__(name="deevo-store", daemon=True)
        self._store, self._rank, self._timeout = store, rank, timeout
        self._asked: queue.SimpleQueue[tuple[Future[Any], Callable[[Store], Any]] | None]
        self._asked = queue.SimpleQueue()
        self.lost = False
        self.start()

    def run(self) -> None:
        """Asks until `close`."""
        while (asked := self._asked.get()) is not None:
            future, question = asked
            try:
                future.set_result(question(self._store))
            except BaseException as error:
                future.set_exception(error)

    def ask(self, question: Callable[[Store], T]) -> T:
        """Returns question(store); raises RankError where the store is gone or silent."""
        future: Future[T] = Future()
        self._asked.put((future, question))
        try:
            return future.result(self._timeout * (1 + 2 / BEATS))
        except TimeoutError:
            self.lost = True
            raise RankError(
                f"rank {self._rank} gets no answer from the process that keeps the store, rank 0 "
                f"or torchrun, for {self._timeout:.0f} s: it was stopped or cut off. Start the run "
                "again: it goes on from its run folder"
            ) from None
        except dist.DistError as error:
            self.lost = True
            raise RankError(
                f"rank {self._rank} has lost the connection to the others, one of which has ended: "
                f"see what it says, and start the run again ({first_line(error)})"
            ) from error

    def close(self) -> None:
        """Ends the thread, once it has its answers."""
        self._asked.put(None)


class Life(threading.Thread):
    """Says that this rank lives, and knows which others do.

    number: of the exchange that this rank has come to. ended: ends the thread.
    """

    def __init__(self, store: Store, rank: int, count: int, timeout: float) -> None:
        super().__init__(name="deevo-life", daemon=True)
        self._store = store
        self._rank, self._count, self._timeout = rank, count, timeout
        self.number, self.ended = 0, threading.Event()
        self._said = [b""] * count
        self._since = [time.monotonic()] * count
        self._store.set(self._key(rank), "0 0")
        self.start()

    def _key(self, rank: int) -> str:
        return f"deevo/lives/{rank}"

    def run(self) -> None:
        """Says it until it has ended."""
        beat = 0
        while not self.ended.wait(self._timeout / BEATS):
            beat += 1
            try:
                self._store.set(self._key(self._rank), f"{beat} {self.number}")
            except RuntimeError:  # whoever waits for the store says why
                return

    def missing(self, store: Store) -> str:
        """Says which rank has been silent for longer than the timeout; empty where none has."""
        now = time.monotonic()
        said = store.multi_get([self._key(rank) for rank in range(self._count)])
        for rank, one in enumerate(said):
            if one != self._said[rank]:
                self._said[rank], self._since[rank] = one, now
            elif now - self._since[rank] > self._timeout and rank != self._rank:
                return (
                    f"rank {rank} has not answered for {self._timeout:.0f} s: it was killed, "
                    "stopped or cut off. Start the run again: it goes on from its run folder"
                )
        return ""

    def late(self, number: int) -> list[int]:
        """Returns the ranks that have not come to an exchange, as far as they have said."""
        return [r for r, said in enumerate(self._said) if int(said.split()[1]) < number]


def first_line(error: BaseException) -> str:
    """Returns what an exception says, up to its first line's end."""
    return str(error).strip().partition("\n")[0][:200]
