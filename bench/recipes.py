"""The cases that time what a search of recipes needs: compose and linear_scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import measure
from bench.inputs import CHECKED, fill, new_rows, nonneg_start
from bench.job import Job
from bench.operators import how, same, timed
from bench.row import Row, against_copy
from deevo_ext import backends

RECIPES = 8
BLOCKS = 18  # residual blocks, the stem and the classifier of a ResNet-50
SEGMENTS = 62  # tensors of a ResNet-18

Compose = tuple[Any, ...]


def run_job(job: Job) -> Row:
    """Checks, then times: the row, without the columns that all rows have in common."""
    return time_compose(job)


def compose_arguments(job: Job, number: int) -> Compose:
    """Random members, and recipes in which every coefficient counts."""
    draw = torch.Generator().manual_seed(job.seed)
    population = new_rows(job.members, job.weights, job.dtype, job.device)
    fill(population, job.seed + number)
    tail = nonneg_start(job.weights)
    population[:, tail:].abs_()
    recipes = torch.rand(RECIPES, BLOCKS, job.members, generator=draw) + 0.1
    recipes /= recipes.sum(dim=2, keepdim=True)
    starts = (torch.arange(SEGMENTS) * job.weights // SEGMENTS).unique()
    block_of = (torch.arange(starts.numel()) * BLOCKS // SEGMENTS).to(torch.int32)
    out = new_rows(RECIPES, job.weights, job.dtype, job.device)
    inputs = (t.to(job.device) for t in (recipes, starts, block_of))
    return (population, *inputs, tail, out)


def check_compose(job: Job, arguments: Compose) -> None:
    """The first columns and the last ones, with the segments that lie there."""
    population, recipes, starts, block_of, tail, out = arguments
    with backends.use(job.backend):
        torch.ops.deevo.compose(*arguments)
    last = max(0, job.weights - CHECKED)
    for begin, end in ((0, min(job.weights, CHECKED)), (last, job.weights)):
        part = population[:, begin:end].to("cpu", copy=True)
        first = int(torch.searchsorted(starts.cpu(), begin, right=True)) - 1
        places = (starts.cpu()[first:] - begin).clamp(min=0)
        segments = (recipes.cpu(), places, block_of.cpu()[first:].contiguous())
        expected = part.new_empty(RECIPES, end - begin)
        with backends.use("reference"):
            torch.ops.deevo.compose(part, *segments, max(0, tail - begin), expected)
        same(f"compose[:, {begin}:{end}]", job, out[:, begin:end], expected)


def time_compose(job: Job) -> Row:
    """Rows of 8 recipes; the yardstick copies as many bytes as they read and write."""
    moved = (job.members + RECIPES) * job.weights * job.dtype.itemsize
    sets = 1 if job.device == "cuda" else measure.sets_for(moved, job.quick)
    arguments = [compose_arguments(job, number) for number in range(sets)]
    check_compose(job, arguments[0])
    runs: list[Callable[[], None]] = [partial(torch.ops.deevo.compose, *a) for a in arguments]
    with backends.use(job.backend):
        times, copied = timed(job, runs, [(a[0], a[-1]) for a in arguments], measure.nothing)
    note = f"{RECIPES} recipes of {BLOCKS} blocks"
    return {**against_copy(times, moved, copied), **how(job, sets), "note": note}
