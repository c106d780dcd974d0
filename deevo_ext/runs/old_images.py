"""Other images than those trained on: what is lost on the old ones, and networks between.

A network that was evolved for new images may be worse on those that its members were trained on.
Tables on both kinds say so. Between the network that the search began with and the one that it came
to lies a line of recipes; `Keep` asks for a point of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks
from deevo_ext.fitness.sampling import batch_indices
from deevo_ext.fitness.statistics import Used
from deevo_ext.population.recipes import after, uniform
from deevo_ext.runs.comparison import Comparison
from deevo_ext.runs.state import SOUP, TREATED_NAMES, Candidate, with_tensors
from deevo_ext.runs.validation import Validation

if TYPE_CHECKING:
    from deevo_ext.runs.recipe_run import RecipeRun

_STATISTICS_IMAGES = 1000


@dataclass(frozen=True)
class Keep:
    """How much of the network that a search began with is kept in what it returns.

    share: 0 < share < 1; coefficients are share of the first recipe's and the rest of the last
    one's, and a refit of the classifier counts by the rest. images: of the kind trained on;
    BatchNorm statistics that are re-estimated are share of those on them and the rest of those on
    the calibration images.
    """

    share: float
    images: LabelledImages


def recipe_between(run: RecipeRun, chosen: Candidate, share: float) -> torch.Tensor:
    """Returns the recipe float32 [blocks, members] at a share of the way back to the first one."""
    blocks, size = len(run.state.blocks), run.population.initial_size
    first = min(run.state.initial.values(), key=lambda one: one.score)
    last = run.recipe_of(replace(chosen, treatment=""))
    return after(uniform(blocks, size, first.members), last, 1.0 - share)


def between(run: RecipeRun, chosen: Candidate, keep: Keep) -> Candidate:
    """Returns the network between the first one of a run and the one that it has chosen.

    Its score is that of the validation images, by themselves.
    """
    state, evaluator = run.state, run.rounds.evaluator
    views = run.population.layout.views
    there, last = (replace(chosen, treatment=treatment) for treatment in ("kept", ""))
    row = state.row(run.recipe_of(there), run.changes_of(there))
    evolved = views(state.row(run.recipe_of(last), run.changes_of(last)))
    changed = {name: view.clone() for name, view in views(row).items()}
    for name, tensor in chosen.tensors.items():
        change = (1.0 - keep.share) * (tensor - evolved[name])
        # The sum of what the row has and what a recipe keeps of the change.
        changed[name] = changed[name] + ((changed[name] + change) - changed[name])
    statistics = chosen.statistics
    plain = replace(chosen, row=row, tensors={}, treatment="kept")
    kept = with_tensors(run.population, replace(plain, statistics=None), changed)
    if evaluator.policy.recalibrates:
        some = keep.images
        if len(some) > _STATISTICS_IMAGES:
            some = some.subset(batch_indices(some.labels, _STATISTICS_IMAGES, 0, run.seed))
        assert evaluator.policy.calibration is not None
        old, new = (
            evaluator.policy.reestimated(kept.row, images)[1]
            for images in (some, evaluator.policy.calibration)
        )
        assert old is not None and new is not None
        statistics = Used(keep.share * old + (1.0 - keep.share) * new)
    used = None if statistics is None else Used(statistics[None])
    validation = run.validation
    assert isinstance(validation, Validation)
    outcomes = evaluator.image_scores(
        kept.row[None].to(evaluator.device), validation.images, validation.metric, used
    )
    metric, labels = validation.metric, validation.images.labels.cpu()
    score = ranks().lead(
        lambda: float(metric.fitness(outcomes[0].cpu(), labels, evaluator.micro_batch))
    )
    return replace(kept, statistics=statistics, score=score)


def what_was_lost(old: Comparison) -> str:
    """Says in a sentence what the returned network is worth on images of the kind trained on."""
    lines = {line.name: line for line in old.networks}
    before = lines.get(TREATED_NAMES["averaged"][0], lines[SOUP])
    now = next(line for line in old.networks if line.returned)
    points = 100 * (now.top1 - before.top1)
    what = "nothing of this is lost"
    if points:
        what = f"{abs(points):.1f} points are {'lost' if points < 0 else 'gained'} there"
    return (
        f"Of {now.images:,} images of the kind trained on, the {before.name} gets "
        f"{before.top1:.1%} right (loss {before.loss:.4f}), the network that is returned, the "
        f"{now.name}, {now.top1:.1%} ({now.loss:.4f}): {what}."
    )
