"""The cases that time what an evaluation needs beside the network: fold and head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass
class Call:
    """One set of an operator's tensors.

    outputs: by name, in the operator's order. copied: two tensors that the yardstick copies.
    """

    inputs: tuple[Any, ...]
    outputs: dict[str, torch.Tensor]
    copied: tuple[torch.Tensor, torch.Tensor]


class Network:
    """3x3 convolutions of 256 channels, each with its BatchNorm, as many as a row holds."""

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
            table.append([sources[0], ABSENT, *sources[1:], *sizes, n * kernel, n * channels])
        self.table = with_tiles(torch.tensor(table))
        self.weights, self.vectors = self.entries * kernel, self.entries * channels

    def call(self, job: Job, members: int, seed: int) -> Call:
        """Rows, what is folded with them, and the folded weights."""
        rows = new_rows(members, job.weights, job.dtype, job.device)
        fill(rows, seed)
        rows.abs_()  # variances are among them
        eps = torch.full((self.entries,), 1e-5, dtype=torch.float64)
        rest = (torch.empty(members, 0), torch.empty(0), self.table, eps)
        weights = new_rows(members, self.weights, job.dtype, job.device)
        vectors = new_rows(members, self.vectors, torch.float32, job.device)
        inputs = (rows, *(tensor.to(job.device) for tensor in rest))
        return Call(inputs, {"weights": weights, "vectors": vectors}, (rows, weights))


def run_job(job: Job) -> Row:
    """Checks, then times: the row, without the columns that all rows have in common."""
    return time_head(job) if job.case == "head" else time_fold(job)


def time_fold(job: Job) -> Row:
    """fold of at most 8 members' rows into weights of the rows' dtype."""
    network = Network(job.weights)
    members = min(job.members, MOST_MEMBERS)
    size = job.dtype.itemsize
    traffic = members * ((job.weights + network.weights) * size + network.vectors * 4)
    note = f"{members} members, {network.entries} convolutions"
    make = partial(network.call, job, members)
    return _time(job, torch.ops.deevo.fold, make, traffic, traffic, note)


def time_head(job: Job) -> Row:
    """head of one member and 64 images: 49 positions of 2048 channels, 1000 classes."""
    traffic = (SAMPLES * POSITIONS + CLASSES) * FEATURES * job.dtype.itemsize
    note = f"{SAMPLES} images, {POSITIONS} x {FEATURES} features, {CLASSES} classes"
    row = _time(job, torch.ops.deevo.head, partial(_head, job), traffic, 2 * traffic, note)
    return {**row, "flops": SAMPLES * FEATURES * (POSITIONS + 2 * CLASSES)}


def _head(job: Job, seed: int) -> Call:
    draw = torch.Generator().manual_seed(seed)
    features = torch.rand(1, SAMPLES, POSITIONS, FEATURES, generator=draw).to(job.dtype)
    weight = (torch.randn(1, CLASSES, FEATURES, generator=draw) * 0.05).to(job.dtype)
    bias = torch.randn(1, CLASSES, generator=draw)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=draw)
    inputs = [tensor.to(job.device) for tensor in (features, weight, bias, labels)]
    losses = torch.empty(1, SAMPLES, device=job.device)
    ranks = torch.empty(1, SAMPLES, dtype=torch.int32, device=job.device)
    copied = (inputs[0], torch.zeros_like(inputs[0]))
    return Call((*inputs, 0.1), {"losses": losses, "ranks": ranks}, copied)


def _time(
    job: Job,
    operator: Callable[..., Any],
    make: Callable[[int], Call],
    traffic: int,
    set_bytes: int,
    note: str,
) -> Row:
    """Checks one call and times several in turn; make(seed) gives one, set_bytes big."""
    count = 1 if job.device == "cuda" else measure.sets_for(set_bytes, job.quick)
    calls = [make(job.seed + number) for number in range(count)]
    first = calls[0]
    expected = [output.cpu().clone() for output in first.outputs.values()]
    with backends.use("reference"):
        operator(*(x.cpu() if isinstance(x, torch.Tensor) else x for x in first.inputs), *expected)
    runs: list[Callable[[], None]] = [
        partial(operator, *call.inputs, *call.outputs.values()) for call in calls
    ]
    with backends.use(job.backend):
        runs[0]()
        for (name, output), right in zip(first.outputs.items(), expected, strict=True):
            same(name, job, output, right)
        times, copied = timed(job, runs, [call.copied for call in calls])
    return {**against_copy(times, traffic, copied), **how(job, count), "note": note}
