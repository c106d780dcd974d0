"""What is known of a run before it starts: members, their middle, RAM, passes, time.

Wrong preprocessing or labels show in the members' top-1; a population without a common basin in the
loss half way between them; and a calibration on the same images tells what a generation takes.
"""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass

import torch

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.evaluator import Evaluator, Score
from deevo_ext.fitness.metrics import Metric, label_of
from deevo_ext.population.allocation import available_bytes
from deevo_ext.runs.basin import BasinReport, members_of, scores_of, some_images
from deevo_ext.runs.comparison import IN_EVERY_TABLE
from deevo_ext.runs.population_place import place_line
from deevo_ext.runs.validation import Validation
from deevo_ext.text import text_table

_CANDIDATES = 10  # rows that validation keeps for the comparison


@dataclass(frozen=True)
class Passes:
    """Forward passes (images times members) that a run needs.

    trials, parents, validation: in a generation, on average. initial: before the first generation.
    """

    trials: int
    parents: float
    validation: float
    initial: int

    @property
    def generation(self) -> float:
        """Passes of a whole generation, without what racing saves."""
        return self.trials + self.parents + self.validation

    def generations_in(self, seconds: float, seconds_per_pass: float) -> int:
        """The number of generations that fit into a time, at least 1."""
        left = seconds - self.initial * seconds_per_pass
        fitting = left / (self.generation * seconds_per_pass)
        return max(1, math.floor(min(fitting, 2**31 - 1)))


@dataclass(frozen=True)
class Schedule:
    """How large a run is, as far as it is decided before the run begins.

    members: the number of members, soups included. generations: the number of generations, unless
    seconds, a time for evaluation, decides it. chunk: the number of rows evaluated together.
    """

    members: int
    generations: int
    seconds: float | None = None
    chunk: int = 8


def count_passes(fitness: ClassificationFitness, validation: Validation, members: int) -> Passes:
    """Counts the passes that a run of so many members needs, with the dearest validation."""
    evaluator = fitness.evaluator
    size = fitness.images_per_batch or len(fitness.images)
    extra = 0
    policy = evaluator.policy
    if policy.recalibrates and policy.calibration is not None:
        extra = len(policy.calibration)
    rotates = fitness.images_per_batch is not None
    # Members, mean, a soup for each member but the first; then three candidates are kept.
    soups = 2 * members * (len(validation.images) + extra) + 3 * extra
    return Passes(
        trials=members * (size + extra),
        parents=members * (size + extra) / fitness.generations_per_batch if rotates else 0.0,
        validation=soups / validation.every,
        initial=soups + (0 if rotates else members * (size + extra)),
    )


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes that the run needs on a device at its peak, and bytes that it can have there."""

    needed: int
    available: int


@dataclass(frozen=True)
class MemberScores:
    """What each member comes to by itself, on `images` fitness images.

    own: by the run's metric, called `metric`, in its user's direction; empty for loss and top-1,
    which `scores` has. reestimated: whether their BatchNorm statistics are those of the run's
    images in place of their files'.
    """

    names: tuple[str, ...]
    scores: tuple[Score, ...]
    own: tuple[float, ...]
    metric: str
    images: int
    reestimated: bool

    def __str__(self) -> str:
        columns = [
            [f"  {name}" for name in self.names],
            [f"{label_of(self.metric)} {value:.4f}" for value in self.own],
            [f"top-1 {score.top1:.3f}" for score in self.scores],
            [f"loss {score.loss:.4f}" for score in self.scores],
        ]
        lines = list(zip(*filter(None, columns), strict=True))
        how = ", BatchNorm statistics re-estimated" if self.reestimated else ""
        return f"Members on {self.images:,} fitness images{how}:\n{text_table((), lines, '<')}"


@dataclass(frozen=True)
class Preflight:
    """What is known before the run starts.

    members: on some fitness images. seconds_per_pass: measured on some of them. device_bytes: by
    device. place: where the population lies, as a line.
    """

    members: MemberScores
    basin: BasinReport | None
    passes: Passes
    seconds_per_pass: float
    generations: int
    device_bytes: dict[str, DeviceBytes]
    place: str

    @property
    def seconds_per_generation(self) -> float:
        """The time that evaluation takes, which is nearly all."""
        return self.passes.generation * self.seconds_per_pass

    @property
    def seconds(self) -> float:
        """The time that the whole run takes, without what racing saves."""
        initial = self.passes.initial * self.seconds_per_pass
        return initial + self.generations * self.seconds_per_generation

    def require_bytes(self) -> None:
        """Raises DeevoError where more is needed than there is."""
        for device, count in self.device_bytes.items():
            if count.needed > count.available:
                raise DeevoError(
                    f"{device} memory: about {_gib(count.needed)} are needed and "
                    f"{_gib(count.available)} can be had; use a smaller chunk or micro_batch, "
                    "16-bit rows (dtype), or fewer members"
                )

    def __str__(self) -> str:
        lines = [str(self.members)]
        if self.basin is not None:
            lines.append(f"Between them: {self.basin}")
        lines.append(self.place)
        for device, count in self.device_bytes.items():
            lines.append(f"Memory, {device}: about {_gib(count.needed)} of {_gib(count.available)}")
        rate = 1.0 / self.seconds_per_pass
        lines.append(
            f"A generation: {self.passes.generation:,.0f} forward passes, "
            f"{self.seconds_per_generation:.3g} s at {rate:,.0f} member-images/s"
        )
        lines.append(f"{self.generations} generations: about {duration_text(self.seconds)}")
        return "\n".join(lines)


def examine(
    fitness: ClassificationFitness,
    validation: Validation,
    basin: BasinReport | None,
    schedule: Schedule,
) -> Preflight:
    """Scores every member on 1,000 class-balanced fitness images, and times it."""
    evaluator = fitness.evaluator
    some = some_images(fitness.images, fitness.seed)
    members, per_pass = members_and_time(evaluator, some, basin, validation.metric, schedule.chunk)
    passes = count_passes(fitness, validation, schedule.members)
    generations = schedule.generations
    if schedule.seconds is not None:
        generations = passes.generations_in(schedule.seconds, per_pass)
    return Preflight(
        members=members,
        basin=basin,
        passes=passes,
        seconds_per_pass=per_pass,
        generations=generations,
        device_bytes=_device_bytes(fitness, schedule.chunk),
        place=place_line(evaluator.population.rows.device, evaluator.device),
    )


def members_and_time(
    evaluator: Evaluator,
    images: LabelledImages,
    basin: BasinReport | None,
    metric: Metric,
    chunk: int,
) -> tuple[MemberScores, float]:
    """Returns what each member comes to on images, and the seconds of a forward pass.

    basin: the report that has loss and top-1 already, where the members were looked at.
    """
    # Either way runners are built and engines chosen by now.
    scores = basin.members if basin else scores_of(evaluator, images, chunk)
    started, before = time.perf_counter(), evaluator.forward_passes
    again = images.slice(0, min(len(images), max(evaluator.micro_batch, len(images) // 4)))
    scores_of(evaluator, again, chunk)
    per_pass = (time.perf_counter() - started) / (evaluator.forward_passes - before)
    own: list[float] = []
    if metric.name not in IN_EVERY_TABLE:
        for rows, inherited in members_of(evaluator, chunk):
            used = evaluator.used_statistics(rows, inherited)
            outcomes = evaluator.image_scores(rows, images, metric, used)
            fitness = metric.fitness(outcomes, images.labels, evaluator.micro_batch)
            own += [metric.shown(value) for value in fitness.tolist()]
    names = tuple(evaluator.population.names)
    found = MemberScores(
        names,
        tuple(scores),
        tuple(own),
        metric.name,
        len(images),
        evaluator.policy.recalibrates,
    )
    return found, per_pass


def _device_bytes(fitness: ClassificationFitness, chunk: int) -> dict[str, DeviceBytes]:
    """Adds what the run will hold to what the calibration took at its peak, by device."""
    evaluator = fitness.evaluator
    population = evaluator.population
    rows = population.rows
    row = rows.stride(0) * rows.element_size()
    chunks = min(chunk, population.size) * row
    scores = 0
    if fitness.racing is not None:
        size = fitness.images_per_batch or len(fitness.images)
        scores = 2 * population.size * size * 4  # of parents and trials, image by image
    apart = evaluator.device != rows.device
    candidates = _CANDIDATES * population.layout.dim * 4
    later = {rows.device: candidates + (2 if apart else 1) * chunks}
    if apart:
        later[evaluator.device] = 2 * chunks
    host = torch.device("cpu")
    later[host] = later.get(host, 0) + scores
    by_device = {}
    for device, more in later.items():
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
            held = torch.cuda.memory_allocated(device)
            by_device[str(device)] = DeviceBytes(peak + more, available_bytes(device) + held)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            by_device["host"] = DeviceBytes(peak + more, available_bytes() + peak)
    return by_device


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def duration_text(seconds: float) -> str:
    """Returns a duration for people, in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{n} {u}" for n, u in ((days, "d"), (hours, "h"), (minutes, "min")) if n]
    return " ".join(parts[:2])
