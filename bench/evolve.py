"""The cases `evolve`, `racing` and `ranks`: seconds a generation of a run, with evaluation.

Backend `fused` is what a user of `Evolution` gets; `eager` is what one would write without this
package: DE/rand/1/bin in a loop over members, functional_call for their losses. Images are made up,
labels are those of the network that members are 3 % apart from, so that most trials lose.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench import child, measure
from bench.forward import autocast_of, eager
from bench.handwritten import Loop
from bench.job import Job
from bench.networks import NETWORKS, Subject, subject_of, work_of
from bench.row import Row
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.classification import ClassificationFitness
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.racing import Racing
from deevo_ext.population.population import Population
from deevo_ext.runs.run import Evolution
from deevo_ext.search.optimizer import DifferentialEvolution

ERROR = 0.01
APART = 0.03


def images_of(job: Job) -> int:
    """Images that a generation's trials are scored on."""
    if job.batch or job.quick:
        return job.batch or 128
    return 6400 if job.device == "cuda" else 512 if NETWORKS[job.size].size == 32 else 128


def run_job(job: Job) -> Row:
    """The row that its own process gives, with FLOP and bytes of full evaluations."""
    work = work_of(replace(job, batch=0))
    job = replace(job, batch=images_of(job))
    return work.complete(job, child.run(job))


def run_child(job: Job) -> Row:
    """Generations of one run."""
    subject = subject_of(job, count=job.batch, apart=APART)
    rest: dict[str, Any] = {"clock": "wall", "cold": "as in a run"}
    if job.backend == "eager":
        times = _by_hand(job, subject)
        rest["note"] = f"{job.batch} images, DE/rand/1/bin and functional_call in torch"
    else:
        with _second_rank(job) if job.case == "ranks" else contextlib.nullcontext():
            history = _evolved(job, subject)
        # The first generation scores the parents and builds the network graph.
        seconds = [one["seconds"] for one in history]
        times = [b - a for a, b in pairwise(seconds)]
        rest["note"] = f"{job.batch} images"
        if job.case == "racing":
            shares = [one["racing/images"] for one in history[1:]]
            rest["image_share"] = sum(shares) / len(shares)
            rest["note"] += f", error {ERROR}, {rest['image_share']:.0%} of them seen"
        if job.case == "ranks":
            rest["note"] += f", 2 ranks, {history[-1]['traffic']:,.0f} bytes received by rank 0"
    return {**measure.summary(times), **rest}


@contextlib.contextmanager
def _second_rank(job: Job) -> Iterator[None]:
    """Makes this process rank 0 of two, and starts the other one."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    names |= {"LOCAL_WORLD_SIZE": "2", "DEEVO_RANK_TIMEOUT": "60"}
    other = multiprocessing.get_context("spawn").Process(target=_as_rank_1, args=(job, names))
    other.start()
    os.environ.update(names, RANK="0", LOCAL_RANK="0")
    try:
        yield
        other.join()
    finally:
        other.kill()


def _as_rank_1(job: Job, names: dict[str, str]) -> None:
    os.environ.update(names, RANK="1", LOCAL_RANK="1")
    torch.set_num_threads(job.threads)
    _evolved(job, subject_of(job, count=job.batch, apart=APART))


def _evolved(job: Job, subject: Subject) -> list[dict[str, float]]:
    members = [subject.layout.views(row.cpu()) for row in subject.rows]
    whole = {name: tensor.cpu() for name, tensor in subject.model.state_dict().items()}
    states = [{**whole, **{n: t.clone() for n, t in one.items()}} for one in members]
    population = Population.from_state_dicts(subject.model, states, device=job.device)
    evaluator = Evaluator(
        subject.model,
        population,
        device=job.device,
        precision=job.dtype_name,
        micro_batch=subject.micro_batch,
        force_precision=True,
    )
    images = ImageSet(subject.images, subject.labels, "images")
    racing = Racing(ERROR) if job.case == "racing" else None
    fitness = ClassificationFitness(evaluator, images, racing=racing)
    generations = job.repetitions + 1
    de = DifferentialEvolution(population, generations=generations, seed=job.seed)
    run = Evolution(de, fitness, progress=False)
    run.run()
    return run.history


def _by_hand(job: Job, subject: Subject) -> list[float]:
    """Seconds per generation; parents are scored before."""
    torch.manual_seed(job.seed)
    loop = Loop(subject.rows)

    def fitness(rows: Tensor) -> Tensor:
        return eager(subject, rows, autocast_of(job))().mean(dim=1)

    parents = fitness(subject.rows)
    times = []
    for _ in range(job.repetitions + 1):
        started = time.perf_counter()
        loop.make_trials()
        trials = fitness(loop.trials)
        better = trials < parents
        loop.keep(better)
        parents = torch.where(better, trials, parents)
        if job.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return times[1:]
