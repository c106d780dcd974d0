"""`torch.ops.deevo.plan`: what each member does in the next generation."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import Checker
from deevo_ext.ops.library import register
from deevo_ext.ops.tables import NUM_PARAMETER_COLUMNS, Setting, gene_words


def check(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    state: torch.Tensor,
    fitness: torch.Tensor,
    alive: torch.Tensor,
    generation: torch.Tensor,
    seed: int,
    choices: torch.Tensor,
    parameters: torch.Tensor,
    coefficients: torch.Tensor,
    gene_mask: torch.Tensor,
) -> None:
    """Fills choices, parameters, coefficients and gene_mask for all NP members.

    Shapes and dtypes: `deevo_ext.ops.tables`. Raises DeevoError naming the argument at fault.
    """
    c = Checker("plan", fitness.device)
    c.configuration(settings, strategies, state)
    c.tensor("fitness", fitness, torch.float64, None)
    members = fitness.numel()
    if members < 2:
        c.fail("fitness", f"of {members} members", "at least 2")
    c.tensor("alive", alive, torch.uint8, members)
    c.tensor("generation", generation, torch.int64, 1)
    c.seed(seed)
    c.plan(members, choices, coefficients)
    c.tensor("parameters", parameters, torch.float64, members, NUM_PARAMETER_COLUMNS)
    # On a GPU reading the settings would wait for it, as for `configuration`.
    words = gene_words(int(settings[Setting.GENES])) if c.device.type == "cpu" else None
    c.tensor("gene_mask", gene_mask, torch.int32, members, words)


register("plan", check, mutated=("choices", "parameters", "coefficients", "gene_mask"))
