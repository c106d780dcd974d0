"""The case `forward`: losses of K networks on the same images, by our plan and by what torch has.

Each way runs in a process of its own. Its losses are compared with functional_call's in float32 for
the first and the last member before it is timed. FLOP and bytes of a row are those of the fused
plan, whoever does the work.
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

from bench import child, gpu, measure
from bench.cases import ENGINES
from bench.job import Job, Skipped, WrongResult
from bench.networks import Given, batch_of, given, work_of
from bench.row import Row

# Largest deviation of losses, relative to the largest: rounding, and far below a wrong network's.
_DEVIATION = {"float32": 1e-3, "tf32": 0.05, "float16": 0.05, "bfloat16": 0.2}
_FOLD_IMAGES = 256

Call = Callable[[], Tensor]


def run_job(job: Job) -> Row:
    """The row that its own process gives, with FLOP and bytes of the plan."""
    work = work_of(job)
    job = replace(job, batch=batch_of(job))
    row = child.run(job)
    return {
        **row,
        **work.of(job.members * job.batch),
        "floor_bytes": work.floor,
        "d": work.dim,
        "batch": job.batch,
        "member_images_per_s": job.members * job.batch / row["median_s"],
    }


def run_child(job: Job) -> Row:
    """Builds, checks and times one way of evaluating."""
    torch.set_num_threads(job.threads)
    if job.backend == "members" and job.device != "cuda":
        raise Skipped("our kernels for whole networks need CUDA")
    own = given(job)
    before = _memory(job, peak=False)
    started = time.perf_counter()
    rest: Row = {}
    if job.backend in ENGINES:
        engine = {"fused": "auto", "members": "triton"}[job.backend]
        forward = own.forward(engine, job.dtype_name)
        call: Call = lambda: forward(own.rows, own.images, own.labels).losses  # noqa: E731
    else:
        call = peer(job, own, own.rows)
    found = call()
    rest["build_s"] = time.perf_counter() - started
    check(job, own, found)
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    if job.device == "cuda":
        how = {"clock": "CUDA events", "cold": "L2 flushed"}
        times = gpu.interleaved(call, nothing, job.repetitions, budget_s=job.budget_s)[0]
    else:
        how = {"clock": "wall", "cold": "warm"}
        times = measure.interleaved(
            call, nothing, job.repetitions, budget_s=job.budget_s, least=3, warm_up=False
        )[0]
    rest |= {**how, "peak_bytes": _memory(job, peak=True) - before, "repetitions": len(times)}
    result = measure.summary(times)
    if job.backend == "fused" and job.device == "cpu":
        rest["fold_share"] = _fold_share(forward, own, result["median_s"], job)
    size = "x".join(map(str, own.images.shape[2:]))
    return {**result, **rest, "note": f"{len(own.images)} images of {size}"}


def check(job: Job, own: Given, found: Tensor) -> None:
    """Raises WrongResult unless the first and last member's losses are functional_call's."""
    ends = [0, job.members - 1]
    exact = eager(own, own.rows[ends])()
    error = float((found[ends] - exact).abs().max() / exact.abs().max())
    if not error <= _DEVIATION[job.dtype_name]:
        raise WrongResult(f"forward: losses of {job.size} by {job.backend} are off by {error:.2g}")


def _memory(job: Job, peak: bool) -> int:
    if job.device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return measure.status_bytes("VmHWM" if peak else "VmRSS")


def _fold_share(forward: Any, own: Given, seconds: float, job: Job) -> float:
    """Folding and packing one member, as a share of its evaluation on 256 images on a thread."""
    program = forward._built(tuple(own.images.shape[1:]), own.rows.dtype).runner.program
    prepare: Callable[[], Any] = lambda: program.prepare(own.rows[0], None)  # noqa: E731
    times = measure.interleaved(prepare, lambda: None, 7)[0]
    fold = measure.summary(times)["median_s"]
    return fold / (seconds * job.threads / (job.members * len(own.images)) * _FOLD_IMAGES)


def peer(job: Job, own: Given, rows: Tensor) -> Call:
    """One of torch's ways; in 16 bits by autocast."""
    if job.backend == "eager":
        return eager(own, rows, autocast_of(job))
    if job.backend == "vmap":
        return vmapped(own, rows, autocast_of(job))
    if job.backend == "channels-last":
        return eager(own, rows, autocast_of(job), channels_last=True)
    mode = "max-autotune" if job.backend == "compile-max" else "default"
    return compiled(own, rows, autocast_of(job), mode)


def autocast_of(job: Job) -> Callable[[], Any]:
    """The context in which torch computes in the job's dtype."""
    if job.dtype_name in ("float32", "tf32"):
        return contextlib.nullcontext
    return lambda: torch.autocast(job.device, job.dtype)


def eager(
    own: Given,
    rows: Tensor,
    autocast: Callable[[], Any] = contextlib.nullcontext,
    channels_last: bool = False,
) -> Call:
    """functional_call on views of the rows, in inference mode; or in channels-last copies."""
    layout, model = own.layout, own.model
    images = own.images
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    parts = _parts(images, own.labels, own.micro_batch)

    @torch.inference_mode()
    def call() -> Tensor:
        losses = []
        for row in rows:
            tensors = layout.views(row)
            if channels_last:
                tensors = {
                    name: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
                    for name, t in tensors.items()
                }
            with autocast():
                found = [_losses(functional_call(model, tensors, (x,)), y) for x, y in parts]
            losses.append(torch.cat(found))
        return torch.stack(losses)

    return call


def compiled(own: Given, rows: Tensor, autocast: Callable[[], Any], mode: str) -> Call:
    """torch.compile of one member's pass, with weights as arguments and images channels-last."""
    model, layout = own.model, own.layout

    def one(tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return _losses(functional_call(model, tensors, (x,)), y)

    fast = torch.compile(one, dynamic=False, mode=mode)
    images = own.images.contiguous(memory_format=torch.channels_last)
    parts = _parts(images, own.labels, own.micro_batch)

    @torch.no_grad()
    def call() -> Tensor:
        with autocast():
            losses = [
                torch.cat([fast(layout.views(row), x, y).clone() for x, y in parts]) for row in rows
            ]
        return torch.stack(losses)

    return call


def vmapped(own: Given, rows: Tensor, autocast: Callable[[], Any]) -> Call:
    """torch.func.vmap over the members, weights stacked."""
    model, layout = own.model, own.layout
    parts = _parts(own.images, own.labels, own.micro_batch)

    def one(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, tensors, (x,))

    @torch.no_grad()
    def call() -> Tensor:
        views = [layout.views(row) for row in rows]
        stacked = {name: torch.stack([v[name] for v in views]) for name in views[0]}
        with autocast():
            found = []
            for x, y in parts:
                logits = torch.func.vmap(one, in_dims=(0, None))(stacked, x)
                found.append(torch.stack([_losses(member, y) for member in logits]))
        return torch.cat(found, dim=1)

    return call


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def _parts(images: Tensor, labels: Tensor, size: int) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))
