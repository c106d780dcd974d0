"""A round of the coefficients' search: probes, a linear model, proposals from it, verification.

The images that the model is made of, those that choose among real networks, and those that test the
chosen one are disjoint (docs/contract.md, "Rounds"). Where images are few, see `runs.few_rounds`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import alone, ranks, warn
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.class_weights import image_weights
from deevo_ext.fitness.differences import Differences
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.probes import Wanted
from deevo_ext.fitness.probing import KeepColumns, Probing
from deevo_ext.fitness.refit import FOLDS
from deevo_ext.fitness.resampling import gain_of, gains_of
from deevo_ext.fitness.sampling import (
    batch_order,
    fold_places,
    rarest,
    size_of_whole_slices,
)
from deevo_ext.fitness.virtual import (
    guided_fitness,
    own_scores,
    virtual_fitness,
    virtual_scores,
)
from deevo_ext.ops.tables import Purpose
from deevo_ext.population.allocation import sent
from deevo_ext.runs.proposals import Outcome, Proposal, best_of
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.held_out import LENGTHS, HeldOut, held_out
from deevo_ext.search.linear_model import LinearModel
from deevo_ext.search.virtual import Virtual, evolve_virtually, first_individuals
from deevo_ext.threads import one_thread

T = TypeVar("T")

FEW = 2000
"""Up to so many fitness images all are in the model, and folds of them choose and test."""
_RIDGES = 3  # fits that propose, beside one virtual evolution
WAVES = 2
"""How often a round proposes steps: after the first time real networks correct the model."""
PROPOSALS = WAVES * (_RIDGES + 1) * len(LENGTHS)
"""Steps that a round proves with real networks, at most."""
# Slopes up to which one thread works on a linear model: on a busy machine several wait for each
# other at every operation, ten times as long as they work.
_SMALL = 1 << 22
_TESTS = 8  # images that test, at most, for one in the model: they cost 2 passes each, not d


@dataclass(frozen=True)
class Parts:
    """The images of a round: those of the model, those that choose, and those that test."""

    model: LabelledImages
    choice: LabelledImages
    test: LabelledImages


@dataclass(frozen=True)
class RoundSearch:
    """What all rounds of a run have in common.

    probing: makes linear models. images: the fitness images. metric: what is minimised. size: the
    number of images of a model. configuration: of the virtual evolution. seed: of the run. fit: the
    images whose slopes memory holds. classes: the network's. differences: the directions of a
    round that goes on where coordinates give no more; what is a recipe below, are changes then.
    """

    probing: Probing
    images: LabelledImages
    metric: Metric
    size: int
    configuration: Configuration
    seed: int
    fit: int = FEW
    classes: int = 0
    differences: Differences | None = None
    few: ClassVar[bool] = False
    """Whether folds choose and test, for want of images."""

    @property
    def along(self) -> Probing | Differences:
        """What the steps of a round go along."""
        return self.probing if self.differences is None else self.differences

    @property
    def evaluator(self) -> Evaluator:
        """What evaluates real networks."""
        return self.probing.forward.evaluator

    def check(self) -> None:
        """Raises DeevoError for images that rounds cannot work with, before any is evaluated."""
        population, labels = self.probing.population, self.images.labels
        if population.batchnorm == "inherit":
            raise DeevoError(
                'batchnorm="inherit" is for search="weights": a recipe\'s network has no parent; '
                'expected "recalibrate" or "evolve"'
            )
        size = self.sizes()[0]
        if size < 2 * FOLDS:
            raise DeevoError(
                f"a round's linear model would be made of {size} of {len(labels)} fitness images; "
                f"its {FOLDS} folds need at least {2 * FOLDS}: give more images or memory"
            )
        choice = self.sizes()[1]
        if self.metric.of_classes and not self.few and choice < size_of_whole_slices(labels):
            label, count = rarest(labels)
            raise DeevoError(
                f"class {label} has {count} of the {len(labels)} fitness images, so that of the "
                f"{choice} which choose a round's step none may be of it; metric "
                f"{self.metric.name} judges every class: give more images of the class, a larger "
                "images_per_round, or a function that leaves such classes out"
            )
        counts = labels.bincount(minlength=self.classes)
        absent = (counts == 0).nonzero().flatten().tolist()
        if len(absent) > _absent_by_chance(counts):
            warn(
                f"the fitness images have none of {len(absent)} of {len(counts)} classes, as class "
                f"{absent[0]}: steps may forget them, which is not measured; give images of every "
                "class that the network is to know",
                stacklevel=2,
            )

    def parts(self, number: int) -> Parts:
        """Returns the images of a round: class-balanced, drawn anew for each (purpose 14)."""
        total = len(self.images)
        order = batch_order(self.images.labels, total, number, self.seed, Purpose.PART)
        model, choice, test = self.sizes()
        ends = list(itertools.accumulate((model, choice, test), initial=0))
        model_, choice_, test_ = (
            self.images.subset(order[a:b].sort().values) for a, b in itertools.pairwise(ends)
        )
        return Parts(model_, choice_, test_)

    def sizes(self) -> tuple[int, int, int]:
        """Returns how many images make a round's model, choose, and test."""
        model = min(self.size, len(self.images) // 2)
        choice = min(model, (len(self.images) - model) // 3)
        return model, choice, min(_TESTS * model, len(self.images) - model - choice)

    def run(
        self, recipe: Tensor, number: int, radius: float, keep: KeepColumns | None = None
    ) -> Outcome:
        """Runs round `number` from a recipe [blocks, members] with steps up to `radius` long."""
        parts = self.parts(number)
        before = self._require_finite(
            self._scores(recipe[None], parts.choice)[0], parts.choice.labels
        )
        model, left_out = self.along.model(recipe, parts.model, keep)
        none = torch.zeros(1, model.directions)
        self._require_finite(virtual_scores(model, self.metric, none)[0], parts.model.labels)
        weights, fits = led(model, lambda: self._weighed(model))
        virtual: list[Virtual] = []
        likely = max(fits, key=lambda fit: fit.loss)
        nothing = Outcome.nothing(likely, left_out, virtual, model)
        proposals: list[Proposal] = []
        for wave in range(WAVES):
            if wave:
                self._correct(model, recipe, proposals[best_of(proposals)], parts.model)
            propose = functools.partial(self._propose, model, weights, fits, radius, (number, wave))
            new, evolved = led(model, propose)
            virtual.append(evolved)
            recipes = self._recipes(recipe, model, new)
            gains = (self._fitness(recipes, parts.choice) - before).tolist()
            proposals += [replace(p, score=gain) for p, gain in zip(new, gains, strict=True)]
        best = best_of(proposals)
        chosen = proposals[best]
        step = model.step_of(chosen.q).float()
        both = torch.stack([recipe, *self._recipes(recipe, model, [chosen])])
        start, end = self._scores(both, parts.test)
        labels = parts.test.labels
        gain, error = ranks().lead(lambda: gain_of(self.metric, start, end, labels))
        return replace(
            nothing,
            step=step,
            proposals=proposals,
            best=best,
            gain=gain,
            standard_error=error,
            # No more is asked: validation chooses in the end, and late rounds gain little each.
            accepted=gain > error,
        )

    def _weighed(self, model: LinearModel) -> tuple[Tensor | None, list[HeldOut]]:
        """The images' weights, and what fits gain on held-out images."""
        weights = image_weights(model, self.metric)
        return weights, self._held_out(model, self._folds(model.labels.cpu()), weights)

    def _folds(self, labels: Tensor) -> list[Tensor]:
        """The positions int64 of the images of each fold."""
        return fold_places(labels, FOLDS, self.seed)

    def _held_out(
        self, model: LinearModel, folds: Sequence[Tensor], weights: Tensor | None
    ) -> list[HeldOut]:
        """What fits gain on images that they were not fitted to, by the run's metric."""
        labels = model.labels.cpu()
        return held_out(
            model,
            folds,
            lambda q: own_scores(model, self.metric, q),
            lambda before, after: gains_of(self.metric, before, after, labels),
            weights,
        )

    def _propose(
        self,
        model: LinearModel,
        weights: Tensor | None,
        found: Sequence[HeldOut],
        radius: float,
        draw: tuple[int, int],
    ) -> tuple[list[Proposal], Virtual]:
        """Fits of the ridges that gained most on held-out images, and a virtual evolution.

        weights: of the images in the cross-entropy.
        """
        gains: dict[float, float] = {}
        lengths: dict[float, list[float]] = {}
        for fit in found:
            gains[fit.ridge] = max(fit.loss, gains.get(fit.ridge, -math.inf))
            lengths.setdefault(fit.ridge, []).append(radius * fit.length)
        ridges = sorted(lengths, key=lambda ridge: -gains[ridge])[:_RIDGES]
        fits = [model.fit(ridge, weights=weights) for ridge in ridges]
        score = virtual_fitness(model, self.metric, 0.0)
        known = [*fits, *([] if self.differences is not None else self._known(model))]
        number, wave = draw
        evolved = evolve_virtually(
            guided_fitness(model, self.metric, ridges[0], weights),
            first_individuals(known, 2 * number + wave, self.seed),
            self.configuration,
            2 * number + wave,
            self.seed,
        )
        proposers = [*(("convex", r, q) for r, q in zip(ridges, fits, strict=True))]
        proposers.append(("de", ridges[0], evolved.best))
        every = [(name, r, length, q) for name, r, q in proposers for length in lengths[r]]
        tried = torch.stack([length * q for _, _, length, q in every])
        at_zero = float(score(torch.zeros(1, model.directions))[0])
        predicted = (score(tried.float()) - at_zero).tolist()
        return [Proposal(*one, gain) for one, gain in zip(every, predicted, strict=True)], evolved

    def _correct(
        self, model: LinearModel, recipe: Tensor, leader: Proposal, images: LabelledImages
    ) -> None:
        """Corrects the model by the best network so far, before the next ones are proposed."""
        real = self._recipes(recipe, model, [leader])
        logits = self.along.logits(list(real), images, Wanted(model.slices))[0]
        model.correct(leader.q * leader.length, logits)

    def _known(self, model: LinearModel) -> list[Tensor]:
        """Coordinates of the steps to each member, and to their average."""
        members = self.probing.population.initial_size
        whole = torch.eye(members).repeat(1, model.directions // members)
        return [*model.coordinates_of(whole), model.coordinates_of(whole.mean(dim=0))]

    def proving(self, networks: int) -> int:
        """Returns the forward passes of a round's real networks, at most.

        networks: passes of one network for its statistics.
        """
        model, choice, test = self.sizes()
        return (PROPOSALS + 1) * (choice + networks) + 2 * (test + networks) + model

    def _require_finite(self, outcomes: Tensor, labels: Tensor) -> Tensor:
        """Returns the fitness of the present network's outcomes [n, ...] on fitness images."""
        fitness = ranks().lead(lambda: self.metric.fitness(outcomes, labels))
        if not math.isfinite(fitness):
            broken = int((~torch.isfinite(outcomes.view(len(labels), -1)).all(dim=1)).sum())
            where = f"on {broken} of {len(labels)} fitness images" if broken else "on all of them"
            raise DeevoError(
                f"the present network's scores by metric {self.metric.name} are NaN or infinite "
                f"{where}: mend the metric, or check images, labels and preprocessing against the "
                "model"
            )
        return fitness

    def _recipes(self, recipe: Tensor, model: LinearModel, proposals: list[Proposal]) -> Tensor:
        steps = [model.step_of(p.q) for p in proposals]
        after = self.along.after
        return torch.stack(
            [after(recipe, s, p.length) for s, p in zip(steps, proposals, strict=True)]
        )

    def _fitness(self, recipes: Tensor, images: LabelledImages) -> Tensor:
        """Fitness float64 [K] of real networks; outcomes of some at a time are kept."""
        some = recipes.split(self.probing.chunk)
        found = torch.cat(
            [self.metric.fitness(self._scores(part, images), images.labels) for part in some]
        )
        return ranks().lead(lambda: found)

    def _scores(self, recipes: Tensor, images: LabelledImages) -> Tensor:
        """Outcomes [K, n, ...] on the CPU of real networks, their statistics re-estimated."""
        evaluator, parts = self.evaluator, []
        for some in recipes.split(self.probing.chunk):
            rows = sent(self.along.compose(some), evaluator.device)
            used = evaluator.used_statistics(rows, None)
            parts.append(evaluator.image_scores(rows, images, self.metric, used).cpu())
        return torch.cat(parts)


def threads_of(model: LinearModel) -> contextlib.AbstractContextManager[None]:
    """As many threads inside as a linear model of this size is worth, whoever shares it."""
    return one_thread(model.directions * model.z0.numel() <= _SMALL)


def led(model: LinearModel, compute: Callable[[], T]) -> T:
    """Returns what is computed on a linear model, on as many threads as that is worth.

    By rank 0 where the model lies whole on every rank; else by all of them together.
    """

    def by_itself() -> T:
        with alone():
            return compute()

    with threads_of(model):
        return ranks().lead(by_itself) if model.slices.whole else compute()


def _absent_by_chance(counts: Tensor) -> float:
    """How many classes may be without an image, where others have one because images are few.

    Where k images of a class are expected, k times as many classes have one as have none. A class
    of one image is unseen by the fit of the fold that holds it: folds then measure what becomes of
    classes that no image shows, in their share of all (Good, Biometrika 40, 1953). Twice as many
    are taken for chance.
    """
    ones = int((counts == 1).sum())
    return 2 * ones * max(1.0, len(counts) / int(counts.sum()))
