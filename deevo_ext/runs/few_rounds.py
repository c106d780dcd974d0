"""Rounds on few images: all of them make the linear model, and folds of them choose and test.

Which blocks move together, which ridge holds a step and how long it is, is chosen by how fits to
four fifths of the images do on the fifth, on the linear model. What a step gains is then measured
by five real networks, each made without one fifth of the images, whose choices included, and scored
on it. So no image tests a network that it was fitted to; the step that is taken is fitted to all.
The five go on from round to round beside the network that is fitted to all: their next steps start
where they are, along slopes that they share with it.
"""

from __future__ import annotations

import functools
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

    apart: the recipes float32 [folds, blocks, members] that the rounds before came to without the
    labels of one fold each; None before the first step, when all are the present recipe.
    """

    few = True
    apart: Tensor | None = None

    def sizes(self) -> tuple[int, int, int]:
        """Returns how many images make a round's model, choose, and test."""
        return len(self.images), 0, 0

    def proving(self, networks: int) -> int:
        """Returns the forward passes of a round's real networks, at most.

        networks: passes of one network for its statistics.
        """
        real = 1 + 2 * WAVES  # beside those of the folds
        lengths = len(LENGTHS) + 1  # and where they start
        passes = (real + lengths + 1 + FOLDS) * len(self.images)
        return passes + (real + FOLDS * lengths) * networks

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
        bases, logits = recipe.expand(FOLDS, *recipe.shape), None
        if self.apart is not None:
            bases, logits = self.apart, self.probing.logits(list(self.apart), images)
            for base, fold in zip(bases, folds, strict=True):
                present[fold] = self._scores(base[None], images.subset(fold))[0]

        def held_out() -> tuple[Tensor | None, list[list[HeldOut]]]:
            weights = image_weights(model, metric)
            return weights, [
                self._held_out(
                    unit.model,
                    folds,
                    weights,
                    None if logits is None else [unit.model.at(one) for one in logits],
                )
                for unit in units
            ]

        weights, fits = led(model, held_out)
        found = [(unit, fit) for unit, some in zip(units, fits, strict=True) for fit in some]
        unit, likely = max(found, key=lambda one: one[1].loss)
        nothing = Outcome.nothing(likely, left_out, [], model)
        if not likely.gain > likely.standard_error:  # NaN is no gain
            return nothing
        tested, apart, length = self._nested(bases, found, folds, radius, present)
        gain, error = ranks().lead(lambda: gain_of(metric, present, tested, labels))
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
                self._likeliest, unit, weights, likely.ridge, length, 2 * number + wave
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
        )

    def _units(self, model: LinearModel, recipe: Tensor) -> list[_Unit]:
        blocks, members = recipe.shape
        return [_Unit(model, None), *([_Unit(model, members)] if blocks > 1 else [])]

    def _nested(
        self,
        bases: Tensor,
        found: list[tuple[_Unit, HeldOut]],
        folds: list[Tensor],
        radius: float,
        present: Tensor,
    ) -> tuple[Tensor, Tensor, float]:
        """Returns each image's outcome [n, ...] by a network that was not fitted to it.

        A fold's network is the fit to the other folds whose unit and ridge did best on these by the
        linear model, at the length that did best on these by real networks. bases: the recipes that
        its step starts from. The other results are the folds' recipes and the length that did best
        on all.
        """
        lengths = [radius * length for length in LENGTHS]
        rests = [numbers_but(fold, len(present)) for fold in folds]

        def likeliest() -> list[int]:
            gains = [[float(fit.images[rest].mean()) for _, fit in found] for rest in rests]
            return [one.index(max(one)) for one in gains]

        every, made = present.new_empty(len(lengths), *present.shape), []
        for k, (fold, best) in enumerate(zip(folds, ranks().lead(likeliest), strict=True)):
            unit, fit = found[best]
            step = unit.whole.step_of(unit.lifted(fit.fits[k])).reshape(bases[k].shape).float()
            made.append(torch.stack([after(bases[k], step, length) for length in lengths]))
            every[:, fold] = self._scores(made[k], self.images.subset(fold))
        labels = self.images.labels.cpu()

        def tested() -> tuple[Tensor, Tensor, float]:
            outcomes, recipes = torch.empty_like(present), torch.empty_like(bases)
            for k, (fold, rest) in enumerate(zip(folds, rests, strict=True)):
                best = int(self.metric.fitness(every[:, rest], labels[rest]).argmin())
                outcomes[fold], recipes[k] = every[best, fold], made[k][best]
            return outcomes, recipes, lengths[int(self.metric.fitness(every, labels).argmin())]

        return ranks().lead(tested)

    def _likeliest(
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


def numbers_but(some: Tensor, count: int) -> Tensor:
    """Returns the numbers below count that are not among some."""
    rest = torch.ones(count, dtype=torch.bool)
    rest[some] = False
    return rest.nonzero().flatten()
