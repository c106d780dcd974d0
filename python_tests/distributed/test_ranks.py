"""What ranks say to each other: values, shares, failures."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deevo_ext import DeevoError
from deevo_ext.distributed.joining import joined, require_own_gpus
from deevo_ext.distributed.ranks import RankError, Ranks, active, ranks
from deevo_ext.distributed.shares import (
    Part,
    each,
    edges_of,
    evaluated,
    parts_of,
    share,
    shares_by_speed,
    speeds_after,
)
from support.rank_runs import told_of_threads
from support.ranks import SILENT, finish, on_ranks, start


def _talk() -> tuple[list[int], int, list[torch.Tensor], list[torch.Tensor], int]:
    with joined() as group:
        assert ranks() is group
        with joined() as again:
            assert again is group
        squares = each(5, lambda k: torch.tensor(k * k))
        table = torch.arange(3 * 10, dtype=torch.float32).view(3, 10)

        def evaluate(part: Part) -> list[torch.Tensor]:
            some = table[part.rows, part.images]
            return [some, some.int()]

        whole = evaluated(3, edges_of(10, 4), evaluate)
        group.wait()
        everyone, led = group.gather(group.rank), group.lead(lambda: group.rank)
        return everyone, led, squares, whole, group.traffic


@pytest.mark.parametrize("count", [2, 5])
def test_values_are_gathered_and_led(count: int) -> None:
    for gathered, led, squares, whole, traffic in on_ranks(count, _talk):
        assert gathered == list(range(count))
        assert led == 0
        assert [int(n) for n in squares] == [0, 1, 4, 9, 16]
        expected = torch.arange(30.0).view(3, 10)
        assert torch.equal(whole[0], expected) and torch.equal(whole[1], expected.int())
        assert 0 < traffic < 50_000


class _Placed(Ranks):
    """Ranks on machines, each of which works on some of the GPUs that it sees."""

    def __init__(self, everyone: list[tuple[str, str, list[int]]], patch: pytest.MonkeyPatch):
        self.count, self._everyone, self._said = len(everyone), everyone, list[Any]()
        patch.setattr("torch.cuda.get_device_properties", self._properties)
        patch.setattr("torch.cuda.device_count", lambda: len(self._here[1]))
        patch.setattr("socket.gethostname", lambda: self._here[0])

    @property
    def _here(self) -> tuple[str, str, list[int]]:
        return self._everyone[self.rank]

    def _properties(self, device: torch.device | int) -> SimpleNamespace:
        number = device.index if isinstance(device, torch.device) else device
        return SimpleNamespace(uuid=f"{self._here[0]}-{self._here[1][number]}")

    def gather(self, value: Any) -> list[Any]:
        self._said.append(value)
        if len(self._said) < self.count:
            raise _Next
        return self._said

    def check(self) -> None:
        for rank in range(self.count):
            self.rank = rank
            with active(self), suppress(_Next):
                devices = {torch.device("cuda", number) for number in self._here[2]}
                require_own_gpus({torch.device("cpu"), *devices})


class _Next(Exception):
    """That the next rank is to say something before there is an answer."""


@pytest.mark.parametrize(
    ("everyone", "message"),
    [
        ([("a", "", [])] * 4, None),  # all on CPUs
        ([("a", "ABCDEFGH", [k]) for k in range(4)], None),
        ([("a", "AB", [k % 2]) for k in range(4)], None),  # two on each
        ([("a", "A", [0])] * 3, None),  # there is one
        ([("a", gpu, [0]) for gpu in "ABC"], None),  # each sees its own alone
        ([("a", "A", [0]), ("a", "A", [0]), ("a", "ABC", [1])], None),  # two see no other
        ([(host, "ABCD", [k]) for host in "ab" for k in range(2)], None),
        ([("a", "ABC", [0, 1]), ("a", "ABC", [2])], None),
        ([("a", "", []), ("a", "AB", [0])], None),
        (
            [("a", "ABCD", [0])] * 2,
            r"ranks 0, 1 on a work on one GPU \(rank 0's cuda:0\), beside 3 that nobody",
        ),
        (
            [("a", "ABCD", [0]), ("b", "ABCD", [0]), ("b", "ABCD", [0])],
            "ranks 1, 2 on b work on one GPU",
        ),
        ([("a", "ABCD", [k]) for k in (0, 0, 1)], "ranks 0, 1 on a work on one GPU"),
        # Their own names for it differ, and one alone sees another.
        ([("a", "B", [0]), ("a", "AB", [1])], r"ranks 0, 1 on a .* \(rank 0's cuda:0\), beside 1"),
    ],
)
def test_ranks_do_not_crowd_on_a_gpu_beside_a_free_one(
    everyone: list[tuple[str, str, list[int]]], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = nullcontext() if message is None else pytest.raises(RankError, match=message)
    with expected:
        _Placed(everyone, monkeypatch).check()


def test_shares_are_all_units_once_in_order() -> None:
    for units in (0, 1, 5, 12, 13):
        for count in (1, 2, 3, 4, 7, 20):
            shares = [share(units, rank, count) for rank in range(count)]
            assert [unit for some in shares for unit in some] == list(range(units))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_follow_speeds_that_differ() -> None:
    assert shares_by_speed(10, (1.0, 1.05)) == [range(5), range(5, 10)]
    assert shares_by_speed(10, (1.5, 0.5)) == [range(8), range(8, 10)]
    assert shares_by_speed(1, (1.0, 3.0, 1.0)) == [range(0), range(1), range(1, 1)]
    assert speeds_after((1.0, 1.0), [4, 4], [0.2, 0.6]) == pytest.approx((1.25, 0.75))
    assert speeds_after((1.5, 0.5), [4, 4], [0.2, 0.01]) == (1.5, 0.5)  # too short to tell
    assert speeds_after((1.5, 0.1), [4, 0], [0.2, 0.0]) == (1.25, 0.125)  # it may try again


def _slowly() -> tuple[list[int], bool]:
    """The units of this rank in each of four calls, where rank 2 is slow, and all results' sum."""
    table, done, right = torch.arange(24.0).view(4, 6), list[int](), True
    with joined() as group:

        def evaluate(part: Part) -> list[torch.Tensor]:
            some = table[part.rows, part.images]
            done[-1] += some.numel()
            time.sleep(some.numel() * (0.08 if group.rank == 2 else 0.02))
            return [some]

        for _ in range(4):
            done.append(0)
            right = right and torch.equal(evaluated(4, edges_of(6, 1), evaluate)[0], table)
    return done, right


def test_a_slow_rank_gets_less_to_do() -> None:
    found = on_ranks(3, _slowly)
    assert all(right for _, right in found)
    first, second, slow = (done for done, _ in found)
    assert [sum(some) for some in zip(first, second, slow, strict=True)] == [24] * 4
    assert first[0] == second[0] == slow[0] == 8
    assert slow[3] <= 5 and first[3] >= 9 and second[3] >= 9


def test_parts_are_their_units() -> None:
    rows, edges = 4, edges_of(11, 4)
    for begin in range(13):
        for stop in range(begin, 13):
            seen = torch.zeros(rows, 11, dtype=torch.int64)
            parts = parts_of(range(begin, stop), rows, edges)
            for part in parts:
                seen[part.rows, part.images] += 1
            expected = torch.zeros_like(seen)
            for unit in range(begin, stop):
                row, batch = divmod(unit, 3)
                expected[row, edges[batch] : edges[batch + 1]] = 1
            assert torch.equal(seen, expected) and len(parts) <= 3


def _fail_on(rank: int) -> str:
    with joined() as group:  # a first time, which ends well
        group.wait()
    try:
        with joined() as group:
            each(4, _broken if group.rank == rank else torch.tensor)
    except (RankError, ZeroDivisionError) as error:
        assert ranks().count == 1
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _broken(k: int) -> torch.Tensor:
    return torch.tensor(k / 0)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_failing_rank_stops_all_with_its_traceback(rank: int) -> None:
    said = on_ranks(3, _fail_on, rank)
    assert said[rank] == "ZeroDivisionError: division by zero"
    for other in {0, 1, 2} - {rank}:
        assert said[other].startswith(f"RankError: rank {rank} failed: Traceback")
        assert "return torch.tensor(k / 0)" in said[other]


def _stopped(rank: int, sign: int) -> str:
    began = time.monotonic()
    try:
        with joined() as group:
            group.wait()
            if group.rank == rank:
                os.kill(os.getpid(), sign)
            group.gather(0)
    except RankError as error:
        assert time.monotonic() - began < 60
        return str(error)
    return "nothing"


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_rank_stops_the_others(rank: int, sign: signal.Signals) -> None:
    processes, pipes = start(3, _stopped, rank, sign, timeout=SILENT)
    pipes.pop(rank)  # which says nothing
    others = [r for r in range(3) if r != rank]
    said = finish([processes[r] for r in others] + [processes[rank]], pipes)
    for text in said:
        if rank:
            assert f"rank {rank} has not answered for {SILENT:.0f} s" in text
        else:  # which holds the store
            assert "has lost the connection" in text or "gets no answer" in text


def _differ(name: str) -> str:
    try:
        with joined() as group:
            values = {"version": "1", "rows": 7, "data": f"sha-{group.rank // 2}"}
            group.require_same("at the start", {k: v for k, v in values.items() if k != name})
    except RankError as error:
        return str(error)
    return "nothing"


def test_a_difference_is_named_by_every_rank() -> None:
    for said in on_ranks(3, _differ, ""):
        assert said.startswith("at the start: rank 2 has data 'sha-1', rank 0 has 'sha-0'")
    assert on_ranks(3, _differ, "data") == ["nothing"] * 3


def _placed() -> tuple[bool, int]:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    with joined() as group:
        return group.first_of_node, group.on_node


def test_ranks_of_a_machine_are_found_by_its_name() -> None:
    """A launcher need not say how many there are: they share memory, and the first reads."""
    assert on_ranks(3, _placed) == [(True, 3), (False, 3), (False, 3)]


def _part() -> str:
    try:
        with joined() as group:
            group.wait()
            if group.rank == 1:
                group.lead(int)
            else:
                group.gather(0)
    except RankError as error:
        return str(error)
    return "nothing"


def test_ranks_that_do_different_things_stop() -> None:
    processes, pipes = start(3, _part, timeout=SILENT)
    for said in finish(processes, pipes):
        assert "the ranks have parted" in said and "2 of 3 gather, 1 of 3 lead" in said


def test_variables_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(DeevoError, match="WORLD_SIZE is 'two'"), joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("DEEVO_RANK_TIMEOUT", "0")
    with pytest.raises(DeevoError, match="DEEVO_RANK_TIMEOUT is '0'"), joined():
        pass
    monkeypatch.setenv("DEEVO_RANK_TIMEOUT", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(DeevoError, match="the ranks do not come together"), joined():
        pass


def test_cores_without_a_thread_are_said_once_a_machine() -> None:
    assert on_ranks(2, told_of_threads, 3) == [[], []]  # of which each has one
    (said,), others = on_ranks(2, told_of_threads, 16)
    assert "each rank has one thread, but there are 16 cores" in said
    assert "set OMP_NUM_THREADS=8" in said and others == []
