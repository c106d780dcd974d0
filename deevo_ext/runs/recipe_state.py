"""The state of a search of coefficients: a recipe to which rounds are applied, and candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.population import Population
from deevo_ext.population.recipes import after, uniform
from deevo_ext.runs.records import GenerationRecord, RoundRecord
from deevo_ext.runs.state import Candidate, Candidates, StatisticsOf

RECIPE = "recipe"
"""The kind of the candidates that rounds make."""
_TRUSTED = 0.75  # share of the predicted gain from which on the radius grows


class RecipeState(Candidates):
    """The present recipe, and the candidates so far.

    blocks: of the recipes. recipe: float32 [blocks, members] of the present network; at first that
    of the initial candidate of least score. round: the rounds done. radius: of the next steps.
    failures: rounds since the last step that was taken. best: the recipe of the evolved candidate.
    """

    def __init__(
        self, population: Population, blocks: Blocks, statistics_of: StatisticsOf | None = None
    ) -> None:
        super().__init__(population, statistics_of)
        self.blocks, self.dtype = blocks, population.rows.dtype
        self.recipe = torch.empty(0)
        self.best: torch.Tensor | None = None
        self.round, self.failures, self.radius = 0, 0, 1.0
        self._score: float = 0.0

    def begin(self, record: GenerationRecord) -> None:
        """Takes the initial candidates, and begins from the best of them."""
        if record.validation is None:
            raise ValueError("the initial candidates have no scores")
        self.keep(record.validation, 0)
        start = min(self.initial.values(), key=lambda candidate: candidate.score)
        size = self.population.initial_size
        self.recipe = uniform(len(self.blocks), size, start.members)

    def apply(self, record: RoundRecord) -> None:
        """Applies a round."""
        if record.radius != self.radius:
            raise ValueError(
                f"its radius is {record.radius}, that of the rounds before gives {self.radius}"
            )
        self.round = record.round
        if record.step is None:
            self.failures += 1
            self.radius /= 2
        else:
            assert record.best is not None and record.score is not None
            taken = record.proposals[record.best]
            if record.step.numel() != self.recipe.numel():
                raise ValueError("its step has another size than the recipe")
            self.recipe = after(self.recipe, record.step.reshape(self.recipe.shape), taken.length)
            self.failures = 0
            if taken.score <= _TRUSTED * taken.predicted:
                self.radius = min(1.0, 2 * self.radius)
            self._consider(record)
        if recipe_digest(self.recipe) != record.recipe_sha256:
            raise DeevoError(
                f"the recipe has SHA-256 {recipe_digest(self.recipe)} after the round, the journal "
                f"says {record.recipe_sha256}: journal or package differ from those of the run"
            )

    def row(self, recipe: torch.Tensor) -> torch.Tensor:
        """Returns the row float32 [D] of a recipe."""
        return self.blocks.compose(self.population, recipe[None])[0].float()

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
        row = self.row(self.recipe)
        everyone = tuple(range(self.population.initial_size))
        self.best = self.recipe
        self.evolved[RECIPE] = Candidate(
            RECIPE, record.round, everyone, record.score, row, self._statistics_of(row, None)
        )


def recipe_digest(recipe: torch.Tensor) -> str:
    """Returns the SHA-256 (hex) of a recipe's float32 bytes."""
    return hashlib.sha256(recipe.contiguous().numpy().data).hexdigest()
