"""The connection between the ranks of a run: Gloo for what they send, a store for who is there.

Before ranks send, each says in the store that it has come, and waits until all have. However long
another rank computes, it is waited for as long as it lives: a thread of each rank says so a few
times in every `timeout`. A rank that has failed puts the reason where the others wait, so that all
of them stop with it; one that was killed, stopped or cut off says nothing for `timeout` seconds.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import queue
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from deevo_ext.distributed.ranks import RankError, Ranks
from deevo_ext.errors import DeevoError

T = TypeVar("T")

_BEATS = 8  # signs of life in a timeout
_GO = "go"
_KINDS = ("gather", "lead", "wait", "end")  # of exchanges


class Connection(Ranks):
    """Ranks that torch.distributed connects.

    store: of the process group, whose keys are used under a name of their own. group: Gloo's, of
    all ranks. timeout: the seconds after which a silent rank is given up.
    """

    def __init__(self, store: Store, group: dist.ProcessGroup, timeout: float) -> None:
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self._group, self._timeout, self._number = group, timeout, 0
        # Clients of their own: one that waits lets nobody else speak.
        self._store = _Store(_client(store), self.rank, timeout)
        self._life = _Life(_client(store), self.rank, self.count, timeout)

    def gather(self, value: T) -> list[T]:
        """Returns every rank's value, in the order of ranks; values are pickled."""
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        self._all_here("gather")
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with self._sending():
            dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
            longest = max(int(size) for size in sizes)
            own = torch.zeros(longest, dtype=torch.uint8)
            own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.count)]
            dist.all_gather(parts, own, group=self._group)
        self.traffic += sum(int(size) for size in sizes) - len(data)
        return [
            pickle.loads(part.numpy().data[: int(size)])
            for part, size in zip(parts, sizes, strict=True)
        ]

    def lead(self, compute: Callable[[], T]) -> T:
        """Returns what rank 0 computes, to every rank."""
        value = compute() if self.leads else None
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL) if self.leads else b""
        self._all_here("lead")
        with self._sending():
            size = torch.tensor([len(data)])
            dist.broadcast(size, 0, group=self._group)
            part = torch.empty(int(size), dtype=torch.uint8)
            if self.leads:
                part = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            dist.broadcast(part, 0, group=self._group)
        if self.leads:
            return cast(T, value)
        self.traffic += int(size)
        return cast(T, pickle.loads(part.numpy().data))

    def wait(self) -> None:
        """Waits until every rank is here."""
        self._all_here("wait")

    def fail(self, error: BaseException) -> None:
        """Tells the others why this rank stops, and waits a moment until they have heard it."""
        said = str(error) if isinstance(error, DeevoError) else traceback.format_exc().strip()
        reason = None if isinstance(error, RankError) else f"rank {self.rank} failed: {said}"

        def tell(store: Store) -> None:
            if reason is not None:
                store.set(self._key(self._number + 1), reason)
            heard = store.add("deevo/heard", 1)
            end = time.monotonic() + 2 * self._timeout / _BEATS
            while heard < self.count and time.monotonic() < end:
                time.sleep(0.02)
                heard = store.add("deevo/heard", 0)

        if not self._store.lost:
            with contextlib.suppress(RankError):
                self._store.ask(tell)

    def leave(self) -> None:
        """Waits until all ranks have come to the end: rank 0 may hold the store."""
        self._all_here("end")

        def go(store: Store) -> None:
            left = store.add("deevo/left", 1)
            end = time.monotonic() + self._timeout
            while self.leads and left < self.count and time.monotonic() < end:
                time.sleep(0.005)
                left = store.add("deevo/left", 0)

        self._store.ask(go)

    def close(self) -> None:
        """Ends the threads that speak for this rank."""
        self._life.ended.set()
        self._store.close()

    def _key(self, number: int) -> str:
        return f"deevo/{number}/go"

    def _all_here(self, what: str) -> None:
        """Waits until all ranks have come to this exchange, of the same kind."""
        self._number += 1
        self._life.number = number = self._number
        key = self._key(number)

        def come(store: Store) -> bytes | None:
            if store.add(f"deevo/{number}/{what}", 1) == self.count:
                store.set(key, _GO)
            return wait(store)

        def wait(store: Store) -> bytes | None:
            began = time.monotonic()
            while not store.check([key]):
                if (waited := time.monotonic() - began) > self._timeout / _BEATS:
                    return None
                time.sleep(min(0.05, waited / 10))  # a tenth more than the wait itself
            said = store.get(key)
            if said == _GO.encode() and self.leads and number > 1:  # all have left the one before
                for name in ("go", *_KINDS):
                    store.delete_key(f"deevo/{number - 1}/{name}")
            return said

        def parted(store: Store) -> str:
            """Says what ranks do where some do one thing and the rest another, so none comes."""
            keys = {kind: f"deevo/{number}/{kind}" for kind in _KINDS}
            came = {kind: store.add(key, 0) for kind, key in keys.items() if store.check([key])}
            if sum(came.values()) < self.count or max(came.values()) == self.count:
                return ""
            each = ", ".join(f"{n} of {self.count} {kind}" for kind, n in came.items())
            return (
                f"the ranks have parted, and none can go on ({each}): give all of them the same "
                "arguments, run_dir= among them"
            )

        since, said = time.monotonic(), self._store.ask(come)
        while said is None:
            if reason := self._store.ask(self._life.missing) or self._store.ask(parted):
                self._store.ask(functools.partial(_set, key=key, reason=reason))
            elif time.monotonic() - since > self._timeout:
                since = time.monotonic()
                warnings.warn(
                    f"rank {self.rank} waits for ranks {self._life.late(number)}, which live, for "
                    f"more than {self._timeout:.0f} s",
                    stacklevel=3,
                )
            said = self._store.ask(wait)
        if said != _GO.encode():
            raise RankError(said.decode(errors="replace"))

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """Makes Gloo's errors say what they mean."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} was cut off while ranks exchanged results: another rank was "
                f"killed or stopped, or the network failed ({_first_line(error)}). Start the run "
                "again: it goes on from its run folder"
            ) from error


class _Store(threading.Thread):
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
            return future.result(self._timeout * (1 + 2 / _BEATS))
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
                f"see what it says, and start the run again ({_first_line(error)})"
            ) from error

    def close(self) -> None:
        """Ends the thread, once it has its answers."""
        self._asked.put(None)


class _Life(threading.Thread):
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
        while not self.ended.wait(self._timeout / _BEATS):
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


def _client(store: Store) -> Store:
    """Returns a connection of its own to the same store."""
    client: Store = cast(Any, store).clone()
    return client


def _set(store: Store, key: str, reason: str) -> None:
    store.set(key, reason)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
