"""Rounds on few images: all of them make the linear model, and folds of them choose and test.

Which blocks move together, which ridge holds a step and how long it is, is chosen by how fits to
four fifths of the images do on the fifth, on the linear model. What a step gains is then measured
by five real networks, each made without one fifth of the images, whose choices included, and scored
on it. So no image tests a network that it was fitted to; the step that is taken is fitted to all.

After the first step the present network knows all images, so that five of its steps gain less on
what they are tested on than a new image would show. The networks of the round before go on, too,
along slopes that they share with the present one, which may hold badly where they are. Both ways
of measuring say too little, if anything: one that sees a gain is enough.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deevo_ext.distributed.ranks import ranks
from deevo_ext.fitness.class_weights import image_weights
from deevo_ext.fitness.probing import KeepColumns
from deevo_ext.fitness.refit import FOLDS
from deevo_ext.fitness.resampling import gain_of
from deevo_ext.fitness.virtual import guided_fitness, virtual_fitness, virtual_scores
from deevo_ext.population.recipes import after
from deevo_ext.runs.proposals import Outcome, Proposal, best_of
from deevo_ext.runs.rounds import WAVES, RoundSearch, led, threads_of
from deevo_ext.search.held_out import LENGTHS, HeldOut
from deevo_ext.search.linear_model import LinearModel
from deevo_ext.search.virtual import Virtual, evolve_virtually, first_individuals


class _Unit:
    """What moves together in a step: blocks as they are, or all blocks as one.

    whole: the linear model. members: of its recipes; None leaves its directions as they are.
    """

    def __init__(self, whole: LinearModel, members: int | None) -> None:
        self.whole = self.model = whole
        if members is not None:
            self.model = whole.together(torch.arange(whole.directions) % members)
            self.model.scale = ranks().lead(lambda: self.model.scale)

    def step_of(self, q: Tensor, shape: torch.Size) -> Tensor:
        """Returns the step float32 of a recipe's shape for coordinates [d] of the unit's."""
        return self.whole.step_of(self.lifted(q)).reshape(shape).float()

    def lifted(self, q: Tensor) -> Tensor:
        """Returns coordinates [..., d] of the whole model for those of the unit's."""
        if self.model is self.whole:
            return q
        blocks = self.whole.directions // self.model.directions
        step = self.model.step_of(q)
        return self.whole.coordinates_of(step.repeat(*[1] * (step.dim() - 1), blocks))


@dataclass(frozen=True)
class FewRounds(RoundSearch):
    """What all rounds of a run on up to `FEW` fitness images have in common.

    score: of the present network on images that it does not know, as far as that is known. apart:
    the recipes float32 [folds, blocks, members] that the rounds before came to without the labels
    of one fold each; None before the first step, when all are the present recipe.
    """

    few = True
    score: float = math.nan
    apart: Tensor | None = None

    def sizes(self) -> tuple[int, int, int]:
        """Returns how many images make a round's model, choose, and test."""
        return len(self.images), 0, 0

    def proving(self, networks: int) -> int:
        """Returns the forward passes of a round's real networks, at most.

        networks: passes of one network for its statistics.
        """
        real = 1 + 2 * WAVES  # beside those of the folds
        # Lengths of steps from the present network, and from the folds' networks, which see all
        # images before their steps and after.
        lengths = 2 * len(LENGTHS)
        passes = (real + lengths + 2 * FOLDS) * len(self.images)
        return passes + (real + FOLDS * (lengths + 2)) * networks

    def run(
        self, recipe: Tensor, number: int, radius: float, keep: KeepColumns | None = None
    ) -> Outcome:
        """Runs round `number` from a recipe [blocks, members] with steps up to `radius` long."""
        images, metric = self.images, self.metric
        labels = images.labels.cpu()
        present = self._scores(recipe[None], images)[0]
        before = self._require_finite(present, labels)
        model, left_out = self.probing.model(recipe, images, keep)
        none = torch.zeros(1, model.directions)
        self._require_finite(virtual_scores(model, metric, none)[0], labels)
        folds = self._folds(labels)
        with threads_of(model):
            units = self._units(model, recipe)

        def held_out() -> tuple[Tensor | None, list[list[HeldOut]]]:
            weights = image_weights(model, metric)
            return weights, [self._held_out(unit.model, folds, weights) for unit in units]

        weights, fits = led(model, held_out)
        found = [(unit, fit) for unit, some in zip(units, fits, strict=True) for fit in some]
        unit, likely = max(found, key=lambda one: one[1].loss)
        nothing = Outcome.nothing(likely, left_out, [], model)
        if not likely.gain > likely.standard_error:  # NaN is no gain
            return nothing
        choices = [found[one] for one in ranks().lead(lambda: _likeliest(found, folds))]
        steps = [unit.step_of(fit.fits[k], recipe.shape) for k, (unit, fit) in enumerate(choices)]
        start = recipe.expand(FOLDS, *recipe.shape)
        tested, apart, length = self._nested(start, steps, folds, radius)
        gain, error = self._gain(present, tested)
        score = self.score - gain
        if self.apart is not None:
            bases = self.apart
            logits = self.probing.logits(list(bases), images)
            steps = led(model, lambda: self._fits(choices, logits, folds, weights, recipe.shape))
            known, tested, apart = self._gone_on(bases, steps, logits, folds, radius)
            score = min(score, ranks().lead(lambda: float(metric.fitness(tested, labels))))
            further, its_error = self._gain(known, tested)
            if not gain > error and further > its_error:
                gain, error = further, its_error
        nothing = replace(nothing, gain=gain, standard_error=error)
        if not gain > error:
            return nothing
        proposals: list[Proposal] = []
        virtual: list[Virtual] = []
        for wave in range(WAVES):
            if wave:
                self._correct(model, recipe, proposals[best_of(proposals)], images)
                unit = _Unit(model, None if unit.model is unit.whole else recipe.shape[1])
            propose = functools.partial(
                self._proposed, unit, weights, likely.ridge, length, 2 * number + wave
            )
            new, evolved = led(model, propose)
            virtual.append(evolved)
            changes = (self._fitness(self._recipes(recipe, model, new), images) - before).tolist()
            proposals += [replace(p, score=one) for p, one in zip(new, changes, strict=True)]
        best = best_of(proposals)
        return replace(
            nothing,
            step=model.step_of(proposals[best].q).float(),
            proposals=proposals,
            best=best,
            accepted=proposals[best].score < 0.0,
            virtual=virtual,
            folds=apart,
            score=score,
        )

    def _units(self, model: LinearModel, recipe: Tensor) -> list[_Unit]:
        blocks, members = recipe.shape
        return [_Unit(model, None), *([_Unit(model, members)] if blocks > 1 else [])]

    def _gain(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """The gain of the metric on the images, by their outcomes, and its standard error."""
        labels = self.images.labels.cpu()
        return ranks().lead(lambda: gain_of(self.metric, before, after, labels))

    def _nested(
        self, bases: Tensor, steps: list[Tensor], folds: list[Tensor], radius: float
    ) -> tuple[Tensor, Tensor, float]:
        """Each image's outcome [n, ...] by a network that was not fitted to it.

        bases, steps: where each fold's network starts, and its step; it is taken at the length that
        does best on the other folds' images by their networks. The other results are the folds'
        recipes and the length that does best on all.
        """
        lengths = [radius * length for length in LENGTHS]
        labels = self.images.labels.cpu()
        made = [
            torch.stack([after(base, step, length) for length in lengths])
            for base, step in zip(bases, steps, strict=True)
        ]
        parts = [
            self._scores(recipes, self.images.subset(fold))
            for recipes, fold in zip(made, folds, strict=True)
        ]

        def tested() -> tuple[Tensor, Tensor, float]:
            every = torch.cat(parts, dim=1)[:, torch.cat(folds).argsort()]
            outcomes, recipes = torch.empty_like(every[0]), torch.empty_like(bases)
            for k, fold in enumerate(folds):
                rest = numbers_but(fold, len(labels))
                best = int(self.metric.fitness(every[:, rest], labels[rest]).argmin())
                outcomes[fold], recipes[k] = every[best, fold], made[k][best]
            return outcomes, recipes, lengths[int(self.metric.fitness(every, labels).argmin())]

        return ranks().lead(tested)

    def _fits(
        self,
        choices: list[tuple[_Unit, HeldOut]],
        logits: Tensor,
        folds: list[Tensor],
        weights: Tensor | None,
        shape: torch.Size,
    ) -> list[Tensor]:
        """The steps of each fold's fit to the other folds, from its own network's logits."""
        steps = []
        for (unit, fit), own, fold in zip(choices, logits, folds, strict=True):
            others = torch.ones(len(own)) if weights is None else weights.clone()
            others[fold] = 0.0
            q = unit.model.at(own).fit(fit.ridge, weights=others)
            steps.append(unit.step_of(q, shape))
        return steps

    def _gone_on(
        self,
        bases: Tensor,
        steps: list[Tensor],
        logits: Tensor,
        folds: list[Tensor],
        radius: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outcomes [n, ...] by the folds' networks before and after their steps; their recipes.

        A network stays where the step does not better it on the images that it was fitted to: the
        slopes, which are not its own, do not hold there.
        """
        images, labels = self.images, self.images.labels
        outcomes, ends, _ = self._nested(bases, steps, folds, radius)
        ended = self._scores(ends, images)

        def gone_on() -> tuple[Tensor, Tensor, Tensor]:
            before = torch.empty_like(outcomes)
            for k, (fold, own) in enumerate(zip(folds, logits, strict=True)):
                started = self.metric.of_images(own, labels).cpu()
                before[fold], rest = started[fold], numbers_but(fold, len(started))
                both = torch.stack([started[rest], ended[k][rest]])
                stays, goes = self.metric.fitness(both, labels.cpu()[rest]).tolist()
                if not goes < stays:
                    outcomes[fold], ends[k] = before[fold], bases[k]
            return before, outcomes, ends

        return ranks().lead(gone_on)

    def _proposed(
        self, unit: _Unit, weights: Tensor | None, ridge: float, length: float, number: int
    ) -> tuple[list[Proposal], Virtual]:
        """The convex fit to all images, and a virtual evolution, as the folds would have them.

        weights: of the images in the cross-entropy.
        """
        model = unit.model
        fit = model.fit(ridge, weights=weights)
        evolved = evolve_virtually(
            guided_fitness(model, self.metric, ridge, weights),
            first_individuals([fit, *self._known(model)], number, self.seed),
            self.configuration,
            number,
            self.seed,
        )
        qs = torch.stack([fit, evolved.best])
        score = virtual_fitness(model, self.metric, 0.0)
        at_zero = float(score(torch.zeros(1, model.directions))[0])
        predicted = (score((length * qs).float()) - at_zero).tolist()
        lifted = unit.lifted(qs)
        return [
            Proposal(name, ridge, length, q, gain)
            for name, q, gain in zip(("convex", "de"), lifted, predicted, strict=True)
        ], evolved


def _likeliest(found: list[tuple[_Unit, HeldOut]], folds: list[Tensor]) -> list[int]:
    """For each fold the place of the fit that does best on the others, by the linear model."""
    rests = [numbers_but(fold, len(found[0][1].images)) for fold in folds]
    gains = [[float(fit.images[rest].mean()) for _, fit in found] for rest in rests]
    return [one.index(max(one)) for one in gains]


def numbers_but(some: Tensor, count: int) -> Tensor:
    """Returns the numbers below count that are not among some."""
    rest = torch.ones(count, dtype=torch.bool)
    rest[some] = False
    return rest.nonzero().flatten()
