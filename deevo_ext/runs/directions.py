"""What a round goes along: members on blocks, or differences of members by channel."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from deevo_ext.fitness.differences import Differences
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.recipe_state import RecipeState
from deevo_ext.runs.records import CHANNELS
from deevo_ext.runs.rounds import RoundSearch


def directed(
    rounds: RoundSearch, state: RecipeState, number: int
) -> tuple[RoundSearch, Tensor, int]:
    """Returns how round `number` goes on from a state, where it begins, and the parts it probes.

    It begins at the recipe [blocks, members], or along differences at its changes [genes, members].
    """
    if isinstance(rounds, FewRounds):
        rounds = replace(rounds, score=state.score, apart=state.folds)
    probing = rounds.probing
    if state.directions == CHANNELS:
        along = Differences.of(probing, state.genes, state.recipe, number, rounds.seed)
        return replace(rounds, differences=along), state.begun_changes(), len(along.drawn)
    if state.changes is not None:
        probing = replace(probing, genes=state.genes, changes=state.changes)
    return replace(rounds, probing=probing), state.recipe, len(state.blocks)
