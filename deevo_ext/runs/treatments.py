"""What needs no evolution: BatchNorm statistics re-estimated or averaged, the classifier refitted.

The first and the last are done on fitness images, to the initial greedy soup, as rivals, and to the
best evolved candidate, which may be better for them. Where the statistics of every candidate are
re-estimated, the soup has its members' averaged as a further rival: on other images than those
trained on, re-estimation alone gains most, and a table without it would give evolution the credit.
Validation judges them like every candidate. Where the fitness images choose, too, what is done to
the evolved candidate is done to the networks that were made without a fold of them, and scored
there: images that a step was fitted to say nothing of what is made of it.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.classifier import Classifier, changes_of, features, find_classifier
from deevo_ext.fitness.refit import FOLDS, Refit, refit, why_no_refit
from deevo_ext.fitness.sampling import batch_indices, fold_places
from deevo_ext.fitness.statistics import Used
from deevo_ext.population.composed import changed
from deevo_ext.runs.state import Candidate, Candidates, with_tensors
from deevo_ext.runs.validation import Validation

TREATMENT_IMAGES = 10_000
"""Fitness images that treatments see at most, class-balanced."""


@dataclass(frozen=True)
class Cost:
    """What was spent, in images put through a network and in seconds."""

    forward_passes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward_passes + other.forward_passes, self.seconds + other.seconds)


class Treatments:
    """Treats candidates of a run.

    validation: scores them; its evaluator puts images through them. images: the fitness images,
    of which up to 10,000 are used. seed: of that choice and of the folds.

    costs: what each candidate that was made here took, by its name, the treatments before it
    included, the candidate that was treated not. reason: why there is no refit; empty if there is.
    """

    def __init__(self, validation: Validation, images: LabelledImages, seed: int) -> None:
        self._validation, self._seed = validation, seed
        if len(images) > TREATMENT_IMAGES:
            images = images.subset(batch_indices(images.labels, TREATMENT_IMAGES, 0, seed))
        self._images = images
        self.costs: dict[str, Cost] = {}
        self.reason = ""

    def of(self, state: Candidates) -> list[Candidate]:
        """Returns the treated initial soup and the best evolved candidate, if any, treated."""
        soup, made = state.initial["soup"], []
        if self._validation.evaluator.policy.recalibrates:
            made.append(self._accounted(lambda: self._averaged(soup), Cost()))
        made += self._both(soup, [], Cost())
        if state.evolved:
            started, passes = time.perf_counter(), self._validation.evaluator.forward_passes
            best = min(state.evolved.values(), key=lambda candidate: candidate.score)
            apart = state.apart() if self._validation.by_folds else []
            made += self._both(best, apart, self._spent(started, passes))
        return made

    def _both(self, candidate: Candidate, apart: list[Candidate], before: Cost) -> list[Candidate]:
        """Re-estimates statistics, where they are not anyway, and refits the classifier.

        apart: the networks made without a fold each, whose scores are the candidate's; or none.
        """
        made, policy = [], self._validation.evaluator.policy
        if policy.any and not policy.recalibrates:
            others: list[Candidate] = []

            def reestimated() -> Candidate:
                again = self._reestimated(candidate)
                if not apart:
                    return self._scored(again)
                others.extend(self._reestimated(one) for one in apart)
                gain = self._by_folds(apart) - self._by_folds(others)
                # Of a network that had no finite score before, nothing tells what it gained.
                known = math.isfinite(gain)
                return replace(again, score=candidate.score - gain if known else math.inf)

            treated = self._accounted(reestimated, before)
            made.append(treated)
            before = self.costs[treated.name]
            if treated.score < candidate.score:
                candidate, apart = treated, others
        classifier = self._classifier(candidate)
        if isinstance(classifier, str):
            self.reason = classifier
            return made
        started, passes = time.perf_counter(), self._validation.evaluator.forward_passes
        found = ranks().lead(functools.partial(self._fitted, candidate, apart, classifier))
        if isinstance(found, str):
            self.reason = found
            return made
        before += self._spent(started, passes)
        made.append(self._accounted(lambda: self._refitted(candidate, classifier, found), before))
        return made

    def _accounted(self, treat: Callable[[], Candidate], before: Cost) -> Candidate:
        evaluator = self._validation.evaluator
        started, passes = time.perf_counter(), evaluator.forward_passes
        treated = treat()
        self.costs[treated.name] = before + self._spent(started, passes)
        return treated

    def _spent(self, started: float, passes: int) -> Cost:
        """What was spent since then, when the evaluator had put so many images through."""
        more = self._validation.evaluator.forward_passes - passes
        return Cost(more, time.perf_counter() - started)

    def _averaged(self, candidate: Candidate) -> Candidate:
        population = self._validation.evaluator.population
        statistics = Used(population.mean_statistics(list(candidate.members)))
        return self._scored(replace(candidate, statistics=statistics, treatment="averaged"))

    def _reestimated(self, candidate: Candidate) -> Candidate:
        evaluator = self._validation.evaluator
        population = evaluator.population
        row, statistics = evaluator.policy.reestimated(candidate.row, self._images)
        tensors = population.layout.views(row)
        if statistics is not None:
            tensors |= population.statistics_layout.views(statistics)
        else:  # what a recipe can say: the sums of what the row has and what it keeps of a change
            for name, before in population.layout.views(candidate.row).items():
                tensors[name] = before + (tensors[name] - before)
        changed_ones = {
            tensor.name: tensors[tensor.name].clone() for tensor in evaluator.policy.statistics()
        }
        treated = with_tensors(population, candidate, changed_ones)
        return replace(treated, treatment="statistics")

    def _classifier(self, candidate: Candidate) -> Classifier | str:
        evaluator = self._validation.evaluator
        found = find_classifier(evaluator, candidate.row, self._images, candidate.statistics)
        if isinstance(found, str):
            return found
        weight = evaluator.population.layout.views(candidate.row)[found.weight]
        return why_no_refit(self._images.labels, len(weight)) or found

    def _refitted(self, candidate: Candidate, classifier: Classifier, found: Refit) -> Candidate:
        evaluator = self._validation.evaluator
        changes = changes_of(classifier, found)
        row = changed(evaluator.population, candidate.row, changes)
        views = evaluator.population.layout.views(row)
        treated = with_tensors(
            evaluator.population, candidate, {name: views[name].clone() for name in changes}
        )
        treated = replace(treated, treatment="classifier")
        if self._validation.by_folds:
            return replace(treated, score=candidate.score - found.gain)
        return self._scored(treated)

    def _fitted(
        self, candidate: Candidate, apart: list[Candidate], classifier: Classifier
    ) -> Refit | str:
        """Returns the refit, or says why there is none: then the run still has its result."""
        evaluator, images = self._validation.evaluator, self._images
        try:
            whole, *others = (
                features(evaluator, classifier, one.row, images, one.statistics)
                for one in [candidate, *apart]
            )
            return refit(
                *whole,
                images.labels,
                self._validation.metric,
                self._seed,
                bias=classifier.bias is not None,
                apart=others,
            )
        except DeevoError as error:  # of features that are not finite
            return str(error)

    def _scored(self, candidate: Candidate) -> Candidate:
        """Scores a candidate with the statistics it has."""
        outcomes = self._outcomes(candidate, self._validation.images)
        return replace(candidate, score=self._fitness(outcomes))

    def _by_folds(self, apart: Sequence[Candidate]) -> float:
        """The fitness of the folds, each by the network that was made without it."""
        images = self._validation.images
        places = fold_places(images.labels, FOLDS, self._seed)
        parts = [
            self._outcomes(one, images.subset(some))
            for one, some in zip(apart, places, strict=True)
        ]
        return self._fitness(torch.cat(parts)[torch.cat(places).argsort()])

    def _fitness(self, outcomes: Tensor) -> float:
        """The fitness of all validation images' outcomes [n, ...]."""
        metric, labels = self._validation.metric, self._validation.images.labels
        size = self._validation.evaluator.micro_batch
        return ranks().lead(lambda: float(metric.fitness(outcomes, labels, size)))

    def _outcomes(self, candidate: Candidate, images: LabelledImages) -> Tensor:
        """The outcome of each image [n, ...], on the CPU."""
        evaluator, statistics = self._validation.evaluator, candidate.statistics
        return evaluator.image_scores(
            candidate.row[None].to(evaluator.device),
            images,
            self._validation.metric,
            None if statistics is None else Used(statistics[None]),
        )[0].cpu()
