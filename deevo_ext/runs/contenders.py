"""Measures the networks of a comparison, on images that nothing else has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric, mean_score
from deevo_ext.fitness.statistics import Inherited, Used
from deevo_ext.runs.base import Run
from deevo_ext.runs.comparison import IN_EVERY_TABLE, Comparison, Measured
from deevo_ext.runs.paired import Difference
from deevo_ext.runs.state import INITIAL_NAMES, PARENT, SOUP, TREATED_NAMES, Candidate
from deevo_ext.runs.treatments import Cost
from deevo_ext.runs.validation import Validation

ENSEMBLE = "logit ensemble"


@dataclass(frozen=True)
class Contender:
    """A network to be measured.

    name: in the table; there must be one called `PARENT` and one called `SOUP`. row [D] and
    statistics [S]: its weights. score: on the validation images; less is better. cost: what was
    spent to find it. initial: whether it needed no evolution; returned: whether it is what the run
    returned.
    """

    name: str
    row: torch.Tensor
    statistics: Used | None
    score: float
    cost: Cost
    initial: bool
    returned: bool


@dataclass(frozen=True)
class PerImage:
    """losses float32 [N] (cross-entropy in nats), correct bool [N] (top-1), and a metric's.

    outcomes: [N] or [N, classes], where they are kept to be compared; fitness: what they come to.
    All lie where the labels are.
    """

    losses: torch.Tensor
    correct: torch.Tensor
    outcomes: torch.Tensor | None
    fitness: float


def compare(
    evaluator: Evaluator,
    contenders: Sequence[Contender],
    images: LabelledImages,
    metric: Metric,
    note: str = "",
) -> Comparison:
    """Compares networks on images, in their order; the logit ensemble follows the initial ones.

    The members of an evolved population are read from their files again, for the ensemble. The
    verdict is on the evolved contender of least score against the initial one of least score, and
    against the best parent; where nothing was evolved, on that initial one against the best parent.
    metric: what these scores are of; note: the comparison's.
    """
    rival, evolved = (
        min(
            (one for one in contenders if one.initial == initial),
            key=lambda one: (one.name not in TREATED_NAMES["kept"], one.score),  # as was asked for
            default=None,
        )
        for initial in (True, False)
    )
    assert rival is not None
    ours = rival.name if evolved is None else evolved.name
    measured = {}
    for one in contenders:
        found = _measure(evaluator, one, images, metric)
        kept = one.name in (ours, rival.name, PARENT)
        measured[one.name] = found if kept else replace(found, outcomes=None)
    soup = measured[SOUP]

    def line(name: str, scores: PerImage, cost: Cost, inference: int, returned: bool) -> Measured:
        by_metric = None if metric.name in IN_EVERY_TABLE else metric.shown(scores.fitness)
        return Measured(
            name=name,
            loss=mean_score(scores.losses, evaluator.micro_batch),
            top1=float(scores.correct.double().mean()),
            images=len(images),
            gained=int((scores.correct & ~soup.correct).sum()),
            lost=int((~scores.correct & soup.correct).sum()),
            forward_passes=cost.forward_passes,
            seconds=round(cost.seconds, 3),
            inference=inference,
            returned=returned,
            metric=by_metric,
        )

    lines = {
        initial: [
            line(one.name, measured[one.name], one.cost, 1, one.returned)
            for one in contenders
            if one.initial == initial
        ]
        for initial in (True, False)
    }
    members = evaluator.population.initial_size
    together = line(ENSEMBLE, _ensemble(evaluator, images, metric), Cost(), members, False)

    def against(name: str) -> Difference:
        ours_, theirs = measured[ours].outcomes, measured[name].outcomes
        assert ours_ is not None and theirs is not None
        return Difference.of(name, metric, ours_, theirs, images.labels)

    return Comparison(
        [*lines[True], together, *lines[False]],
        None if evolved is None else evolved.name,
        None if evolved is None else against(rival.name),
        against(PARENT),
        metric.name,
        images.name,
        note,
    )


def compare_run(run: Run, images: LabelledImages) -> Comparison:
    """Compares, on images, the networks of a finished run that had validation and files."""
    validation, chosen = run.validation, run.chosen
    assert isinstance(validation, Validation) and chosen is not None
    run.treat()
    contenders, notes = contenders_of(run, chosen), []
    evolved = min((one.score for one in contenders if not one.initial), default=None)
    shown = validation.metric.shown
    if not chosen.generation and evolved is not None:
        notes.append(
            f"On the validation images the {chosen.name} scored {shown(chosen.score):.5g}, the "
            f"best evolved network {shown(evolved):.5g}."
        )
    if len({one.score for one in contenders}) == 1:
        notes.append(
            f"Validation could not choose: all networks score {shown(chosen.score):.5g} on its "
            f"{len(validation.images):,} images, so this metric is saturated there; give more "
            "validation images, or a finer metric, as the loss."
        )
    if chosen.treatment == "kept":
        notes.append(
            "A part of the network that the search began with was to be kept; of the others "
            f"validation would have chosen the {run.state.chosen().name}."
        )
    if validation.evaluator.policy.recalibrates:
        notes.append(
            "BatchNorm statistics are re-estimated on calibration images in every network but the "
            f"{TREATED_NAMES['averaged'][0]}."
        )
    if run.treatments is not None and run.treatments.reason:
        notes.append(f"No refit: {run.treatments.reason}.")
    return compare(validation.evaluator, contenders, images, validation.metric, " ".join(notes))


def contenders_of(run: Run, chosen: Candidate) -> list[Contender]:
    """Returns the contenders of a finished run; `chosen` is what it returned."""
    members = run.population.initial_size
    share = run.initial_seconds / max(run.initial_forward_passes, 1)
    # The initial candidates took 2 NP evaluations: the members, the mean, and NP - 1 soups; what
    # their statistics took once more, to be kept, is the run's.
    assert isinstance(run.validation, Validation)
    each = len(run.validation.images) + run.validation.evaluator.policy.passes
    passes = {"member": members * each, "mean": 0, "soup": (2 * members - 1) * each}
    costs = {INITIAL_NAMES[kind]: Cost(n, n * share) for kind, n in passes.items()}
    whole = Cost(run.forward_passes, run.seconds)
    state = run.state
    candidates = [*state.initial.values()]
    candidates += [one for one in state.treated if not one.generation]
    candidates += [*state.evolved.values()]
    candidates += [one for one in state.treated if one.generation]
    if chosen.name not in [one.name for one in candidates]:
        candidates.append(chosen)
    treated = {} if run.treatments is None else run.treatments.costs
    contenders = []
    for candidate in candidates:
        cost = whole if candidate.generation else costs.get(candidate.name, costs[SOUP])
        one = chosen if candidate.name == chosen.name else candidate
        contenders.append(
            Contender(
                one.name,
                one.row,
                one.statistics,
                one.score,
                cost + treated.get(candidate.name, Cost()),
                initial=not candidate.generation,
                returned=one is chosen,
            )
        )
    return contenders


def _measure(
    evaluator: Evaluator, contender: Contender, images: LabelledImages, metric: Metric
) -> PerImage:
    row, statistics = contender.row, contender.statistics
    losses, ranks = evaluator.losses(row, images, statistics)
    if metric.by_ranks:
        outcomes = metric.of_results(losses, ranks)
    else:
        apart = None if statistics is None else Used(statistics[None])
        outcomes = evaluator.image_scores(row[None], images, metric, apart)[0].to(losses.device)
    fitness = float(metric.fitness(outcomes, images.labels, evaluator.micro_batch))
    return PerImage(losses, ranks == 0, outcomes, fitness)


def _ensemble(evaluator: Evaluator, images: LabelledImages, metric: Metric) -> PerImage:
    """Measures the logit ensemble (mean logits) of the initial members, one by one."""
    population, total = evaluator.population, torch.zeros(())
    for i in range(population.initial_size):
        row, statistics = population.reread(i)
        used = evaluator.used_statistics(row, Inherited(statistics))
        total = total + evaluator.logits(row, images, used).double()
    mean = (total / population.initial_size).float()
    losses = nn.functional.cross_entropy(mean, images.labels, reduction="none")
    # The argmax of NaN is a class, too.
    correct = (mean.argmax(dim=1) == images.labels) & mean.isfinite().all(dim=1)
    outcomes = metric.of_images(mean, images.labels)
    fitness = float(metric.fitness(outcomes, images.labels, evaluator.micro_batch))
    return PerImage(losses, correct, None, fitness)
