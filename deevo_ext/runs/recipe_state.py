"""The state of a search of coefficients: a recipe to which rounds are applied, and candidates."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.refit import FOLDS
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.genes import Drawn, Genes
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after, uniform
from deevo_ext.runs.records import BLOCKS, CHANNELS, GenerationRecord, RoundRecord
from deevo_ext.runs.state import Candidate, Candidates, StatisticsOf

RECIPE = "recipe"
"""The kind of the candidates that rounds make."""
FAILURES = 2
"""Rounds without a step, in a row, after which a kind of directions is asked no more."""
_TRUSTED = 0.75  # share of the predicted gain from which on the radius grows


@dataclass
class Progress:
    """Rounds along one kind of directions.

    failures: how many there were since the last step that was taken. radius: of the next step.
    """

    failures: int = 0
    radius: float = 1.0


class RecipeState(Candidates):
    """The present recipe, and the candidates so far.

    blocks: of the recipes. recipe: float32 [blocks, members] of the present network; at first that
    of the initial candidate of least score. score: of the present network. genes: what differences
    move. changes: float32 [genes, members], what differences have added to the recipe; None before
    they have. seed: of the run, by which they are drawn. round: the rounds done. paths: how it went
    along coordinates ("blocks") and differences ("channels"). best, best_changes: recipe and
    changes of the evolved candidate.
    folds, best_folds: where folds test steps, the recipes float32 [folds, blocks, members] that the
    same steps came to without the labels of one fold each, of the present network and of that
    candidate; None before a step.
    """

    def __init__(
        self,
        population: Population,
        blocks: Blocks,
        seed: int,
        statistics_of: StatisticsOf | None = None,
    ) -> None:
        super().__init__(population, statistics_of)
        self.blocks, self.seed = blocks, seed
        self.recipe, self.score = torch.empty(0), math.nan
        self.changes: torch.Tensor | None = None
        self.best: torch.Tensor | None = None
        self.best_changes: torch.Tensor | None = None
        self.folds: torch.Tensor | None = None
        self.best_folds: torch.Tensor | None = None
        self.round = 0
        self.paths = {BLOCKS: Progress(), CHANNELS: Progress()}
        self._last = BLOCKS

    @functools.cached_property
    def genes(self) -> Genes:
        """The channels that differences move."""
        return Genes.of(self.population.layout, self.blocks)

    def begun_changes(self) -> torch.Tensor:
        """Returns the present changes, none at first."""
        if self.changes is None:
            return torch.zeros(len(self.genes), self.recipe.shape[1])
        return self.changes

    def apply(self, record: GenerationRecord | RoundRecord) -> None:
        """Applies generation 0, whose best candidate is where rounds begin, or the next round."""
        if isinstance(record, RoundRecord):
            self._apply_round(record)
        else:
            self._begin(record)

    def _begin(self, record: GenerationRecord) -> None:
        if record.validation is None:
            raise ValueError("the initial candidates have no scores")
        self.keep(record.validation, 0)
        start = min(self.initial.values(), key=lambda candidate: candidate.score)
        size, self.score = self.population.initial_size, start.score
        self.recipe = uniform(len(self.blocks), size, start.members)

    @property
    def directions(self) -> str | None:
        """What the next round goes along: "blocks" or "channels"; None where nothing is left.

        The same as before after a step that was taken, else the other, while it is not exhausted.
        """
        left = [kind for kind, path in self.paths.items() if path.failures < FAILURES]
        if self._last in left and not self.paths[self._last].failures:
            return self._last
        return next((kind for kind in left if kind != self._last), left[0] if left else None)

    def _apply_round(self, record: RoundRecord) -> None:
        kind = record.directions or BLOCKS
        path = self.paths[kind]
        if record.radius != path.radius:
            raise ValueError(
                f"its radius is {record.radius}, that of the rounds before gives {path.radius}"
            )
        self.round, self._last = record.round, kind
        if record.step is None:
            path.failures += 1
            path.radius /= 2
        else:
            assert record.best is not None and record.score is not None
            taken = record.proposals[record.best]
            if kind == CHANNELS:
                self.changes = self._moved(record.step, taken.length)
            elif record.step.numel() != self.recipe.numel():
                raise ValueError("its step has another size than the recipe")
            else:
                step = record.step.reshape(self.recipe.shape)
                self.recipe = after(self.recipe, step, taken.length)
            self.folds = None if record.folds is None else self._folds_of(record.folds)
            self.score, path.failures = record.score, 0
            if taken.score <= _TRUSTED * taken.predicted:
                path.radius = min(1.0, 2 * path.radius)
            self._consider(record)
        digest = recipe_digest(self.recipe, self.changes)
        if digest != record.recipe_sha256:
            raise DeevoError(
                f"the recipe has SHA-256 {digest} after the round, the journal says "
                f"{record.recipe_sha256}: journal or package differ from those of the run"
            )

    def _folds_of(self, flat: torch.Tensor) -> torch.Tensor:
        if flat.numel() != FOLDS * self.recipe.numel():
            raise ValueError(f"its folds' recipes are not {FOLDS} of the recipe's size")
        return flat.reshape(FOLDS, *self.recipe.shape)

    def _moved(self, step: torch.Tensor, length: float) -> torch.Tensor:
        """The changes after a step [K] along the present round's differences."""
        changes = self.begun_changes()
        genes, members = changes.shape
        drawn = Drawn.of(self.round, len(step), genes, members, self.seed)
        return drawn.after(changes, step, length)

    def row(self, recipe: torch.Tensor, changes: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the row float32 [D] of a recipe, with changes or without."""
        if changes is None:
            return self.blocks.compose(self.population, recipe[None])[0].float()
        return self.genes.compose(self.population, recipe[None], changes[None])[0].float()

    def apart(self) -> list[Candidate]:
        """Returns the folds' networks: as the evolved candidate, each without a fold's labels."""
        best, made = self.evolved[RECIPE], []
        for recipe in () if self.best_folds is None else self.best_folds:
            row = self.row(recipe)
            made.append(replace(best, row=row, statistics=self._statistics_of(row, None)))
        return made

    def average(self, members: Sequence[int]) -> tuple[torch.Tensor, None]:
        """Returns the row float32 [D] of the uniform recipe of some members, even of one.

        Its last bits may differ from those of a plain average, and of the member's file.
        """
        return self.row(uniform(len(self.blocks), self.population.initial_size, members)), None

    def _candidate(self, kind: str, generation: int, members: list[int], score: float) -> Candidate:
        row, inherited = self.average(members)
        statistics = self._statistics_of(row, inherited)
        return Candidate(kind, generation, tuple(members), score, row, statistics)

    def _consider(self, record: RoundRecord) -> None:
        assert record.score is not None
        if RECIPE in self.evolved and self.evolved[RECIPE].score <= record.score:
            return
        row = self.row(self.recipe, self.changes)
        everyone = tuple(range(self.population.initial_size))
        self.best, self.best_changes, self.best_folds = self.recipe, self.changes, self.folds
        self.evolved[RECIPE] = Candidate(
            RECIPE, record.round, everyone, record.score, row, self._statistics_of(row, None)
        )


def recipe_digest(recipe: torch.Tensor, changes: torch.Tensor | None = None) -> str:
    """Returns the SHA-256 (hex) of the float32 bytes of a recipe and, where there are, changes."""
    digest = hashlib.sha256(recipe.contiguous().numpy().data)
    if changes is not None:
        digest.update(changes.contiguous().numpy().data)
    return digest.hexdigest()
