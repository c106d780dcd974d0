"""The case `round`: the logits of a round's probes, which share what lies before their blocks.

Backend fused shares; unshared runs each probe whole in the same network graph, eager by
functional_call, compile by torch.compile. These three are timed in turn with what shares: their
notes say how many times its time they take.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench import child, measure
from bench.job import Job, check_close
from bench.networks import subject_of, work_of
from bench.row import Row
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.fitness.statistics import group_size
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after, uniform

IMAGES = {"resnet8": 2000, "resnet18": 64}
_EPS, _CHUNK = 0.3, 8
# Of logits by torch, whose sums go in another order than the network graph's.
_DEVIATION = 1e-3

Way = Callable[[Sequence[int]], Tensor]
"""Logits of the probes of some blocks."""


def run_job(job: Job) -> Row:
    """A row with FLOP and bytes of the network graph; a compiler works in its own process."""
    work = work_of(job)
    row = child.run(job) if job.backend == "compile" else run_child(job)
    done = replace(job, members=row.pop("probes"), batch=row.pop("images"))
    return {**work.complete(done, row), "floor_bytes": work.floor}


def run_child(job: Job) -> Row:
    """Checks the probes of the first and the last block, then times all of them."""
    probes = Probes.of(job, "auto")
    blocks = range(len(probes.moved))
    ends = (blocks[0], blocks[-1])
    right = probes.alone(ends)
    check_close("round: probes that share", probes.shared(ends), right, 0.0)
    way: Way = probes.shared if job.backend == "fused" else probes.alone
    beside: Callable[[], object] = (
        measure.nothing if job.backend == "fused" else partial(probes.shared, blocks)
    )
    if job.backend in ("eager", "compile"):
        way = Probes.of(job, "eager").alone if job.backend == "eager" else Compiled(probes)
        check_close(f"round: probes by {job.backend}", way(ends), right, _DEVIATION)
    effort = job.effort(least=1)
    times, others = measure.interleaved(partial(way, blocks), beside, effort=effort, warm_up=False)
    count, images = sum(map(len, probes.moved)), len(probes.images)
    row: Row = {
        **measure.summary(times),
        **measure.how(job.device),
        "image_share": probes.share() if job.backend == "fused" else 1.0,
        "probes": count,
        "images": images,
        "note": f"{count} probes of {len(blocks)} blocks, {images} images",
    }
    if job.backend != "fused":
        row["of_fused"] = statistics.median(a / b for a, b in zip(times, others, strict=True))
        row["note"] += f"; {row['of_fused']:.2f} x the time of fused in turn"
    return row


@dataclass(frozen=True)
class Probes:
    """All probes of a round from the mean of the members on.

    probing: how they are made. moved: their recipes by block. recipe: of the mean.
    """

    probing: Probing
    images: ImageSet
    recipe: Tensor
    moved: list[list[Tensor]]

    @classmethod
    def of(cls, job: Job, engine: str) -> Probes:
        """Members a little apart, under the policy of the search, and images."""
        subject = subject_of(job, job.batch or (32 if job.quick else IMAGES[job.size]))
        images = ImageSet(subject.images, subject.labels, "images")
        states = []
        for row in subject.rows:
            values = {name: t.clone() for name, t in subject.layout.views(row).items()}
            states.append({**subject.model.state_dict(), **values})
        population = Population.from_state_dicts(subject.model, states, batchnorm="recalibrate")
        evaluator = Evaluator(
            subject.model,
            population,
            engine=engine,
            micro_batch=subject.micro_batch,
            calibration=images,
            device=job.device,
        )
        blocks = blocks_of(evaluator.forward, population, images.image_shape, "layer").blocks
        recipe = uniform(len(blocks), job.members, range(job.members))
        moved = [_probes(recipe, b, job.members) for b in range(len(blocks))]
        return cls(Probing(ProbeForward(evaluator), blocks, _EPS, _CHUNK), images, recipe, moved)

    def rows(self, blocks: Sequence[int]) -> Iterator[Tensor]:
        """Their rows [K, D], a chunk at a time."""
        recipes = [recipe for b in blocks for recipe in self.moved[b]]
        for start in range(0, len(recipes), _CHUNK):
            yield self.probing.compose(torch.stack(recipes[start : start + _CHUNK]))

    def alone(self, blocks: Sequence[int]) -> Tensor:
        """Logits of the probes of some blocks, each evaluated as a whole."""
        return torch.cat([self.probing.forward(rows, self.images) for rows in self.rows(blocks)])

    def shared(self, blocks: Sequence[int]) -> Tensor:
        """The same, what lies before the blocks computed once."""
        probing, moved = self.probing, {b: self.moved[b] for b in blocks}
        return probing.forward.by_blocks(
            probing.blocks, probing.compose, self.recipe, moved, self.images
        )

    def share(self) -> float:
        """The share of whole forward passes that `shared` takes."""
        counts = {b: len(some) for b, some in enumerate(self.moved)}
        passes = self.probing.forward.passes(self.probing.blocks, counts, self.images)
        return passes / (sum(counts.values()) * len(self.images))


class Compiled:
    """What one would write with torch.compile: a function of weights and a group of images."""

    def __init__(self, probes: Probes) -> None:
        evaluator, self.probes = probes.probing.forward.evaluator, probes
        model = copy.deepcopy(evaluator.forward.module)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # without statistics it takes the batch's
                module.running_mean = module.running_var = module.num_batches_tracked = None
        self._names = [name for name, _ in model.named_parameters()]
        self._layout = evaluator.population.layout
        self._run = torch.compile(
            lambda tensors, x: functional_call(model, tensors, (x,)), dynamic=False
        )
        images = probes.images
        pixels = images.images.contiguous(memory_format=torch.channels_last)
        self._groups = pixels.split(group_size(images, evaluator.micro_batch))

    @torch.no_grad()
    def __call__(self, blocks: Sequence[int]) -> Tensor:
        """Logits of the probes of some blocks."""
        logits = []
        for rows in self.probes.rows(blocks):
            for row in rows:
                views = self._layout.views(row)
                tensors = {name: views[name] for name in self._names}
                # A compiled function may give the same memory again.
                logits.append(torch.cat([self._run(tensors, x).clone() for x in self._groups]))
        return torch.stack(logits)


def _probes(recipe: Tensor, block: int, members: int) -> list[Tensor]:
    """All members' but one: its direction follows from the others'."""
    found = []
    for member in range(members - 1):
        step = torch.zeros_like(recipe)
        step[block, member] = 1.0
        found.append(after(recipe, step, _EPS))
    return found
