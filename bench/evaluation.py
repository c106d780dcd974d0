"""The cases that time what an evaluation needs beside the network: fold, fold_trials and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench import measure
from bench.inputs import SEED, Weights, fill, new_rows, planned
from bench.job import Job
from bench.operators import row, same
from deevo_ext import backends
from deevo_ext.ops.fold import ABSENT, Space, address, with_tiles

CASES = ("fold", "fold_trials", "head")
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
            outputs = [n * kernel, n * channels, ABSENT]
            table.append([sources[0], ABSENT, *sources[1:], *sizes, *outputs])
        self.table = with_tiles(torch.tensor(table))
        self.eps = torch.full((self.entries,), 1e-5, dtype=torch.float64)
        self.weights, self.vectors = self.entries * kernel, self.entries * channels

    def outputs(self, members: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return new_rows(members, self.weights, dtype), new_rows(
            members, self.vectors, torch.float32
        )

    def operands(self, members: int) -> tuple[torch.Tensor, ...]:
        return torch.empty(members, 0), torch.empty(0), self.table, self.eps


def run_job(job: Job) -> dict[str, Any]:
    """Checks, then times: the row, without the columns that all rows have in common."""
    torch.set_num_threads(job.threads)
    return time_head(job) if job.case == "head" else time_fold(job)


def time_fold(job: Job) -> dict[str, Any]:
    """fold of at most 8 members' rows, or of their trials, into weights of the rows' dtype."""
    network = Network(job.weights)
    members = min(job.members, MOST_MEMBERS)
    outputs = network.outputs(members, job.dtype)
    if job.case == "fold":
        rows = new_rows(members, job.weights, job.dtype)
        fill(rows)
        rows.abs_()  # variances are among them
        arguments = (rows, *network.operands(members))
        rows_read, operator = members, torch.ops.deevo.fold
    else:
        w = Weights(job, planned(job.members))
        w.population.abs_()
        plan = (w.adaptation.choices, w.adaptation.coefficients)
        genes = (torch.empty(0, dtype=torch.int64), torch.empty(job.members, 0, dtype=torch.int32))
        some = torch.arange(members)
        limits = (SEED, w.nonneg_start, float("-inf"), float("inf"))
        operands = network.operands(members)
        arguments = (w.population, w.archive, *plan, *genes, some, *limits, *operands)
        rows, rows_read, operator = w.population, job.members, torch.ops.deevo.fold_trials
    expected = [output.clone() for output in outputs]
    with backends.use("reference"):
        operator(*arguments, *expected)
    with backends.use(job.backend):
        operator(*arguments, *outputs)
    for name, found, wanted in zip(("weights", "vectors"), outputs, expected, strict=True):
        same(name, job, found, wanted)
    traffic = rows_read * job.weights * rows.element_size()
    traffic += sum(output.numel() * output.element_size() for output in outputs)
    del expected
    yardstick = measure.Yardstick(rows[:members], outputs[0], job.threads)
    with backends.use(job.backend):
        run: Callable[[], None] = lambda: operator(*arguments, *outputs)  # noqa: E731
        times = measure.interleaved(run, yardstick, job.repetitions)
    note = f"{members} members, {network.entries} convolutions"
    return row(job, times, traffic, yardstick.bytes_copied, note)


def time_head(job: Job) -> dict[str, Any]:
    """head of one member and 64 images: 49 positions of 2048 channels, 1000 classes."""
    draw = torch.Generator().manual_seed(SEED)
    features = torch.rand(1, SAMPLES, POSITIONS, FEATURES, generator=draw).to(job.dtype)
    weight = (torch.randn(1, CLASSES, FEATURES, generator=draw) * 0.05).to(job.dtype)
    bias = torch.randn(1, CLASSES, generator=draw)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=draw)
    outputs = (torch.empty(1, SAMPLES), torch.empty(1, SAMPLES, dtype=torch.int32))
    expected = (torch.empty(1, SAMPLES), torch.empty(1, SAMPLES, dtype=torch.int32))
    arguments = (features, weight, bias, labels, 0.1)
    with backends.use("reference"):
        torch.ops.deevo.head(*arguments, *expected)
    with backends.use(job.backend):
        torch.ops.deevo.head(*arguments, *outputs)
    for name, found, wanted in zip(("losses", "ranks"), outputs, expected, strict=True):
        same(name, job, found, wanted)
    yardstick = measure.Yardstick(features.view(1, -1), torch.empty_like(features).view(1, -1),
                                  job.threads)  # fmt: skip
    with backends.use(job.backend):
        run: Callable[[], None] = lambda: torch.ops.deevo.head(*arguments, *outputs)  # noqa: E731
        times = measure.interleaved(run, yardstick, job.repetitions)
    traffic = features.numel() * features.element_size()
    note = f"{SAMPLES} images, {POSITIONS} x {FEATURES} features, {CLASSES} classes"
    return row(job, times, traffic, yardstick.bytes_copied, note)
