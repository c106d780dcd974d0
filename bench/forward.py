"""The case `forward`: losses of K networks on the same images, by our graph and by what torch has.

Each way runs in a process of its own. Its losses are compared with functional_call's in float32 for
the first and the last member before it is timed. FLOP and bytes of a row are those of the network
graph, whoever does the work.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench import child, machine, measure
from bench.cases import ENGINES
from bench.job import Job, Skipped, check_close
from bench.networks import Subject, batch_of, subject_of, work_of
from bench.row import Row
from deevo_ext.networks.execution.cuda_graphs import OFTEN

# Largest deviation of losses, relative to the largest: rounding, and far below a wrong network's.
_DEVIATION = {"float32": 1e-3, "tf32": 0.05, "float16": 0.05, "bfloat16": 0.2}

Call = Callable[[], Tensor]


def run_job(job: Job) -> Row:
    """The row that its own process gives, with FLOP and bytes of the network graph."""
    work = work_of(job)
    job = replace(job, batch=batch_of(job))
    return {**work.complete(job, child.run(job)), "floor_bytes": work.floor}


def run_child(job: Job) -> Row:
    """Builds, checks and times one way of evaluating."""
    if job.backend == "members" and job.device != "cuda":
        raise Skipped("our kernels for whole networks need CUDA")
    subject = subject_of(job)
    before = machine.held_bytes(job.device)
    started = time.perf_counter()
    if job.backend in ENGINES:
        forward = subject.forward(
            {"fused": "auto", "members": "triton"}[job.backend], job.dtype_name
        )
        call: Call = lambda: forward(subject.rows, subject.images, subject.labels).losses  # noqa: E731
    else:
        call = peer(job, subject, subject.rows)
    losses = call()
    built = time.perf_counter() - started
    check(job, subject, losses)
    if job.backend in ENGINES and job.device == "cuda":
        for _ in range(OFTEN):  # from then on by graphs, as in a run
            call()
    times, _ = measure.interleaved(call, effort=job.effort(least=3), warm_up=False)
    return {
        **measure.summary(times),
        **measure.how(job.device),
        "build_s": built,
        "peak_bytes": machine.peak_bytes(job.device) - before,
        "note": f"{len(subject.images)} images of {'x'.join(map(str, subject.images.shape[2:]))}",
    }


def check(job: Job, subject: Subject, losses: Tensor) -> None:
    """Raises WrongResult unless the first and last member's losses are functional_call's."""
    ends = [0, job.members - 1]
    exact = eager(subject, subject.rows[ends])()
    what = f"forward: losses of {job.size} by {job.backend}"
    check_close(what, losses[ends], exact, _DEVIATION[job.dtype_name])


def peer(job: Job, subject: Subject, rows: Tensor) -> Call:
    """One of torch's ways; in 16 bits by autocast."""
    if job.backend == "vmap":
        return vmapped(subject, rows, autocast_of(job))
    channels_last = job.backend == "channels-last"
    mode = {"compile": "default", "compile-max": "max-autotune"}.get(job.backend)
    return eager(subject, rows, autocast_of(job), channels_last, mode)


def autocast_of(job: Job) -> Callable[[], Any]:
    """The context in which torch computes in the job's dtype."""
    if job.dtype_name in ("float32", "tf32"):
        return contextlib.nullcontext
    return lambda: torch.autocast(job.device, job.dtype)


def eager(
    subject: Subject,
    rows: Tensor,
    autocast: Callable[[], Any] = contextlib.nullcontext,
    channels_last: bool = False,
    compile_mode: str | None = None,
) -> Call:
    """functional_call on views of the rows, in inference mode; or in channels-last copies.

    compile_mode: of torch.compile, which makes one function of weights and images; images are then
    channels-last, weights are not.
    """
    model, layout, images, last = subject.model, subject.layout, subject.images, torch.channels_last

    def one(tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return _losses(functional_call(model, tensors, (x,)), y)

    if channels_last or compile_mode:
        images = images.contiguous(memory_format=last)
    if compile_mode:
        one = torch.compile(one, dynamic=False, mode=compile_mode)
    parts = _parts(images, subject.labels, subject.micro_batch)

    @(torch.no_grad if compile_mode else torch.inference_mode)()
    def call() -> Tensor:
        losses = []
        for row in rows:
            tensors = layout.views(row)
            if channels_last:
                for name, tensor in tensors.items():
                    if tensor.dim() == 4:
                        tensors[name] = tensor.contiguous(memory_format=last)
            with autocast():
                # A compiled function may give the same memory again.
                losses.append(torch.cat([one(tensors, x, y).clone() for x, y in parts]))
        return torch.stack(losses)

    return call


def vmapped(subject: Subject, rows: Tensor, autocast: Callable[[], Any]) -> Call:
    """torch.func.vmap over the members, weights stacked."""
    model, layout = subject.model, subject.layout
    parts = _parts(subject.images, subject.labels, subject.micro_batch)

    def one(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, tensors, (x,))

    @torch.no_grad()
    def call() -> Tensor:
        views = [layout.views(row) for row in rows]
        stacked = {name: torch.stack([v[name] for v in views]) for name in views[0]}
        with autocast():
            losses = []
            for x, y in parts:
                logits = torch.func.vmap(one, in_dims=(0, None))(stacked, x)
                losses.append(torch.stack([_losses(member, y) for member in logits]))
        return torch.cat(losses, dim=1)

    return call


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def _parts(images: Tensor, labels: Tensor, size: int) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))
