"""The cases that time what an evaluation needs beside the network: fold and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench import measure
from bench.inputs import fill, new_rows
from bench.job import Job
from bench.operators import how, same, timed
from bench.row import Row, against_copy
from deevo_ext import backends
from deevo_ext.ops.fold_table import ABSENT, Space, address, with_tiles

MOST_MEMBERS = 8
CHANNELS, TAPS = 256, 9
# A ResNet-50's last layers.
SAMPLES, POSITIONS, FEATURES, CLASSES = 64, 49, 2048, 1000


class Network:
    """As many 3x3 convolutions of 256 channels, each with its BatchNorm, as a row holds."""

    def __init__(self, weights: int) -> None:
        channels = CHANNELS
        while channels > 8 and channels * (channels * TAPS + 4) > weights:
            channels //= 2
        kernel = channels * channels * TAPS
        self.entries = max(1, weights // (kernel + 4 * channels))
        table = []
        for n in range(self.entries):
            start = n * (kernel + 4 * channels)
            norm = [start + kernel + i * channels for i in range(4)]
            sources = [address(Space.ROWS, at) for at in (start, *norm)]
            sizes = [channels, channels, TAPS, channels]
            outputs = [n * kernel, n * channels]
            table.append([sources[0], ABSENT, *sources[1:], *sizes, *outputs])
        self.table = with_tiles(torch.tensor(table))
        self.eps = torch.full((self.entries,), 1e-5, dtype=torch.float64)
        self.weights, self.vectors = self.entries * kernel, self.entries * channels

    def outputs(self, members: int, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            new_rows(members, self.weights, job.dtype, job.device),
            new_rows(members, self.vectors, torch.float32, job.device),
        )

    def operands(self, members: int, device: str) -> tuple[torch.Tensor, ...]:
        operands = (torch.empty(members, 0), torch.empty(0), self.table, self.eps)
        return tuple(operand.to(device) for operand in operands)


def run_job(job: Job) -> Row:
    """Checks, then times: the row, without the columns that all rows have in common."""
    return time_head(job) if job.case == "head" else time_fold(job)


def time_fold(job: Job) -> Row:
    """fold of at most 8 members' rows into weights of the rows' dtype."""
    network = Network(job.weights)
    members = min(job.members, MOST_MEMBERS)
    traffic = members * job.weights * job.dtype.itemsize
    traffic += members * (network.weights * job.dtype.itemsize + network.vectors * 4)
    sets = _sets(job, traffic)
    operator = torch.ops.deevo.fold
    arguments, outputs = [], []
    for number in range(sets):
        rows = new_rows(members, job.weights, job.dtype, job.device)
        fill(rows, job.seed + number)
        rows.abs_()  # variances are among them
        arguments.append((rows, *network.operands(members, job.device)))
        outputs.append(network.outputs(members, job))
    _check(job, operator, arguments[0], outputs[0], ("weights", "vectors"))
    buffers = [(a[0], o[0]) for a, o in zip(arguments, outputs, strict=True)]
    note = f"{members} members, {network.entries} convolutions"
    return _time(job, operator, arguments, outputs, buffers, traffic, note)


def time_head(job: Job) -> Row:
    """head of one member and 64 images: 49 positions of 2048 channels, 1000 classes."""
    draw = torch.Generator().manual_seed(job.seed)
    traffic = SAMPLES * POSITIONS * FEATURES * job.dtype.itemsize
    traffic += CLASSES * FEATURES * job.dtype.itemsize
    arguments, outputs, buffers = [], [], []
    for _ in range(_sets(job, 2 * traffic)):
        features = torch.rand(1, SAMPLES, POSITIONS, FEATURES, generator=draw).to(job.dtype)
        weight = (torch.randn(1, CLASSES, FEATURES, generator=draw) * 0.05).to(job.dtype)
        bias = torch.randn(1, CLASSES, generator=draw)
        labels = torch.randint(0, CLASSES, (SAMPLES,), generator=draw)
        inputs = [t.to(job.device) for t in (features, weight, bias, labels)]
        arguments.append((*inputs, 0.1))
        ranks = torch.empty(1, SAMPLES, dtype=torch.int32, device=job.device)
        outputs.append((torch.empty(1, SAMPLES, device=job.device), ranks))
        buffers.append((inputs[0], torch.zeros_like(inputs[0])))
    _check(job, torch.ops.deevo.head, arguments[0], outputs[0], ("losses", "ranks"))
    note = f"{SAMPLES} images, {POSITIONS} x {FEATURES} features, {CLASSES} classes"
    row = _time(job, torch.ops.deevo.head, arguments, outputs, buffers, traffic, note)
    return {**row, "flops": SAMPLES * FEATURES * (POSITIONS + 2 * CLASSES)}


def _sets(job: Job, traffic: int) -> int:
    return 1 if job.device == "cuda" else measure.sets_for(traffic, job.quick)


def _check(
    job: Job,
    operator: Callable[..., Any],
    arguments: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    names: tuple[str, ...],
) -> None:
    expected = [output.cpu().clone() for output in outputs]
    with backends.use("reference"):
        operator(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments), *expected)
    with backends.use(job.backend):
        operator(*arguments, *outputs)
    for name, found, wanted in zip(names, outputs, expected, strict=True):
        same(name, job, found, wanted)


def _time(
    job: Job,
    operator: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    outputs: Sequence[tuple[torch.Tensor, ...]],
    buffers: Sequence[tuple[torch.Tensor, torch.Tensor]],
    traffic: int,
    note: str,
) -> Row:
    runs: list[Callable[[], None]] = [
        partial(operator, *a, *o) for a, o in zip(arguments, outputs, strict=True)
    ]
    with backends.use(job.backend):
        times, copied = timed(job, runs, list(buffers), lambda: None)
    return {**against_copy(times, traffic, copied), **how(job, len(runs)), "note": note}
