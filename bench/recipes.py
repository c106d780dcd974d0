"""The cases that time what a search of recipes needs: compose and linear_scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench import measure
from bench.inputs import CHECKED, fill, new_rows, nonneg_start
from bench.job import Job, Skipped, check_close
from bench.networks import subject_of
from bench.operators import how, same, timed
from bench.row import Row, against_copy
from deevo_ext import backends

RECIPES = 8
BLOCKS = 18  # residual blocks, the stem and the classifier of a ResNet-50
SEGMENTS = 62  # tensors of a ResNet-18

CANDIDATES = 64
# Classes -> directions and images of a linear model: seven layers by 12 members, a ResNet-50's
# modules by 12.
MODELS = {10: (84, 2000), 1000: (216, 256)}
REAL = "resnet8"
"""The network whose losses of the images of 10 classes virtual ones are held against."""
IMAGES_ON_GPUS = 6400  # with 1000 classes: slopes of 2.8 GB in 16 bits

Compose = tuple[Any, ...]


def run_job(job: Job) -> Row:
    """Checks, then times: the row, without the columns that all rows have in common."""
    return time_linear_scores(job) if job.case == "linear_scores" else time_compose(job)


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
        times, copied = timed(job, runs, [(a[0], a[-1]) for a in arguments])
    note = f"{RECIPES} recipes of {BLOCKS} blocks"
    return {**against_copy(times, moved, copied), **how(job, sets), "note": note}


def time_linear_scores(job: Job) -> Row:
    """Losses of 64 candidates, held against a product of matrices; np is the number of classes.

    The note says how long plain torch takes: candidate by candidate, and as one product whose
    logits are stored. Of 10 classes it says how many virtual evaluations that is a second, and how
    many real ones a network gives on as many images, timed in turn.
    """
    classes = job.members
    if classes not in MODELS:
        raise Skipped(f"{classes} classes; there are models of {', '.join(map(str, MODELS))}")
    directions, images = MODELS[classes]
    if job.device == "cuda" and classes == 1000:
        images = IMAGES_ON_GPUS
    source = torch.Generator(job.device).manual_seed(job.seed)
    draw: dict[str, Any] = {"generator": source, "device": job.device}
    z0 = torch.randn(images, classes, **draw)
    slopes = torch.empty(directions, images, classes, dtype=job.dtype, device=job.device)
    for slope in slopes:
        slope.copy_(torch.randn(images, classes, **draw))
    coefficients = torch.randn(CANDIDATES, directions, **draw) * 0.1
    labels = torch.randint(0, classes, (images,), **draw)
    model = [z0, slopes, coefficients, labels]
    outputs = [
        torch.zeros(CANDIDATES, images, dtype=dtype, device=job.device)
        for dtype in (torch.float32, torch.int32, torch.int32, torch.float32)
    ]
    run = partial(torch.ops.deevo.linear_scores, *model, 0.0, *outputs)
    with backends.use(job.backend):
        run()
        check_close("losses", outputs[0].cpu(), _losses_of_torch(model, CANDIDATES).cpu(), 1e-4)
        real = _real(job, images) if classes == 10 else measure.nothing
        times, others = measure.interleaved(run, real, effort=job.effort())
    torch_s = {}
    for what, at_once in (("candidates in turn", 1), ("at once", CANDIDATES)):
        plain = partial(_losses_of_torch, model, at_once)
        seconds, _ = measure.interleaved(plain, effort=measure.Effort(5, job.device))
        torch_s[what] = measure.summary(seconds)["median_s"]
    words = ", ".join(f"{what} {seconds * 1e3:.1f} ms" for what, seconds in torch_s.items())
    note = f"{directions} directions, {images} images; torch: {words}"
    summary, rates = measure.summary(times), {}
    if classes == 10:
        rates["virtual_per_s"] = CANDIDATES / summary["median_s"]
        rates["real_per_s"] = 1 / measure.summary(others)["median_s"]
        note = (
            f"{note}; {rates['virtual_per_s']:,.0f} virtual evaluations/s, of a real {REAL} "
            f"{rates['real_per_s']:.2g}/s in turn, {rates['real_per_s'] * images:,.0f} "
            "member-images/s"
        )
    traffic = sum(t.numel() * t.element_size() for t in (*model, *outputs))
    return {
        **summary,
        **rates,
        "bytes": traffic,
        "flops": 2 * CANDIDATES * directions * images * classes,
        **measure.how(job.device),
        "note": note,
    }


def _real(job: Job, images: int) -> Callable[[], Any]:
    """Evaluates a real network on as many images."""
    subject = subject_of(replace(job, size=REAL, members=1), images)
    forward = subject.forward("auto", "float32")
    return partial(forward, subject.rows, subject.images, subject.labels)


def _losses_of_torch(model: Sequence[torch.Tensor], at_once: int) -> torch.Tensor:
    """What one would write: [P, n], of so many candidates at a time."""
    z0, slopes, coefficients, labels = model
    wide = slopes.float().flatten(1)
    losses = []
    for some in coefficients.split(at_once):
        logits = torch.addmm(z0.flatten(), some, wide).view(-1, z0.shape[1])
        all_labels = labels.repeat(len(some))
        loss = torch.nn.functional.cross_entropy(logits, all_labels, reduction="none")
        losses.append(loss.view(len(some), -1))
    return torch.cat(losses)
