"""What the ranks of a run say to each other; one process alone is a rank, too.

All ranks do the same in the same order, so each call here is one that all of them make. What they
evaluate is shared out and gathered; what floating point decides, rank 0 decides for all. Weights
are never sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from deevo_ext.errors import DeevoError

T = TypeVar("T")


Speeds = tuple[float, ...]
"""Of each rank, in units of their mean."""


class RankError(DeevoError):
    """Another rank has failed, or does not answer: no rank can go on."""


class Ranks:
    """The ranks of a run; of this class itself, one process alone.

    rank: this process' number, 0 to count - 1. first_of_node: whether it is the first on its
    machine; on_node: how many are there. traffic: the bytes that this rank has received so far.
    speeds: at which the ranks have evaluated networks, the same numbers on all.
    """

    rank = 0
    count = 1
    first_of_node = True
    on_node = 1
    traffic = 0
    speeds: Speeds = (1.0,)

    @property
    def leads(self) -> bool:
        """Whether this rank decides, writes and shows progress."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Returns every rank's value, in the order of ranks; values are pickled."""
        return [value]

    def exchange(self, values: Sequence[T]) -> list[T]:
        """Gives each rank one of the values; returns those given to this one, in their order."""
        return [*values]

    def lead(self, compute: Callable[[], T]) -> T:
        """Returns what rank 0 computes, to every rank."""
        return compute()

    def wait(self) -> None:
        """Waits until every rank is here."""

    @contextlib.contextmanager
    def one_a_node_first(self) -> Iterator[None]:
        """Lets one rank of each machine do what is inside before the others.

        So what it reads from a disk or a network lies in the machine's memory for them, and a
        cache that it writes is there.
        """
        if not self.first_of_node:
            self.wait()
        yield
        if self.first_of_node:
            self.wait()

    def require_same(self, what: str, values: dict[str, Any]) -> None:
        """Raises RankError, on all ranks, where a rank has other values than rank 0.

        what: the moment, for the message, which names rank and first difference. values: JSON
        values. Digests are sent, and the values only where these differ.
        """
        text = json.dumps(values, sort_keys=True)
        digests = self.gather(hashlib.sha256(text.encode()).hexdigest())
        if len(set(digests)) == 1:
            return
        everyone = [dict(_leaves(json.loads(one))) for one in self.gather(text)]
        for rank, theirs in enumerate(everyone):
            for name in [*everyone[0], *(theirs.keys() - everyone[0].keys())]:
                ours, other = everyone[0].get(name), theirs.get(name)
                if other != ours:
                    raise RankError(
                        f"{what}: rank {rank} has {name} {_short(other)}, rank 0 has "
                        f"{_short(ours)}; every rank needs the same files, images, options and "
                        "versions"
                    )


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values that hold no others, by their names with dots between."""
    if not isinstance(values, (dict, list)):
        yield name, values
        return
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


_ALONE = Ranks()
_active = _ALONE


def ranks() -> Ranks:
    """Returns the ranks that work on what is being done now: one alone but inside `joined`."""
    return _active


def warn(text: str, *, stacklevel: int) -> None:
    """Warns of what every rank finds alike, on rank 0 alone.

    stacklevel: as `warnings.warn` counts from the function that calls this.
    """
    if ranks().leads:
        warnings.warn(text, stacklevel=stacklevel + 1)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Makes this process one alone inside, as far as `ranks` says."""
    with active(_ALONE):
        yield


@contextlib.contextmanager
def active(some: Ranks) -> Iterator[None]:
    """Makes `ranks` return these inside."""
    global _active
    before, _active = _active, some
    try:
        yield
    finally:
        _active = before
