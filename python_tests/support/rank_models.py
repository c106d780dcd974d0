"""A linear model whose slices several ranks share, and all that is asked of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deevo_ext import DeevoError
from deevo_ext.distributed import slices
from deevo_ext.distributed.joining import joined
from deevo_ext.distributed.ranks import ranks
from deevo_ext.distributed.scaling import Sizes
from deevo_ext.fitness.class_weights import image_weights
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.fitness.resampling import gains_of
from deevo_ext.fitness.virtual import guided_fitness, own_scores, virtual_fitness, virtual_scores
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.population.recipes import uniform
from deevo_ext.runs.rounds import RoundSearch
from deevo_ext.search import held_out
from deevo_ext.search.likeliest import LikeliestModel
from deevo_ext.search.linear_model import LinearModel
from deevo_ext.search.presets import configure
from deevo_ext.search.virtual import evolve_virtually, first_individuals
from support.evolution import images as drawn_images
from support.evolution import population
from support.networks import Net
from support.rank_runs import do, runs_of


def share_all_models() -> None:
    """Makes this process' models of any size as those are that are worth sharing."""
    slices.WORTH = slices.NUMBERS = 1
    held_out.RIDGES = (1.0, 0.1)  # all nine take no other way


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """A score of each image."""
    true = torch.nn.functional.one_hot(labels, logits.shape[1])
    return (logits.softmax(dim=1) - true).square().sum(dim=1)


def spread(logits: Tensor, labels: Tensor) -> float:
    """One number of the whole set, of all its logits."""
    return float(logits.double().std()) + float(labels.sum()) / (1 + float(logits.double().amax()))


METRICS = (
    Metric("loss"),
    Metric("loss", label_smoothing=0.1),
    Metric.of("top1"),
    Metric.of("worst-class"),
    Metric.of("macro-f1"),
    Metric.of(brier, whole=False),
    Metric.of(spread, whole=True),
)


def model_on_ranks(images: int, likeliest: int | None) -> dict[str, Any]:
    """What a model of so many images says, and what of it this rank holds."""
    share_all_models()
    directions, classes = 7, 5 if likeliest is None else 40
    generator = torch.Generator().manual_seed(images)
    z0 = torch.randn(images, classes, generator=generator)
    labels = torch.arange(images) % 3
    moved = torch.randn(directions, images, classes, generator=generator)
    moved[4] *= 1e-9
    with joined() as group:
        if likeliest is None:
            model = LinearModel(z0, labels, directions)
        else:
            model = LikeliestModel(z0, labels, directions, likeliest)
        own = model.slices.own
        columns = model.columns(z0[own] + moved[:, own], own)
        finite = model.put({k: one - model.present for k, one in enumerate(columns)}, 1e-6)
        said: dict[str, Any] = {"finite": finite, "scale": model.scale}
        folds = [torch.arange(k, images, 2) for k in range(2)]
        said["at"] = model.at(z0 + 0.1 * moved[0]).fit(0.1)
        for metric in METRICS:
            said[f"{metric.describe()}"] = _asked(model, metric, folds)
        before = group.traffic
        model.fit(0.1)
        held = [model.slopes.numel(), own.stop - own.start, group.traffic - before]
        q = torch.linspace(-1.0, 1.0, directions).double()
        model.correct(q, (z0 + moved.sum(dim=0))[own])
        said["corrected"] = virtual_scores(model, METRICS[0], q[None].float())
        together = model.together(torch.arange(directions) % 3)
        said["together"] = together.fit(0.1)
        return {"said": said, "held": held}


def _asked(model: LinearModel, metric: Metric, folds: list[Tensor]) -> list[Any]:
    """All that a round asks of a model by one metric."""
    weights = image_weights(model, metric) if metric.name == "worst-class" else None
    found = []
    if metric.name == "top1" or metric.keeps_logits:
        found = held_out.held_out(
            model,
            folds,
            lambda q: own_scores(model, metric, q),
            lambda before, after: gains_of(metric, before, after, model.labels),
        )
    fit = model.fit(0.1, weights=weights)
    some = torch.stack([fit, 0.3 * fit, -fit]).float()
    evolved = evolve_virtually(
        guided_fitness(model, metric, 0.01, weights),
        first_individuals([fit], 0, 1),
        configure("sa-shade-tri-ensin", generations=3),
        0,
        1,
    )
    return [
        [(one.loss, one.gain, one.standard_error, one.images, one.fits) for one in found],
        [fit, evolved.best, evolved.fitness, weights],
        [virtual_scores(model, metric, some), virtual_fitness(model, metric, 0.1)(some)],
    ]


def do_shared(folder: Path, checkpoints: Path, plain: Path, *names: str) -> dict[str, Any]:
    """`do`, with linear models that the ranks share."""
    share_all_models()
    return do(folder, checkpoints, plain, *names)


def killed_in_a_fit(folder: Path, checkpoints: Path, plain: Path, name: str) -> str:
    """Does a run whose rank 1 is killed in the midst of its 20th step; what the others say."""
    share_all_models()
    run = runs_of(folder, checkpoints, plain)[name]()
    derivatives, calls = LinearModel._derivatives, 0

    def struck(model: LinearModel, *some: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 20 * sum(1 for _ in model.slices.each()) and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return derivatives(model, *some)

    LinearModel._derivatives = struck  # type: ignore[method-assign]
    try:
        run.run()
    except DeevoError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def traffic_of_a_round(shared: bool) -> tuple[Sizes, int]:
    """A round's sizes, and the bytes that this rank received for it.

    shared: whether the ranks share its model.
    """
    if shared:
        slices.WORTH = slices.NUMBERS = 1
    members = population(5, batchnorm="recalibrate")
    some = drawn_images(3600, 1)  # 300 make the model, as many choose, 2,400 test
    evaluator = Evaluator(
        Net(), members, micro_batch=32, calibration=some.slice(0, 100), engine="eager"
    )
    blocks = blocks_of(evaluator.forward, members, some.image_shape, "layer").blocks
    rounds = RoundSearch(
        Probing(ProbeForward(evaluator), blocks, 0.3, 4),
        some,
        Metric("loss"),
        300,
        configure("sa-shade-tri-ensin", generations=300),
        0,
    )
    with joined():
        rounds.run(uniform(len(blocks), 5, range(5)), 1, 1.0)
        received = ranks().traffic
    statistics = members.statistics_layout.dim
    return Sizes(members.dim, statistics, 3, 5, 300, 32, 4, len(blocks)), received
