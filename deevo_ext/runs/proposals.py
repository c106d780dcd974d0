"""What a round proposes, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deevo_ext.search.held_out import HeldOut
from deevo_ext.search.linear_model import LinearModel
from deevo_ext.search.virtual import Virtual


@dataclass(frozen=True)
class Proposal:
    """A step for real networks to prove.

    proposer: "convex" or "de". ridge: of its fitness. length: the share of the step that is taken.
    q: scaled coordinates float64 [d]. predicted: the mean score less the present network's on the
    model's images, by the model; score: the same for real networks on the choice images.
    """

    proposer: str
    ridge: float
    length: float
    q: Tensor
    predicted: float
    score: float = math.nan


@dataclass(frozen=True)
class Outcome:
    """What a round came to.

    step: float32 [directions] of the best proposal, None where there was none. proposals: all
    of them, in order; best: its place. gain, standard_error: of the mean score on the images that
    tested it. accepted: whether the step is taken, at best's length. left_out: directions without
    slopes. held_out: what the folds said of the best fit. virtual: what the virtual evolutions did.
    folds: the recipes float32 [folds, blocks, members] of the networks that tested the step, each
    made without the labels of one fold, and score: what the step's network comes to by those; None
    and NaN where images were enough to do without. slices: of the linear model's images, None where
    it was too small to be shared.
    """

    step: Tensor | None
    proposals: list[Proposal]
    best: int
    gain: float
    standard_error: float
    accepted: bool
    left_out: list[int]
    held_out: HeldOut
    virtual: list[Virtual]
    folds: Tensor | None = None
    score: float = math.nan
    slices: int | None = None

    @classmethod
    def nothing(
        cls, likely: HeldOut, left_out: list[int], virtual: list[Virtual], model: LinearModel
    ) -> Outcome:
        """Makes the outcome of a round that takes no step, as far as the folds' best fit says."""
        return cls(
            step=None,
            proposals=[],
            best=-1,
            gain=likely.gain,
            standard_error=likely.standard_error,
            accepted=False,
            left_out=left_out,
            held_out=likely,
            virtual=virtual,
            slices=model.slices.recorded,
        )


def best_of(proposals: Sequence[Proposal]) -> int:
    """Returns the place of the proposal of least score; one that is not finite is the worst."""
    scores = [one.score if math.isfinite(one.score) else math.inf for one in proposals]
    return scores.index(min(scores))
