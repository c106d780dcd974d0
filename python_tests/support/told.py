"""One generation of tell whose plan is written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deevo_ext.ops.tables import ChoiceColumn, Source
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.presets import configure
from support.operators import Evolution, evolution

PAPER = configure("paper")
PLAIN = (0, Source.MEMORY, 0.5, 0.5, 0.0)


def told(
    c: Configuration,
    members: Sequence[tuple[int, Source, float, float, float]],
    parents: Sequence[float],
    trials: Sequence[float],
    generation: int = 1,
    state: torch.Tensor | None = None,
) -> Evolution:
    """A generation whose plan is written by hand: (strategy, source, F, CR, frequency)."""
    run = evolution(c, torch.tensor(parents, dtype=torch.float64), generation=generation)
    if state is not None:
        run.state.copy_(state)
    run.choices.zero_()
    run.choices[:, ChoiceColumn.GENERATION] = generation
    run.parameters.zero_()
    for i, (strategy, source, f, cr, frequency) in enumerate(members):
        run.choices[i, ChoiceColumn.STRATEGY] = strategy
        run.choices[i, ChoiceColumn.SOURCE] = int(source)
        run.parameters[i, :3] = torch.tensor([f, cr, frequency], dtype=torch.float64)
    run.tell(torch.tensor(trials, dtype=torch.float64))
    return run
