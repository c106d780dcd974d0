"""What `evolve` returns: the network, where it comes from, and what it is worth."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from deevo_ext.runs.comparison import Comparison
from deevo_ext.runs.recipe_run import RecipeRun
from deevo_ext.runs.run import Evolution
from deevo_ext.runs.state import Candidate


@dataclass(frozen=True, repr=False)
class Result:
    """What `evolve` returns.

    state_dict: the evolved network, for model.load_state_dict.
    candidate: which one it is, evolved or initial, and its validation score.
    comparison: the table on the test images; None without them.
    old: the same on the old images; None without them.
    history: a dict of each round's or generation's metrics, names with slashes to floats.
    run: the RecipeRun with the recipe, or the Evolution with its optimizer.
    architecture: the module that `evolve` was given.
    """

    state_dict: dict[str, torch.Tensor]
    candidate: Candidate
    comparison: Comparison | None
    old: Comparison | None
    history: list[dict[str, float]]
    run: RecipeRun | Evolution
    architecture: nn.Module

    def model(self) -> nn.Module:
        """Returns a new module with the network's weights, on the CPU and in eval mode."""
        model = copy.deepcopy(self.architecture).cpu()
        model.load_state_dict(self.state_dict)
        return model.eval()

    def __repr__(self) -> str:
        steps = "rounds" if self.run.search == "coefficients" else "generations"
        lines = [f"Result of {len(self.history)} {steps}: {self.candidate.name}"]
        lines += [repr(table) for table in (self.comparison, self.old) if table is not None]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        tables = [table for table in (self.comparison, self.old) if table is not None]
        head, *_ = repr(self).splitlines()
        return "".join([f"<p>{head}</p>", *(table._repr_html_() for table in tables)])
