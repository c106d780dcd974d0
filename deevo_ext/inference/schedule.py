"""All members on the same micro-batches: who is prepared when, and what runs beside what."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.inference.members import MembersProgram
from deevo_ext.inference.program import Program
from deevo_ext.inference.workers import Once, Workers

Head = Callable[[int, int, Tensor], None]
"""head(member, first image, logits): what is done with a micro-batch's logits."""


def member_of(
    rows: Tensor, statistics: Tensor | None, k: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Row and statistics of a member where networks run."""
    own = None if statistics is None else statistics[k].to(device, torch.float32)
    return rows[k].to(device), own


def run_members(
    program: Program,
    rows: Tensor,
    statistics: Tensor | None,
    batches: Sequence[Tensor],
    sizes: Sequence[int],
    first: int,
    head: Head,
    workers: Workers,
    device: torch.device,
    name: str,
) -> None:
    """Runs rows [K, D] on micro-batches, of which the first sizes[i] images count.

    A member is prepared (folded, packed) once, beside the micro-batches of the one before it, and
    its weights are freed after its last micro-batch; on the CPU, where members have one micro-batch
    each, right before it and by the same thread, in whose caches they then are.
    """
    count = rows.shape[0]
    at_once = device.type == "cpu" and len(batches) == 1

    def prepare(k: int) -> Any:
        return program.prepare(*member_of(rows, statistics, k, device))

    # Only this list may hold members' weights: whoever else did would keep all K of them.
    ready: list[Once | None] = [Once(functools.partial(prepare, k)) for k in range(count)]
    left = [len(batches)] * count
    starts = [first + sum(sizes[:i]) for i in range(len(sizes))]

    def member(k: int) -> Once:
        own = ready[k]
        assert own is not None
        return own

    def begin(k: int) -> None:
        member(k).make()

    def run(k: int, i: int) -> None:
        if at_once:
            begin(k)
        own = member(k).get()
        head(k, starts[i], logits_of(program, own, batches[i], name)[: sizes[i]])
        left[k] -= 1
        if not left[k]:
            ready[k] = None

    tasks: list[Callable[[], None]] = []
    for k in range(count):
        ahead = () if at_once else (0, 1) if k == 0 else (k + 1,)
        tasks.extend(functools.partial(begin, other) for other in ahead if other < count)
        tasks.extend(functools.partial(run, k, i) for i in range(len(batches)))
    workers.run(tasks)


@dataclass(frozen=True)
class Scores:
    """Where results go: labels int64 [N]; losses float32 and ranks int32 [K, N]."""

    labels: Tensor
    smoothing: float
    losses: Tensor
    ranks: Tensor


def run_chunks(
    program: MembersProgram,
    rows: Tensor,
    statistics: Tensor | None,
    batches: Sequence[Tensor],
    sizes: Sequence[int],
    first: int,
    scores: Scores,
    workers: Workers,
    device: torch.device,
) -> None:
    """Runs rows [K, D], a chunk of members at a time, on micro-batches as `run_members` gets."""

    def run() -> None:
        images = [program.images(batch) for batch in batches]
        for k in range(0, rows.shape[0], program.chunk):
            own = slice(k, k + program.chunk)
            apart = None if statistics is None else statistics[own].to(device, torch.float32)
            prepared = program.prepare_members(rows[own].to(device), apart)
            start = first
            for shown, size in zip(images, sizes, strict=True):
                n = slice(start, start + size)
                program.score(
                    prepared,
                    shown,
                    scores.labels[n],
                    scores.smoothing,
                    scores.losses[own, n],
                    scores.ranks[own, n],
                )
                start += size

    workers.run([run])  # one task: a launch has all members, and the interpreter one thread


def logits_of(program: Program, prepared: Any, batch: Tensor, name: str) -> Tensor:
    """One micro-batch's logits; raises DeevoError where the model fails or gives something else."""
    try:
        out = program.run(prepared, batch)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = tuple(batch.shape[1:])
        raise DeevoError(f"the model failed on {name} of shape {shape}: {error}") from error
    if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != batch.shape[0]:
        given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise DeevoError(f"the model returned {given}; expected logits [N, classes]")
    return out
