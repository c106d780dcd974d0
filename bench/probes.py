"""The case `round`: the logits of a round's probes, which share what lies before their blocks.

Backend fused shares; eager evaluates each probe as a whole, by functional_call. The note of fused
says how long the same probes take alone, in the same network graph.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from bench import measure
from bench.job import Job, check_close
from bench.networks import Subject, subject_of, work_of
from bench.row import Row
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after, uniform

IMAGES = {"resnet8": 2000, "resnet18": 500}
_EPS, _CHUNK = 0.3, 8


def run_job(job: Job) -> Row:
    """Checks that probes have the bits that they have alone, then times them."""
    count = 32 if job.quick else IMAGES[job.size]
    work = work_of(job)
    subject = subject_of(job, count)
    evaluator, images = evaluator_of(job, subject)
    shape = tuple(subject.images.shape[1:])
    blocks = blocks_of(evaluator.forward, evaluator.population, shape, "layer").blocks
    forward = ProbeForward(evaluator)
    compose = Probing(forward, blocks, _EPS, _CHUNK).compose
    recipe = uniform(len(blocks), job.members, range(job.members))
    moved = {b: _probes(recipe, b, job.members) for b in range(len(blocks))}
    rows = [recipe for some in moved.values() for recipe in some]

    def alone() -> torch.Tensor:
        parts = [
            forward(compose(torch.stack(rows[i : i + _CHUNK]), None), images)
            for i in range(0, len(rows), _CHUNK)
        ]
        return torch.cat(parts)

    def shared() -> torch.Tensor:
        return forward.by_blocks(blocks, compose, recipe, moved, images)

    forward(compose(recipe[None], None), images)  # builds and checks it
    note = f"{len(rows)} probes of {len(blocks)} blocks, {count} images"
    run, share = alone, 1.0
    if job.backend == "fused":
        started = time.perf_counter()
        expected = alone()
        seconds = time.perf_counter() - started
        check_close("round: probes that share", shared(), expected, 0.0)
        counts = {b: len(some) for b, some in moved.items()}
        share = forward.passes(blocks, counts, images) / (len(rows) * count)
        run, note = shared, f"{note}; alone {seconds:.3g} s"
    times, _ = measure.interleaved(run, effort=job.effort(least=1))
    done = replace(job, members=len(rows), batch=count)
    row = {**measure.summary(times), **measure.how(job.device), "note": note}
    return {**work.complete(done, {**row, "image_share": share}), "floor_bytes": work.floor}


def evaluator_of(job: Job, subject: Subject) -> tuple[Evaluator, ImageSet]:
    """Members a little apart, under the policy of the search, and images."""
    images = ImageSet(subject.images, subject.labels, "images")
    states = []
    for row in subject.rows:
        values = {name: t.clone() for name, t in subject.layout.views(row).items()}
        states.append({**subject.model.state_dict(), **values})
    population = Population.from_state_dicts(subject.model, states, batchnorm="recalibrate")
    engine = {"fused": "auto", "eager": "eager"}[job.backend]
    evaluator = Evaluator(
        subject.model,
        population,
        engine=engine,
        micro_batch=subject.micro_batch,
        calibration=images,
        device=job.device,
    )
    return evaluator, images


def _probes(recipe: torch.Tensor, block: int, members: int) -> list[torch.Tensor]:
    """All members' but one: its direction follows from the others'."""
    found = []
    for member in range(members - 1):
        step = torch.zeros_like(recipe)
        step[block, member] = 1.0
        found.append(after(recipe, step, _EPS))
    return found
