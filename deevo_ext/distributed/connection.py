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
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from deevo_ext.distributed.liveness import BEATS, AskedStore, Life, first_line
from deevo_ext.distributed.ranks import RankError, Ranks
from deevo_ext.errors import DeevoError

T = TypeVar("T")

_GO = "go"
_KINDS = ("gather", "exchange", "lead", "wait", "end")  # of exchanges
_SIZES = struct.Struct("<qq")  # of a message, and of the longest


def room_of(count: int) -> int:
    """Returns the bytes of a message that its head has room for, among so many ranks.

    Whatever is short costs one exchange; all heads together stay small.
    """
    return max(64, min(2048, (1 << 16) // count))


def head_of(count: int) -> int:
    """Returns the bytes of a message's head."""
    return _SIZES.size + room_of(count)


class Connection(Ranks):
    """Ranks that torch.distributed connects.

    store: of the process group, whose keys are used under a name of their own. group: Gloo's, of
    all ranks. timeout: the seconds after which a silent rank is given up.
    """

    def __init__(self, store: Store, group: dist.ProcessGroup, timeout: float) -> None:
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self._group, self._timeout, self._number = group, timeout, 0
        self._room, self.speeds = room_of(self.count), (1.0,) * self.count
        # Clients of their own: one that waits lets nobody else speak.
        self._store = AskedStore(_client(store), self.rank, timeout)
        self._life = Life(_client(store), self.rank, self.count, timeout)

    def gather(self, value: T) -> list[T]:
        """Returns every rank's value, in the order of ranks; values are pickled."""
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        self._all_here("gather")
        with self._sending():
            heads, sizes, longest = self._swapped_heads([data] * self.count)
            rests: list[Any] = [b""] * self.count
            if longest > self._room:
                own = _tensor(data[self._room :].ljust(longest - self._room, b"\0"))
                tensors = [torch.empty_like(own) for _ in rests]
                dist.all_gather(tensors, own, group=self._group)
                rests = [tensor.numpy().data for tensor in tensors]
        left = [max(0, size - self._room) for size in sizes]
        self.traffic += sum(left) - left[self.rank]
        return [
            _read(head, rest[:size]) for head, rest, size in zip(heads, rests, left, strict=True)
        ]

    def exchange(self, values: Sequence[T]) -> list[T]:
        """Gives each rank one of the values; returns those given to this one, in their order."""
        data = [pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL) for value in values]
        self._all_here("exchange")
        with self._sending():
            heads, sizes, longest = self._swapped_heads(data)
            left = [max(0, size - self._room) for size in sizes]
            rest = torch.empty(sum(left), dtype=torch.uint8)
            if longest > self._room:
                own = [one[self._room :] for one in data]
                given, whole = [len(one) for one in own], _tensor(b"".join(own))
                dist.all_to_all_single(rest, whole, left, given, group=self._group)
        self.traffic += len(rest) - left[self.rank]
        rests = [part.numpy().data for part in rest.split(left)]
        return [_read(*both) for both in zip(heads, rests, strict=True)]

    def lead(self, compute: Callable[[], T]) -> T:
        """Returns what rank 0 computes, to every rank."""
        value = compute() if self.leads else None
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL) if self.leads else b""
        self._all_here("lead")
        with self._sending():
            head = _tensor(self._head(data, len(data)))
            dist.broadcast(head, 0, group=self._group)
            size, _ = _SIZES.unpack_from(head.numpy().data)
            rest = _tensor(data[self._room :].ljust(max(0, size - self._room), b"\0"))
            if len(rest):
                dist.broadcast(rest, 0, group=self._group)
        if self.leads:
            return cast(T, value)
        self.traffic += len(head) + len(rest)
        return cast(T, _read(head.numpy().data[_SIZES.size :], rest.numpy().data))

    def _swapped_heads(self, data: Sequence[bytes]) -> tuple[list[memoryview], list[int], int]:
        """Gives each rank the head of a piece of data; those given to this one, and their sizes.

        The last result is the size of the longest piece that any rank gives to any. What is short
        is all in its head.
        """
        longest = max(map(len, data))
        heads = _tensor(b"".join(self._head(one, longest) for one in data))
        found = torch.empty_like(heads)
        dist.all_to_all_single(found, heads, group=self._group)
        size = len(heads) // self.count
        self.traffic += size * (self.count - 1)
        each = [found.numpy().data[k * size : (k + 1) * size] for k in range(self.count)]
        said = [_SIZES.unpack_from(head) for head in each]
        sizes = [own for own, _ in said]
        return [head[_SIZES.size :] for head in each], sizes, max(one for _, one in said)

    def _head(self, data: bytes, longest: int) -> bytes:
        return _SIZES.pack(len(data), longest) + data[: self._room].ljust(self._room, b"\0")

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
            end = time.monotonic() + 2 * self._timeout / BEATS
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
                if (waited := time.monotonic() - began) > self._timeout / BEATS:
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
                f"killed or stopped, or the network failed ({first_line(error)}). Start the run "
                "again: it goes on from its run folder"
            ) from error


def _client(store: Store) -> Store:
    """Returns a connection of its own to the same store."""
    client: Store = cast(Any, store).clone()
    return client


def _set(store: Store, key: str, reason: str) -> None:
    store.set(key, reason)


def _tensor(data: bytes) -> Tensor:
    if not data:  # which torch.frombuffer refuses
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _read(head: memoryview, rest: memoryview) -> Any:
    """What a message says, of its head without sizes and what is left of it."""
    return pickle.loads(b"".join((head, rest)) if rest else head)
